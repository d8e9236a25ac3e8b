"""Pruning methods. Each is a function from a `Task` to the callbacks that prune while the loop trains.

The table names them all and imports none before it is called, so that a wrong name is told without torch.
"""

from collections.abc import Callable
from importlib import import_module


def later(module: str, make: Callable) -> Callable:
    """A method that `make` makes of the task and of the module of this package that has its parts."""
    return lambda task: make(task, import_module(f"{__name__}.{module}"))


METHODS: dict[str, Callable] = {
    "dense": lambda task: [],
    "random": later("shapes", lambda task, own: [own.RandomAtStart(task)]),
    "scratch": later("shapes", lambda task, own: [own.ShapeFromScratch(task)]),
    "ds-pruning": later(
        "ds_pruning", lambda task, own: [own.DSPruning(task, own.Constants.of(task.settings, task.measure))]
    ),
    "magnitude": later("scores", lambda task, own: [own.Evenly(task, own.magnitude)]),
    "snap": later("scores", lambda task, own: own.at_start(task, own.snap, [task.target])),
    "cropit-s": later("scores", lambda task, own: own.at_start(task, own.cropit, own.rounds(task.target))),
    "earlysnap": later("scores", lambda task, own: own.early(task, own.snap)),
    "earlycrop-s": later("scores", lambda task, own: own.early(task, own.cropit)),
    "demp": later("demp", lambda task, own: [own.DemonPruning(task, own.Constants(task.strength))]),
    "magnitude-unstructured": later("sparse", lambda task, own: [own.Masked(task, own.everything, own.shrink)]),
    "saliency": later("sparse", lambda task, own: [own.Masked(task, own.most_salient)]),
    "set": later("sparse", lambda task, own: [own.Masked(task, own.random_by_layer, own.grow_at_random)]),
    "rigl": later("sparse", lambda task, own: [own.Masked(task, own.random_by_layer, own.grow_by_gradient)]),
}
# Those that remove single weights and no units; all others but `dense` remove whole channels.
UNSTRUCTURED = ("magnitude-unstructured", "saliency", "set", "rigl")
# Those that have no target but a strength: how sparse the network gets is a result.
UNTARGETED = ("demp",)
# Methods that need another one's result, which is therefore made first.
NEEDS = {"scratch": "ds-pruning"}
