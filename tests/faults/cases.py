"""Commands, and what may befall them."""

import errno
import os
import shutil
import signal
from collections import Counter
from functools import partial
from pathlib import Path
from typing import NamedTuple

from common import files
from common.groups import Groups

SMALL = (
    "--dataset images --protocol quick --image-size 16 --width 4 --batch-size 12 --precision fp32 --device cpu "
    "--workers 1 --output-dir out --run-dir runs"
)
PRUNING = f"{SMALL} --study neuron-sparsity --sparsities 0.6"
STUDY = f"{PRUNING} --methods dense random ds-pruning --epochs 2"
RATES = f"{SMALL} --study learning-rate --regularization 0 --epochs 2 --learning-rates"
RANKS = (
    "--data-dir images --no-pretrained --image-size 16 --width 4 --epochs 1 --batch-size 4 --workers 0 --device cpu "
    "--precision fp32 --checkpoint-steps 2 --sparsities 0.8 --silence 4 --output-dir out --run-dir runs"
)


class Case(NamedTuple):
    """script and flags: the command. first: flags of one that was finished before, whose runs are gone. processes: that
    are started with it together; ranks: of one training."""

    script: str
    flags: str
    first: str = ""
    processes: int = 1
    ranks: int = 1


CASES = {
    "a training": Case("SGD", f"{SMALL} --epochs 4 --learning-rates 0.05"),
    "DS-Pruning": Case("Resnet18", f"{PRUNING} --methods ds-pruning --epochs 4"),
    "RigL": Case("Resnet18", f"{SMALL} --study weight-sparsity --sparsities 0.8 --methods rigl --epochs 3"),
    "a sweep": Case("Resnet18", f"{RATES} 0.05 0.1"),
    "a study": Case("Resnet18", STUDY),
    "a sweep with --extend": Case("Resnet18", f"{RATES} 0.05 0.1 --extend", f"{RATES} 0.05"),
    "a study with --extend": Case(
        "Resnet18", f"{STUDY} --extend", STUDY.replace("dense random ds-pruning", "dense magnitude")
    ),
    "a study with --jobs 2": Case("Resnet18", f"{STUDY} --jobs 2"),
    "a study by five processes": Case("Resnet18", STUDY, processes=5),
    "two ranks": Case("Imagenet", f"{RANKS} --methods ds-pruning", ranks=2),
}


class Moments:
    """Counts the moments of a command at which a fault may come: in the midst of a write, before and after a file takes
    its place or is deleted, before and after a cut. At the chosen one `fault` is called, with `lasts` at all later ones
    too.

    kind: of the moments; at: which one.
    """

    def __init__(self, kind: str = "", at: int = 0, fault=None, lasts: bool = False):
        self.kind, self.at, self.fault, self.lasts, self.passed = kind, at, fault, lasts, Counter()

    def come(self, kind: str) -> None:
        self.passed[kind] += 1
        number = self.passed[kind]
        if kind == self.kind and (number == self.at or self.lasts and number > self.at):
            self.fault()

    def watch(self) -> None:
        """From now on, in this process."""
        moments, honest = self, files.Noted.write

        def around(owner, name: str, kind: str) -> None:
            inner = getattr(owner, name)

            def watched(*arguments, **options):
                moments.come(kind)
                result = inner(*arguments, **options)
                moments.come(kind)
                return result

            setattr(owner, name, watched)

        def write(self, data) -> int:
            half = len(data) // 2
            done = honest(self, data[:half]) if half else 0
            try:
                moments.come("write")
            except OSError as error:
                self.error = error
                raise
            return done + (honest(self, data[half:]) if done == half else 0)

        files.Noted.write = write
        around(os, "replace", "replace")
        around(Path, "unlink", "delete")
        around(Groups, "cut", "cut")


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def refuse(number: int) -> None:
    raise OSError(number, os.strerror(number))


def delete() -> None:
    for name in ("runs", "out"):
        shutil.rmtree(name, ignore_errors=True)


class Fault(NamedTuple):
    """number: of a signal that is sent at a random time; or moments: their kinds, at one of which `action` is called,
    and where it lasts, at all that follow. says: what an error line has then; ends: the exit status. together: all
    processes get the signal."""

    number: int = 0
    moments: tuple[str, ...] = ()
    action: object = None
    lasts: bool = False
    says: str = ""
    ends: int = -signal.SIGKILL
    together: bool = False


STOPPED = "stopped; the same command goes on from the last checkpoint"
FAULTS = {
    "killed": Fault(signal.SIGKILL),
    "all killed": Fault(signal.SIGKILL, together=True),
    "killed in a write": Fault(0, ("write", "replace", "delete"), kill),
    "killed around a cut": Fault(0, ("cut",), kill),
    "stopped for ever": Fault(signal.SIGSTOP, says="gave no sign of life"),
    "SIGTERM": Fault(signal.SIGTERM, says=STOPPED, ends=143),
    "Ctrl-C": Fault(signal.SIGINT, says=STOPPED, ends=130),
    "disk full": Fault(0, ("write",), partial(refuse, errno.ENOSPC), True, "the disk is full", 2),
    "disk read-only": Fault(0, ("write",), partial(refuse, errno.EROFS), True, "the disk can only be read", 2),
    "folders deleted": Fault(0, ("write",), delete, False, "its folder is gone", 2),
}


def is_tried(name: str, case: Case, fault: str) -> bool:
    if fault == "killed around a cut":
        return name == "DS-Pruning"
    if fault == "stopped for ever":
        return case.ranks > 1
    if fault == "all killed":
        return case.processes > 1 or case.ranks > 1 or "--jobs" in case.flags
    if case.processes > 1 or case.ranks > 1:
        return fault.startswith("killed")
    return not (case.first and fault == "folders deleted")  # the table that is extended would be gone
