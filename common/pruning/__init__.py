"""Pruning methods. Each is a function from a task to the callbacks that prune while the loop trains."""

from collections.abc import Callable

from common.pruning.ds_pruning import Constants, DSPruning
from common.pruning.shapes import RandomAtStart, ShapeFromScratch
from common.pruning.task import Task
from common.training import Callback

METHODS: dict[str, Callable[[Task], list[Callback]]] = {
    "dense": lambda task: [],
    "random": lambda task: [RandomAtStart(task)],
    "scratch": lambda task: [ShapeFromScratch(task)],
    "ds-pruning": lambda task: [DSPruning(task, Constants.of(task.settings))],
}
# Methods that need another one's result, which is therefore made first.
NEEDS = {"scratch": "ds-pruning"}
