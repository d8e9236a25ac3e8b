"""What each constant of a script may be, and what a protocol makes of one that is None.

Nothing here imports torch: wrong values are told without.
"""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from common import names
from common.errors import UserError
from common.pruning import METHODS

AUGMENTATIONS = ("crop", "flip", "cutout")
CIFAR_RECIPE = {"stem": "cifar", "batch_size": 128, "schedule": "one-cycle", "weight_decay": 5e-4}
PROTOCOLS = {
    # What a constant that is None in the script becomes.
    "published": {
        "width": 64,
        "stem": "imagenet",
        "epochs": 100,
        "batch_size": 16,
        "schedule": "constant",
        "weight_decay": 0.0,
        "augmentation": (),
    },
    "gpu": {**CIFAR_RECIPE, "width": 64, "epochs": 30, "augmentation": AUGMENTATIONS},
    "cpu": {**CIFAR_RECIPE, "width": 16, "epochs": 10, "augmentation": AUGMENTATIONS},
    # A mirrored digit is another sign, and Cutout hides a third of an 8x8 one: crops only.
    "quick": {**CIFAR_RECIPE, "width": 8, "epochs": 3, "batch_size": 32, "augmentation": ("crop",)},
}
# Constants that some scripts do not have, and what their absence means.
ABSENT = {
    "micro_batch": 0,
    "learning_rate_warmup": 0.0,
    "label_smoothing": 0.0,
    "checkpoint_steps": 0,
    "pretrained": False,
    "gradient_clip": 0.0,
    "noise_std": 0.0,
    "regularization": (0.0,),
    "hold_out": 0,
    "again": False,
    "formats": ("png",),
    "network": "resnet18",
    "jobs": 1,
    "cluster": "none",
    "silence": 90.0,
}


@dataclass(frozen=True)
class Kind:
    """What one constant may be: how a value is read, which values pass, and the words for them."""

    read: Callable
    passes: Callable
    takes: str
    several: bool = False
    optional: bool = False
    most: float | None = None  # the largest number


def whole(value) -> int:
    number = float(value)
    if number != int(number):
        raise ValueError
    return int(number)


def truth(value) -> bool:
    if not isinstance(value, bool):
        raise ValueError
    return value


def one_of(*names: str, **options) -> Kind:
    return Kind(str, lambda v: v in names, "one of " + ", ".join(names), **options)


LARGEST = {float: 1e32, whole: 10**6}  # unless told otherwise: what is larger is a slip, and overflows somewhere


def number(passes: Callable, takes: str, read: Callable = float, most: float | None = None, **options) -> Kind:
    most = LARGEST[read] if most is None else most
    return Kind(read, lambda v: math.isfinite(v) and passes(v), takes, most=most, **options)


TRUTH = Kind(truth, lambda v: True, "True or False")
TEXT = Kind(str, lambda v: v != "", "a path")
POSITIVE = number(lambda v: v > 0, "a number > 0")
POSITIVES = number(lambda v: v > 0, "numbers > 0", several=True)
FROM_ZERO = number(lambda v: v >= 0, "a number >= 0")
COUNT = number(lambda v: v > 0, "a whole number > 0", whole)
NATURAL = number(lambda v: v >= 0, "a whole number >= 0", whole)

