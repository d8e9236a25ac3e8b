"""Pruning methods: a record each. The table imports none of their code, so that a wrong name is told without torch."""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module


def find(path: str | Callable) -> Callable:
    """What "module:name" names; a module without a dot is one of this package."""
    if callable(path):
        return path
    module, name = path.split(":")
    return getattr(import_module(module if "." in module else f"{__name__}.{module}"), name)


@dataclass(frozen=True)
class Method:
    """A method is either a criterion, applied at some moment, or a callback of its own; `dense` is neither.

    label: its name in figures and tables.
    criterion: "module:name" of what scores units, `scores.Criterion`, or that itself; with it:
        when: a key of `scores.MOMENTS`: at start, in rounds, early or gradually;
        ranking: a key of `scores.RANKINGS`: over the network, or within each layer;
        combine: what a group's score is of those of its channels: mean, sum or maximum;
        images: whether the criterion looks at training images.
    callback: "module:name" of what makes the callback of a `Task`, or that itself.
    constants: "module:name" of a function of the record, settings and measure: the constants that the method reads, by
        which its runs are told apart. None: not said, and so all constants of the script tell them apart.
    needs: the method whose result it starts from, which is made first.
    structured: whether whole channels are removed, not single weights.
    targeted: whether it takes a target; without one it has strengths, and how sparse a network gets is a result.
    """

    label: str
    criterion: str | Callable = ""
    when: str = "at start"
    ranking: str = "network"
    combine: str = "mean"
    images: bool = True
    callback: str | Callable = ""
    constants: str | None = None
    needs: str | None = None
    structured: bool = True
    targeted: bool = True

    def callbacks(self, task) -> list:
        """Those that prune while the loop trains."""
        if self.criterion:
            return [find("scores:scored")(task, self)]
        return [find(self.callback)(task)] if self.callback else []

    def constants_of(self, settings, measure: str) -> dict | None:
        """The constants that it reads, name -> value; None where the record does not say."""
        if self.constants is None:
            return None
        return find(self.constants)(self, settings, measure) if self.constants else {}


def unstructured(label: str, first: str, update: str = "") -> Method:
    """Masks over single weights: the first ones, and what changes them."""

    def masked(task):
        own = import_module(f"{__name__}.sparse")
        return own.Masked(task, getattr(own, first), getattr(own, update) if update else None)

    return Method(label, callback=masked, constants="", structured=False)


DS, SCORE = "ds_pruning:constants_of", "scores:constants_of"
METHODS: dict[str, Method] = {
    "dense": Method("dense", constants=""),
    "random": Method("random", callback="shapes:RandomAtStart", constants=""),
    "scratch": Method("scratch", callback="shapes:ShapeFromScratch", constants=DS, needs="ds-pruning"),
    "ds-pruning": Method("DS-Pruning", callback="ds_pruning:DSPruning", constants=DS),
    "magnitude": Method("magnitude", "scores:magnitude", "gradually", "layer", images=False, constants=SCORE),
    "snap": Method("SNAP", "scores:snap", "at start", constants=SCORE),
    "cropit-s": Method("CroPit-S", "scores:cropit", "in rounds", constants=SCORE),
    "earlysnap": Method("EarlySNAP", "scores:snap", "early", constants=SCORE),
    "earlycrop-s": Method("EarlyCroP-S", "scores:cropit", "early", combine="maximum", constants=SCORE),
    "demp": Method("Demon Pruning", callback="demp:DemonPruning", constants="demp:constants_of", targeted=False),
    "magnitude-unstructured": unstructured("magnitude-unstructured", "everything", "shrink"),
    "saliency": unstructured("saliency", "most_salient"),
    "set": unstructured("SET", "random_by_layer", "grow_at_random"),
    "rigl": unstructured("RigL", "random_by_layer", "grow_by_gradient"),
}


def label(method: str) -> str:
    return METHODS[method].label if method in METHODS else method
