"""The constants at the top of a script: read, overridden by flags, completed by a protocol, checked before any work.

A script's constant NAME is the flag --name, the comment behind it is the flag's help. What a constant may be is
said here once for all scripts. What can be checked without torch is checked before torch is imported.
"""

import argparse
import ast
import math
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace

from common import environment, names
from common.errors import UserError
from common.pruning import METHODS, UNSTRUCTURED

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
}


@dataclass(frozen=True)
class Kind:
    """What one constant may be: how a value is read, which values pass, and the words for them."""

    read: Callable
    passes: Callable
    takes: str
    several: bool = False
    optional: bool = False


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


def number(passes: Callable, takes: str, read: Callable = float, **options) -> Kind:
    return Kind(read, lambda v: math.isfinite(v) and passes(v), takes, **options)


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
    "SEEDS": number(lambda v: v >= 0, "whole numbers >= 0", whole, several=True),
    "ACTIVATION": one_of(*names.ACTIVATIONS),
    "WIDTH": COUNT,
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
    "HOLD_OUT": NATURAL,
    "AUGMENTATION": one_of(*AUGMENTATIONS, several=True, optional=True),
    "MICRO_BATCH": number(lambda v: v >= 0 and v != 1, "0 or a whole number > 1", whole),
    "LEARNING_RATE_WARMUP": FROM_ZERO,
    "LABEL_SMOOTHING": number(lambda v: 0 <= v < 1, "a number in [0, 1)"),
    "CHECKPOINT_STEPS": NATURAL,
    "PRETRAINED": TRUTH,
    "IMAGE_SIZE": number(lambda v: v >= 8, "a whole number >= 8", whole),
    "WORKERS": NATURAL,
}


def check(name: str, value):
    """`value` as the constant `name` takes it: a number, a text, a truth value, or a tuple of them.

    Raises:
        UserError: naming the constant, what it got and what it takes.
    """
    kind = KINDS[name]
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
    if not good:
        raise UserError(f"{name}: got {value!r}, takes {kind.takes}")
    return read


def reader(name: str, kind: Kind | None = None) -> Callable:
    """What argparse calls with a flag of a command that is no script: it takes what the constant `name` takes, one
    value of them, or what `kind` says."""
    return partial(check_one, name, kind or KINDS[name])


def constants_of(script: Path) -> dict[str, str]:
    """NAME -> the comment behind it, for every constant at the top level of a script, in order."""
    lines = script.read_text(encoding="utf-8").splitlines()
    found = {}
    for node in ast.parse("\n".join(lines)).body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and node.targets[0].id in KINDS:
            found[node.targets[0].id] = lines[node.end_lineno - 1][node.end_col_offset :].lstrip(" #")
    return found


class Parser(argparse.ArgumentParser):
    """Flags without abbreviations, whose mistakes are a UserError."""

    def __init__(self, doc: str, name: str | None = None):
        form = argparse.RawDescriptionHelpFormatter
        super().__init__(prog=name, description=doc, allow_abbrev=False, formatter_class=form)

    def error(self, message: str):
        raise UserError(f"{message}; --help lists all flags")


def shown(value, settled_by: str) -> str:
    if value is None:
        return f"the {settled_by}'s"
    return " ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


def parse(script: Path, doc: str, constants: dict, arguments: list[str] | None) -> dict:
    """Lower-case name -> value: the script's constants with the flags' values in their place."""
    parser = Parser(doc, script.name)
    comments = constants_of(script)
    by_study = {name for values in constants.get("BY_STUDY", {}).values() for name in values}
    for name, comment in comments.items():
        kind = KINDS[name]
        default = shown(constants[name], "study" if name in by_study else "protocol")
        flag, text = "--" + name.lower().replace("_", "-"), f"{comment} [{default}]".replace("%", "%%")
        shape = {"action": argparse.BooleanOptionalAction} if kind.read is truth else {"metavar": "VALUE"}
        if kind.several:
            shape = {"nargs": "*" if kind.optional else "+", "metavar": "VALUE"}
        parser.add_argument(flag, dest=name, default=constants[name], help=text, **shape)
    return {name.lower(): value for name, value in vars(parser.parse_args(arguments)).items()}


