"""The accumulation study: which units die while a network trains, epoch by epoch."""

from collections.abc import Sequence
from itertools import product
from pathlib import Path
from types import SimpleNamespace

from common import data, units
from common.files import read_csv
from common.studies.study import Study, Trial, run_of, train
from common.training.fit import finished
from common.training.loop import Callback
from common.training.runs import Run

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

    columns = COLUMNS

    def __init__(self, settings: SimpleNamespace, dataset: data.Dataset, network: str | None = None):
        super().__init__(settings, dataset, network)
        strengths, rates = settings.regularization, settings.learning_rates
        self.begin([Trial(rate, s, seed) for s, rate, seed in product(strengths, rates, settings.seeds)])

    def key(self, row: dict) -> Trial:
        return Trial(*(row[name] for name in Trial._fields))

    def order(self, row: dict) -> tuple:
        return row["regularization"], row["learning_rate"], row["seed"]

    def run_of(self, trial: Trial) -> Run:
        return run_of(self.settings, self.shared, trial)

    def make(self, trial: Trial, changes: Sequence[Callback]) -> dict:
        return train(self.settings, self.dataset, self.shared, trial, changes)

    def adds(self, trial: Trial, final: dict, folder: Path) -> tuple[list[dict]]:
        """A row an epoch."""
        constants = {"script": self.settings.script, "code": final.get("code"), **final["config"]}
        return ([{name: ({**constants, **epoch})[name] for name in COLUMNS} for epoch in final["rows"]],)

    def present(self) -> None:
        from common.reports.accumulation import present  # not before: pandas takes its time

        trials = dict.fromkeys(map(self.key, read_csv(self.table)))
        finals = [finished(self.run_of(trial)) for trial in trials]
        present(self.settings, self.table, [final for final in finals if final])
