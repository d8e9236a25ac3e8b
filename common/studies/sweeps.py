"""The sweeps: how many units die as the batch size, the learning rate or the regularization changes."""

import json
import sys
from itertools import product
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from common import data
from common.errors import RunFailed, UserError
from common.files import read_csv, write_csv, write_text
from common.names import SWEEPS
from common.reports import canvas, curves, death, figures, paper, trends
from common.reports.tables import exit_status, rows_to_extend
from common.studies import accumulation

# What tells the runs of a table apart; footing: at equal `epochs` or at equal `steps`.
IDENTITY = ["footing", "batch_size", "learning_rate", "regularization", "seed"]
COLUMNS = [
    "script",
    *IDENTITY,
    "epochs",
    "steps",
    "units",
    "dead_units",
    "nearly_dead_units",
    "dead_at_end",
    "revived_units",
    "dying_units",
    "cumulative_dead",
    "test_accuracy",
    "width",
    "device",
    "seconds",
]


def equal_steps(settings: SimpleNamespace) -> tuple[int, int]:
    """The smallest batch size and its epochs in the runs at equal steps.

    So many that these runs together take about the epochs of those at equal epochs, and cost as much; but two at least,
    since dying units are told from the epoch before.
    """
    sizes = settings.batch_sizes
    return min(sizes), max(2, round(settings.epochs * len(sizes) * min(sizes) / sum(sizes)))


def epochs_of(settings: SimpleNamespace, footing: str, batch_size: int) -> int:
    """EPOCHS, or at equal steps as many as are proportional to the batch size, to the nearest whole one."""
    smallest, epochs = equal_steps(settings)
    return settings.epochs if footing == "epochs" else round(epochs * batch_size / smallest)


def plan(settings: SimpleNamespace) -> list[dict]:
    """IDENTITY and epochs of every run; a seed is complete before the next begins."""
    by_batch = settings.study == "batch-size"
    strengths = settings.regularizations if settings.study == "regularization" else settings.regularization
    sizes = settings.batch_sizes if by_batch else [settings.batch_size]
    footings = ["epochs", "steps"] if by_batch else ["epochs"]
    return [
        {
            **dict(zip(IDENTITY, (footing, size, rate, strength, seed), strict=True)),
            "epochs": epochs_of(settings, footing, size) if by_batch else settings.epochs,
        }
        for seed, footing, strength, rate, size in product(
            settings.seeds, footings, strengths, settings.learning_rates, sizes
        )
    ]


def check(settings: SimpleNamespace, dataset: data.Dataset) -> None:
    """Raises UserError for a batch size that the dataset is too small for."""
    for size in settings.batch_sizes if settings.study == "batch-size" else ():
        if size > len(dataset.train):
            raise UserError(f"BATCH_SIZES: got {size}, takes at most the {len(dataset.train)} training images")


def train_one(settings: SimpleNamespace, dataset: data.Dataset, shared: dict, point: dict) -> dict:
    """One run of the plan."""
    own = {"batch_size": point["batch_size"], "per_pass": point["batch_size"], "epochs": point["epochs"]}
    here = SimpleNamespace(**{**vars(settings), **own})
    return accumulation.train_one(here, dataset, shared, point["learning_rate"], point["regularization"], point["seed"])


def row_of(settings: SimpleNamespace, point: dict, final: dict) -> dict:
    """A row of the table: dying_units is the mean over all epochs but the first, cumulative_dead in unit-epochs."""
    rows, last = final["rows"], final["rows"][-1]
    dying = [row["dying_units"] for row in rows[1:]]
    return {
        "script": settings.script,
        **point,
        "steps": sum(final["counts"]["batches"]),
        **{name: last[name] for name in ("units", "dead_units", "nearly_dead_units", "test_accuracy")},
        "dead_at_end": final["DeadAtEnd"]["dead"],
        "revived_units": sum(row["revived_units"] for row in rows[1:]),
        "dying_units": float(np.mean(dying)) if dying else None,
        "cumulative_dead": sum(row["dead_units"] for row in rows),
        "width": settings.width,
        "device": settings.device.type,
        "seconds": sum(row["seconds"] for row in rows),
    }