KINDS = {
    "STUDY": TEXT,
    "PROTOCOL": one_of("auto", *PROTOCOLS),
    "DATASET": Kind(str, lambda v: v != "", "cifar10, digits or the path of an image folder"),
    "DATA_DIR": TEXT,
    "OUTPUT_DIR": TEXT,
    "RUN_DIR": TEXT,
    "DEVICE": Kind(str, lambda v: v != "", "auto, cpu, cuda, mps or xpu, with an index where there are several"),
    "PRECISION": one_of("auto", "bf16", "fp32"),
    "SEEDS": number(lambda v: v >= 0, "whole numbers >= 0", whole, 2**32 - 1, several=True),
    "ACTIVATION": one_of(*names.ACTIVATIONS),
    "NETWORK": Kind(
        str,
        lambda v: v in names.NETWORKS or re.fullmatch(r"[\w.]+:\w+", v) is not None,
        f"{', '.join(names.NETWORKS)}, or module:function of your own",
    ),
    "WIDTH": number(lambda v: v > 0, "a whole number > 0", whole, 4096),
    "STEM": one_of(*names.STEMS),
    "EPOCHS": COUNT,
    "BATCH_SIZE": number(lambda v: v > 1, "a whole number > 1 (batch norm needs two examples)", whole),
    "BATCH_SIZES": number(lambda v: v > 1, "whole numbers > 1 (batch norm needs two examples)", whole, several=True),
    "LEARNING_RATES": POSITIVES,
    "SCHEDULE": one_of("constant", "one-cycle"),
    "MOMENTUM": number(lambda v: 0 <= v < 1, "a number in [0, 1)"),
    "WEIGHT_DECAY": FROM_ZERO,
    "GRADIENT_CLIP": FROM_ZERO,
    "NOISE_STD": FROM_ZERO,
    "REGULARIZATION": number(lambda v: v >= 0, "numbers >= 0", several=True),
    "REGULARIZATIONS": number(lambda v: v >= 0, "numbers >= 0", several=True),
    "METHODS": Kind(str, lambda v: v in METHODS, "any of " + ", ".join(METHODS), several=True),
    "DEMP_STRENGTHS": POSITIVES,
    "SPARSITIES": number(lambda v: 0 <= v < 1, "numbers in [0, 1)", several=True),
    "PRUNING_LEARNING_RATE": POSITIVE,
    "WARMUP": number(lambda v: 0 <= v < 1, "a number in [0, 1), a share of training"),
    "SETTLE": number(lambda v: 0 < v <= 1, "a number in (0, 1], a share of training"),
    "PATIENCE": COUNT,
    "EXTEND": TRUTH,
    "AGAIN": TRUTH,
    "FORMATS": one_of("png", "pdf", "svg", several=True),
    "JOBS": number(lambda v: v > 0, "a whole number > 0", whole, 1024),
    "CLUSTER": one_of("none", "slurm", "local"),
    "SLURM": Kind(
        str,
        lambda v: re.fullmatch(r"[a-z][a-z-]*(=\S+)?", v) is not None,
        "options of sbatch without --, as time=12:00:00 or partition=gpus",
        several=True,
        optional=True,
    ),
    "HOLD_OUT": NATURAL,
    "AUGMENTATION": one_of(*AUGMENTATIONS, several=True, optional=True),
    "MICRO_BATCH": number(lambda v: v >= 0 and v != 1, "0 or a whole number > 1", whole),
    "LEARNING_RATE_WARMUP": FROM_ZERO,
    "LABEL_SMOOTHING": number(lambda v: 0 <= v < 1, "a number in [0, 1)"),
    "CHECKPOINT_STEPS": NATURAL,
    "SILENCE": number(lambda v: v >= 2, "a number of seconds >= 2"),
    "PRETRAINED": TRUTH,
    "IMAGE_SIZE": number(lambda v: v >= 8, "a whole number >= 8", whole, 8192),
    "WORKERS": number(lambda v: v >= 0, "a whole number >= 0", whole, 1024),
}


def kind_of(name: str, default) -> Kind:
    """What a constant may be: as KINDS says; of one that a script has of its own, what its value is."""
    if name in KINDS:
        return KINDS[name]
    several = isinstance(default, (list, tuple))
    one = default[0] if several and default else default
    if isinstance(one, bool):
        return TRUTH
    if isinstance(one, (int, float)):
        read, what = (whole, "whole number") if isinstance(one, int) else (float, "number")
        return number(lambda v: True, what + "s" if several else f"a {what}", read, several=several)
    return Kind(str, lambda v: v != "", "texts" if several else "a text", several=several)


def check(name: str, value, default=None):
    """`value` as the constant `name` takes it: a number, a text, a truth value, or a tuple of them.

    default: its value in the script, for a constant that only the script has.

    Raises:
        UserError: naming the constant, what it got and what it takes.
    """
    kind = kind_of(name, default)
    if kind.several:
        values = list(value) if isinstance(value, (list, tuple)) else [value]
        if values or kind.optional:
            return tuple(dict.fromkeys(check_one(name, kind, v) for v in values))
        raise UserError(f"{name}: got nothing, takes {kind.takes}")
    return check_one(name, kind, value)


def check_one(name: str, kind: Kind, value):
    try:
        read = kind.read(value)
        good = kind.passes(read)
    except (ValueError, TypeError, OverflowError):
        good = False
    if good and kind.most is not None and abs(read) > kind.most:
        most = f"{kind.most:,}" if isinstance(kind.most, int) else f"{kind.most:g}"
        raise UserError(f"{name}: got {value!r}, takes {kind.takes}, at most {most}")
    if not good:
        raise UserError(f"{name}: got {value!r}, takes {kind.takes}")
    return read


def reader(name: str, kind: Kind | None = None) -> Callable:
    """What argparse calls with a flag of a command that is no script: it takes what the constant `name` takes, one
    value of them, or what `kind` says."""
    return partial(check_one, name, kind or KINDS[name])
