"""Pruning methods. Each is a function from a task to the callbacks that prune while the loop trains."""

from collections.abc import Callable

from common.pruning.ds_pruning import Constants, DSPruning
from common.pruning.scores import ROUNDS, AtEarlyEpoch, AtStart, Gradually, cropit, halving, magnitude, snap
from common.pruning.shapes import RandomAtStart, ShapeFromScratch
from common.pruning.sparse import (
    Masked,
    everything,
    grow_at_random,
    grow_by_gradient,
    most_salient,
    random_by_layer,
    shrink,
)
from common.pruning.task import Task
from common.training import Callback

METHODS: dict[str, Callable[[Task], list[Callback]]] = {
    "dense": lambda task: [],
    "random": lambda task: [RandomAtStart(task)],
    "scratch": lambda task: [ShapeFromScratch(task)],
    "ds-pruning": lambda task: [DSPruning(task, Constants.of(task.settings, task.measure))],
    "magnitude": lambda task: [Gradually(task, magnitude)],
    "snap": lambda task: [AtStart(task, snap, [task.target])],
    "cropit-s": lambda task: [AtStart(task, cropit, halving(task.target, ROUNDS))],
    "earlysnap": lambda task: [AtEarlyEpoch(task, snap)],
    "earlycrop-s": lambda task: [AtEarlyEpoch(task, cropit)],
    "magnitude-unstructured": lambda task: [Masked(task, everything, shrink)],
    "saliency": lambda task: [Masked(task, most_salient)],
    "set": lambda task: [Masked(task, random_by_layer, grow_at_random)],
    "rigl": lambda task: [Masked(task, random_by_layer, grow_by_gradient)],
}
# Those that remove single weights and no units; all others but `dense` remove whole channels.
UNSTRUCTURED = ("magnitude-unstructured", "saliency", "set", "rigl")
# Methods that need another one's result, which is therefore made first.
NEEDS = {"scratch": "ds-pruning"}
