"""One's own network in one's own loop: the page of docs/ as it stands, the pruner, and activations told apart."""

import copy
import re

import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional

import common
from common import Pruner, UnitWatch, load_pruned, own_activations
from common.errors import UserError
from common.pruning import Method
from tests.conftest import ROOT

EPOCHS, STEPS, BATCH = 5, 30, 48
PAGE = (ROOT / "docs/your-own-network.md").read_text(encoding="utf-8")
SNIPPETS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


class Network(nn.Module):
    """Of no shape that the repository has, with activations as people write them."""

    def __init__(self):
        super().__init__()
        self.first, self.norm1 = nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16)
        self.second, self.norm2 = nn.Conv2d(16, 32, 3, padding=1), nn.BatchNorm2d(32)
        self.relu = nn.ReLU(inplace=True)
        self.head = nn.Linear(32, 10)

    def forward(self, x):
        x = self.relu(self.norm1(self.first(x)))
        x = functional.max_pool2d(self.relu(self.norm2(self.second(x))), 2)
        return self.head(functional.relu(x.mean((2, 3))))


@pytest.fixture
def digits():
    images, labels = load_digits(return_X_y=True)
    images = torch.tensor(images, dtype=torch.float32).view(-1, 1, 8, 8) / 8 - 1
    data = torch.utils.data.TensorDataset(images[: STEPS * BATCH], torch.tensor(labels)[: STEPS * BATCH])
    torch.manual_seed(0)  # whichever tests came before
    generator = torch.Generator().manual_seed(0)
    return torch.utils.data.DataLoader(data, BATCH, shuffle=True, generator=generator)


def network() -> nn.Module:
    torch.manual_seed(0)
    return own_activations(Network(), torch.zeros(1, 1, 8, 8))


def sgd(model, rate=0.05):
    return torch.optim.SGD(model.parameters(), rate, momentum=0.9)


def one_epoch(model, optimizer, loader, loss_of=lambda out, labels: functional.cross_entropy(out, labels)):
    model.train()
    for images, labels in loader:
        loss = loss_of(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def accuracy(model, loader) -> float:
    model.eval()
    with torch.no_grad():
        return sum((model(x).argmax(1) == y).sum().item() for x, y in loader) / len(loader.dataset)


def pruner(model, optimizer, method="ds-pruning", **options):
    options = {"target": 0.6, "epochs": EPOCHS, "steps_per_epoch": STEPS, **options}
    return Pruner(model, optimizer, torch.zeros(1, 1, 8, 8), method, **options)


# The page


def test_the_snippets_of_the_page_run_and_are_as_short_as_promised(digits, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rewrite, count, prune, criterion, keep = SNIPPETS
    limits = {count: 6, prune: 8, criterion: 3, keep: 3}
    assert all(len(snippet.strip().splitlines()) <= limit for snippet, limit in limits.items())
    model, images = Network(), next(iter(digits))[0]
    state = copy.deepcopy(model.state_dict())
    names = {"model": model, "images": images, "loader": digits, "torch": torch, "MyNetwork": network}
    names |= {"load_pruned": load_pruned, "program": common.program}
    exec(rewrite, names)
    assert list(names["model"].state_dict()) == list(state)
    optimizer = names["optimizer"] = sgd(names["model"])
    names["train_one_epoch"] = lambda model, loader: one_epoch(model, optimizer, loader)
    exec(count, names)
    assert len(names["counts"].dead) == 16 + 32 + 32
    with pytest.raises(UserError, match="watched already, and that watch would not follow a cut: call its close"):
        exec(prune, names)
    names["watch"].close()
    exec(prune, names)
    assert 0.8 <= names["pruner"].sparsity < 0.85
    assert accuracy(names["network"], digits) > 0.3  # of 16 units in 80
    pruned = names["network"].eval()
    exec(keep, names)
    with torch.no_grad():
        assert torch.equal(names["network"].eval()(images), pruned(images))
        program = torch.export.load("pruned.pt2").module()
        assert torch.allclose(program(images[:7]), pruned(images[:7]), atol=1e-5)
    assert all(parameter.requires_grad for parameter in names["network"].parameters())


def test_what_is_public_is_there_and_importing_it_draws_nothing():
    assert all(hasattr(common, name) for name in common.PUBLIC)
    with pytest.raises(AttributeError, match="no attribute 'Prunner'"):
        common.Prunner  # noqa: B018


# Pruning


OWN: dict = {}
exec(SNIPPETS[3], OWN)  # a criterion
scale = OWN["scale"]


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("ds-pruning", {}),
        ("ds-pruning", {"measure": "flops"}),
        ("ds-pruning", {"measure": "weight", "warmup": 0.1, "settle": 0.9}),
        ("magnitude", {}),
        ("random", {}),
        ("snap", {"batches": True}),
        ("cropit-s", {"batches": True}),
        ("earlysnap", {"batches": True}),
        (scale, {}),
        (Method("BN scale", scale, "early", images=False), {}),
    ],
)
def test_every_method_reaches_its_target_in_a_loop_of_ones_own(digits, method, options):
    model = network()
    optimizer = sgd(model)
    before = torch.get_rng_state()
    own = pruner(model, optimizer, method, **{**options, **({"batches": digits} if "batches" in options else {})})
    assert torch.equal(torch.get_rng_state(), before)
    for _ in range(EPOCHS):
        one_epoch(model, optimizer, digits)
    assert own.sparsity >= 0.6
    small = own.network()
    width = small.first.out_channels + small.second.out_channels
    assert width < 48
    assert sum(p.numel() for p in small.parameters()) == sum(p.numel() for p in model.parameters())
    assert accuracy(small, digits) > 0.3  # ten classes: it still learns


