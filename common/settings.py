"""The constants at the top of a script: read, overridden by flags, completed by a protocol, checked before any work.

A script's constant NAME is the flag --name, the comment behind it is the flag's help. What a constant may be is
said here once for all scripts.
"""

import argparse
import ast
import ctypes
import math
import signal
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import torch

from common import distributed
from common.models import ACTIVATIONS, STEMS

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


class UserError(Exception):
    """Something the user can mend. Its text is one line: what is wrong and what to do."""


class RunFailed(UserError):
    """One run that cannot be made or read: no reason to stop the others of a study."""


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
    "DEVICE": Kind(str, lambda v: v != "", "auto, cpu, cuda or cuda:N"),
    "PRECISION": one_of("auto", "bf16", "fp32"),
    "SEEDS": number(lambda v: v >= 0, "whole numbers >= 0", whole, several=True),
    "ACTIVATION": one_of(*ACTIVATIONS),
    "WIDTH": COUNT,
    "STEM": one_of(*STEMS),
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
    "METHODS": Kind(str, lambda v: v != "", "names of methods", several=True),
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


def constants_of(script: Path) -> dict[str, str]:
    """NAME -> the comment behind it, for every constant at the top level of a script, in order."""
    lines = script.read_text().splitlines()
    found = {}
    for node in ast.parse("\n".join(lines)).body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and node.targets[0].id in KINDS:
            found[node.targets[0].id] = lines[node.end_lineno - 1][node.end_col_offset :].lstrip(" #")
    return found


class Parser(argparse.ArgumentParser):
    def error(self, message: str):
        raise UserError(f"{message}; --help lists every constant")


def shown(value, settled_by: str) -> str:
    if value is None:
        return f"the {settled_by}'s"
    return " ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


def parse(script: Path, doc: str, constants: dict, arguments: list[str] | None) -> dict:
    """Lower-case name -> value: the script's constants with the flags' values in their place."""
    parser = Parser(
        prog=script.name, description=doc, allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter
    )
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


def pick_device(name: str) -> torch.device:
    """Of several processes on a machine, each gets a CUDA device of its own."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise UserError(f"DEVICE: got {name!r}, takes {KINDS['DEVICE'].takes}")
    if device.type == "cuda" and distributed.ranks() > 1:
        if device.index is not None or distributed.processes_here() > torch.cuda.device_count():
            raise UserError(
                f"DEVICE: got {name!r} for {distributed.processes_here()} processes on a machine where torch sees "
                f"{torch.cuda.device_count()} CUDA devices; takes auto, cpu or cuda, and as many processes as devices"
            )
        return torch.device("cuda", distributed.local_rank())
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(
            f"DEVICE: got {name!r}, but torch sees {torch.cuda.device_count()} CUDA devices; takes auto, cpu"
        )
    return device


def pick_precision(name: str, device: torch.device) -> str:
    """bf16 where the hardware computes it (elsewhere it is emulated, slowly), fp32 otherwise."""
    if name != "auto":
        return name
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    native = getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    return "bf16" if native() else "fp32"


def folder_for(name: str, path: Path) -> Path:
    """Makes the folder and proves that a file can be written into it; others may prove the same at the same time."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=path).close()
    except OSError as error:
        raise UserError(f"{name}: got {str(path)!r}, takes a folder that can be written ({error.strerror})") from None
    return path


