"""The table and the figure of the comparison on ImageNet, the paper's numbers beside ours."""

from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from common import folders
from common.images import printable
from common.pruning import label
from common.pruning.task import point_of
from common.reports import canvas, paper, tables, tradeoff
from common.reports.sparsity import summary


def present(settings: SimpleNamespace, dataset: folders.Folder, rows: list[dict], table: Path) -> None:
    """The table, the figure, and the damaged images."""
    print(f"\n{summary(rows)}\n\ntable: {table}\ntable: {table.with_suffix('.md')}")
    figure = draw(settings, dataset, rows, table.parent)
    print("".join(f"figure: {path}\n" for path in figure), end="")
    damaged = dataset.damaged
    if damaged:
        print(f"{len(damaged)} damaged image{'s' * (len(damaged) > 1)} left out:")
        print("".join(f"  {printable(path)}\n" for path in damaged), end="")


def draw(settings, dataset: folders.Folder, rows: list[dict], folder: Path) -> list[Path]:
    """Accuracy against weight sparsity, with the paper's DS-Pruning where the images are the paper's."""
    if all(row["method"] == "dense" or row["test_accuracy"] is None for row in rows):
        return []
    theirs = paper.imagenet(len(dataset.classes))
    line = {target: values[0] for (method, target), values in theirs.items() if method == "ds-pruning"}
    published = {"ds-pruning": line} if line else {}
    title = canvas.what(settings)
    path = folder / "imagenet.png"
    axis = "Weight sparsity (%)"
    tradeoff.tradeoff_figure(rows, path, title, lambda row: 100 * row["weight_sparsity"], axis, published)
    return [path]


# The paper's table: title -> the value of one of our rows, and of the paper's, as it is shown.
CELLS = (
    ("Accuracy (%)", "{:.2f}", lambda row: 100 * row["test_accuracy"], lambda theirs: theirs[0]),
    ("Top-5 (%)", "{:.2f}", lambda row: 100 * row["test_top5_accuracy"], lambda theirs: None),
    ("Neuron sparsity (%)", "{:.1f}", lambda row: 100 * row["neuron_sparsity"], lambda theirs: theirs[1]),
    ("Weight sparsity (%)", "{:.1f}", lambda row: 100 * row["weight_sparsity"], lambda theirs: theirs[2]),
    ("Training speedup", "{:.2f}", lambda row: row["training_speedup"], lambda theirs: theirs[3] and 1 / theirs[3]),
    ("Training FLOPs", "{:.2f}", lambda row: row["training_flops_ratio"], lambda theirs: theirs[4]),
    ("Inference FLOPs", "{:.2f}", lambda row: row["inference_flops_ratio"], lambda theirs: theirs[5]),
)


def cell(shape: str, ours: list[float | None], published: float | None) -> str:
    """Our mean, its deviation over seeds where there are several, and the paper's value in brackets."""
    found = [value for value in ours if value is not None]
    text = shape.format(np.mean(found)) if found else "-"
    if len(found) > 1:
        text += f" ± {shape.format(np.std(found, ddof=1))}"
    return text if published is None else f"{text} ({shape.format(published)})"


def markdown(rows: list[dict]) -> str:
    """The paper's table, a line a method and target, ours with the paper's values in brackets behind."""
    groups = defaultdict(list)
    for row in rows:
        groups[row["method"], point_of(row)].append(row)
    lines = []
    for (method, point), group in groups.items():
        reached = [row for row in group if row["test_accuracy"] is not None]
        published = paper.IMAGENET.get((method, point.target), (None,) * 6)
        name = label(method)
        values = [cell(shape, [ours(row) for row in reached], theirs(published)) for _, shape, ours, theirs in CELLS]
        at = str(point) if point.strength else f"{100 * point.target:g}" if point.target else "-"
        lines.append([name, at, *values])
    text = tables.markdown(["Method", "Target (%)", *(title for title, *_ in CELLS)], lines)
    seeds, epochs = len({row["seed"] for row in rows}), {row["epochs"] for row in rows} - {None}
    spread = "one seed" if seeds == 1 else f"mean ± standard deviation of {seeds} seeds"
    return (
        f"{text}\nIn brackets: the paper's value, for ImageNet and its training. Ours: {max(epochs, default=0)} "
        f"epochs, {spread}. FLOPs are shares of the dense network's, speedup is dense training time "
        "over this method's.\n"
    )
