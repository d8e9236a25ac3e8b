"""Accounting: how sparse a network is, and how sparse it would be without some more of its groups.

What a network has is counted on the network itself, without padding (`Groups.compact`). What it would have is
computed from its groups alone, for every number of removals at once: that is how a target is met to within one group.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from torch.utils.flop_counter import FlopCounterMode

from common.cutting import WEIGHTED, bare_copy
from common.groups import Groups
from common.models import call, each, units


class Size(NamedTuple):
    """What a network has. Weights are those of convolutions and linear layers, without biases."""

    units: int
    weights: int
    parameters: int
    flops: int  # multiply-adds x 2 of one forward pass of one example

    def neuron_sparsity(self, dense: "Size") -> float:
        """Removed units / all units of the dense network, in [0, 1)."""
        return 1 - self.units / dense.units

    def weight_sparsity(self, dense: "Size") -> float:
        """1 - remaining / all weights of the dense network, in [0, 1)."""
        return 1 - self.weights / dense.weights


def measure(model: nn.Module, image: Tensor, densities: dict[str, float] | None = None) -> Size:
    """Count a network without padding, whose input is like `image` [1, C, H, W].

    densities: layer -> share of its weights that an unstructured mask keeps, in [0, 1]; 1 for layers not named.
    """
    masked = {name: 1 - density for name, density in (densities or {}).items()}
    weights = {name: m.weight.numel() for name, m in model.named_modules() if isinstance(m, WEIGHTED)}
    zeros = round(sum(share * weights[name] for name, share in masked.items()))
    return Size(
        units=sum(units(model, image).values()),
        weights=sum(weights.values()) - zeros,
        parameters=sum(p.numel() for p in model.parameters()) - zeros,
        flops=forward_flops(model, image, densities),
    )


def forward_flops(model: nn.Module, image: Tensor, densities: dict[str, float] | None = None) -> int:
    """FLOPs of one forward pass per example; a masked layer counts by its density."""
    return masked_flops(layer_flops(model, image), densities or {})


def masked_flops(flops: dict[str, int], densities: dict[str, float]) -> int:
    """Those of a whole network, whose layers take `flops` (`layer_flops`) without masks."""
    return round(flops[""] - sum((1 - density) * flops[name] for name, density in densities.items()))


def layer_flops(model: nn.Module, image: Tensor) -> dict[str, int]:
    """FLOPs of one forward pass per example, for each module that has any; under "", those of the whole network."""
    shadow = bare_copy(model).cpu().eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        call(shadow, each(lambda x: x.cpu(), image))
    root = type(model).__name__  # the counter's name for the network, and the first part of every layer's
    counts = {name: sum(kinds.values()) for name, kinds in counter.get_flop_counts().items()}
    return {name.removeprefix(root).removeprefix("."): count for name, count in counts.items() if name != "Global"}


# Computed from the groups.


def weights_left(groups: Groups, order: Sequence[int] | Tensor = ()) -> Tensor:
    """int64 [K + 1]: weights left after the first 0, ..., K of the alive groups in `order` [K] are removed as well."""
    return _left(groups, groups.kernels, order)


def flops_left(groups: Groups, order: Sequence[int] | Tensor = ()) -> Tensor:
    """int64 [K + 1]: FLOPs of one forward pass of one example after the first 0, ..., K of the alive groups in `order`
    [K] are removed as well. Those of convolutions and linear layers, as `forward_flops` counts them."""
    return _left(groups, _flops_of_pairs(groups), order)


def units_left(groups: Groups, order: Sequence[int] | Tensor = ()) -> Tensor:
    """int64 [K + 1]: units left after the first 0, ..., K of the alive groups in `order` [K] are removed as well."""
    order = _checked(groups, order)
    layers = [_channels_left(groups, groups.outputs[name], order) for name in groups.layer_units]
    return sum(layers, torch.zeros(len(order) + 1, dtype=torch.int64))


def neuron_sparsity(groups: Groups, order: Sequence[int] | Tensor = ()) -> Tensor:
    """float64 [K + 1], in [0, 1): removed units / all units, after the first 0, ..., K of `order` as well."""
    return 1 - units_left(groups, order).double() / sum(groups.layer_units.values())


def weight_sparsity(groups: Groups, order: Sequence[int] | Tensor = ()) -> Tensor:
    """float64 [K + 1], in [0, 1): 1 - remaining / all weights, after the first 0, ..., K of `order` as well."""
    return 1 - weights_left(groups, order).double() / _dense(groups, groups.kernels)


def flops_sparsity(groups: Groups, order: Sequence[int] | Tensor = ()) -> Tensor:
    """float64 [K + 1], in [0, 1): 1 - remaining / all FLOPs, after the first 0, ..., K of `order` as well."""
    return 1 - flops_left(groups, order).double() / _dense(groups, _flops_of_pairs(groups))


def removals_needed(sparsity: Tensor, target: float) -> int:
    """The smallest k with sparsity[k] >= target, sparsity [K + 1] being one of the three above.

    Raises ValueError if not even all K removals reach the target.
    """
    reached = (sparsity >= target - 1e-12).nonzero()
    if not len(reached):
        raise ValueError(f"a sparsity of {target:.4g} cannot be reached: {float(sparsity[-1]):.4g} at most")
    return int(reached[0])


def _flops_of_pairs(groups: Groups) -> dict[str, int]:
    """Layer -> FLOPs between one input and one output channel."""
    return {name: 2 * kernel * groups.positions[name] for name, kernel in groups.kernels.items()}


def _left(groups: Groups, per_pair: dict[str, int], order: Sequence[int] | Tensor) -> Tensor:
    """int64 [K + 1]: what is left of a quantity of which each pair of channels of a layer has so much."""
    order = _checked(groups, order)
    total = torch.zeros(len(order) + 1, dtype=torch.int64)
    for name, amount in per_pair.items():
        left = amount * _channels_left(groups, groups.outputs[name], order)
        if name in groups.inputs:
            left = left * _channels_left(groups, groups.inputs[name], order)
        total += left
    return total


def _dense(groups: Groups, per_pair: dict[str, int]) -> int:
    inputs = {name: len(table) for name, table in groups.inputs.items()}
    return sum(amount * len(groups.outputs[name]) * inputs.get(name, 1) for name, amount in per_pair.items())


def _channels_left(groups: Groups, table: Tensor, order: Tensor) -> Tensor:
    """int64 [K + 1]: alive channels of one side of one layer, channels in no group included."""
    counts = torch.bincount(table, minlength=len(groups) + 1)
    now = counts[:-1][groups.alive].sum() + counts[-1]
    return now - pad(counts[order].cumsum(0), (1, 0))


def _checked(groups: Groups, order: Sequence[int] | Tensor) -> Tensor:
    order = torch.as_tensor(order, dtype=torch.int64)
    if not groups.alive[order].all() or len(order.unique()) < len(order):
        raise ValueError("groups to remove must be alive, each named once")
    return order