def folder_for(name: str, path: Path) -> Path:
    """Makes the folder and proves that a file can be written into it; others may prove the same at the same time."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=path).close()
    except OSError as error:
        raise UserError(f"{name}: got {str(path)!r}, takes a folder that can be written ({error.strerror})") from None
    return path


def check_study(settings: SimpleNamespace) -> None:
    """Raises UserError for constants that are right one by one and cannot be together, or not in this study."""
    if settings.study in names.STRUCTURED:
        for method in settings.methods:
            if method in UNSTRUCTURED:
                raise UserError(
                    f"METHODS: got {method!r}, which removes single weights and no units; takes any of "
                    f"{', '.join(m for m in METHODS if m not in UNSTRUCTURED)}, or STUDY weight-sparsity"
                )
    if hasattr(settings, "settle") and settings.warmup >= settings.settle:
        raise UserError(f"SETTLE: got {settings.settle:g}, takes a moment after WARMUP, {settings.warmup:g}")
    if settings.study in names.MEASURES and len(settings.regularization) > 1:
        raise UserError(f"REGULARIZATION: got {len(settings.regularization)} values, takes one in a sparsity study")
    if settings.study == "regularization" and settings.regularization is not None:
        raise UserError("REGULARIZATION: not used in the study regularization, which takes REGULARIZATIONS")


def passes_of(batch_size: int, micro_batch: int) -> int:
    """How many forward passes of each process make a step.

    Raises:
        UserError: when the processes cannot share a batch equally.
    """
    ranks = environment.ranks()
    at_once = ranks * micro_batch if micro_batch else ranks
    if batch_size % at_once or batch_size // at_once * max(micro_batch, 1) < 2:
        of = f" in passes of MICRO_BATCH {micro_batch}" if micro_batch else ""
        least = at_once if micro_batch else 2 * ranks
        raise UserError(
            f"BATCH_SIZE: got {batch_size}, which {ranks} process{'es' * (ranks > 1)} cannot share equally{of}; "
            f"takes a multiple of {at_once}, {least} or more"
        )
    return batch_size // at_once if micro_batch else 1


def given(script_globals: dict, studies: tuple[str, ...], arguments: list[str] | None) -> dict:
    """Lower-case name -> value of every constant, for None the study's; checked, as far as it goes without a device.

    Raises:
        UserError: for the first constant that is wrong.
    """
    values = parse(Path(script_globals["__file__"]), script_globals["__doc__"], script_globals, arguments)
    values = {name: value if value is None else check(name.upper(), value) for name, value in values.items()}
    if values["study"] not in studies:
        raise UserError(f"STUDY: got {values['study']!r}, takes one of {', '.join(studies)}")
    for name, value in script_globals.get("BY_STUDY", {}).get(values["study"], {}).items():
        if values[name.lower()] is None:
            values[name.lower()] = check(name, value)
    check_study(SimpleNamespace(**values))
    values = ABSENT | values
    if values["batch_size"] is not None:  # else the protocol has one, which may go by the device
        passes_of(values["batch_size"], values["micro_batch"])
    return values


def follow_protocol(values: dict) -> None:
    """Settles what is still None, in place; `auto` is settled by the dataset and the device."""
    if values.get("protocol") == "auto":
        by_device = "cpu" if values["device"].type == "cpu" else "gpu"
        values["protocol"] = "quick" if values["dataset"] == "digits" else by_device
    for name, value in PROTOCOLS.get(values.get("protocol"), {}).items():
        if values[name] is None:
            values[name] = value


def read(
    script_globals: dict, studies: tuple[str, ...], arguments: list[str] | None = None, processes: bool = False
) -> SimpleNamespace:
    """The settings of a script: its constants, the command line's flags in their place, for None the study's or the
    protocol's.

    Args:
        script_globals: the script's `globals()`; its BY_STUDY says what NAMEs that are None become in a study.
        studies: the studies the script has.
        arguments: the command line, `sys.argv[1:]` by default.
        processes: whether the script runs under torchrun, in several processes; they have joined on return.

    Returns:
        One attribute for each constant (lower case), and `script` (its name), `device` (torch.device),
        `precision` (`bf16` or `fp32`), `output_dir` and `run_dir` (Path, writable), `per_pass` (examples in one forward
        pass of a process) and `passes` (of a process in a step).

    Raises:
        UserError: for the first constant that is wrong; nothing has been computed then.
    """
    script = Path(script_globals["__file__"])
    if environment.ranks() > 1 and not processes:
        raise UserError(f"{script.name} is for one process: start it without torchrun (Imagenet.py runs in several)")
    values = given(script_globals, studies, arguments)
    from common import devices, distributed  # which import torch

    values["device"] = devices.pick(values["device"])
    values["precision"] = devices.pick_precision(values["precision"], values["device"])
    follow_protocol(values)
    values["passes"] = passes_of(values["batch_size"], values["micro_batch"])
    values["per_pass"] = values["batch_size"] // (values["passes"] * environment.ranks())
    devices.use(values["device"])
    if environment.ranks() > 1:
        distributed.join(devices.backend(values["device"]))
    for name in ("output_dir", "run_dir"):
        folder = Path(values[name])
        distributed.by_first(lambda name=name, folder=folder: folder_for(name.upper(), folder))
        values[name] = folder
    return SimpleNamespace(script=script.stem, **values)
