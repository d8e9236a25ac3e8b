"""Figures and the printed table of the accumulation study, and those that compare several scripts."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from common import units
from common.files import read_csv, write_csv
from common.names import ACTIVATION_LABELS, condition
from common.reports import canvas, curves, death, figures, paper


def grouped(rows: list[dict], key) -> dict[str, list[dict]]:
    groups: dict[str, list[dict]] = {}
    for row in rows:
        groups.setdefault(key(row), []).append(row)
    return groups


def line_name(row: dict) -> str:
    return condition(row["learning_rate"], row["regularization"], ", λ")


def draw(settings: SimpleNamespace, rows: list[dict], finals: list[dict], folder: Path) -> list[Path]:
    """accumulation.png, accumulation-layers.png and, where units died, accumulation-returns.png; their paths."""
    what = canvas.what(settings)
    by_epoch, layers = draw_epochs(settings, rows, folder), folder / "accumulation-layers.png"
    if not finals:  # of a table to which nothing was added, and whose runs are elsewhere
        return [by_epoch]
    by_line: dict[str, list] = {}
    for final in finals:
        counts = units.history(final["counts"])
        dead = [units.by_layer(epoch.dead.double(), final["counts"]["layers"]) for epoch in counts]
        by_line.setdefault(line_name(final["config"]), []).append([list(epoch.values()) for epoch in dead])
    names = list(finals[0]["counts"]["layers"])
    means = {name: np.mean(runs, axis=0) for name, runs in by_line.items()}
    curves.layers_figure(means, names, layers, f"{what}: share of units dead over the whole epoch")
    return [by_epoch, layers, *draw_units(settings, finals, folder)]


def draw_epochs(settings: SimpleNamespace, rows: list[dict], folder: Path) -> Path:
    path, shares = folder / "accumulation.png", published((settings.dataset, settings.network), rows)
    beside = {"": {"paper": shares}} if shares else {}
    curves.epochs_figure({"": grouped(rows, line_name)}, path, canvas.what(settings), beside)
    return path


RUN = ["learning_rate", "regularization", "seed"]


def draw_returns(settings: SimpleNamespace, returns: list[dict], table: Path) -> list[Path]:
    path = table.with_suffix(".png")
    figures.returns_figure(returns, path, canvas.what(settings), getattr(settings, "patience", None))
    return [path]


def draw_units(settings: SimpleNamespace, finals: list[dict], folder: Path) -> list[Path]:
    """Writes accumulation-fire-rates.csv and, where units died, accumulation-returns.csv and its figure, whose path it
    returns."""
    rates, returns = [], []
    for final in finals:
        run = {name: final["config"][name] for name in RUN}
        rates += death.fire_rate_rows(run, final["counts"], final["model"])
        returns += death.return_rows(run, final["counts"])
    write_csv(folder / "accumulation-fire-rates.csv", list(rates[0]), rates)
    table = folder / "accumulation-returns.csv"
    if not returns:
        for old in (table, table.with_suffix(".png")):
            old.unlink(missing_ok=True)
        return []
    write_csv(table, list(returns[0]), returns)
    return draw_returns(settings, returns, table)


def shared_conditions(tables: dict[str, list[dict]]) -> dict[tuple[float, float], dict[str, list[dict]]]:
    """(learning rate, regularization) -> label -> its rows, where at least two of the labelled tables have it."""
    found: dict[tuple[float, float], dict[str, list[dict]]] = {}
    for name, rows in tables.items():
        for row in rows:
            found.setdefault((row["learning_rate"], row["regularization"]), {}).setdefault(name, []).append(row)
    order = sorted(found, key=lambda key: key[::-1])
    return {key: found[key] for key in order if len(found[key]) > 1}


def draw_fire_rates(settings: SimpleNamespace, folders: dict[str, tuple[str, Path]]) -> list[Path]:
    """fire-rates.png and, where units died, batch-norms.png for several scripts, where two of them were run; their
    paths. folders: label -> script, and where its results are."""
    tables = {}
    for name, (script, folder) in folders.items():
        table = folder / "accumulation-fire-rates.csv"
        tables[name] = read_csv(table) if table.exists() else []
        if tables[name] and not set(death.UNIT) <= tables[name][0].keys():  # left by an earlier version
            print(f"not drawn: {table} has no {', '.join(death.UNIT)}; run {script}.py again")
            tables[name] = []
    named = {condition(*key, ", λ"): lines for key, lines in shared_conditions(tables).items()}
    if not named:
        return []
    what = f"last epoch of training on {canvas.dataset_name(settings.dataset)}"
    drawn = [settings.output_dir / "fire-rates.png"]
    figures.fire_rates_figure(named, drawn[0], f"How often the units fire, {what}")
    panels = {
        f"{name}, {key}": rows
        for key, lines in named.items()
        for name, rows in lines.items()
        if any(row["fire_rate"] == 0 for row in rows) and all(row["shift"] is not None for row in rows)
    }
    path = settings.output_dir / "batch-norms.png"
    path.unlink(missing_ok=True)  # of an earlier command
    if panels:
        figures.batch_norms_figure(panels, path, f"The batch-norms of units that always or never fire, {what}")
        drawn.append(path)
    return drawn


def published(setup: tuple[str, str], rows: list[dict]) -> list[float]:
    """The paper's shares of dying units for what was done in these rows, in per cent, from the least up."""
    done = {(row["activation"], row["noise_std"], row["learning_rate"]) for row in rows if not row["regularization"]}
    found = {paper.dying_share(setup, *one) for one in done}
    return sorted(found - {None})


