"""What a pruning method is asked for, and the arithmetic of sparsity targets that all of them share."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from common import data, sparsity
from common.errors import RunFailed
from common.groups import Groups


class Unreachable(RunFailed):
    """A target that a method cannot reach without emptying a layer; a result, too."""


class Point(NamedTuple):
    """Where a method is run: at a target in [0, 1), 0 for the dense network, or at a strength."""

    target: float | None
    strength: float | None = None

    def __str__(self) -> str:
        return f"{self.target:g}" if self.strength is None else f"strength {self.strength:g}"

    @property
    def order(self) -> tuple[float, float]:
        return self.target or 0.0, self.strength or 0.0


def point_of(row: dict) -> Point:
    """That of a table's row."""
    return Point(row["target"], row["strength"])


class Measure(NamedTuple):
    """What a target is a share of. dimension: how often a layer counts by its width (its own, and what it reads)."""

    sparsity: Callable[[Groups, Tensor], Tensor]
    left: Callable[[Groups, Tensor], Tensor]
    what: str
    dimension: int


MEASURES = {
    "neuron": Measure(sparsity.neuron_sparsity, sparsity.units_left, "units", 1),
    "weight": Measure(sparsity.weight_sparsity, sparsity.weights_left, "weights", 2),
    "flops": Measure(sparsity.flops_sparsity, sparsity.flops_left, "FLOPs", 2),
}


@dataclass
class Task:
    """One run: how sparse the network is to be at its end.

    target: in [0, 1), None for a method without one, which has a strength. measure: a key of MEASURES.
    multiple: what widths in memory are padded to.
    needs: what the final.pt of the method that this one needs holds (`Method.needs`), or None.
    dataset: what the network is trained on, for methods that look at it beforehand.
    """

    target: float | None
    measure: str
    seed: int
    multiple: int
    settings: object
    needs: dict | None = None
    dataset: data.Dataset | None = None
    strength: float | None = None

    def curve(self, groups: Groups, order: Tensor) -> Tensor:
        """float64 [K + 1]: sparsity after the first 0, ..., K of the groups in `order` are removed too."""
        return MEASURES[self.measure].sparsity(groups, order)

    def first(self, groups: Groups, order: Tensor, target: float) -> Tensor:
        """The shortest beginning of `order` whose removal makes the network as sparse as `target`, or all of it."""
        curve = self.curve(groups, order)
        return order[: sparsity.removals_needed(curve, min(target, curve[-1].item()))]

    def price(self, groups: Groups) -> Tensor:
        """float64 [G]: what removing one more group of its coupling takes away, in units, weights or FLOPs."""
        prices = torch.zeros(len(groups), dtype=torch.float64)
        for coupling in groups.couplings:
            alive = groups.alive[coupling.slice].nonzero().flatten()
            left = MEASURES[self.measure].left(groups, coupling.start + alive[:1])
            prices[coupling.slice] = float(left[0] - left[-1])
        return prices

    @property
    def even_share(self) -> float:
        """The share of its channels that every layer would keep if all kept the same."""
        return (1 - self.target) ** (1 / MEASURES[self.measure].dimension)

    def most(self, groups: Groups, floor: float) -> float:
        """The sparsity with the share `floor` left of every coupling, and one channel at least."""
        return self.curve(groups, within_floor(groups, spread_order(groups, None), floor))[-1].item()

    def floor(self, groups: Groups, of_even: float) -> float:
        """The share of every coupling that must stay: `of_even` of the even share, or less where the target asks for
        it, as in narrow networks, whose layers keep whole channels."""
        floor = of_even * self.even_share
        while floor and self.most(groups, floor) < self.target:
            floor = floor / 2 if floor > 1e-3 else 0.0
        return floor

    def check(self, groups: Groups) -> None:
        """Raises Unreachable when the target cannot be reached with one channel left in every coupling."""
        most = self.most(groups, 0.0)
        if self.target > most:
            raise Unreachable(
                f"target: got {self.target:g}, but this network cannot lose more than {most:.4f} of its "
                f"{MEASURES[self.measure].what} without losing a whole layer"
            )


def spread_order(groups: Groups, generator: torch.Generator | None) -> Tensor:
    """All candidates, in an order that takes the same share from every coupling at any time.

    Within a coupling they come at random with a generator, else in their order.
    """
    place = torch.full((len(groups),), 2.0, dtype=torch.float64)
    for coupling in groups.couplings:
        size = coupling.size
        rank = torch.randperm(size, generator=generator) if generator is not None else torch.arange(size)
        place[coupling.slice] = (rank + 0.5) / size
    order = torch.argsort(place, stable=True)
    return order[groups.candidates[order]]


def within_floor(groups: Groups, order: Tensor, floor: float) -> Tensor:
    """`order` without the groups whose removal, after those before them, would leave a coupling below the share
    `floor` of its dense width, or empty."""
    sizes = torch.tensor([coupling.size for coupling in groups.couplings])
    least = (floor * sizes).ceil().long().clamp(min=1)
    spare = (groups.widths - least).clamp(min=0)
    owner = groups.coupling[order]
    taken = torch.zeros(len(order), dtype=torch.int64)  # how many of the same coupling come before
    for coupling in range(len(sizes)):
        mine = owner == coupling
        taken[mine] = torch.arange(int(mine.sum()))
    return order[taken < spare[owner]]
