"""The sweeps: how many units die as the batch size, the learning rate or the regularization changes."""

from collections.abc import Sequence
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np

from common import data, names, units
from common.errors import UserError
from common.reports import death
from common.studies.study import Study, Trial, conditions, run_of, train
from common.training.loop import Callback
from common.training.runs import Run

COLUMNS = [
    "script",
    *names.OF_SWEEPS,
    "epochs",
    "steps",
    "units",
    "dead_units",
    "nearly_dead_units",
    "dead_at_end",
    "revived_units",
    "dying_units",
    "cumulative_dead",
    "test_accuracy",
    "width",
    "device",
    "seconds",
    "code",
]


class SweptTrial(NamedTuple):
    """One run; `changed` is the constant of the script that it has otherwise, and its value."""

    trial: Trial
    footing: str
    epochs: int
    changed: dict

    @property
    def regularization(self) -> float:
        return self.trial.regularization

    @property
    def seed(self) -> int:
        return self.trial.seed


def equal_steps(settings: SimpleNamespace) -> tuple[int, int]:
    """The smallest batch size and its epochs in the runs at equal steps.

    So many that these runs together take about the epochs of those at equal epochs, and cost as much; but two at least,
    since dying units are told from the epoch before.
    """
    sizes = settings.batch_sizes
    return min(sizes), max(2, round(settings.epochs * len(sizes) * min(sizes) / sum(sizes)))


def epochs_of(settings: SimpleNamespace, footing: str, batch_size: int) -> int:
    """EPOCHS, or at equal steps as many as are proportional to the batch size, to the nearest whole one."""
    smallest, epochs = equal_steps(settings)
    return settings.epochs if footing == "epochs" else round(epochs * batch_size / smallest)


def plan(settings: SimpleNamespace) -> list[SweptTrial]:
    """Every run; a seed is complete before the next begins."""
    sweep = names.SWEEPS[settings.study]
    swept, column = getattr(settings, sweep.constant), sweep.column
    strengths = swept if column == "regularization" else settings.regularization
    footings = ["epochs", "steps"] if column == "batch_size" else ["epochs"]
    values = swept if column not in ("regularization", "learning_rate") else [None]
    found = []
    for seed, footing, strength, rate, value in product(
        settings.seeds, footings, strengths, settings.learning_rates, values
    ):
        epochs = epochs_of(settings, footing, value) if column == "batch_size" else settings.epochs
        changed = {} if value is None else {column: value}
        found.append(SweptTrial(Trial(rate, strength, seed), footing, epochs, changed))
    return found


class Sweep(Study):
    """One run for each value of what STUDY sweeps, and for each of the other constants of which there are several.

    <study>.csv has a row for each; beside it are <study>-layers.csv and <study>-returns.csv.
    """

    endings = names.SWEPT_TABLES

    def __init__(self, settings: SimpleNamespace, dataset: data.Dataset):
        super().__init__(settings, dataset)
        self.sweep = names.SWEEPS[settings.study]
        self.columns = list(dict.fromkeys([*COLUMNS, *self.sweep.identity]))
        if settings.study == "batch-size":
            for size in settings.batch_sizes:
                if size > len(dataset.train):
                    raise UserError(f"BATCH_SIZES: got {size}, takes at most the {len(dataset.train)} training images")
        self.begin(plan(settings))

    def conditions(self) -> dict:
        own = {}
        if self.settings.study == "batch-size":
            own = {"equal_steps": dict(zip(("batch_size", "epochs"), equal_steps(self.settings), strict=True))}
        return super().conditions(**own)

    def key(self, row: dict) -> tuple:
        return tuple(float(row[name]) if name != "footing" else row[name] for name in self.sweep.identity)

    order = key

    def key_of(self, run: SweptTrial) -> tuple:
        return self.key(self.cells(run))

    def name_of(self, run: SweptTrial) -> str:
        value = names.short(self.cells(run)[self.sweep.column])
        return f"{self.settings.study} {value} at equal {run.footing}, {run.trial}"

    def cells(self, run: SweptTrial) -> dict:
        """What a row of the table tells its run by."""
        found = {"footing": run.footing, "batch_size": self.settings.batch_size, **run.trial._asdict(), **run.changed}
        return {name: found[name] for name in self.sweep.identity}

    def as_changed(self, run: SweptTrial) -> tuple[SimpleNamespace, dict]:
        """The settings and the conditions of a run."""
        settings = SimpleNamespace(**{**vars(self.settings), **run.changed, "epochs": run.epochs})
        settings.per_pass = settings.batch_size
        shared = conditions(settings, self.dataset, self.network)
        return settings, {**shared, "batch_size": settings.batch_size}

    def run_of(self, run: SweptTrial) -> Run:
        return run_of(*self.as_changed(run), run.trial)

    def make(self, run: SweptTrial, changes: Sequence[Callback]) -> dict:
        settings, shared = self.as_changed(run)
        return train(settings, self.dataset, shared, run.trial, changes)

    def adds(self, run: SweptTrial, final: dict, folder: Path) -> tuple[list[dict], ...]:
        cells, counts = self.cells(run), final["counts"]
        return [self.row(run, cells, final)], death.layer_rows(cells, counts), death.return_rows(cells, counts)

    def row(self, run: SweptTrial, cells: dict, final: dict) -> dict:
        """dying_units is the mean over all epochs but the first, cumulative_dead in unit-epochs."""
        rows, last, closing = final["rows"], final["rows"][-1], final["DeadAtEnd"]
        dying = [row["dying_units"] for row in rows[1:]]
        found = {
            "script": self.settings.script,
            **cells,
            "epochs": run.epochs,
            "steps": sum(final["counts"]["batches"]),
            **{name: last[name] for name in ("units", "dead_units", "nearly_dead_units", "test_accuracy")},
            "dead_at_end": int(units.is_dead(closing["fired"], closing["pairs"]).sum()),
            "revived_units": sum(row["revived_units"] for row in rows[1:]),
            "dying_units": float(np.mean(dying)) if dying else None,
            "cumulative_dead": sum(row["dead_units"] for row in rows),
            "width": final["network"].get("width"),
            "device": self.settings.device.type,
            "seconds": sum(row["seconds"] for row in rows),
            "code": final.get("code"),
        }
        return {name: found[name] for name in self.columns}

    def present(self) -> None:
        from common.reports.sweeps import present  # not before: pandas takes its time

        present(self.settings, self.table, self.failures)