def test_what_ds_pruning_cuts_in_a_loop_of_ones_own_has_stopped_firing(digits):
    model = network()
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    own = pruner(model, optimizer)
    for _ in range(EPOCHS):
        one_epoch(model, optimizer, digits)
    (method,) = own.callbacks
    assert sum(entry["cut"] for entry in method.log) > 15
    assert sum(entry["cut_still_firing"] for entry in method.log) == 0
    assert own.counts.batches == STEPS
    assert int((~own.counts.alive).sum()) == round(own.sparsity * 80)


def test_demp_takes_a_strength(digits):
    model = network()
    optimizer = sgd(model)
    own = pruner(model, optimizer, "demp", target=None, strength=0.05)
    for _ in range(EPOCHS):
        one_epoch(model, optimizer, digits)
    assert own.network().second.out_channels <= 32


def test_an_average_of_the_weights_follows_every_cut(digits):
    model = network()
    optimizer = sgd(model)
    averaged = torch.optim.swa_utils.AveragedModel(model)
    own = pruner(model, optimizer, averages=[averaged])
    for _ in range(EPOCHS):
        one_epoch(model, optimizer, digits)
        averaged.update_parameters(model)
    assert [p.shape for p in averaged.module.parameters()] == [p.shape for p in model.parameters()]
    torch.optim.swa_utils.update_bn(digits, averaged)
    assert own.sparsity >= 0.6
    assert accuracy(averaged, digits) > 0.6