def published_beside(setup: tuple[str, str], lines: dict[str, list[dict]]) -> dict[str, list[float]]:
    """Label -> the paper's shares, one label for lines for which it reports the same."""
    found: dict[tuple, list[str]] = {}
    for name, rows in lines.items():
        found.setdefault(tuple(published(setup, rows)), []).append(name)
    return {
        "paper" if len(found) == 1 else f"paper, {names[0]}": list(shares) for shares, names in found.items() if shares
    }


COMPARISONS = {  # figure -> its title, the scripts, and what a script's rows are called in it
    "activations": (
        "Three activations",
        ("Resnet18", "LeakyReLU", "Swish"),
        lambda row: ACTIVATION_LABELS.get(row["activation"], row["activation"]),
    ),
    "gradient-noise": (
        "Plain and noisy SGD",
        ("SGD", "SGD_noise"),
        lambda row: f"noise {row['noise_std']:g}" if row["noise_std"] else "SGD",
    ),
}


def labels_of(tables: dict[str, list[dict]], label) -> dict[str, str]:
    """Script -> what its rows are called, with the script where two would be called the same."""
    found = {script: label(rows[0]) for script, rows in tables.items()}
    twice = {name for name in found.values() if list(found.values()).count(name) > 1}
    return {script: f"{name} ({script}.py)" if name in twice else name for script, name in found.items()}


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
    made["network"].pop("activation", None)
    return {key: value for key, value in made.items() if key not in COMPARED}, rows


def made_alike(settings: SimpleNamespace, scripts: tuple[str, ...]) -> dict[str, tuple[Path, list[dict]]]:
    """Script -> the folder with its results and their rows, of those that were made as this script's were: in the same
    folder, or in one beside it (`studies.study.place_of`)."""
    own, found = results_of(settings.output_dir, settings.script)[0], {}
    beside = sorted(path.parent.parent for path in settings.base_dir.glob("*/*/accumulation.csv"))
    places = [settings.output_dir, settings.base_dir, *beside]
    for script in scripts:
        there = {place: result for place in places if (result := results_of(place, script))}
        alike = [(place / script, rows) for place, (made, rows) in there.items() if made == own]
        if alike:
            found[script] = alike[0]
        elif there:
            print(f"not drawn together with {script}: its results were made with other settings")
    return found


def compare(settings: SimpleNamespace) -> list[Path]:
    """Draws this script's results together with those of its companions, where these exist and were made alike."""
    drawn = []
    for name, (title, scripts, label) in COMPARISONS.items():
        if settings.script not in scripts:
            continue
        found = made_alike(settings, scripts)
        labels = labels_of({script: rows for script, (_, rows) in found.items()}, label)
        columns = shared_conditions({labels[script]: rows for script, (_, rows) in found.items()})
        if columns:
            drawn.append(settings.output_dir / f"{name}.png")
            named = {condition(*key, ", λ"): lines for key, lines in columns.items()}
            beside = {
                key: published_beside((settings.dataset, settings.network), lines) for key, lines in named.items()
            }
            curves.epochs_figure(named, drawn[-1], f"{title} on {canvas.dataset_name(settings.dataset)}", beside)
        if name == "activations":
            folders = {labels[script]: (script, folder) for script, (folder, _) in found.items()}
            drawn += draw_fire_rates(settings, folders)
    return drawn


def summary(rows: list[dict]) -> str:
    """The table at the end of a script: the last epoch of every run."""
    lines = []
    for run in grouped(rows, lambda row: f"{line_name(row)} seed {row['seed']}").values():
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
