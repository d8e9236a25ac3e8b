"""The accumulation study: which units die while a network trains, epoch by epoch."""

from collections.abc import Iterator
from itertools import product
from types import SimpleNamespace

from common import data, units
from common.files import write_csv
from common.machine import distributed, workers
from common.reports import accumulation as report
from common.studies.study import Study, Trial, run_of, train
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
        strengths, rates = settings.regularization, settings.learning_rates
        self.trials = [Trial(rate, s, seed) for s, rate, seed in product(strengths, rates, settings.seeds)]

    def plan(self) -> Iterator[Trial]:
        yield from self.shared_out(self.trials)

    def train(self, trial: Trial, changes: list[Callback]) -> None:
        """changes: what is done to the gradients, in their order."""

        def make() -> dict:
            return train(self.settings, self.dataset, self.shared, trial, changes)

        self.attempt(str(trial), make, lambda: self.train(trial, changes))

    def save(self) -> int:
        """The table and the figures; prints what was found and where it is. Returns the exit status."""
        self.finish()
        return self.exit_status(distributed.by_first(self.present))

    def rows(self, finals: list[dict]) -> list[dict]:
        found = []
        for final in finals:
            constants = {"script": self.settings.script, "code": final.get("code"), **final["config"]}
            for epoch in final["rows"]:
                found.append({name: epoch[name] if name in epoch else constants[name] for name in COLUMNS})
        return found

    def present(self) -> list[dict]:
        """From all finished runs of the plan, whoever made them; returns the rows of the table."""
        runs = [run_of(self.settings, self.shared, trial) for trial in self.trials]
        finals = [final for final in map(finished, runs) if final]
        rows = self.rows(finals)
        if rows and not workers.is_worker():
            with self.table_lock():
                self.write(rows, finals)
        return rows

    def write(self, rows: list[dict], finals: list[dict]) -> None:
        table = self.folder / "accumulation.csv"
        self.write_origin(table, self.shared)
        write_csv(table, COLUMNS, rows)
        paths = [*report.draw(self.settings, rows, finals, self.folder), *report.compare(self.settings)]
        print(f"\n{report.summary(rows)}\n\ntable: {table}")
        print("".join(f"figure: {path}\n" for path in paths), end="")