def test_it_goes_on_from_a_checkpoint_bit_for_bit(digits):
    def begun(state=None):
        model = network()
        optimizer = sgd(model)
        return model, optimizer, pruner(model, optimizer, state=state)

    def epochs(number, model, optimizer):
        for _ in range(number):
            digits.generator.manual_seed(7)
            one_epoch(model, optimizer, digits)

    model, optimizer, own = begun()
    epochs(3, model, optimizer)
    saved = copy.deepcopy((own.state_dict(), model.state_dict(), optimizer.state_dict()))
    epochs(2, model, optimizer)
    again, other, second = begun(saved[0])
    again.load_state_dict(saved[1])
    other.load_state_dict(saved[2])
    epochs(2, again, other)
    assert second.sparsity == own.sparsity >= 0.6
    for ours, theirs in zip(again.parameters(), model.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_a_network_that_is_another_than_when_its_state_was_saved_is_refused(digits):
    model = network()
    optimizer = sgd(model)
    own = pruner(model, optimizer)
    one_epoch(model, optimizer, digits)
    state = own.state_dict()
    again = network()
    other = sgd(again)
    with pytest.raises(UserError, match="state: was made with target 0.6, epochs 5; take the same here"):
        pruner(again, other, target=0.7, epochs=6, state=state)
    again = network()
    other = sgd(again)
    pruner(again, other, state=state)
    with pytest.raises(UserError, match="comes first; then load the network's and the optimizer's own states"):
        one_epoch(again, other, digits)


def test_what_another_optimizer_trains_is_named(digits):
    model = network()
    weights = [parameter for parameter in model.parameters() if parameter.dim() > 1]
    with pytest.warns(UserWarning, match="another optimizer of first.bias, norm1.weight, norm1.bias, ... would not"):
        pruner(model, torch.optim.SGD(weights, 0.1))


def test_an_epoch_in_which_nothing_was_counted_is_told(digits):
    model = network()
    watch = UnitWatch(model, torch.zeros(1, 1, 8, 8))
    model.eval()
    model(torch.zeros(2, 1, 8, 8))
    with pytest.warns(UserWarning, match="no pass was counted: the network was in evaluation mode, or called by parts"):
        assert watch.end_epoch().batches == 0


def test_a_copy_that_is_trained_beside_it_is_not_counted(digits):
    model = network()
    watch = UnitWatch(model, torch.zeros(1, 1, 8, 8))
    teacher = copy.deepcopy(model)
    one_epoch(model, sgd(model), digits)
    one_epoch(teacher, sgd(teacher), digits)
    assert watch.end_epoch().batches == STEPS
    pruner(teacher, sgd(teacher))  # nor is the copy watched


def test_passes_that_make_no_whole_batch_are_counted_as_one(digits):
    model = network()
    watch = UnitWatch(model, torch.zeros(1, 1, 8, 8), passes=4)
    one_epoch(model, sgd(model), list(digits)[:10])
    counts = watch.end_epoch()
    assert counts.batches == 3
    assert counts.pairs[0] == 10 * BATCH * 64


def test_gradients_over_several_passes_make_one_step(digits):
    model = network()
    optimizer = sgd(model)
    own = pruner(model, optimizer, passes=2, steps_per_epoch=STEPS // 2)
    for _ in range(EPOCHS):
        for number, (images, labels) in enumerate(digits):
            (functional.cross_entropy(model(images), labels) / 2).backward()
            if number % 2:
                optimizer.step()
                optimizer.zero_grad()
    assert own.sparsity >= 0.6
    assert own.counts.batches == STEPS // 2


def test_steps_that_never_come_are_told(digits):
    model = network()
    own = pruner(model, sgd(model))
    one_epoch(model, sgd(model), digits)  # another optimiser
    with pytest.warns(UserWarning, match="has made 0 of the 150 steps that Pruner was told of; .* sparsity of 0.000"):
        own.network()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"method": "magnitud"}, "method: got 'magnitud', takes random, ds-pruning, magnitude, snap"),
        ({"method": "rigl"}, "method: RigL removes no channels of a network in training; takes random"),
        ({"target": 1.0}, "target: got 1.0, DS-Pruning takes a share from 0 to below 1"),
        ({"target": None}, "target: got None, DS-Pruning takes"),
        ({"method": "demp"}, "strength: got None, Demon Pruning takes one above 0"),
        ({"measure": "neurons"}, "measure: got 'neurons', takes neuron, weight, flops"),
        ({"epochs": 0}, "epochs: got 0, takes a whole number from 1 on"),
        ({"epochs": 1, "steps_per_epoch": 4}, "epochs: 4 steps leave 2 from warmup to settle, too few"),
        ({"target": "0.5"}, "target: got '0.5', DS-Pruning takes"),
        ({"passes": 0}, "passes: got 0, takes a whole number from 1 on"),
        ({"averages": 3}, "averages: takes a list of networks"),
        ({"state": {}}, "state: takes what state_dict of a Pruner returned"),
        ({"warmup": 0.9}, "warmup, settle: got 0.9 and 0.75, take 0 <= warmup < settle <= 1"),
        ({"warmpu": 0.1}, "warmpu: no constant of a method; takes warmup, settle"),
        ({"method": "snap"}, "batches: SNAP looks at images; give it your loader"),
        ({"target": 0.999}, "target: got 0.999, but this network cannot lose more than"),
        ({"method": Method("none", lambda *_: {}, "at start", images=False)}, "none gives dict, where layer -> scores"),
    ],
)
def test_what_it_cannot_take_is_one_clear_line(change, message):
    model = network()
    options = dict(change)
    with pytest.raises(UserError, match=re.escape(message)) as raised:
        pruner(model, sgd(model), options.pop("method", "ds-pruning"), **options)
    assert "\n" not in str(raised.value)


