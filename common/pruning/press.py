"""The press of DS-Pruning: how chosen groups are driven to silence."""

import torch
from torch import Tensor, nn

from common.cutting import by_output
from common.groups import Groups
from common.machine import devices


class Press:
    """Drives chosen groups to silence: their scales fade, their shifts sink until nothing is above 0.

    On activations that let a sunk shift through, the shift fades too, so that the unit ends with an output of 0. When a
    press is over, both are held at values with which the unit cannot fire: scale 0, and shift 0 or below. Of a layer
    without a batch-norm the weights are the scale and the bias is the shift.

    Args:
        depths: feeder -> what its shift sinks by in units of `sink`: the deviation of its output, roughly.
    """

    def __init__(self, groups: Groups, steps: int, sink: float, fades_shift: bool, depths: dict[str, float]):
        self.depths = depths
        self.left = torch.full((len(groups),), -1, dtype=torch.int64)  # steps; -1: not chosen
        self.steps, self.sink, self.fades_shift = steps, sink, fades_shift
        self.fade = 0.01 ** (1 / steps)  # a scale is at a hundredth when its press ends
        self.plan: tuple | None = None  # per feeder, until the set of pressed groups changes

    @property
    def chosen(self) -> Tensor:
        return self.left >= 0

    @property
    def over(self) -> Tensor:
        return self.left == 0

    def add(self, chosen: Tensor) -> None:
        self.left[chosen] = self.steps
        self.plan = None

    def remove(self, groups: Tensor) -> None:
        self.left[groups] = -1
        self.plan = None

    def factors(self, groups: Groups, feeders: dict[str, nn.Module]) -> tuple[list[Tensor], ...]:
        """What to multiply scale and shift by and what the shift sinks by at each step: a tensor a feeder each."""
        pressed = self.left > 0
        none, over = torch.zeros(len(groups)), self.over.float()
        # As distances from "nothing changes", so that channels in no group, which are spread a 0, stay as they are.
        scale = torch.where(pressed, 1 - self.fade, over)
        shift = scale if self.fades_shift else over
        sink = none if self.fades_shift else torch.where(pressed, self.sink / self.steps, over * self.sink)
        scales, shifts = ([1 - groups.spread(name, values) for name in feeders] for values in (scale, shift))
        alive = {name: groups.alive_channels(name) for name in feeders}
        sinks = [self.depths[name] * groups.spread(name, sink).where(alive[name], 0.0) for name in feeders]
        # One copy for all: at the end of a press it falls between two looks.
        flat = torch.cat([*scales, *shifts, *sinks])
        sent = devices.send(flat, next(iter(feeders.values())).weight.device).split(3 * [len(v) for v in sinks])
        count = len(feeders)
        layers = list(feeders.values())
        weights = [by_output(m, m.weight) for m in layers]
        scales = [part.view(-1, *[1] * (w.dim() - 1)) for part, w in zip(sent[:count], weights, strict=True)]
        shifts, sinks = (
            [part for part, m in zip(parts, layers, strict=True) if m.bias is not None]
            for parts in (sent[count : 2 * count], sent[2 * count :])
        )
        return scales, shifts, sinks

    @torch.no_grad()
    def apply(self, groups: Groups, feeders: dict[str, nn.Module]) -> None:
        """After every step of the optimiser."""
        if not self.chosen.any():
            return
        ending = self.left == 1
        self.left[self.left > 0] -= 1
        if self.plan is None or ending.any():
            self.plan = self.factors(groups, feeders)
        scale, shift, sink = self.plan
        biases = [m.bias for m in feeders.values() if m.bias is not None]
        torch._foreach_mul_([by_output(m, m.weight) for m in feeders.values()], scale)
        if biases:
            torch._foreach_mul_(biases, shift)
            torch._foreach_sub_(biases, sink)
