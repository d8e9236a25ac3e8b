"""The figures, the trends and the printed table of a sweep."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np

from common.files import write_text
from common.names import SWEEPS, Sweep
from common.reports import canvas, curves, figures, paper, trends
from common.reports.accumulation import grouped
from common.reports.figures import short

# What tells the runs of a table apart, beside what is swept; footing: at equal `epochs` or at equal `steps`.
IDENTITY = ["footing", "batch_size", "learning_rate", "regularization", "seed"]
ENDINGS = ("", "-layers", "-returns")  # of a sweep's tables


def identity_of(study: str) -> list[str]:
    """The columns that tell the runs of a sweep apart."""
    return [*IDENTITY, *({SWEEPS[study].column} - set(IDENTITY))]


def line_name(row: dict, study: str, rows: list[dict]) -> str:
    """What a line of the figure stands for: what is not swept, the learning rate only where there are several."""
    several = study != "learning-rate" and len({r["learning_rate"] for r in rows}) > 1
    names = [f"lr {row['learning_rate']:g}"] if several else []
    return ", ".join(names + ([f"λ {row['regularization']:g}"] if study != "regularization" else []))


def trend_table(study: str, rows: list[dict]) -> list[dict]:
    """The trend of every quantity of the figure, for each footing and line of it."""
    table = []
    for footing, group in grouped(rows, lambda row: row["footing"]).items():
        for line, runs in grouped(group, lambda row: line_name(row, study, rows)).items():
            for name, value in figures.PANELS:
                points = [(row[SWEEPS[study].column], row["seed"], value(row)) for row in runs]
                table.append({"equal": footing, "line": line or "-", "quantity": name, **trends.trend(points)})
    return table


def draw(settings: SimpleNamespace, tables, failures: list[str], folder: Path) -> list[Path]:
    """<study>.png and, where units died at equal epochs, <study>-layers.png and <study>-returns.png; their paths."""
    study, swept = settings.study, SWEEPS[settings.study]
    title = canvas.what(settings)
    paths = [folder / f"{study}{ending}.png" for ending in ENDINGS]
    published = paper.dead_units((settings.dataset, settings.network), settings.activation, study)
    groups = grouped(tables.rows[""], lambda row: row["footing"])
    lines = {
        footing: grouped(rows, lambda row: line_name(row, study, tables.rows[""])) for footing, rows in groups.items()
    }
    missed = [failure.split(": ")[0] for failure in failures]
    figures.sweep_figure(lines, swept, paths[0], title, published, missed)
    drawn = [paths[0]]
    at_equal_epochs = [row for row in tables.rows["-layers"] if row["footing"] == "epochs"]
    own = (*tables.identity, "epoch")
    layers = [name for name in at_equal_epochs[0] if name not in own] if at_equal_epochs else []
    runs = {
        f"{name}, {line}" if line else name: by_seed
        for (name, line), by_seed in layer_shares(study, swept, layers, at_equal_epochs).items()
        if by_seed.any()
    }
    if runs:
        means = {label: by_seed.mean(axis=0) for label, by_seed in runs.items()}
        behind = canvas.mean_of([len(by_seed) for by_seed in runs.values()])
        curves.layers_figure(means, layers, paths[1], f"{title}: share of units dead over the whole epoch, {behind}")
        drawn.append(paths[1])
    returns = [row for row in tables.rows["-returns"] if row["footing"] == "epochs"]
    if returns:
        figures.returns_figure(returns, paths[2], f"{title}, study {study}", getattr(settings, "patience", None))
        drawn.append(paths[2])
    for path in set(paths) - set(drawn):  # of an earlier command
        path.unlink(missing_ok=True)
    return drawn


def layer_shares(study: str, swept: Sweep, layers: list[str], rows: list[dict]) -> dict[tuple[str, str], np.ndarray]:
    """(swept value, line) -> the share of dead units, [seeds, epochs, layers]."""
    groups: dict[tuple, dict] = {}
    order = ("regularization", "learning_rate", "batch_size", swept.column)
    for row in sorted(rows, key=lambda row: tuple(row[name] for name in order)):
        key = f"{swept.short} {short(row[swept.column])}", line_name(row, study, rows)
        groups.setdefault(key, {}).setdefault(row["seed"], []).append([row[layer] for layer in layers])
    return {key: np.array(list(by_seed.values())) for key, by_seed in groups.items()}


def summary(rows: list[dict], identity: list[str]) -> str:
    cells = [
        [
            *(f"{row[name]:g}" if isinstance(row[name], float) else row[name] for name in identity),
            *(row[name] for name in ("epochs", "steps", "units", "dead_units", "dead_at_end", "cumulative_dead")),
            "-" if row["dying_units"] is None else f"{row['dying_units']:.0f}",
            f"{100 * row['test_accuracy']:.2f}",
            f"{row['seconds']:.0f}",
        ]
        for row in rows
    ]
    short_names = {"footing": "equal", "batch_size": "batch", "learning_rate": "lr", "regularization": "lambda"}
    header = " ".join(short_names.get(name, name) for name in identity)
    header += " epochs steps units dead dead-at-end unit-epochs dying/epoch test-% seconds"
    return canvas.table(header.split(), cells)


def present(settings: SimpleNamespace, tables, failures: list[str]) -> None:
    """Writes and prints what follows from the tables of a sweep, `studies.sweeps.Tables`."""
    folder, rows = settings.output_dir / settings.script, tables.rows[""]
    path = folder / f"{settings.study}-trends.md"
    write_text(path, trends.markdown(trend_table(settings.study, rows), ["equal", "line"]))
    paths = draw(settings, tables, failures, folder)
    print(f"\n{summary(rows, tables.identity)}\n\ntable: {tables.paths['']}\ntrends: {path}")
    print("".join(f"figure: {path}\n" for path in paths), end="")