def passes_of(batch_size: int, micro_batch: int) -> int:
    """How many forward passes of each process make a step.

    Raises:
        UserError: when the processes cannot share a batch equally.
    """
    ranks = distributed.ranks()
    at_once = ranks * micro_batch if micro_batch else ranks
    if batch_size % at_once or batch_size // at_once * max(micro_batch, 1) < 2:
        of = f" in passes of MICRO_BATCH {micro_batch}" if micro_batch else ""
        least = at_once if micro_batch else 2 * ranks
        raise UserError(
            f"BATCH_SIZE: got {batch_size}, which {ranks} process{'es' * (ranks > 1)} cannot share equally{of}; "
            f"takes a multiple of {at_once}, {least} or more"
        )
    return batch_size // at_once if micro_batch else 1


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
    if distributed.ranks() > 1 and not processes:
        raise UserError(f"{script.name} is for one process: start it without torchrun (Imagenet.py runs in several)")
    values = parse(script, script_globals["__doc__"], script_globals, arguments)
    values = {name: value if value is None else check(name.upper(), value) for name, value in values.items()}
    if values["study"] not in studies:
        raise UserError(f"STUDY: got {values['study']!r}, takes one of {', '.join(studies)}")
    for name, value in script_globals.get("BY_STUDY", {}).get(values["study"], {}).items():
        if values[name.lower()] is None:
            values[name.lower()] = check(name, value)
    values["device"] = pick_device(values["device"])
    values["precision"] = pick_precision(values["precision"], values["device"])
    if values.get("protocol") == "auto":
        by_device = {"cuda": "gpu"}.get(values["device"].type, "cpu")
        values["protocol"] = "quick" if values["dataset"] == "digits" else by_device
    for name, value in PROTOCOLS.get(values.get("protocol"), {}).items():
        if values[name] is None:
            values[name] = value
    values = ABSENT | values
    values["passes"] = passes_of(values["batch_size"], values["micro_batch"])
    values["per_pass"] = values["batch_size"] // (values["passes"] * distributed.ranks())
    distributed.join(values["device"])
    for name in ("output_dir", "run_dir"):
        folder = Path(values[name])
        distributed.by_first(lambda name=name, folder=folder: folder_for(name.upper(), folder))
        values[name] = folder
    return SimpleNamespace(script=script.stem, **values)


class Interrupts:
    """Ctrl-C, remembered: a KeyboardInterrupt that is raised where Python ignores exceptions (while an object is
    finalised, say) would be lost, so the training loop asks after every step."""

    seen = False

    @classmethod
    def note(cls, *_):
        cls.seen = True
        raise KeyboardInterrupt

    @classmethod
    def check(cls):
        if cls.seen:
            raise KeyboardInterrupt


def keep_freed_memory() -> None:
    """What a step frees stays with the process for the next step, where the C library is glibc.

    Given back and fetched again, page by page, it takes a tenth of a step at width 16 on a CPU.
    """
    mmap_threshold, trim_threshold = -3, -1  # as mallopt numbers them
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(mmap_threshold, 32 * 2**20)  # the largest that it takes
        mallopt(trim_threshold, 2**31 - 1)


def run(main: Callable[[], int | None]) -> int:
    """Calls a script's `main` and returns its exit status: 2 and one line for a mistake that the user can mend."""
    keep_freed_memory()
    Interrupts.seen = False
    before = signal.signal(signal.SIGINT, Interrupts.note)
    try:
        status = report_errors(main)
        distributed.leave(status)
        return status
    finally:
        signal.signal(signal.SIGINT, before)


REFUSED = "can't allocate memory"  # in torch's plain RuntimeError on a CPU


def is_out_of_memory(error: RuntimeError) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or REFUSED in str(error)


def out_of_memory(error: RuntimeError) -> str:
    text = str(error)
    reason = text[max(text.find(REFUSED), 0) :].split(". ")[0]
    return f"out of memory ({reason}); lower BATCH_SIZE or WIDTH"


def report_errors(main: Callable[[], int | None]) -> int:
    """What went wrong, as one line."""
    try:
        return main() or 0
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"error: {error.filename or 'a file'}: {error.strerror or error}", file=sys.stderr)
        return 2
    except RuntimeError as error:
        if is_out_of_memory(error):
            line = out_of_memory(error)
        elif distributed.is_lost(error):
            line = "another process of this run has ended; its own line says why"
        else:
            raise
        print(f"error: {line}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nstopped; the same command goes on from the last checkpoint", file=sys.stderr)
        return 130
