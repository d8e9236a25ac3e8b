"""Every score against its definition, every moment against its formula, and whole runs that end at their target."""

import csv
from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional

from common import files, models, sparsity
from common.cutting import bare_copy
from common.errors import RunFailed
from common.pruning import METHODS, scores
from common.pruning.task import Task
from common.saved import load_network
from common.tracing import find_groups
from common.training import checkpoints

IMAGE = torch.zeros(1, 1, 8, 8)


def network(activation="relu", dtype=torch.float64):
    torch.manual_seed(0)
    model = models.resnet18(10, channels=1, width=4, activation=activation).to(dtype)
    with torch.no_grad():  # shifts and scales of their own, so that no derivative is 0 by symmetry
        for norm in models.batch_norms(model):
            norm.weight.uniform_(0.5, 1.5)
            norm.bias.uniform_(-0.5, 0.5)
    return model, find_groups(model, IMAGE)


def batches(count=2, dtype=torch.float64):
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(count, 12, 1, 8, 8, generator=generator, dtype=dtype)
    return [(image, torch.randint(10, (12,), generator=generator)) for image in images]


def with_gate(model, layer, channel, value):
    """A copy of the network that multiplies one unit's output by `value`."""
    twin = bare_copy(model).eval()

    def multiply(_module, _inputs, output):
        gates = torch.ones(output.shape[1], dtype=output.dtype)
        gates[channel] = value
        return output * gates[:, None, None]

    models.activation_layers(twin)[layer].register_forward_hook(multiply)
    return twin


def loss_of(model, batch):
    return functional.cross_entropy(model(batch[0]), batch[1])


UNITS = [("act", 1), ("layer1.0.act1", 2), ("layer2.0.act2", 5), ("layer4.1.act2", 30)]


# Scores


@pytest.mark.parametrize("activation", ["relu", "leaky-relu", "swish"])
def test_snap_is_the_derivative_of_the_loss_in_a_gate_on_the_unit(activation):
    model, groups = network(activation)
    found = scores.snap(bare_copy(model).eval(), groups, batches())
    assert {name: len(values) for name, values in found.items()} == groups.layer_units
    for layer, channel in UNITS:
        slope = 0.0
        for batch in batches():
            above, below = (loss_of(with_gate(model, layer, channel, 1 + h), batch).item() for h in (1e-6, -1e-6))
            slope += (above - below) / 2e-6
        assert found[layer][channel] == pytest.approx(abs(slope), rel=1e-5)


@pytest.mark.parametrize("activation", ["relu", "leaky-relu", "swish"])
def test_cropit_is_the_derivative_of_the_gradient_flow_in_a_gate_on_the_unit(activation):
    model, groups = network(activation)

    def gradient(twin):
        """Of the mean loss over the batches, in all convolutions' and linear layers' weights."""
        weights = [module.weight for module in models.conv_and_linear(twin)]
        loss = sum(loss_of(twin, batch) for batch in batches()) / 2
        return torch.cat([part.flatten() for part in torch.autograd.grad(loss, weights)])

    held = gradient(with_gate(model, *UNITS[0], 1.0))
    found = scores.cropit(bare_copy(model).eval(), groups, batches())
    for layer, channel in UNITS:
        above, below = (held @ gradient(with_gate(model, layer, channel, 1 + h)) for h in (1e-6, -1e-6))
        assert found[layer][channel] == pytest.approx(abs(above - below).item() / 2e-6, rel=1e-4)


def test_magnitude_ranks_the_filters_of_a_layer_by_their_l2_norm():
    model, groups = network()
    found = scores.magnitude(model, groups, [])["layer1.0.conv1"]
    norms = [model.layer1[0].conv1.weight[c].square().sum().sqrt().item() for c in range(4)]
    assert found.argsort().tolist() == sorted(range(4), key=norms.__getitem__)


@pytest.mark.parametrize(("how", "of"), [("mean", torch.mean), ("sum", torch.sum), ("maximum", torch.max)])
def test_the_score_of_a_group_is_that_of_its_units_combined(how, of):
    _, groups = network()
    given = {name: torch.rand(count, dtype=torch.float64) for name, count in groups.layer_units.items()}
    combined = scores.combined(groups, given, how)
    assert len(combined) == len(groups)
    for number in range(len(groups)):
        mine = [given[name][groups.channels(name) == number] for name in given]
        assert combined[number] == pytest.approx(of(torch.cat(mine)).item())
    assert groups.units[groups.couplings[0].start] == 3


