"""The claims of common/sparsity.py: what is counted, and that what is computed beforehand is what is counted after."""

from types import SimpleNamespace

import pytest
import torch
import torchvision
from torch import nn

from common.models import resnet18, resnet50
from common.sparsity import (
    flops_left,
    flops_sparsity,
    layer_flops,
    measure,
    neuron_sparsity,
    removals_needed,
    units_left,
    weight_sparsity,
    weights_left,
)
from common.studies.sparsity import Cost
from common.tracing import find_groups

torch.set_num_threads(1)
IMAGE = torch.zeros(1, 3, 32, 32)
NETWORKS = {
    "resnet18": lambda: resnet18(10, width=8),
    "resnet50": lambda: resnet50(10, width=4, stem="imagenet"),
    "mobilenet_v2": lambda: torchvision.models.mobilenet_v2(num_classes=10, width_mult=0.1),
    "flattened": lambda: nn.Sequential(
        *(nn.Conv2d(3, 8, 3, 2), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 6, 3, 2), nn.ReLU()),
        *(nn.Flatten(), nn.Linear(6 * 49, 12), nn.ReLU(), nn.Linear(12, 10)),
    ),
}


def removable(groups, seed=0):
    """int64 [K]: the candidates in random order, less one for each coupling."""
    order = torch.randperm(len(groups), generator=torch.Generator().manual_seed(seed))
    kept = torch.tensor([coupling.start for coupling in groups.couplings])
    return order[groups.candidates[order] & ~torch.isin(order, kept)]


@pytest.mark.parametrize("name", NETWORKS)
def test_sparsity_computed_beforehand_is_what_is_counted_after_the_cut(name):
    torch.manual_seed(0)
    network = NETWORKS[name]()
    groups = find_groups(network, IMAGE)
    dense = measure(network, IMAGE)
    assert dense.units == units_left(groups)[0] == sum(groups.layer_units.values())
    assert dense.weights == weights_left(groups)[0]
    assert dense.flops == flops_left(groups)[0]
    for cuts in (1, 5, 9):
        order = removable(groups, seed=cuts)
        units, weights = neuron_sparsity(groups, order), weight_sparsity(groups, order)
        flops = flops_sparsity(groups, order)
        assert len(units) == len(weights) == len(flops) == len(order) + 1
        k = len(order) // (10 - cuts)
        groups.cut(network, None, order[:k], multiple=8)  # padding is not to be counted
        size = measure(groups.compact(network), IMAGE)
        assert size.units == units_left(groups)[0]
        assert size.weights == weights_left(groups)[0]
        assert size.neuron_sparsity(dense) == pytest.approx(float(units[k]), abs=1e-12)
        assert size.weight_sparsity(dense) == pytest.approx(float(weights[k]), abs=1e-12)
        assert size.flops == flops_left(groups)[0] < dense.flops
        assert 1 - size.flops / dense.flops == pytest.approx(float(flops[k]), abs=1e-12)
        assert size.parameters < dense.parameters


@pytest.mark.parametrize("target", [0.0, 0.3, 0.8, 0.95])
def test_a_target_is_met_to_within_one_group(target):
    network = resnet18(10, width=8)
    groups = find_groups(network, IMAGE)
    order = removable(groups)  # all but 12 of its 488 units
    for sparsity in (of(groups, order) for of in (neuron_sparsity, weight_sparsity, flops_sparsity)):
        k = removals_needed(sparsity, target)
        assert sparsity[k] >= target
        assert k == 0 or sparsity[k - 1] < target


def test_a_target_on_the_spot_needs_no_group_more():
    groups = find_groups(resnet18(10, width=8), IMAGE)
    order = removable(groups)
    units = neuron_sparsity(groups, order)
    assert all(removals_needed(units, float(units[k])) == k for k in range(0, len(order), 7))


def test_a_target_out_of_reach_is_an_error():
    groups = find_groups(resnet18(10, width=8), IMAGE)
    with pytest.raises(ValueError, match="a sparsity of 0.999 cannot be reached: 0.9"):
        removals_needed(neuron_sparsity(groups, removable(groups)), 0.999)


def test_removing_a_group_twice_is_an_error():
    network = resnet18(10, width=8)
    groups = find_groups(network, IMAGE)
    with pytest.raises(ValueError, match="each named once"):
        weights_left(groups, [3, 3])
    groups.cut(network, None, [3])
    with pytest.raises(ValueError, match="must be alive"):
        units_left(groups, [3])


def test_flops_are_those_of_a_computation_by_hand():
    network = nn.Sequential(
        *(nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3, groups=4)),
        *(nn.Flatten(), nn.Linear(4 * 36, 5)),
    )
    flops = layer_flops(network, torch.zeros(1, 3, 8, 8))
    by_hand = {"0": 2 * 64 * 4 * 27, "3": 2 * 36 * 4 * 9, "5": 2 * 144 * 5}
    assert flops == {**by_hand, "": sum(by_hand.values())}


def test_a_batch_or_a_watched_network_counts_no_more():
    network = resnet18(10, width=8)
    network.act.register_forward_hook(lambda *_: pytest.fail("counting is not watching"))
    assert layer_flops(network, IMAGE)[""] > 0
    assert network.training


def test_published_sizes_are_found():
    """Torchvision states 11,689,512 parameters and 1.814 giga multiply-adds for its ResNet-18 at 224 x 224."""
    size = measure(resnet18(1000, stem="imagenet"), torch.zeros(1, 3, 224, 224))
    assert size.units == 3904
    assert size.parameters == 11_689_512
    assert size.flops == pytest.approx(2 * 1.814e9, rel=1e-3)


def test_an_unstructured_mask_counts_as_density_times_the_layer():
    network = NETWORKS["resnet18"]()
    dense, flops = measure(network, IMAGE), layer_flops(network, IMAGE)
    weights = network.layer1[0].conv1.weight.numel()
    sparse = measure(network, IMAGE, {"layer1.0.conv1": 0.25, "fc": 1.0})
    assert dense.weights - sparse.weights == dense.parameters - sparse.parameters == 0.75 * weights
    assert dense.flops - sparse.flops == 0.75 * flops["layer1.0.conv1"]
    assert sparse.units == dense.units


class Mixing(nn.Module):
    """A network that also multiplies matrices of its own, which no cut makes smaller."""

    def __init__(self):
        super().__init__()
        self.layers, self.table = resnet18(10, width=8), nn.Parameter(torch.ones(10, 10))

    def forward(self, x):
        return self.layers(x) @ self.table


@pytest.mark.parametrize("network", [resnet18(10, width=8), Mixing()], ids=["layers alone", "a product too"])
def test_a_run_costs_what_its_network_has_at_every_step(network):
    groups = find_groups(network, IMAGE)
    run, cost, expected = SimpleNamespace(model=network, groups=groups, densities={}, examples=7), Cost(IMAGE), 0
    for cut in ([], [3, 50], [], [100]):
        groups.cut(network, None, cut, multiple=8)
        cost.on_step(run)
        expected += 3 * 7 * measure(groups.compact(network), IMAGE).flops
    assert cost.flops == expected
