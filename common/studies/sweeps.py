"""The sweeps: how many units die as the batch size, the learning rate or the regularization changes."""

import json
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np

from common import data, names, units
from common.errors import UserError
from common.files import read_csv, write_csv
from common.machine import workers
from common.reports import death
from common.studies.study import Study, Trial, conditions, rows_to_extend, run_of, train
from common.training.fit import finished
from common.training.loop import Callback

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


class Tables:
    """<study>.csv and beside it <study>-layers.csv and <study>-returns.csv, written anew after every run.

    So an interrupted sweep leaves what it has, and EXTEND goes on from there, on another machine as well.

    Args:
        identity: the columns that tell runs apart.

    Raises:
        UserError: where a table to be extended was made under other conditions.
    """

    def __init__(self, folder: Path, study: str, identity: list[str], shared: dict, extend: bool):
        self.paths = {ending: folder / f"{study}{ending}.csv" for ending in names.SWEPT_TABLES}
        self.identity, self.shared = identity, shared
        self.columns = [*COLUMNS, *(name for name in identity if name not in COLUMNS)]
        self.rows: dict[str, list[dict]] = {ending: [] for ending in names.SWEPT_TABLES}
        if extend:
            self.rows[""] = rows_to_extend(self.paths[""], shared, self.columns, ["code"])
            known = {self.key(row) for row in self.rows[""]}
            for ending in names.SWEPT_TABLES[1:]:
                rows = read_csv(self.paths[ending]) if self.paths[ending].exists() else []
                self.rows[ending] = [row for row in rows if self.key(row) in known]

    def key(self, row: dict) -> tuple:
        return tuple(float(row[name]) if name != "footing" else row[name] for name in self.identity)

    def add(self, row: dict, layers: list[dict], returns: list[dict]) -> None:
        for ending, rows in zip(names.SWEPT_TABLES, ([row], layers, returns), strict=True):
            self.rows[ending] = sorted([*self.rows[ending], *rows], key=self.key)

    def write(self, write_origin) -> None:
        """The main table last: a run is in it when all that it left is written. Without a row nothing is touched."""
        if not self.rows[""]:
            return
        write_origin(self.paths[""], self.shared)
        for ending in (*names.SWEPT_TABLES[1:], ""):
            if self.rows[ending]:
                columns = list(self.rows[ending][0]) if ending else self.columns
                write_csv(self.paths[ending], columns, self.rows[ending])
            else:
                self.paths[ending].unlink(missing_ok=True)


class Sweep(Study):
    """One run for each value of what STUDY sweeps, and for each of the other constants of which there are several."""

    def __init__(self, settings: SimpleNamespace, dataset: data.Dataset, network: str | None = None):
        super().__init__(settings, dataset, network)
        self.sweep = names.SWEEPS[settings.study]
        if settings.study == "batch-size":
            for size in settings.batch_sizes:
                if size > len(dataset.train):
                    raise UserError(f"BATCH_SIZES: got {size}, takes at most the {len(dataset.train)} training images")
        self.take_place(self.conditions())
        self.runs, self.made = plan(settings), {}
        self.tables = self.read_tables()
        self.before = {self.tables.key(row) for row in self.tables.rows[""]}

    def read_tables(self) -> Tables:
        settings, identity = self.settings, self.sweep.identity
        return Tables(self.folder, settings.study, identity, self.conditions(), settings.extend)

    def conditions(self) -> dict:
        """All that the rows of the table have in common, as JSON gives it back."""
        own = {}
        if self.settings.study == "batch-size":
            own = {"equal_steps": dict(zip(("batch_size", "epochs"), equal_steps(self.settings), strict=True))}
        return json.loads(json.dumps({**self.shared, **own}))

    def plan(self) -> Iterator[SweptTrial]:
        yield from self.shared_out(self.runs)

    def cells(self, run: SweptTrial) -> dict:
        """What a row of the table tells its run by."""
        found = {"footing": run.footing, "batch_size": self.settings.batch_size, **run.trial._asdict(), **run.changed}
        return {name: found[name] for name in self.tables.identity}

    def as_changed(self, run: SweptTrial) -> tuple[SimpleNamespace, dict]:
        """The settings and the conditions of a run."""
        settings = SimpleNamespace(**{**vars(self.settings), **run.changed, "epochs": run.epochs})
        settings.per_pass = settings.batch_size
        shared = conditions(settings, self.dataset, self.network)
        return settings, {**shared, "batch_size": settings.batch_size}

    def train(self, run: SweptTrial, changes: list[Callback]) -> None:
        """changes: what is done to the gradients, in their order. A run that the table has is passed over."""
        cells = self.cells(run)
        if self.tables.key(cells) in self.before:
            return
        settings, shared = self.as_changed(run)
        value = names.short(cells[self.sweep.column])
        name = f"{self.settings.study} {value} at equal {run.footing}, {run.trial}"

        def make() -> dict:
            return train(settings, self.dataset, shared, run.trial, changes)

        self.made.pop(self.tables.key(cells), None)
        if self.attempt(name, make, lambda: self.train(run, changes)):
            self.collect()

    def collect(self) -> None:
        """The tables: the rows that they have (EXTEND), and those of all finished runs of the plan."""
        with self.table_lock():
            self.tables = self.read_tables()
            known = {self.tables.key(row) for row in self.tables.rows[""]}
            for run in self.runs:
                key = self.tables.key(self.cells(run))
                if key not in known and (rows := self.rows_of(key, run)):
                    self.tables.add(*rows)
            self.tables.write(self.write_origin)

    def rows_of(self, key: tuple, run: SweptTrial) -> tuple | None:
        """What a finished run adds to the three tables."""
        if key not in self.made:
            final = finished(run_of(*self.as_changed(run), run.trial))
            if final is None:
                return None
            cells, counts = self.cells(run), final["counts"]
            row = self.row(run, cells, final)
            self.made[key] = row, death.layer_rows(cells, counts), death.return_rows(cells, counts)
        return self.made[key]

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
        return {name: found[name] for name in self.tables.columns}

    def save(self) -> int:
        """The trends and the figures; prints the table and where all is. Returns the exit status."""
        self.finish()
        self.collect()
        rows = self.tables.rows[""]
        if rows and not workers.is_worker():
            from common.reports.sweeps import present  # not before: pandas takes its time

            with self.table_lock():
                present(self.settings, self.tables.paths[""], self.failures)
        return self.exit_status(rows)
