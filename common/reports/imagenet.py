"""The table and the figure of the comparison on ImageNet, the paper's numbers beside ours."""

from pathlib import Path
from types import SimpleNamespace

import pandas as pd

from common import folders
from common.files import write_text
from common.images import printable
from common.pruning import label
from common.reports import canvas, paper, tables, tradeoff
from common.reports.sparsity import summary


def present(settings: SimpleNamespace, dataset: folders.Folder, table: Path) -> None:
    """The table, the figure, and the damaged images."""
    rows = tables.read(table)
    print(f"\n{summary(rows)}\n\ntable: {table}\ntable: {table.with_suffix('.md')}")
    canvas.tell(draw(settings, dataset, rows, table.parent))
    tell_damaged(dataset)


def tell_damaged(dataset: folders.Folder) -> None:
    damaged = dataset.damaged
    if damaged:
        print(f"{len(damaged)} damaged image{'s' * (len(damaged) > 1)} left out:")
        print("".join(f"  {printable(path)}\n" for path in damaged), end="")


def draw(settings, dataset: folders.Folder, rows: pd.DataFrame, folder: Path) -> list[Path]:
    """Accuracy against weight sparsity, with the paper's DS-Pruning where the images are the paper's."""
    if not tradeoff.can_be_drawn(rows):
        return []
    theirs = paper.imagenet(len(dataset.classes))
    line = {target: values[0] for (method, target), values in theirs.items() if method == "ds-pruning"}
    published = {"ds-pruning": line} if line else {}
    title, path = canvas.what(settings), folder / "imagenet.png"
    tradeoff.tradeoff_figure(rows, path, title, "weight_sparsity", "Weight sparsity (%)", published)
    return [path]


# The paper's table: title -> one of our columns, what it is multiplied by, decimals, and the paper's value.
CELLS = {
    "Accuracy (%)": ("test_accuracy", 100, 2, lambda theirs: theirs[0]),
    "Top-5 (%)": ("test_top5_accuracy", 100, 2, lambda theirs: None),
    "Neuron sparsity (%)": ("neuron_sparsity", 100, 1, lambda theirs: theirs[1]),
    "Weight sparsity (%)": ("weight_sparsity", 100, 1, lambda theirs: theirs[2]),
    "Training speedup": ("training_speedup", 1, 2, lambda theirs: theirs[3] and 1 / theirs[3]),
    "Training FLOPs": ("training_flops_ratio", 1, 2, lambda theirs: theirs[4]),
    "Inference FLOPs": ("inference_flops_ratio", 1, 2, lambda theirs: theirs[5]),
}


def write_markdown(table: Path) -> None:
    write_text(table.with_suffix(".md"), markdown(tables.read(table)))


def markdown(rows: pd.DataFrame) -> str:
    """The paper's table, a line a method and target, ours with the paper's values in brackets behind."""
    lines = []
    for (method, target, strength), group in rows.groupby(["method", *tradeoff.POINT], sort=False, dropna=False):
        reached = group[group["test_accuracy"].notna()]
        published = paper.IMAGENET.get((method, target), (None,) * 6)
        at = tradeoff.named(target, strength) if strength > 0 else f"{100 * target:g}" if target else "-"
        line = {"Method": label(method), "Target (%)": at}
        for title, (name, scale, decimals, theirs) in CELLS.items():
            beside = "" if theirs(published) is None else f" ({tables.digits(theirs(published), decimals)})"
            line[title] = tables.spread(scale * reached[name].astype(float), decimals) + beside
        lines.append(line)
    seeds, epochs = rows["seed"].nunique(), rows["epochs"].max()
    spread = "one seed" if seeds == 1 else f"mean ± standard deviation of {seeds} seeds"
    return (
        f"{tables.markdown(pd.DataFrame(lines))}\nIn brackets: the paper's value, for ImageNet and its training. Ours: "
        f"{0 if pd.isna(epochs) else epochs:g} epochs, {spread}. FLOPs are shares of the dense network's, speedup is "
        "dense training time over this method's.\n"
    )
