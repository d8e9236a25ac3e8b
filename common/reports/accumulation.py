"""Figures and the printed table of the accumulation study, and those that compare several scripts."""

from pathlib import Path
from types import SimpleNamespace

import pandas as pd

from common.errors import UserError
from common.files import origin, write_csv
from common.names import ACTIVATION_LABELS, condition
from common.reports import canvas, curves, death, figures, paper, tables
from common.reports.curves import Lines

LINE = ["learning_rate", "regularization"]  # what tells the lines of a figure apart


def by_line(rows: pd.DataFrame) -> Lines:
    """What a line stands for -> its rows, both in their order."""
    return {condition(*key, ", λ"): own for key, own in rows.groupby(LINE, sort=False)}


def draw(settings: SimpleNamespace, rows: pd.DataFrame, finals: list[dict], folder: Path) -> list[Path]:
    """accumulation.png, accumulation-layers.png and, where units died, accumulation-returns.png; their paths."""
    by_epoch, layers = draw_epochs(settings, rows, folder), folder / "accumulation-layers.png"
    if not finals:  # of a table to which nothing was added, and whose runs are elsewhere
        return [by_epoch]
    shares = []
    for final in finals:
        label = condition(*(final["config"][name] for name in LINE), ", λ")
        shares += death.layer_rows({"label": label}, final["counts"])
    title = f"{canvas.what(settings)}: share of units dead over the whole epoch"
    curves.layers_figure(pd.DataFrame(shares), list(finals[0]["counts"]["layers"]), layers, title)
    return [by_epoch, layers, *draw_units(settings, finals, folder)]


def draw_epochs(settings: SimpleNamespace, rows: pd.DataFrame, folder: Path) -> Path:
    path, shares = folder / "accumulation.png", published((settings.dataset, settings.network), rows)
    beside = {"": {"paper": shares}} if shares else {}
    curves.epochs_figure({"": by_line(rows)}, path, canvas.what(settings), beside)
    return path


def draw_returns(settings: SimpleNamespace, table: Path) -> list[Path]:
    path = table.with_suffix(".png")
    figures.returns_figure(tables.read(table), path, canvas.what(settings), getattr(settings, "patience", None))
    return [path]


def draw_units(settings: SimpleNamespace, finals: list[dict], folder: Path) -> list[Path]:
    """Writes accumulation-fire-rates.csv and, where units died, accumulation-returns.csv and its figure, whose path it
    returns."""
    rates, returns = [], []
    for final in finals:
        run = {name: final["config"][name] for name in (*LINE, "seed")}
        rates += death.fire_rate_rows(run, final["counts"], final["model"])
        returns += death.return_rows(run, final["counts"])
    write_csv(folder / "accumulation-fire-rates.csv", list(rates[0]), rates)
    table = folder / "accumulation-returns.csv"
    if not returns:
        for old in (table, table.with_suffix(".png")):
            old.unlink(missing_ok=True)
        return []
    write_csv(table, list(returns[0]), returns)
    return draw_returns(settings, table)


def shared_conditions(found: dict[str, pd.DataFrame]) -> dict[str, Lines]:
    """What a line stands for -> label -> its rows, where at least two of the labelled tables have it."""
    lines = {name: dict(list(rows.groupby(LINE[::-1]))) for name, rows in found.items() if len(rows)}
    keys = sorted(set().union(*lines.values()))
    shared = {condition(*key[::-1], ", λ"): {n: own[key] for n, own in lines.items() if key in own} for key in keys}
    return {name: own for name, own in shared.items() if len(own) > 1}


