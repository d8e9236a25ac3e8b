"""From a script's constants and the command line to its settings."""

import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

from common import names
from common.errors import UserError
from common.machine import environment
from common.pruning import METHODS
from common.settings import identity
from common.settings.flags import constants_of, parse
from common.settings.kinds import ABSENT, PROTOCOLS, check


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
            if not METHODS[method].structured:
                raise UserError(
                    f"METHODS: got {method!r}, which removes single weights and no units; takes any of "
                    f"{', '.join(name for name, m in METHODS.items() if m.structured)}, or STUDY weight-sparsity"
                )
    if hasattr(settings, "settle") and settings.warmup >= settings.settle:
        raise UserError(f"SETTLE: got {settings.settle:g}, takes a moment after WARMUP, {settings.warmup:g}")
    if settings.study in names.MEASURES and len(settings.regularization) > 1:
        raise UserError(f"REGULARIZATION: got {len(settings.regularization)} values, takes one in a sparsity study")


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
    script = Path(script_globals["__file__"])
    flags = parse(script, script_globals["__doc__"], script_globals, arguments)
    values = {}
    for name in constants_of(script):
        default = script_globals[name]
        value = flags.get(name.lower(), default)
        values[name.lower()] = value if value is None else check(name, value, default)
    if values["study"] not in studies:
        raise UserError(f"STUDY: got {values['study']!r}, takes one of {', '.join(studies)}")
    for name in flags:
        if not identity.is_read(name, values["study"]):
            raise UserError(f"{name.upper()}: the study {values['study']} does not read it; leave the flag out")
        if name in ("image_size", "workers") and values.get("dataset") in names.DATASETS:
            raise UserError(f"{name.upper()}: is of folders of images, not of {values['dataset']}; leave the flag out")
    for name, value in script_globals.get("BY_STUDY", {}).get(values["study"], {}).items():
        if values[name.lower()] is None:
            values[name.lower()] = check(name, value)
    check_study(SimpleNamespace(**values))
    values = ABSENT | values | {"given": tuple(flags)}
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
        One attribute for each constant (lower case), and `script` (its name), `given` (which of them were flags),
        `device` (torch.device), `precision` (`bf16` or `fp32`), `output_dir` and `run_dir` (Path, writable), `per_pass`
        (examples in one forward pass of a process) and `passes` (of a process in a step).

    Raises:
        UserError: for the first constant that is wrong; nothing has been computed then.
    """
    script = Path(script_globals["__file__"])
    if environment.ranks() > 1 and not processes:
        raise UserError(f"{script.name} is for one process: start it without torchrun (Imagenet.py runs in several)")
    values = given(script_globals, studies, arguments)
    if values["cluster"] != "none":
        from common.machine import cluster

        raise SystemExit(cluster.submit(script, sys.argv[1:] if arguments is None else arguments, values))
    from common.machine import devices, distributed

    values["device"] = devices.pick(values["device"])
    values["precision"] = devices.pick_precision(values["precision"], values["device"])
    follow_protocol(values)
    values["passes"] = passes_of(values["batch_size"], values["micro_batch"])
    values["per_pass"] = values["batch_size"] // (values["passes"] * environment.ranks())
    devices.use(values["device"])
    if environment.ranks() > 1:
        distributed.join(devices.backend(values["device"]), values["silence"])
    for name in ("output_dir", "run_dir"):
        folder = Path(values[name])
        distributed.by_first(lambda name=name, folder=folder: folder_for(name.upper(), folder))
        values[name] = folder
    return SimpleNamespace(script=script.stem, **values)