def identity(row: dict) -> tuple:
    return row["footing"], row["batch_size"], float(row["learning_rate"]), float(row["regularization"]), row["seed"]


def conditions(settings: SimpleNamespace, shared: dict) -> dict:
    """All that the rows of one table have in common, as JSON gives it back."""
    own = dict(zip(("batch_size", "epochs"), equal_steps(settings), strict=True))
    return json.loads(json.dumps({**shared, **({"equal_steps": own} if settings.study == "batch-size" else {})}))


class Tables:
    """<study>.csv and beside it <study>-layers.csv and <study>-returns.csv, written anew after every run.

    So an interrupted sweep leaves what it has, and EXTEND goes on from there, on another machine as well.

    Raises:
        UserError: where a table to be extended was made under other conditions.
    """

    ENDINGS = ("", "-layers", "-returns")

    def __init__(self, folder: Path, study: str, made: dict, extend: bool):
        self.paths = {ending: folder / f"{study}{ending}.csv" for ending in self.ENDINGS}
        self.made = made
        self.rows: dict[str, list[dict]] = {ending: [] for ending in self.ENDINGS}
        if extend:
            self.rows[""] = rows_to_extend(self.paths[""], made["settings"], COLUMNS)
            known = {identity(row) for row in self.rows[""]}
            for ending in self.ENDINGS[1:]:
                rows = read_csv(self.paths[ending]) if self.paths[ending].exists() else []
                self.rows[ending] = [row for row in rows if identity(row) in known]

    def add(self, row: dict, counts: dict) -> None:
        run = {name: row[name] for name in IDENTITY}
        new = {"-layers": death.layer_rows(run, counts), "-returns": death.return_rows(run, counts), "": [row]}
        if not self.rows[""]:  # a table of other conditions must not stand beside this one's .json
            self.paths[""].unlink(missing_ok=True)
        write_text(self.paths[""].with_suffix(".json"), json.dumps(self.made, indent=1) + "\n")
        for ending in new:  # the main table last: a run is in it when all that it left is written
            self.rows[ending] = sorted([*self.rows[ending], *new[ending]], key=identity)
            if self.rows[ending]:
                write_csv(self.paths[ending], list(self.rows[ending][0]) if ending else COLUMNS, self.rows[ending])
            else:
                self.paths[ending].unlink(missing_ok=True)


def line_name(row: dict, study: str, rows: list[dict]) -> str:
    """What a line of the figure stands for: what is not swept, the learning rate only where there are several."""
    several = study != "learning-rate" and len({r["learning_rate"] for r in rows}) > 1
    names = [f"lr {row['learning_rate']:g}"] if several else []
    return ", ".join(names + ([f"λ {row['regularization']:g}"] if study != "regularization" else []))


def trend_table(study: str, rows: list[dict]) -> list[dict]:
    """The trend of every quantity of the figure, for each footing and line of it."""
    table = []
    for footing, group in accumulation.grouped(rows, lambda row: row["footing"]).items():
        for line, runs in accumulation.grouped(group, lambda row: line_name(row, study, rows)).items():
            for name, value in figures.PANELS:
                points = [(row[SWEEPS[study]], row["seed"], value(row)) for row in runs]
                table.append({"equal": footing, "line": line or "-", "quantity": name, **trends.trend(points)})
    return table


