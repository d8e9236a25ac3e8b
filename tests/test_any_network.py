"""DS-Pruning on networks that are no ResNets: with and without batch norm, linear layers, activations that leak."""

from types import SimpleNamespace

import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn

from common.errors import UserError
from common.models import activation_layers
from common.pruning.ds_pruning import DSPruning
from common.pruning.task import Task
from common.tracing import find_groups
from common.training import callbacks, loop

EPOCHS, STEPS, BATCH = 6, 40, 32
IMAGE = torch.zeros(1, 1, 8, 8)


def conv(inputs, outputs, norm=True, act=nn.ReLU):
    return [nn.Conv2d(inputs, outputs, 3, padding=1), *([nn.BatchNorm2d(outputs)] if norm else []), act()]


def vgg(norm, act=nn.ReLU):
    return nn.Sequential(
        *conv(1, 16, norm, act), *conv(16, 16, norm, act), nn.MaxPool2d(2),
        *conv(16, 32, norm, act), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(128, 10),
    )  # fmt: skip


NETWORKS = {
    "VGG with batch norm": lambda: vgg(True),
    "VGG without": lambda: vgg(False),
    "VGG without, Leaky ReLU": lambda: vgg(False, nn.LeakyReLU),
    "VGG with batch norm, SiLU": lambda: vgg(True, nn.SiLU),
    "MLP": lambda: nn.Sequential(
        nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10)
    ),
    "CNN with a linear layer": lambda: nn.Sequential(
        *conv(1, 32), *conv(32, 32), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(128, 64), nn.ReLU(),
        nn.Linear(64, 10),
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def digits():
    images, labels = load_digits(return_X_y=True)
    images = torch.tensor(images, dtype=torch.float32).view(-1, 1, 8, 8) / 8 - 1
    return images, torch.tensor(labels)


class Spied(DSPruning):
    """Notes at each cut how much the logits change, in evaluation mode, relative to their size."""

    def prepare(self, training):
        super().prepare(training)
        self.changes, cut = [], training.groups.cut

        def spied(model, *rest):
            before = self.logits(model)
            count = cut(model, *rest)
            if count:
                change = (self.logits(model) - before).abs().max() / before.abs().max()
                self.changes.append(float(change))
            return count

        training.groups.cut = spied

    @torch.no_grad()
    def logits(self, model):
        model.eval()
        found = model(self.images)
        model.train()
        return found


def pruned(model, digits, target=0.6, dead=0, warmup=0.1):
    """A run of DS-Pruning; the first `dead` units of the first layer have died before it begins."""
    images, labels = digits
    optimizer, scheduler = loop.sgd(model, 0.05, 0.9, 0.0, "constant", EPOCHS * STEPS)
    run = loop.Training(model, optimizer, scheduler, EPOCHS, STEPS, "fp32", torch.device("cpu"))
    run.groups, counts = find_groups(model, IMAGE), callbacks.UnitCounts(model, IMAGE)
    run.watch = counts.watch
    settings = SimpleNamespace(warmup=warmup, settle=0.8, patience=1)
    pruning = Spied(Task(target, "neuron", 0, 1, settings))
    pruning.images = images[:200]
    pruning.prepare(run)
    with torch.no_grad():
        for feeder in list(pruning.feeders.values())[:1]:
            feeder.weight[:dead] *= 0.01
            feeder.bias[:dead] = -3.0

    def batches(epoch):
        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(epoch))
        return ((images[part], labels[part]) for part in order[: STEPS * BATCH].split(BATCH))

    loop.train(run, batches, [callbacks.Meters(run.device), pruning, counts])
    return run, pruning


@pytest.mark.parametrize("name", NETWORKS)
def test_what_is_cut_has_stopped_firing_and_the_cut_changes_nothing(digits, name):
    torch.manual_seed(0)
    run, pruning = pruned(NETWORKS[name](), digits)
    log, groups = pruning.log, run.groups
    cut = sum(entry["cut"] for entry in log)
    assert cut > 30
    assert sum(entry["cut_still_firing"] for entry in log) == 0
    assert sum(entry["cut"] > 0 for entry in log) > 3  # along the plan, not at its end
    assert 0.6 <= log[-1]["measured"] < 0.6 + 2 / len(groups)
    assert max(pruning.changes) < 1e-5
    assert run.row["train_accuracy"] > 0.8


@pytest.mark.parametrize("act", [nn.LeakyReLU, nn.SiLU])
def test_a_unit_that_died_by_itself_and_still_has_an_output_is_pressed_before_it_is_cut(digits, act):
    torch.manual_seed(0)
    run, pruning = pruned(vgg(True, act), digits, target=0.2, dead=4, warmup=0.3)
    assert sum(entry["cut_dead_by_themselves"] for entry in pruning.log) >= 2
    assert max(pruning.changes) < 1e-5


def test_without_a_batch_norm_vitality_is_the_derivative_in_a_gate_on_the_unit(digits):
    torch.manual_seed(0)
    model, (images, labels) = vgg(False).double(), digits
    groups = find_groups(model, IMAGE)
    pruning = DSPruning(Task(0.5, "neuron", 0, 1, SimpleNamespace()))
    run = SimpleNamespace(groups=groups, model=model, total_steps=1000, device=torch.device("cpu"))
    pruning.prepare(run)
    pruning.vitality.mean_square = pruning.vitality.mean_square.double()

    def loss(layer="0", channel=0, gate=1.0):
        gates = torch.ones(model[int(layer)].out_channels, dtype=torch.float64)
        gates[channel] = gate
        act = activation_layers(model)[str(int(layer) + 1)]
        hook = act.register_forward_hook(lambda _m, _i, out: out * gates[:, None, None])
        value = nn.functional.cross_entropy(model(images[:64].double()), labels[:64])
        hook.remove()
        return value

    loss().backward()
    pruning.vitality.observe(groups, pruning.feeders)
    found = pruning.vitality.mean_square / (1 - pruning.vitality.keep)
    for coupling, channel in zip(groups.couplings, (1, 3, 5), strict=True):
        with torch.no_grad():
            up, down = (loss(coupling.bare[0], channel, 1 + h).item() for h in (1e-6, -1e-6))
        assert found[coupling.start + channel].item() == pytest.approx(
            ((up - down) / 2e-6) ** 2, rel=1e-3
        )  # pooling has kinks


def test_frozen_batch_norms_are_judged_and_pressed_and_take_no_step(digits):
    torch.manual_seed(0)
    model = vgg(True)
    for norm in (model[1], model[4]):
        norm.eval().requires_grad_(False)
    run, pruning = pruned(model, digits)
    assert pruning.log[-1]["measured"] >= 0.6
    assert sum(entry["cut_still_firing"] for entry in pruning.log) == 0
    for norm in (model[1], model[4]):
        assert not any(parameter.requires_grad for parameter in norm.parameters())
        assert (norm.weight == 1).all()  # those that are left
        assert (norm.bias == 0).all()


def test_units_that_nothing_scales_are_refused_by_name(digits):
    model = nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8, affine=False), nn.ReLU(), nn.Flatten(), nn.Linear(288, 10)
    )
    with pytest.raises(UserError, match="cannot judge the units of 2, which neither a batch-norm with a scale"):
        pruned(model, digits)
