"""What all studies are: a plan of runs, made one after another, and what is saved of them at the end."""

import json
import platform
import shlex
import sys
from collections.abc import Callable
from importlib.metadata import version
from types import SimpleNamespace
from typing import NamedTuple

import torch

from common import data, names
from common.errors import RunFailed
from common.files import write_text
from common.settings import identity
from common.training.callbacks import DeadAtEnd
from common.training.fit import fit
from common.training.loop import Callback
from common.training.runs import Run


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


def train(settings, dataset: data.Dataset, shared: dict, trial: Trial, changes: list[Callback]) -> dict:
    """One network, watched while it trains; studies share the runs that are the same in both.

    shared: what `conditions` gives for these settings. changes: what is done to the gradients.
    """
    config = {**shared, **trial._asdict()}
    name = f"batch {settings.batch_size} {trial}"
    run = Run(settings.run_dir / settings.script / "accumulation", name, config)
    rate, seed = trial.learning_rate, trial.seed
    return fit(settings, dataset, run, shared["network"], rate, seed, [*changes, DeadAtEnd()])


class Study:
    """A run that fails, or that another process trains, is told at once and again at the end; the others go on.

    Args:
        settings: as `settings.read` gives them.
        network: its name in `models.NETWORKS`.
    """

    def __init__(self, settings: SimpleNamespace, dataset: data.Dataset, network: str):
        self.settings, self.dataset = settings, dataset
        self.shared = conditions(settings, dataset, network)
        self.folder = settings.output_dir / settings.script
        self.failures: list[str] = []

    def attempt(self, name: str, make: Callable[[], dict]) -> dict | None:
        """What `make` gives; None where it fails."""
        try:
            return make()
        except RunFailed as error:
            self.failures.append(f"{name}: {error}")
            print(f"error: {self.failures[-1]}", file=sys.stderr)
            return None

    def write_origin(self, table, shared: dict) -> None:
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
        for failure in self.failures if results else ():
            print(f"error: not finished: {failure}", file=sys.stderr)
        return 2 if self.failures else 0
