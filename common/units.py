"""Watching units: how often each one fires in the ordinary training steps of an epoch.

A forward hook on every activation layer counts, for each channel, the (example, position) pairs whose pre-activation
is above 0. Counts are exact integers in one tensor of the network's units; no activation is stored, nothing leaves
the device before the epoch ends.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from common import distributed, environment
from common.groups import Groups
from common.models import activation_layers, units

NEARLY_DEAD = 0.001  # a fire rate at or below this
SAME_WIDTH_INTEGER = {torch.bfloat16: torch.int16, torch.float16: torch.int16, torch.float32: torch.int32}
LANE_ROWS = 16384  # rows summed in a 16-bit lane, which holds counts below 2^15
CACHED = 2**18  # elements marked at a time, so that the marks stay in the processor's cache


def fire_counts(pre_activation: Tensor) -> Tensor:
    """How many elements of each channel are > 0: [B, C, ...] -> int64 [C], exact.

    A float is > 0 exactly when its bits, read as a signed integer, are. So clamping those integers to [0, 1] marks
    what fired, and several channels are summed at once as lanes of one 64-bit integer: seven times as fast on a CPU
    in bf16 and channels-last as comparing and summing, which elsewhere is fast enough. Where the channels do not fill
    the lanes, two or four positions are taken for one of as many times the channels. (The NaN whose sign bit is 0
    would count; training stops there.)
    """
    x = pre_activation.detach()
    rows, channels = x.movedim(1, -1), x.shape[1]
    lanes = 8 // x.element_size()
    at_a_time = lanes // math.gcd(lanes, channels)
    fits = x.dtype in SAME_WIDTH_INTEGER and rows.is_contiguous() and x.numel() // channels % at_a_time == 0
    if x.device.type != "cpu" or not fits:
        return (x > 0).sum([d for d in range(x.dim()) if d != 1])
    bits = rows.reshape(-1, at_a_time * channels).view(SAME_WIDTH_INTEGER[x.dtype])
    counts = torch.zeros(bits.shape[1], dtype=torch.int64)
    at_once = min(LANE_ROWS, max(1, CACHED // bits.shape[1]))
    marks = torch.empty_like(bits[:at_once])
    for part in bits.split(at_once):
        fired = torch.clamp(part, 0, 1, out=marks[: len(part)])
        counts += fired.view(torch.int64).sum(0).view(bits.dtype)
    return counts.view(at_a_time, channels).sum(0)


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
        """float64 [U] in [0, 1]."""
        return self.fired / self.pairs.double()

    @property
    def dead(self) -> Tensor:
        """bool [U]: in the network, and never fired."""
        return self.alive & (self.fired == 0)


SAVED = ("fired", "pairs", "silent", "alive")


def history(state: dict) -> list[Counts]:
    """The epochs of a run from what it saved: each of SAVED as [epochs, U], and batches."""
    columns = (state[name].unbind() for name in SAVED)
    return [Counts(*values) for values in zip(*columns, state["batches"], strict=True)]


class UnitWatch:
    """Counts the firing of every unit while the network is in training mode.

    Args:
        model: any network whose activation layers are modules, each used once in a forward pass.
        example: one image [1, C, H, W] on the model's device, for the number of units of each layer.
        passes: how many forward passes of a process make a batch; of several processes, all count.

    Raises:
        ValueError: when an activation layer is used more than once in a forward pass.
    """

    def __init__(self, model: nn.Module, example: Tensor, passes: int = 1):
        self.passes, self.passed = passes, 0
        self.layers = units(model, example)
        self.slices, start = {}, 0
        for layer, count in self.layers.items():
            self.slices[layer] = slice(start, start + count)
            start += count
        self.batch = torch.zeros(start, dtype=torch.int64, device=example.device)
        self.fired, self.silent = torch.zeros_like(self.batch), torch.zeros_like(self.batch)
        self.pairs = dict.fromkeys(self.layers, 0)  # of this process
        self.batches = 0
        self.alive = torch.ones(start, dtype=torch.bool)
        self.followed = 0  # the version of the groups
        self.places: dict[
            str, tuple[Tensor, Tensor]
        ] = {}  # layer -> its channels in use, their numbers among the units
        self.seen: set[str] = set()
        modules = activation_layers(model)
        self.hooks = [modules[layer].register_forward_pre_hook(self.count(layer)) for layer in self.layers]
        self.hooks.append(model.register_forward_hook(self.end_pass))

    def count(self, layer: str):
        def hook(module: nn.Module, inputs: tuple[Tensor]):
            if not module.training:
                return
            if layer in self.seen:
                raise ValueError(f"the activation layer {layer} is used twice in a forward pass: give each use its own")
            self.seen.add(layer)
            counts, numbers = fire_counts(inputs[0]), self.slices[layer]
            if layer in self.places:
                channels, numbers = self.places[layer]
                counts = counts[channels]
            if self.passed == 0:
                self.batch[numbers] = counts
            else:
                self.batch[numbers] += counts
            self.pairs[layer] += inputs[0].numel() // inputs[0].shape[1]

        return hook

    def end_pass(self, model: nn.Module, *_):
        if not model.training:
            return
        self.seen.clear()
        self.passed = (self.passed + 1) % self.passes
        if self.passed == 0:
            self.batch.copy_(distributed.total(self.batch))
            self.fired += self.batch
            self.silent += self.batch == 0
            self.batches += 1

    def follow(self, groups: Groups):
        """Takes note of what was cut out: the units left keep their numbers, padding is not counted."""
        if groups.version == self.followed:
            return
        self.followed = groups.version
        self.alive.zero_()
        self.batch.zero_()
        for layer, part in self.slices.items():
            channels = groups.alive_channels(layer).nonzero().flatten()
            numbers = part.start + groups.numbers(layer)[channels]
            self.alive[numbers] = True
            self.places[layer] = channels.to(self.batch.device), numbers.to(self.batch.device)

    def end_epoch(self) -> Counts:
        """The counts since the last call; the one point at which the host waits for the device."""
        pairs = self.all_pairs().repeat_interleave(torch.tensor(list(self.layers.values())))
        counts = Counts(self.fired.cpu(), pairs, self.silent.cpu(), self.alive.clone(), self.batches)
        self.fired, self.silent = torch.zeros_like(self.batch), torch.zeros_like(self.batch)
        self.pairs = dict.fromkeys(self.layers, 0)
        self.batches = 0
        return counts

    def all_pairs(self) -> Tensor:
        """int64 [layers]: (example, position) pairs of this epoch so far, of all processes."""
        return distributed.total(torch.tensor(list(self.pairs.values())))

    def part(self) -> dict:
        """The counts of an epoch that goes on, for a checkpoint."""
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

    dead_units, nearly_dead_units (which the dead are among), revived_units and dying_units are 0 or 1 a unit;
    silent_units_per_batch the share of batches in which it was silent; fire_rate in [0, 1]; entropy_bits and
    divergence_bits in bits; all are 0 for a unit that was cut out. Those that compare with the epoch before are absent
    in the first one.
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
        found["revived_units"] = before.dead & (now.fired > 0)
        found["dying_units"] = entropy(rate) < entropy(before.fire_rate)
        found["divergence_bits"] = divergence(now, before)
    return {name: values.double() * now.alive for name, values in found.items()}


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
