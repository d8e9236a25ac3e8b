"""The accumulation study: which units die while a ResNet-18 trains, epoch by epoch."""

import json
import platform
import shlex
import sys
from importlib.metadata import version
from itertools import product
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch

from common import data, units
from common.errors import RunFailed
from common.files import read_csv, write_csv, write_text
from common.machine import distributed
from common.reports import canvas, curves, death, figures, paper
from common.reports.tables import exit_status
from common.training import callbacks
from common.training.fit import fit
from common.training.gradients import BatchNormPull, GradientClip, GradientNoise
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
]
SHARED = [
    "activation",
    "epochs",
    "batch_size",
    "schedule",
    "momentum",
    "weight_decay",
    "gradient_clip",
    "noise_std",
    "augmentation",
    "precision",
]


def label(learning_rate: float, regularization: float, seed: int | None = None) -> str:
    pull = f" lambda {regularization:g}" if regularization else ""
    return f"lr {learning_rate:g}{pull}" + ("" if seed is None else f" seed {seed}")


def common_config(settings: SimpleNamespace, dataset: data.Dataset, network: str) -> dict:
    """What all runs of one command have in common and their results depend on."""
    network = {
        "name": network,
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


def changes(settings: SimpleNamespace, strength: float, seed: int) -> list[Callback]:
    """What is done to the gradients of a run, in this order."""
    found = [
        BatchNormPull(strength) if strength else None,
        GradientClip(settings.gradient_clip) if settings.gradient_clip else None,
        GradientNoise(settings.noise_std, seed, settings.device) if settings.noise_std else None,
    ]
    return [change for change in found if change]


def train_one(
    settings: SimpleNamespace, dataset: data.Dataset, shared: dict, rate: float, strength: float, seed: int
) -> dict:
    """One network, watched while it trains. This study and the sweeps share their runs, where these are the same."""
    own = {"batch_size": settings.batch_size, "epochs": settings.epochs, "learning_rate": rate}
    config = {**shared, **own, "regularization": strength, "seed": seed}
    name = f"batch {settings.batch_size} {label(rate, strength, seed)}"
    run = Run(settings.run_dir / settings.script / "accumulation", name, config)
    extra = [*changes(settings, strength, seed), callbacks.DeadAtEnd()]
    return fit(settings, dataset, run, shared["network"], rate, seed, extra)


def train_all(settings: SimpleNamespace, dataset: data.Dataset, shared: dict) -> tuple[list[dict], list[str]]:
    """One run for each regularization, learning rate and seed; returns what they left, and a line for each failure."""
    finals, failures = [], []
    for strength, rate, seed in product(settings.regularization, settings.learning_rates, settings.seeds):
        try:
            finals.append(train_one(settings, dataset, shared, rate, strength, seed))
        except RunFailed as error:
            failures.append(f"{label(rate, strength, seed)}: {error}")
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


def grouped(rows: list[dict], key) -> dict[str, list[dict]]:
    groups: dict[str, list[dict]] = {}
    for row in rows:
        groups.setdefault(key(row), []).append(row)
    return groups


def condition(strength: float, rate: float) -> str:
    return label(rate, strength).replace(" lambda", ", λ")


def line_name(row: dict) -> str:
    return condition(row["regularization"], row["learning_rate"])


def draw(settings: SimpleNamespace, rows: list[dict], finals: list[dict], folder: Path) -> list[Path]:
    """accumulation.png, accumulation-layers.png and, where units died, accumulation-returns.png; their paths."""
    what = f"{settings.script}.py on {canvas.dataset_name(settings.dataset)}"
    by_epoch, layers = folder / "accumulation.png", folder / "accumulation-layers.png"
    shares = published(settings.dataset, rows)
    curves.epochs_figure({"": grouped(rows, line_name)}, by_epoch, what, {"": {"paper": shares}} if shares else {})
    by_line: dict[str, list] = {}
    for final in finals:
        counts = units.history(final["counts"])
        dead = [units.by_layer(epoch.dead.double(), final["counts"]["layers"]) for epoch in counts]
        by_line.setdefault(line_name(final["config"]), []).append([list(epoch.values()) for epoch in dead])
    names = list(finals[0]["counts"]["layers"])
    means = {name: np.mean(runs, axis=0) for name, runs in by_line.items()}
    curves.layers_figure(means, names, layers, f"{what}: share of units dead over the whole epoch")
    return [by_epoch, layers, *draw_units(settings, finals, folder, what)]


RUN = ["learning_rate", "regularization", "seed"]


def draw_units(settings: SimpleNamespace, finals: list[dict], folder: Path, what: str) -> list[Path]:
    """Writes accumulation-fire-rates.csv and, where units died, accumulation-returns.csv and its figure, whose path it
    returns."""
    rates, returns = [], []
    for final in finals:
        run = {name: final["config"][name] for name in RUN}
        rates += death.fire_rate_rows(run, final["counts"], final["model"])
        returns += death.return_rows(run, final["counts"])
    write_csv(folder / "accumulation-fire-rates.csv", list(rates[0]), rates)
    path = folder / "accumulation-returns.png"
    if not returns:
        for old in (path, path.with_suffix(".csv")):
            old.unlink(missing_ok=True)
        return []
    write_csv(path.with_suffix(".csv"), list(returns[0]), returns)
    figures.returns_figure(returns, path, what, getattr(settings, "patience", None))
    return [path]


def shared_conditions(tables: dict[str, list[dict]]) -> dict[tuple[float, float], dict[str, list[dict]]]:
    """(regularization, learning rate) -> label -> its rows, where at least two of the labelled tables have it."""
    found: dict[tuple[float, float], dict[str, list[dict]]] = {}
    for name, rows in tables.items():
        for row in rows:
            found.setdefault((row["regularization"], row["learning_rate"]), {}).setdefault(name, []).append(row)
    return {key: found[key] for key in sorted(found) if len(found[key]) > 1}


def draw_fire_rates(settings: SimpleNamespace, members: dict[str, str]) -> list[Path]:
    """fire-rates.png and, where units died, batch-norms.png for several scripts, where two of them were run; their
    paths."""
    tables = {}
    for script, name in members.items():
        table = settings.output_dir / script / "accumulation-fire-rates.csv"
        tables[name] = read_csv(table) if table.exists() else []
        if tables[name] and not set(death.UNIT) <= tables[name][0].keys():  # left by an earlier version
            print(f"not drawn: {table} has no {', '.join(death.UNIT)}; run {script}.py again")
            tables[name] = []
    named = {condition(*key): lines for key, lines in shared_conditions(tables).items()}
    if not named:
        return []
    what = f"last epoch of training on {canvas.dataset_name(settings.dataset)}"
    drawn = [settings.output_dir / "fire-rates.png"]
    figures.fire_rates_figure(named, drawn[0], f"How often the units fire, {what}")
    panels = {
        f"{name}, {key}": rows
        for key, lines in named.items()
        for name, rows in lines.items()
        if any(row["fire_rate"] == 0 for row in rows)
    }
    path = settings.output_dir / "batch-norms.png"
    path.unlink(missing_ok=True)  # of an earlier command
    if panels:
        figures.batch_norms_figure(panels, path, f"The batch-norms of units that always or never fire, {what}")
        drawn.append(path)
    return drawn


def published(dataset: str, rows: list[dict]) -> list[float]:
    """The paper's shares of dying units for what was done in these rows, in per cent, from the least up."""
    done = {(row["activation"], row["noise_std"], row["learning_rate"]) for row in rows if not row["regularization"]}
    found = {paper.dying_share(dataset, *one) for one in done}
    return sorted(found - {None})


def published_beside(dataset: str, lines: dict[str, list[dict]]) -> dict[str, list[float]]:
    """Label -> the paper's shares, one label for lines for which it reports the same."""
    found: dict[tuple, list[str]] = {}
    for name, rows in lines.items():
        found.setdefault(tuple(published(dataset, rows)), []).append(name)
    return {
        "paper" if len(found) == 1 else f"paper, {names[0]}": list(shares) for shares, names in found.items() if shares
    }


COMPARISONS = {
    "activations": ("Three activations", {"Resnet18": "ReLU", "LeakyReLU": "Leaky ReLU", "Swish": "Swish"}),
    "gradient-noise": ("Plain and noisy SGD", {"SGD": "SGD", "SGD_noise": "noisy SGD"}),
}
# What may differ between the runs of scripts that are drawn together.
COMPARED = {"activation", "gradient_clip", "noise_std"}


def results_of(output_dir: Path, script: str) -> tuple[dict, list[dict]] | None:
    """What a script's runs had in common and the rows it left, or None where it left none."""
    folder = output_dir / script
    try:
        made = json.loads((folder / "accumulation.json").read_text(encoding="utf-8"))["settings"]
        rows = read_csv(folder / "accumulation.csv")
    except (OSError, ValueError, KeyError):
        return None
    made["network"].pop("activation")
    return {key: value for key, value in made.items() if key not in COMPARED}, rows


def compare(settings: SimpleNamespace) -> list[Path]:
    """Draws this script's results together with those of its companions, where these exist and were made alike."""
    drawn = []
    for name, (title, members) in COMPARISONS.items():
        if settings.script not in members:
            continue
        found = {script: results_of(settings.output_dir, script) for script in members}
        own = found[settings.script][0]
        found = {script: result for script, result in found.items() if result is not None}
        for script in [script for script, (made, _) in found.items() if made != own]:
            print(f"not drawn together with {script}: its results were made with other settings")
            del found[script]
        columns = shared_conditions({members[script]: rows for script, (_, rows) in found.items()})
        if columns:
            drawn.append(settings.output_dir / f"{name}.png")
            named = {condition(*key): lines for key, lines in columns.items()}
            beside = {key: published_beside(settings.dataset, lines) for key, lines in named.items()}
            curves.epochs_figure(named, drawn[-1], f"{title} on {canvas.dataset_name(settings.dataset)}", beside)
        if name == "activations":
            alike = {script: line for script, line in members.items() if script in found}
            drawn += draw_fire_rates(settings, alike)
    return drawn


def provenance(shared: dict) -> dict:
    """What is needed to make these results again."""
    versions = {"python": platform.python_version(), "torch": torch.__version__, "torchvision": version("torchvision")}
    return {"command": shlex.join(sys.argv), "versions": versions, "settings": shared}


def summary(rows: list[dict]) -> str:
    """The table at the end of a script: the last epoch of every run."""
    lines = []
    for run in grouped(rows, lambda row: label(row["learning_rate"], row["regularization"], row["seed"])).values():
        last, dying = run[-1], [row["dying_units"] for row in run if row["dying_units"] is not None]
        lines.append(
            [
                f"{last['learning_rate']:g}",
                f"{last['regularization']:g}",
                last["seed"],
                last["epoch"],
                last["units"],
                last["dead_units"],
                last["nearly_dead_units"],
                f"{np.mean(dying):.0f}" if dying else "-",
                f"{100 * last['train_accuracy']:.2f}",
                f"{100 * last['test_accuracy']:.2f}",
                f"{sum(row['seconds'] for row in run):.0f}",
            ]
        )
    header = "lr lambda seed epochs units dead nearly-dead dying/epoch train-% test-% seconds"
    return canvas.table(header.split(), lines)


def study(settings: SimpleNamespace, network: str = "resnet18", load=data.load, more: dict | None = None) -> int:
    """Trains, writes accumulation.csv and the figures, prints a table. Returns the exit status.

    Args:
        load: what makes the dataset of the settings.
        more: what else the results depend on.
    """
    dataset = distributed.everywhere(lambda: load(settings))
    shared = {**common_config(settings, dataset, network), **(more or {})}
    finals, failures = train_all(settings, dataset, shared)
    if finals:
        distributed.by_first(lambda: present(settings, shared, finals))
    return exit_status(failures, finals)


def present(settings: SimpleNamespace, shared: dict, finals: list[dict]) -> None:
    """The table and the figures, and where they are."""
    rows = rows_of(settings, finals)
    folder = settings.output_dir / settings.script
    folder.mkdir(exist_ok=True)
    write_csv(folder / "accumulation.csv", COLUMNS, rows)
    made = provenance(shared)
    write_text(folder / "accumulation.json", json.dumps(made, indent=1) + "\n")
    paths = [*draw(settings, rows, finals, folder), *compare(settings)]
    print(f"\n{summary(rows)}\n\ntable: {folder / 'accumulation.csv'}")
    print("".join(f"figure: {path}\n" for path in paths), end="")