def test_optimisers_that_cannot_be_followed_are_refused(digits):
    model = network()
    with pytest.raises(UserError, match="got a LBFGS, takes those of torch.optim but LBFGS"):
        pruner(model, torch.optim.LBFGS(model.parameters()))
    with pytest.raises(UserError, match="holds no parameter of this network"):
        pruner(model, sgd(network()))
    optimizer = sgd(model)
    pruner(model, optimizer)
    with pytest.raises(UserError, match="was given a closure"):
        optimizer.step(lambda: None)


@pytest.mark.parametrize(
    ("wrap", "inside"),
    [
        (nn.DataParallel, "in DataParallel: train what is inside, its .module"),
        (torch.compile, "by torch.compile: .*_orig"),
    ],
)
def test_a_wrapped_network_is_refused_by_name(wrap, inside):
    model = network()
    with pytest.raises(ValueError, match=f"wrapped {inside}"):
        pruner(wrap(model), sgd(model))
    with pytest.raises(ValueError, match=f"wrapped {inside}"):
        UnitWatch(wrap(model), torch.zeros(1, 1, 8, 8))


class TwoHeads(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.act = nn.Conv2d(1, 24, 3, padding=1), nn.BatchNorm2d(24), nn.ReLU()
        self.side, self.side_act = nn.Linear(4, 8), nn.ReLU()
        self.head, self.other = nn.Linear(32, 10), nn.Linear(32, 3)

    def forward(self, image, side):
        x = torch.cat([self.act(self.norm(self.conv(image))).mean((2, 3)), self.side_act(self.side(side))], 1)
        return {"digit": self.head(x), "rest": (self.other(x), None)}


def test_several_inputs_and_outputs_are_traced_and_pruned(digits):
    torch.manual_seed(0)
    model = TwoHeads()
    optimizer = torch.optim.AdamW(model.parameters(), 0.01)
    example = (torch.zeros(1, 1, 8, 8), torch.zeros(1, 4))
    own = Pruner(model, optimizer, example, target=0.5, epochs=EPOCHS, steps_per_epoch=STEPS)
    for _ in range(EPOCHS):
        for images, labels in digits:
            out = model(images, images[:, 0, 0, :4])
            loss = functional.cross_entropy(out["digit"], labels) + functional.cross_entropy(out["rest"][0], labels % 3)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    assert own.sparsity >= 0.5
    small = own.network()
    assert small.conv.out_channels + small.side.out_features == 16
    assert small.head.in_features == small.other.in_features == 16


def test_a_compiled_network_is_counted_alike_and_compiled_once(digits):
    counted = []
    for compiled in (False, True):
        torch._dynamo.reset()
        torch._dynamo.utils.counters.clear()
        model = network()
        watch = UnitWatch(model, torch.zeros(1, 1, 8, 8))
        one_epoch(torch.compile(model, backend="eager") if compiled else model, sgd(model, 0.0), digits)
        counted.append(watch.end_epoch())
    assert torch._dynamo.utils.counters["frames"]["total"] < 12
    assert [counts.batches for counts in counted] == [STEPS, STEPS]
    assert counted[0].pairs.equal(counted[1].pairs)
    assert (counted[0].fired - counted[1].fired).abs().max() < 0.2 * counted[0].pairs.max()  # in another order