def draw(settings: SimpleNamespace, tables: Tables, failures: list[str], folder: Path) -> list[Path]:
    """<study>.png and, where units died at equal epochs, <study>-layers.png and <study>-returns.png; their paths."""
    study, swept = settings.study, SWEEPS[settings.study]
    title = f"{settings.script}.py on {canvas.dataset_name(settings.dataset)}"
    paths = [folder / f"{study}{ending}.png" for ending in Tables.ENDINGS]
    published = paper.dead_units(settings.dataset, settings.activation, study)
    groups = accumulation.grouped(tables.rows[""], lambda row: row["footing"])
    lines = {
        footing: accumulation.grouped(rows, lambda row: line_name(row, study, tables.rows[""]))
        for footing, rows in groups.items()
    }
    missed = [failure.split(": ")[0] for failure in failures]
    figures.sweep_figure(lines, swept, paths[0], title, published, missed)
    drawn = [paths[0]]
    at_equal_epochs = [row for row in tables.rows["-layers"] if row["footing"] == "epochs"]
    runs = {
        f"{name}, {line}" if line else name: by_seed
        for (name, line), by_seed in layer_shares(study, swept, at_equal_epochs).items()
        if by_seed.any()
    }
    if runs:
        layers = [name for name in at_equal_epochs[0] if name not in (*IDENTITY, "epoch")]
        means = {label: by_seed.mean(axis=0) for label, by_seed in runs.items()}
        behind = canvas.mean_of([len(by_seed) for by_seed in runs.values()])
        curves.layers_figure(means, layers, paths[1], f"{title}: share of units dead over the whole epoch, {behind}")
        drawn.append(paths[1])
    returns = [row for row in tables.rows["-returns"] if row["footing"] == "epochs"]
    if returns:
        figures.returns_figure(returns, paths[2], f"{title}, {study}", getattr(settings, "patience", None))
        drawn.append(paths[2])
    for path in set(paths) - set(drawn):  # of an earlier command
        path.unlink(missing_ok=True)
    return drawn


def layer_shares(study: str, swept: str, rows: list[dict]) -> dict[tuple[str, str], np.ndarray]:
    """(swept value, line) -> the share of dead units, [seeds, epochs, layers]."""
    layers = [name for name in rows[0] if name not in (*IDENTITY, "epoch")] if rows else []
    groups: dict[tuple, dict] = {}
    for row in sorted(rows, key=lambda row: (row["regularization"], row["learning_rate"], row["batch_size"])):
        key = f"{figures.NAMES[swept]} {figures.short(row[swept])}", line_name(row, study, rows)
        groups.setdefault(key, {}).setdefault(row["seed"], []).append([row[layer] for layer in layers])
    return {key: np.array(list(by_seed.values())) for key, by_seed in groups.items()}


def summary(rows: list[dict]) -> str:
    cells = [
        [
            *(f"{row[name]:g}" if isinstance(row[name], float) else row[name] for name in IDENTITY),
            *(row[name] for name in ("epochs", "steps", "units", "dead_units", "dead_at_end", "cumulative_dead")),
            "-" if row["dying_units"] is None else f"{row['dying_units']:.0f}",
            f"{100 * row['test_accuracy']:.2f}",
            f"{row['seconds']:.0f}",
        ]
        for row in rows
    ]
    header = "equal batch lr lambda seed epochs steps units dead dead-at-end unit-epochs dying/epoch test-% seconds"
    return canvas.table(header.split(), cells)


def study(settings: SimpleNamespace) -> int:
    """Trains every run of the sweep, writes the tables and figures, prints a table; the exit status."""
    dataset = data.load(settings)
    check(settings, dataset)
    shared = accumulation.common_config(settings, dataset, "resnet18")
    made = accumulation.provenance(conditions(settings, shared))
    folder = settings.output_dir / settings.script
    folder.mkdir(exist_ok=True)
    tables = Tables(folder, settings.study, made, settings.extend)
    known, failures = {identity(row) for row in tables.rows[""]}, []
    for point in plan(settings):
        if identity(point) in known:
            continue
        try:
            final = train_one(settings, dataset, shared, point)
        except RunFailed as error:
            values = f"{settings.study} {figures.short(point[SWEEPS[settings.study]])}"
            label = accumulation.label(point["learning_rate"], point["regularization"], point["seed"])
            failures.append(f"{values} at equal {point['footing']}, {label}: {error}")
            print(f"error: {failures[-1]}", file=sys.stderr)
            continue
        tables.add(row_of(settings, point, final), final["counts"])
    rows = tables.rows[""]
    if rows:
        table = folder / f"{settings.study}-trends.md"
        write_text(table, trends.markdown(trend_table(settings.study, rows), ["equal", "line"]))
        paths = draw(settings, tables, failures, folder)
        print(f"\n{summary(rows)}\n\ntable: {tables.paths['']}\ntrends: {table}")
        print("".join(f"figure: {path}\n" for path in paths), end="")
    return exit_status(failures, rows)
