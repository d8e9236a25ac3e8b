"""The accumulation study: which units die while a network trains, epoch by epoch."""

from collections.abc import Iterator
from itertools import product
from types import SimpleNamespace

from common import data, units
from common.files import write_csv
from common.machine import distributed
from common.reports import accumulation as report
from common.studies.study import Study, Trial, train
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

    def __init__(self, settings: SimpleNamespace, dataset: data.Dataset, network: str = "resnet18"):
        super().__init__(settings, dataset, network)
        self.finals: list[dict] = []

    def plan(self) -> Iterator[Trial]:
        settings = self.settings
        for strength, rate, seed in product(settings.regularization, settings.learning_rates, settings.seeds):
            yield Trial(rate, strength, seed)

    def train(self, trial: Trial, changes: list[Callback]) -> None:
        """changes: what is done to the gradients, in their order."""
        final = self.attempt(str(trial), lambda: train(self.settings, self.dataset, self.shared, trial, changes))
        self.finals += [final] if final else []

    def save(self) -> int:
        """The table and the figures; prints what was found and where it is. Returns the exit status."""
        if self.finals:
            distributed.by_first(self.present)
        return self.exit_status(self.finals)

    def rows(self) -> list[dict]:
        found = []
        for final in self.finals:
            constants = {"script": self.settings.script, "code": final.get("code"), **final["config"]}
            for epoch in final["rows"]:
                found.append({name: epoch[name] if name in epoch else constants[name] for name in COLUMNS})
        return found

    def present(self) -> None:
        rows = self.rows()
        self.folder.mkdir(exist_ok=True)
        table = self.folder / "accumulation.csv"
        write_csv(table, COLUMNS, rows)
        self.write_origin(table, self.shared)
        paths = [*report.draw(self.settings, rows, self.finals, self.folder), *report.compare(self.settings)]
        print(f"\n{report.summary(rows)}\n\ntable: {table}")
        print("".join(f"figure: {path}\n" for path in paths), end="")
