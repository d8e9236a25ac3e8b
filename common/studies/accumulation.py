"""The accumulation study: which units die while a network trains, epoch by epoch."""

import json
from collections.abc import Iterator
from itertools import product
from types import SimpleNamespace

from common import data, units
from common.machine import distributed, workers
from common.studies.study import Study, Trial, rows_to_extend, run_of, train
from common.training.fit import finished
from common.training.loop import Callback

COLUMNS = [
    "script",
    "activation",
    "learning_rate",
    "batch_size",
    "regularization",
    "noise_std",
    "seed",
    "epoch",
    "units",
    *units.TOTALS,
    "train_loss",
    "train_accuracy",
    "test_loss",
    "test_accuracy",
    "seconds",
    "code",
]


class Accumulation(Study):
    """One run for each regularization, learning rate and seed; accumulation.csv has a row for each of its epochs."""

    def __init__(self, settings: SimpleNamespace, dataset: data.Dataset, network: str | None = None):
        super().__init__(settings, dataset, network)
        self.take_place(self.shared)
        self.table = self.folder / "accumulation.csv"
        strengths, rates = settings.regularization, settings.learning_rates
        self.trials = [Trial(rate, s, seed) for s, rate, seed in product(strengths, rates, settings.seeds)]
        self.before = {trial_of(row) for row in distributed.by_first(self.rows_before)}

    def plan(self) -> Iterator[Trial]:
        yield from self.shared_out(self.trials)

    def train(self, trial: Trial, changes: list[Callback]) -> None:
        """changes: what is done to the gradients, in their order. A run that the table has is passed over."""
        if trial in self.before:
            return

        def make() -> dict:
            return train(self.settings, self.dataset, self.shared, trial, changes)

        self.attempt(str(trial), make, lambda: self.train(trial, changes))

    def save(self) -> int:
        """The table and the figures; prints what was found and where it is. Returns the exit status."""
        self.finish()
        return self.exit_status(distributed.by_first(self.present))

    def rows_of(self, final: dict) -> list[dict]:
        """Those of a finished run, one an epoch."""
        constants = {"script": self.settings.script, "code": final.get("code"), **final["config"]}
        return [{name: ({**constants, **epoch})[name] for name in COLUMNS} for epoch in final["rows"]]

    def rows_before(self) -> list[dict]:
        """Those that the table has (EXTEND)."""
        extends = getattr(self.settings, "extend", False)
        return rows_to_extend(self.table, json.loads(json.dumps(self.shared)), COLUMNS, ["code"]) if extends else []

    def present(self) -> list[dict]:
        """From the rows that the table has (EXTEND) and all finished runs of the plan, whoever made them; returns the
        rows of the table."""
        if workers.is_worker():
            return []
        with self.table_lock():
            before = self.rows_before()
            trials = sorted({*map(trial_of, before), *self.trials}, key=lambda trial: (trial[1], trial[0], trial[2]))
            rows, finals = [], []
            for trial in trials:
                final = finished(run_of(self.settings, self.shared, trial))
                finals += [final] if final else []
                kept = [row for row in before if trial_of(row) == trial]
                rows += kept or (self.rows_of(final) if final else [])
            if rows:
                from common.reports import accumulation as report  # not before: pandas takes its time

                self.write_rows(self.table, COLUMNS, rows, self.shared)
                report.present(self.settings, self.table, finals)
        return rows


def trial_of(row: dict) -> Trial:
    return Trial(*(row[name] for name in Trial._fields))
