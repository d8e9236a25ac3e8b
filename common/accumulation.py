"""The accumulation study: which units die while a ResNet-18 trains, epoch by epoch."""

import sys
from itertools import product
from types import SimpleNamespace

from common import data, report, units
from common.runs import Run, write_csv
from common.training import BatchNormPull, Diverged, GradientClip, GradientNoise, fit

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
]
SHARED = (
    "activation epochs batch_size schedule momentum weight_decay gradient_clip noise_std augmentation precision"
).split()


def label(learning_rate: float, regularization: float, seed: int) -> str:
    pull = f" lambda {regularization:g}" if regularization else ""
    return f"lr {learning_rate:g}{pull} seed {seed}"


def common_config(settings: SimpleNamespace, dataset: data.Dataset) -> dict:
    """What all runs of one command have in common and their results depend on."""
    network = {
        "name": "resnet18",
        "classes": len(dataset.classes),
        "channels": dataset.example.shape[1],
        "width": settings.width,
        "stem": settings.stem,
        "activation": settings.activation,
    }
    shared = {name: getattr(settings, name) for name in SHARED}
    return {
        "network": network,
        "dataset": settings.dataset,
        "data": dataset.fingerprint,
        "device": settings.device.type,
        **shared,
        "augmentation": list(settings.augmentation),
    }


def train_all(settings: SimpleNamespace, dataset: data.Dataset) -> tuple[list[dict], list[str]]:
    """One run for each learning rate, regularization and seed; returns what they left, and a line for each failure."""
    shared = common_config(settings, dataset)
    finals, failures = [], []
    for rate, strength, seed in product(settings.learning_rates, settings.regularization, settings.seeds):
        config = {**shared, "learning_rate": rate, "regularization": strength, "seed": seed}
        run = Run(settings.run_dir / settings.script / settings.study, label(rate, strength, seed), config)
        changes = [
            BatchNormPull(strength) if strength else None,
            GradientClip(settings.gradient_clip) if settings.gradient_clip else None,
            GradientNoise(settings.noise_std, seed, settings.device) if settings.noise_std else None,
        ]
        try:
            finals.append(fit(settings, dataset, run, shared["network"], rate, seed, [c for c in changes if c]))
        except Diverged as error:
            failures.append(f"{run.label}: {error}")
            print(f"error: {failures[-1]}", file=sys.stderr)
    return finals, failures


def rows_of(settings: SimpleNamespace, finals: list[dict]) -> list[dict]:
    """The rows of accumulation.csv."""
    rows = []
    for final in finals:
        constants = {"script": settings.script, **final["config"]}
        for epoch in final["rows"]:
            rows.append({name: epoch[name] if name in epoch else constants[name] for name in COLUMNS})
    return rows


def study(settings: SimpleNamespace) -> int:
    """Trains, writes accumulation.csv and the figures, prints a table. Returns the exit status."""
    dataset = data.load(settings)
    finals, failures = train_all(settings, dataset)
    rows = rows_of(settings, finals)
    folder = settings.output_dir / settings.script
    folder.mkdir(exist_ok=True)
    write_csv(folder / "accumulation.csv", COLUMNS, rows)
    return 2 if failures else 0