def test_of_each_coupling_the_lowest_go_first_and_the_same_share_of_all():
    _, groups = network()
    score = torch.rand(len(groups), dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    left = groups.alive.clone()
    left[scores.lowest_of_each_first(groups, score)[: len(groups) // 2]] = False
    for coupling in groups.couplings:
        stays = left[coupling.slice]
        assert int(stays.sum()) * 2 == coupling.size
        assert score[coupling.slice][stays].min() > score[coupling.slice][~stays].max()
    assert scores.lowest_first(groups, score).tolist() == score.argsort().tolist()


def pruned(criterion, target, definition, recorded):
    """The network that a score at the start leaves; `recorded` sees each copy that is scored."""
    model, groups = network(dtype=torch.float32)

    def criterion_seen(copy, *rest):
        recorded.append(copy)
        return criterion(copy, *rest)

    images, labels = (torch.cat(parts) for parts in zip(*batches(dtype=torch.float32), strict=True))
    dataset = SimpleNamespace(train=images, batches=lambda *_: iter([(images, labels)]))
    settings = SimpleNamespace(batch_size=12, per_pass=12, augmentation=(), definition=definition)
    run = SimpleNamespace(model=model, groups=groups, optimizer=torch.optim.SGD(model.parameters(), 0.1))
    callback = scores.AtStart(Task(target, "neuron", 0, 1, settings, None, dataset), METHODS["snap"])
    callback.criterion = criterion_seen
    callback.prepare(run)
    return callback, run


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("criterion", [scores.snap, scores.cropit])
def test_a_copy_is_scored_in_the_mode_of_the_definition_and_the_network_is_as_before(criterion, training):
    seen = []
    callback, run = pruned(criterion, 0.0, {"training": training}, seen)
    run.model.train()
    before = {name: tensor.clone() for name, tensor in run.model.state_dict().items()}
    state = torch.get_rng_state()
    callback.on_start(run)
    assert [copy.training for copy in seen] == [training]
    assert run.model.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in run.model.state_dict().items())
    assert all(parameter.grad is None for parameter in run.model.parameters())
    assert not any(module._forward_hooks for module in run.model.modules())
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("criterion", [scores.snap, scores.cropit])
def test_the_lowest_of_all_layers_go_first_and_an_emptied_layer_keeps_its_best(criterion):
    callback, run = pruned(criterion, 0.9, {}, [])
    groups = run.groups
    copy = bare_copy(run.model).eval()
    score = scores.combined(groups, criterion(copy, groups, scores.scoring_batches(callback.task, 0)))
    callback.on_start(run)
    best = [coupling.start + int(score[coupling.slice].argmax()) for coupling in groups.couplings]
    assert groups.alive[best].all()
    others = torch.ones(len(groups), dtype=torch.bool)
    others[best] = False
    kept, gone = score[others & groups.alive], score[others & ~groups.alive]
    assert len(gone)
    assert not len(kept) or kept.min() >= gone.max()


def test_scores_that_are_all_alike_end_the_run_in_one_clear_line():
    def alike(copy, groups, _batches):
        return {name: torch.ones(count) for name, count in groups.layer_units.items()}

    callback, run = pruned(alike, 0.5, {}, [])
    run.progress = 0.0
    with pytest.raises(RunFailed, match="SNAP gives every unit the score 1 after 0% of training, so there is nothing"):
        callback.on_start(run)
    assert run.groups.alive.all()


def test_the_floor_of_a_definition_is_that_of_ds_pruning():
    callback, run = pruned(scores.snap, 0.8, {"floor": 0.5}, [])
    callback.on_start(run)
    sizes = torch.tensor([coupling.size for coupling in run.groups.couplings])
    assert (run.groups.widths >= (0.1 * sizes).ceil()).all()


def test_a_run_has_the_constants_of_its_own_method_and_no_others(call, tmp_path):
    methods = "dense random magnitude snap cropit-s earlysnap earlycrop-s"
    flags = f"--study neuron-sparsity --sparsities 0.5 --epochs 3 --hold-out 1300 --methods {methods}"
    assert call("Resnet18", flags)[0] == 0
    found = {c["method"]: c["constants"] for c in (files.load(p)["config"] for p in tmp_path.rglob("final.pt"))}
    definition = {"training": False, "combine": "mean", "floor": 0.0, "gradual": False}
    expected = dict.fromkeys(("snap", "cropit-s", "earlysnap"), definition)
    expected["earlycrop-s"] = definition | {"combine": "maximum"}
    expected["magnitude"] = {**definition, "warmup": 0.2, "settle": 0.75, "plan_power": 1.5}
    assert found == {method: expected.get(method, {}) for method in methods.split()}


def test_the_distance_is_the_relative_change_of_the_weights_in_an_epoch():
    model, groups = network()
    callback = scores.AtEarlyEpoch(Task(0.5, "neuron", 0, 1, None), METHODS["earlysnap"])
    run = SimpleNamespace(model=model, groups=groups, epochs=300, epoch=0)
    for factor in (1.0, 1.5, 0.8):
        with torch.no_grad():
            for module in models.conv_and_linear(model):
                module.weight *= factor
        callback.on_epoch_start(run)
    assert callback.distances == pytest.approx([0.5, 0.2])


# Whole runs


def rows(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_scoring_leaves_no_trace_in_network_watch_and_batches(call, tmp_path):
    """Pruned to a sparsity of 0 before the first step, training is the dense one to the last bit."""
    call("Resnet18", "--study neuron-sparsity --sparsities 0 --epochs 1 --hold-out 1000 --methods dense snap cropit-s")
    finals = [files.load(path) for path in tmp_path.glob("state/**/final.pt")]
    assert len(finals) == 3
    for final in finals:
        assert all(torch.equal(final["model"][name], finals[0]["model"][name]) for name in final["model"])
        assert torch.equal(final["counts"]["fired"], finals[0]["counts"]["fired"])


RIVALS = [name for name, method in METHODS.items() if method.criterion]


@pytest.mark.parametrize("study", ["neuron-sparsity", "weight-sparsity", "flops-sparsity"])
def test_every_structured_method_ends_at_its_target_on_the_network_that_is_saved(call, tmp_path, study):
    methods = [*RIVALS, "random", "ds-pruning"]
    flags = f"--study {study} --sparsities 0.8 --epochs 3 --hold-out 1000 --batch-size 64 --methods {' '.join(methods)}"
    assert call("Resnet18", flags)[::2] == (0, "")
    dense = models.resnet18(10, channels=1, width=8)
    groups, whole = find_groups(dense, IMAGE), sparsity.measure(dense, IMAGE)
    measure = study.split("-")[0]
    price = Task(0.5, measure, 0, 1, None).price(groups).max().item()
    price /= {"neuron": whole.units, "weight": whole.weights, "flops": whole.flops}[measure]
    found = {(row["method"], float(row["target"])): row for row in rows(tmp_path / "out/Resnet18" / f"{study}.csv")}
    assert found.keys() == {(method, 0.8) for method in methods}
    for path in tmp_path.glob("state/**/final.pt"):
        config = files.load(path)["config"]
        size, row = sparsity.measure(load_network(path), IMAGE), found[config["method"], config["target"]]
        assert size.flops == int(row["inference_flops"])
        removed = {"neuron": size.neuron_sparsity(whole), "weight": size.weight_sparsity(whole)}
        assert all(float(row[f"{name}_sparsity"]) == pytest.approx(share) for name, share in removed.items())
        got = {**removed, "flops": 1 - size.flops / whole.flops}[measure]
        assert 0 <= got - config["target"] < price


def interrupted_after(epoch, monkeypatch):
    """Stops a run as Ctrl-C does, when that epoch's checkpoint is on the disk."""
    whole = checkpoints.Checkpoints.on_epoch_end

    def stop(self, run):
        whole(self, run)
        if run.epoch == epoch:
            raise KeyboardInterrupt

    monkeypatch.setattr(checkpoints.Checkpoints, "on_epoch_end", stop)


@pytest.mark.parametrize("epoch", [1, 2])  # before and after the network is cut
def test_an_early_pruning_run_that_was_interrupted_ends_as_if_untouched(call, tmp_path, monkeypatch, epoch):
    flags = "--study neuron-sparsity --sparsities 0.95 --epochs 6 --methods earlysnap --hold-out 1100"
    assert call("Resnet18", flags, run_dir=tmp_path / "whole")[0] == 0
    with monkeypatch.context() as patch:
        interrupted_after(epoch, patch)
        assert call("Resnet18", flags)[0] == 130
    assert call("Resnet18", flags)[0] == 0
    whole, pieces = (files.load(next((tmp_path / name).glob("**/final.pt"))) for name in ("whole", "state"))
    assert whole["AtEarlyEpoch"] == pieces["AtEarlyEpoch"]
    assert whole["AtEarlyEpoch"]["pruned_after"] == 2
    assert all(torch.equal(whole["model"][name], pieces["model"][name]) for name in whole["model"])


# Wrong use


def test_a_small_training_set_is_scored_over_the_batches_it_has(call):
    from common import data

    made = data.load(SimpleNamespace(dataset="digits", batch_size=500, device=torch.device("cpu")))
    settings = SimpleNamespace(batch_size=500, per_pass=250, augmentation=())
    seen = list(scores.scoring_batches(Task(0.5, "weight", 0, 1, settings, None, made), 3))
    assert sum(len(labels) for _, labels in seen) == len(made.train)
    flags = "--study weight-sparsity --sparsities 0.5 --epochs 1 --batch-size 500 --methods snap saliency"
    assert call("Resnet18", flags)[0] == 0


@pytest.mark.parametrize("method", ["snap", "cropit-s", "earlysnap", "earlycrop-s", "saliency"])
def test_a_training_set_too_small_for_a_score_is_an_error_before_training(call, tmp_path, method):
    flags = f"--study weight-sparsity --sparsities 0.5 --epochs 1 --batch-size 1000 --methods {method}"
    status, _, error = call("Resnet18", flags)
    assert (status, len(error.splitlines())) == (2, 1)
    assert "BATCH_SIZE: got 1000" in error
    assert "1437 training images" in error
    assert not list(tmp_path.rglob("checkpoint.pt"))


def test_a_target_out_of_reach_is_listed_and_leaves_a_row_without_accuracy(call, tmp_path):
    status, _, error = call("Resnet18", "--study neuron-sparsity --sparsities 0.5 0.99 --epochs 1 --methods snap")
    assert status == 2
    assert "snap 0.99 seed 0" in error
    assert "without losing a whole layer" in error
    reached, missed = rows(tmp_path / "out/Resnet18/neuron-sparsity.csv")
    assert float(reached["test_accuracy"]) > 0
    assert (missed["method"], missed["target"], missed["test_accuracy"]) == ("snap", "0.99", "")
