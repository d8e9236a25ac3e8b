"""Watching units: how often each one fires in the ordinary training steps of an epoch.

A hook on every activation layer counts, for each channel, the (example, position) pairs whose pre-activation is above
0. Counts are exact; no activation is stored, nothing leaves the device before the epoch ends.
"""

import math
import warnings
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate, pairwise

import torch
from torch import Tensor, nn

from common.groups import Groups
from common.machine import devices, distributed, environment
from common.machine.counting import EXACT, count_positive, fire_counts
from common.models import Inputs, activation_layers, watched

NEARLY_DEAD = 0.001  # a fire rate at or below this
ROWS = 64  # forward passes whose counts wait to be summed


def slices_of(sizes: dict[str, int]) -> dict[str, slice]:
    """Where the parts of these sizes lie in a tensor that holds them one after another."""
    ends = list(accumulate(sizes.values(), initial=0))
    return {name: slice(start, stop) for name, (start, stop) in zip(sizes, pairwise(ends), strict=True)}


def is_dead(fired: Tensor, pairs: Tensor) -> Tensor:
    """The definition: bool [U], counted and never fired. fired: int64 [U], of `pairs`, int64 [U]."""
    return (pairs > 0) & (fired == 0)


@dataclass
class Counts:
    """One epoch's counts on the CPU, in the order of the dense network's units.

    fired: int64 [U], pairs on which the unit fired; pairs: int64 [U], all pairs; silent: int64 [U], batches in which
    the unit never fired; alive: bool [U], not cut out by the end of the epoch; batches: how many there were.
    """

    fired: Tensor
    pairs: Tensor
    silent: Tensor
    alive: Tensor
    batches: int

    @property
    def fire_rate(self) -> Tensor:
        """float64 [U] in [0, 1]; nan for a unit that was never counted, as its layer ran in evaluation mode only."""
        return self.fired / self.pairs.double()

    @property
    def dead(self) -> Tensor:
        """bool [U]: in the network, and dead."""
        return self.alive & is_dead(self.fired, self.pairs)


SAVED = ("fired", "pairs", "silent", "alive")


def history(state: dict) -> list[Counts]:
    """The epochs of a run from what it saved: each of SAVED as [epochs, U], and batches."""
    columns = (state[name].unbind() for name in SAVED)
    return [Counts(*values) for values in zip(*columns, state["batches"], strict=True)]


