"""The figures, the trends and the printed table of a sweep."""

from pathlib import Path
from types import SimpleNamespace

import pandas as pd

from common.files import write_text
from common.names import SWEEPS, SWEPT_TABLES, short
from common.reports import canvas, curves, figures, paper, tables, trends


def with_lines(rows: pd.DataFrame, study: str) -> pd.DataFrame:
    """The table with a column `line`, what a line of the figure stands for: what is not swept, the learning rate only
    where there are several."""
    names = {"learning-rate": ("learning_rate", "lr"), "regularization": ("regularization", "λ")}
    names.pop(study, None)
    if rows["learning_rate"].nunique() == 1:
        names.pop("learning-rate", None)
    parts = [[f"{sign} {value:g}" for value in rows[column]] for column, sign in names.values()]
    return rows.assign(line=[", ".join(each) for each in zip(*parts, strict=True)] if parts else "")


def trend_table(study: str, rows: pd.DataFrame) -> list[dict]:
    """The trend of every quantity of the figure, for each footing and line of it."""
    found = []
    for (footing, line), runs in with_lines(rows, study).groupby(["footing", "line"], sort=False):
        for name, value in figures.PANELS:
            points = zip(runs[SWEEPS[study].column], runs["seed"], value(runs), strict=True)
            found.append({"equal": footing, "line": line or "-", "quantity": name, **trends.trend(points)})
    return found


def draw(settings: SimpleNamespace, table: Path, failures: list[str]) -> list[Path]:
    """<study>.png and, where units died at equal epochs, <study>-layers.png and <study>-returns.png; their paths.

    table: <study>.csv, with <study>-layers.csv and <study>-returns.csv beside it.
    """
    study, swept, title = settings.study, SWEEPS[settings.study], canvas.what(settings)
    found = [table.with_name(f"{study}{ending}.csv") for ending in SWEPT_TABLES]
    paths, (rows, layers, returns) = [path.with_suffix(".png") for path in found], map(tables.read, found)
    published = paper.dead_units((settings.dataset, settings.network), settings.activation, study)
    lines = {
        footing: dict(list(runs.groupby("line", sort=False)))
        for footing, runs in with_lines(rows, study).groupby("footing", sort=False)
    }
    missed = [failure.split(": ")[0] for failure in failures]
    figures.sweep_figure(lines, swept, paths[0], title, published, missed)
    drawn = [paths[0]]
    shares = layer_shares(study, layers)
    if len(shares):
        behind = canvas.mean_of(shares.groupby("label")["seed"].nunique())
        names = [name for name in layers if name not in (*swept.identity, "epoch")]
        curves.layers_figure(shares, names, paths[1], f"{title}: share of units dead over the whole epoch, {behind}")
        drawn.append(paths[1])
    returns = returns[returns["footing"] == "epochs"] if len(returns) else returns
    if len(returns):
        figures.returns_figure(returns, paths[2], f"{title}, study {study}", getattr(settings, "patience", None))
        drawn.append(paths[2])
    for path in set(paths) - set(drawn):  # of an earlier command
        path.unlink(missing_ok=True)
    return drawn


def layer_shares(study: str, layers: pd.DataFrame) -> pd.DataFrame:
    """The rows of <study>-layers.csv at equal epochs, with a column `label`, of the labels where any unit died."""
    swept = SWEEPS[study]
    rows = layers[layers["footing"] == "epochs"] if len(layers) else layers
    if not len(rows):
        return rows
    order = ["regularization", "learning_rate", "batch_size", swept.column]
    rows = with_lines(rows.sort_values(order, kind="stable"), study)
    lines = zip(rows[swept.column], rows["line"], strict=True)
    rows["label"] = [f"{swept.short} {short(value)}{line and f', {line}'}" for value, line in lines]
    names = [name for name in layers if name not in (*swept.identity, "epoch")]
    return rows.groupby("label").filter(lambda own: own[names].any(axis=None))


def summary(rows: pd.DataFrame, identity: list[str]) -> str:
    short_names = {"footing": "equal", "batch_size": "batch", "learning_rate": "lr", "regularization": "lambda"}
    own = {
        short_names.get(name, name): [f"{value:g}" if isinstance(value, float) else value for value in rows[name]]
        for name in identity
    }
    counts = {"epochs": "epochs", "steps": "steps", "units": "units", "dead_units": "dead"}
    counts |= {"dead_at_end": "dead-at-end", "cumulative_dead": "unit-epochs"}
    rest = {"dying/epoch": ("dying_units", 1, 0), "test-%": ("test_accuracy", 100, 2), "seconds": ("seconds", 1, 0)}
    cells = rows[list(counts)].rename(columns=counts).to_dict("list")
    return tables.text(pd.DataFrame({**own, **cells, **tables.columns(rows, rest)}))


def present(settings: SimpleNamespace, table: Path, failures: list[str]) -> None:
    """Writes and prints what follows from the tables of a sweep."""
    rows, path = tables.read(table), table.with_name(f"{settings.study}-trends.md")
    write_text(path, trends.markdown(trend_table(settings.study, rows), ["equal", "line"]))
    paths = draw(settings, table, failures)
    print(f"\n{summary(rows, SWEEPS[settings.study].identity)}\n\ntable: {table}\ntrends: {path}")
    canvas.tell(paths)
