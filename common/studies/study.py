"""What all studies are: a plan of runs, and what follows from those that are finished."""

import json
import platform
import shlex
import sys
from collections.abc import Callable, Iterable, Iterator
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import torch
from filelock import FileLock

from common import data, names
from common.errors import RunFailed
from common.files import write_text
from common.machine import distributed, workers
from common.settings import identity
from common.training.callbacks import DeadAtEnd
from common.training.fit import fit
from common.training.loop import Callback
from common.training.runs import Busy, Run


class Trial(NamedTuple):
    """A run that is no pruning run."""

    learning_rate: float
    regularization: float
    seed: int

    def __str__(self) -> str:
        return f"{names.condition(self.learning_rate, self.regularization)} seed {self.seed}"


def conditions(settings: SimpleNamespace, dataset: data.Dataset, network: str) -> dict:
    """What all runs of one command have in common and their results depend on."""
    network = {
        "name": network,
        "classes": len(dataset.classes),
        "channels": dataset.example.shape[1],
        "width": settings.width,
        "stem": settings.stem,
        "activation": settings.activation,
    }
    return {"network": network, "data": dataset.fingerprint, **identity.conditions(settings)}


def run_of(settings: SimpleNamespace, shared: dict, trial: Trial) -> Run:
    """The folder of a run; studies share the runs that are the same in both."""
    config = {**shared, **trial._asdict()}
    return Run(settings.run_dir / settings.script / "accumulation", f"batch {settings.batch_size} {trial}", config)


def train(settings, dataset: data.Dataset, shared: dict, trial: Trial, changes: list[Callback]) -> dict:
    """One network, watched while it trains.

    shared: what `conditions` gives for these settings. changes: what is done to the gradients.
    """
    rate, seed, run = trial.learning_rate, trial.seed, run_of(settings, shared, trial)
    return fit(settings, dataset, run, shared["network"], rate, seed, [*changes, DeadAtEnd()])


class Study:
    """A plan of runs. Each is made by the first process that comes to it, and a table follows from all that are
    finished, whoever made them: so several processes that share RUN_DIR share the work.

    A run that fails is told at once and again at the end; the others go on.

    Args:
        settings: as `settings.read` gives them.
        network: its name in `models.NETWORKS`.
    """

    def __init__(self, settings: SimpleNamespace, dataset: data.Dataset, network: str):
        self.settings, self.dataset, self.network = settings, dataset, network
        self.shared = conditions(settings, dataset, network)
        self.folder = settings.output_dir / settings.script
        distributed.by_first(lambda: self.folder.mkdir(exist_ok=True))
        self.failures: list[str] = []
        self.others: dict[str, Callable] = {}  # runs that other processes were training: name -> what makes it here

    def shared_out(self, runs: Iterable) -> Iterator:
        """The runs of a plan; with JOBS, other processes have been through it before."""
        workers.go_through(self.settings)
        yield from runs

    def attempt(self, name: str, make: Callable[[], dict], again: Callable[[], None]) -> dict | None:
        """What `make` gives; None where it fails, or another process is at it. `again` tries once more."""
        try:
            return make()
        except Busy:
            self.others[name] = again
            print(f"{name}: another process is training it")
        except RunFailed as error:
            self.failures.append(f"{name}: {error}")
            print(f"error: {self.failures[-1]}", file=sys.stderr)
        return None

    def finish(self) -> None:
        """Comes back to the runs that other processes were training, should one of these have ended before its run."""
        others, self.others = self.others, {}
        for again in others.values():
            again()

    def table_lock(self) -> FileLock:
        """Held while a table is read and written."""
        return FileLock(self.settings.run_dir / f".{self.settings.script}-{self.settings.study}.lock")

    def write_origin(self, table: Path, shared: dict) -> None:
        """Beside a table, a .json: the command that made it, the versions, and what its rows have in common."""
        made = {
            "command": shlex.join([f"{self.settings.script}.py", *sys.argv[1:]]),
            "versions": {
                "python": platform.python_version(),
                "torch": torch.__version__,
                "torchvision": version("torchvision"),
            },
            "settings": shared,
        }
        write_text(table.with_suffix(".json"), json.dumps(made, indent=1) + "\n")

    def exit_status(self, results: list) -> int:
        """2 where runs failed. Below the results of the others they are listed again."""
        if workers.is_worker():  # the process that started it goes through the plan once more
            return 2 if self.failures else 0
        if self.others:
            print(f"left to the processes that train them: {', '.join(self.others)}")
        for failure in self.failures if results else ():
            print(f"error: not finished: {failure}", file=sys.stderr)
        return 2 if self.failures else 0