class UnitWatch:
    """Counts the firing of every unit while the network is in training mode.

    Every forward pass fills a row of `rows`, a column for each channel in memory; they are summed when all are full, a
    look is made or the epoch ends. So a pass costs one launch for each activation layer (two where it is no ReLU).

    What is no training step is not counted: passes in evaluation mode or without gradients, what activation
    checkpointing computes again, a pass that ended in an error, and all that happens within `paused`.

    Args:
        model: any network whose activation layers are modules, each used once in a forward pass.
        example: one image [1, C, H, W] on the model's device, or a tuple of inputs, for the units of each layer.
        passes: how many forward passes of a process make a batch; of several processes, all count.

    Raises:
        ValueError: for what cannot be watched, by name (activations that are functions, or of a kind that does not say
            when a unit fires); and when an activation layer is used more than once in a forward pass.
    """

    def __init__(self, model: nn.Module, example: Inputs, passes: int = 1):
        seen = watched(model, example)
        seen.check()
        self.passes, self.device = passes, (example[0] if isinstance(example, tuple) else example).device
        self.layers = {name: layer.units for name, layer in seen.layers.items()}
        self.dims = {name: layer.dim for name, layer in seen.layers.items()}
        self.slices = slices_of(self.layers)
        count = sum(self.layers.values())
        # On the host, what is known of each unit: what was counted before the last change of columns, so far.
        self.fired, self.silent = torch.zeros(2, count, dtype=torch.int64)
        self.alive = torch.ones(count, dtype=torch.bool)
        self.pairs = dict.fromkeys(self.layers, 0)  # of this process
        self.batches, self.followed = 0, 0  # the latter: the version of the groups
        self.lay_out(dict(self.layers), torch.arange(count))
        self.seen: dict[str, int] = {}  # the layers of this pass, and their positions
        self.inside, self.pauses = False, 0  # of a pass that counts
        modules = activation_layers(model)
        self.hooks = [self.hook(modules[layer], layer) for layer in self.layers]
        begin, self.model = torch.compiler.disable(self.begin_pass), weakref.ref(model)
        begin.watch = self
        self.hooks.append(model.register_forward_pre_hook(begin))
        self.hooks.append(model.register_forward_hook(torch.compiler.disable(self.end_pass)))

    def lay_out(self, channels: dict[str, int], numbers: Tensor) -> None:
        """Begins anew with a column for every channel in memory.

        numbers: int64 [columns], the unit of each; the number of all units at padding.
        """
        self.columns, self.numbers = slices_of(channels), numbers
        self.rows = torch.zeros(max(1, ROWS // self.passes) * self.passes, len(numbers), device=self.device)
        self.row, self.last = 0, None  # the next one; those of the last batch
        self.sums = torch.zeros(2, len(numbers), dtype=torch.int64, device=self.device)  # of rows: fired, silent

    def hook(self, module: nn.Module, layer: str):
        """On a ReLU's output what is not 0 fired, which an accelerator counts in one launch. Not compiled with the
        network: that would be anew in every step."""

        @torch.compiler.disable
        def before(module: nn.Module, inputs: tuple) -> None:
            self.count(module, layer, inputs[0])

        @torch.compiler.disable
        def after(module: nn.Module, _inputs: tuple, output: Tensor) -> None:
            self.count(module, layer, output, output)

        if self.device.type != "cpu" and isinstance(module, (nn.ReLU, nn.ReLU6)):
            return module.register_forward_hook(after)
        return module.register_forward_pre_hook(before)

    def count(self, module: nn.Module, layer: str, x: Tensor, positive: Tensor | None = None) -> None:
        """Adds what a layer saw, [B, C, ...]; `positive` has the same values above 0 and no others but 0."""
        if not module.training or not self.inside:
            return
        if layer in self.seen:
            raise ValueError(f"the activation layer {layer} is used twice in a forward pass: give each use its own")
        if self.dims[layer] != 1:
            x, positive = x.movedim(-1, 1), None if positive is None else positive.movedim(-1, 1)
        columns, positions = self.columns[layer], x.numel() // x.shape[1]
        if x.shape[1] != columns.stop - columns.start:
            raise ValueError(
                f"{layer} was cut to {x.shape[1]} channels without this watch: close it (or let it follow)"
            )
        row = self.rows[self.row, columns]
        if positions > EXACT:
            counts = (x.detach() > 0).sum([d for d in range(x.dim()) if d != 1])
            row.copy_(counts.clamp(max=EXACT))
            self.sums[0, columns] += distributed.total(counts - counts.clamp(max=EXACT))
        elif x.device.type == "cpu":
            row.copy_(fire_counts(x))
        else:
            count_positive(x.detach().clamp_min(0) if positive is None else positive.detach(), row)
        self.seen[layer] = positions

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Passes that are no training steps: a second one for the training accuracy, the first of two of SAM, ..."""
        self.pauses += 1
        try:
            yield
        finally:
            self.pauses -= 1

    def begin_pass(self, model: nn.Module, *_):
        own = self.model() is model  # a copy has the same hooks
        self.inside = own and model.training and torch.is_grad_enabled() and not self.pauses
        if self.seen:  # of a pass that ended in an error
            self.rows[self.row] = 0
            self.seen.clear()

    def end_pass(self, model: nn.Module, *_):
        if not self.inside:
            return
        self.inside = False
        for layer, positions in self.seen.items():
            self.pairs[layer] += positions
        for layer in self.layers.keys() - self.seen.keys():  # a block that was passed over
            self.rows[self.row, self.columns[layer]] = 0
        self.seen.clear()
        self.row += 1
        if self.row % self.passes == 0:
            self.batches, self.last = self.batches + 1, slice(self.row - self.passes, self.row)
        if self.row == len(self.rows):
            self.sum_rows()

    def sum_rows(self) -> None:
        """Adds the rows of all whole batches up, on the device, and begins again with the first."""
        if self.row == 0:
            return
        counts = distributed.total(self.of_batches(self.rows[: self.row]))
        # Of one process, 2^24 pairs in each of 64 rows fit into 32 bits; some devices sum no 64-bit integers.
        self.sums[0] += counts.sum(0, dtype=torch.int32 if environment.ranks() == 1 else torch.int64)
        self.sums[1] += (counts == 0).sum(0, dtype=torch.int32)
        self.row = 0

    def of_batches(self, rows: Tensor) -> Tensor:
        """Rows of passes to int32 [batches, columns]."""
        return rows.view(-1, self.passes, rows.shape[1]).sum(1, dtype=torch.int32)

    def silent_units(self) -> Tensor:  # bool [U] on the host, of the last batch; waits for the device
        if self.last is None:
            return torch.ones_like(self.alive)
        return self.of_units(distributed.total(self.of_batches(self.rows[self.last]))[0].cpu()) == 0

    def fired_units(self) -> Tensor:
        """int64 [U] on the device: how often each unit fired in this epoch so far. Does not wait for the device."""
        self.sum_rows()
        found = torch.cat([self.fired, torch.zeros(1, dtype=torch.int64)])
        found, numbers = (devices.send(values, self.device) for values in (found, self.numbers))
        found[numbers] = found[numbers] + self.sums[0]
        return found[:-1]

    def pairs_of_units(self) -> Tensor:  # int64 [U] on the host: (example, position) pairs of this epoch so far
        return self.all_pairs().repeat_interleave(torch.tensor(list(self.layers.values())))

    def of_units(self, values: Tensor) -> Tensor:
        """[columns] to [U], both on the host; 0 for a unit that is not in memory."""
        found = values.new_zeros(len(self.alive) + 1)
        found[self.numbers] = values
        return found[:-1]

    def collect(self) -> None:
        """Brings what was counted to the host: the one point at which it waits for the device."""
        self.sum_rows()
        fired, silent = self.sums.cpu()
        self.fired += self.of_units(fired)
        self.silent += self.of_units(silent)
        self.sums.zero_()

    def follow(self, groups: Groups):
        """Takes note of what was cut out: the units left keep their numbers, padding is not counted."""
        if groups.version == self.followed:
            return
        self.followed = groups.version
        self.collect()
        numbers = {layer: groups.numbers(layer) for layer in self.layers}
        found = [
            torch.where(own >= 0, own + part.start, len(self.alive))
            for own, part in zip(numbers.values(), self.slices.values(), strict=True)
        ]
        self.lay_out({layer: len(own) for layer, own in numbers.items()}, torch.cat(found))
        self.alive = self.of_units(torch.ones_like(self.numbers)) > 0

    def end_epoch(self) -> Counts:
        """The counts since the last call. Warns where not a single pass was counted: of such units nothing is known."""
        if rest := -self.row % self.passes:  # a batch of fewer passes
            self.rows[self.row : self.row + rest] = 0
            self.row, self.batches = self.row + rest, self.batches + 1
        self.collect()
        if self.batches == 0:
            warnings.warn("no pass was counted: the network was in evaluation mode, or called by parts", stacklevel=2)
        counts = Counts(self.fired, self.pairs_of_units(), self.silent, self.alive.clone(), self.batches)
        self.fired, self.silent = torch.zeros(2, len(self.alive), dtype=torch.int64)
        self.pairs = dict.fromkeys(self.layers, 0)
        self.batches = 0
        return counts

    def all_pairs(self) -> Tensor:  # int64 [layers]: (example, position) pairs of this epoch so far, of all processes
        return distributed.total(torch.tensor(list(self.pairs.values())))

    def part(self) -> dict:
        """The counts of an epoch that goes on, for a checkpoint."""
        self.collect()
        return {"fired": self.fired, "silent": self.silent, "batches": self.batches, "pairs": self.all_pairs()}

    def go_on(self, part: dict):
        """From the counts that `part` gave; the first process takes over the pairs of all."""
        self.fired.copy_(part["fired"])
        self.silent.copy_(part["silent"])
        self.batches = part["batches"]
        pairs = part["pairs"].tolist() if environment.rank() == 0 else [0] * len(self.layers)
        self.pairs = dict(zip(self.layers, pairs, strict=True))

    def close(self):
        for hook in self.hooks:
            hook.remove()


def entropy(rate: Tensor) -> Tensor:
    """Activation entropy H(p) = -p log2 p - (1 - p) log2(1 - p), in bits, of fire rates in [0, 1]; 0 at both ends."""
    return -(torch.special.xlogy(rate, rate) + torch.special.xlog1py(1 - rate, -rate)) / math.log(2)


def divergence(now: Counts, before: Counts) -> Tensor:
    """Bernoulli KL(p_now || p_before) of each unit, in bits, float64 [U].

    A rate of exactly 0 or 1 before would make it infinite, so both are first moved inside by half a count:
    to [1 / 2n, 1 - 1 / 2n] for n pairs.
    """

    def inside(counts: Counts) -> Tensor:
        half = 0.5 / counts.pairs.double()
        return counts.fire_rate.clamp(half, 1 - half)

    p, q = inside(now), inside(before)
    return (p * (p / q).log2() + (1 - p) * ((1 - p) / (1 - q)).log2()).clamp(min=0)


def measures(now: Counts, before: Counts | None) -> dict[str, Tensor]:
    """Every quantity watched, by unit: float64 [U] each.

    dead_units, nearly_dead_units (the dead among them), revived_units and dying_units are 0 or 1 a unit; fire_rate in
    [0, 1]; silent_units_per_batch the share of batches in which it was silent; all are 0 for a unit that was cut out or
    never counted. Those that compare with the epoch before are absent in the first one.
    """
    rate = now.fire_rate
    found = {
        "fire_rate": rate,
        "entropy_bits": entropy(rate),
        "dead_units": now.dead,
        "nearly_dead_units": rate <= NEARLY_DEAD,
        "silent_units_per_batch": now.silent / max(now.batches, 1),
    }
    if before is not None:
        found["revived_units"] = before.dead & now.alive & ~now.dead
        found["dying_units"] = entropy(rate) < entropy(before.fire_rate)
        found["divergence_bits"] = divergence(now, before).where(before.pairs > 0, 0.0)
    counted = now.alive & (now.pairs > 0)
    return {name: values.double().where(counted, 0.0) for name, values in found.items()}


TOTALS = (
    "dead_units",
    "nearly_dead_units",
    "silent_units_per_batch",
    "revived_units",
    "dying_units",
    "divergence_bits",
)


def totals(values: dict[str, Tensor]) -> dict[str, float | int | None]:
    """The sums over all units, under the names of the CSV columns; None where there is no epoch before."""
    sums = {name: values[name].sum().item() if name in values else None for name in TOTALS}
    whole = {"dead_units", "nearly_dead_units", "revived_units", "dying_units"}
    return {name: int(total) if name in whole and total is not None else total for name, total in sums.items()}


def by_layer(values: Tensor, layers: dict[str, int]) -> dict[str, float]:
    """The mean of a per-unit quantity [U] over the units of each layer."""
    return {name: part.mean().item() for name, part in zip(layers, values.split(list(layers.values())), strict=True)}