def draw_fire_rates(settings: SimpleNamespace, folders: dict[str, tuple[str, Path]]) -> list[Path]:
    """fire-rates.png and, where units died, batch-norms.png for several scripts, where two of them were run; their
    paths. folders: label -> script, and where its results are."""
    found = {}
    for name, (script, folder) in folders.items():
        table = folder / "accumulation-fire-rates.csv"
        found[name] = tables.read(table)
        if len(found[name]) and not set(death.UNIT) <= set(found[name]):  # left by an earlier version
            print(f"not drawn: {table} has no {', '.join(death.UNIT)}; run {script}.py again")
            found[name] = found[name][:0]
    named = shared_conditions(found)
    if not named:
        return []
    what = f"last epoch of training on {canvas.dataset_name(settings.dataset)}"
    drawn = [settings.output_dir / "fire-rates.png"]
    figures.fire_rates_figure(named, drawn[0], f"How often the units fire, {what}")
    panels = {
        f"{name}, {key}": rows
        for key, lines in named.items()
        for name, rows in lines.items()
        if (rows["fire_rate"] == 0).any() and rows["shift"].notna().all()
    }
    path = settings.output_dir / "batch-norms.png"
    path.unlink(missing_ok=True)  # of an earlier command
    if panels:
        figures.batch_norms_figure(panels, path, f"The batch-norms of units that always or never fire, {what}")
        drawn.append(path)
    return drawn


def published(setup: tuple[str, str], rows: pd.DataFrame) -> list[float]:
    """The paper's shares of dying units for what was done in these rows, in per cent, from the least up."""
    done = rows.loc[rows["regularization"] == 0, ["activation", "noise_std", "learning_rate"]].drop_duplicates()
    found = {paper.dying_share(setup, *one) for one in done.itertuples(index=False)}
    return sorted(found - {None})


def published_beside(setup: tuple[str, str], lines: Lines) -> dict[str, list[float]]:
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


def labels_of(found: dict[str, pd.DataFrame], label) -> dict[str, str]:
    """Script -> what its rows are called, with the script where two would be called the same."""
    names = pd.Series({script: label(rows.iloc[0]) for script, rows in found.items()})
    return dict(names.where(~names.duplicated(keep=False), [f"{name} ({script}.py)" for script, name in names.items()]))


# What may differ between the runs of scripts that are drawn together.
COMPARED = {"activation", "gradient_clip", "noise_std"}


def results_of(output_dir: Path, script: str) -> tuple[dict, pd.DataFrame] | None:
    """What a script's runs had in common and the rows it left, or None where it left none."""
    table = output_dir / script / "accumulation.csv"
    try:
        made, rows = origin(table)["settings"], tables.read(table)
    except (UserError, ValueError):
        return None
    made["network"].pop("activation", None)
    return {key: value for key, value in made.items() if key not in COMPARED}, rows


def made_alike(settings: SimpleNamespace, scripts: tuple[str, ...]) -> dict[str, tuple[Path, pd.DataFrame]]:
    """Script -> the folder with its results and their rows, of those that were made as this script's were: in the same
    folder, or in one beside it (`studies.extending.place_of`)."""
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
            setup = settings.dataset, settings.network
            beside = {key: published_beside(setup, lines) for key, lines in columns.items()}
            curves.epochs_figure(columns, drawn[-1], f"{title} on {canvas.dataset_name(settings.dataset)}", beside)
        if name == "activations":
            folders = {labels[script]: (script, folder) for script, (folder, _) in found.items()}
            drawn += draw_fire_rates(settings, folders)
    return drawn


def summary(rows: pd.DataFrame) -> str:
    """The table at the end of a script: the last epoch of every run."""
    runs = rows.groupby([*LINE, "seed"], sort=False)
    last = runs.tail(1).assign(dying=runs["dying_units"].mean().to_numpy(), all=runs["seconds"].sum().to_numpy())
    cells = {"lr": last["learning_rate"].map("{:g}".format), "lambda": last["regularization"].map("{:g}".format)}
    counts = {"epochs": "epoch", "units": "units", "dead": "dead_units", "nearly-dead": "nearly_dead_units"}
    rest = {"dying/epoch": ("dying", 1, 0), "train-%": ("train_accuracy", 100, 2), "test-%": ("test_accuracy", 100, 2)}
    cells |= {"seed": last["seed"]} | {header: last[name] for header, name in counts.items()}
    return tables.text(pd.DataFrame({**cells, **tables.columns(last, {**rest, "seconds": ("all", 1, 0)})}))


def present(settings: SimpleNamespace, table: Path, finals: list[dict]) -> None:
    """Draws and prints what follows from the table; finals: of its runs, those that are there."""
    rows = tables.read(table)
    paths = [*draw(settings, rows, finals, table.parent), *compare(settings)]
    print(f"\n{summary(rows)}\n\ntable: {table}")
    canvas.tell(paths)
