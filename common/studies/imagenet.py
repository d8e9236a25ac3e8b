"""The comparison on ImageNet: every criterion on a ResNet-50, and the paper's table with our numbers in it."""

import json
from collections import defaultdict
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from common import folders
from common.files import write_csv, write_text
from common.machine import distributed, environment
from common.reports import canvas, paper, tradeoff
from common.reports.tables import exit_status
from common.studies import accumulation
from common.studies.sparsity import COLUMNS, empty_row, finished, point_of, row_of, summary
from common.training.loop import Callback, Training

OWN_COLUMNS = [*COLUMNS[: COLUMNS.index("test_accuracy") + 1], "test_top5_accuracy"]
OWN_COLUMNS += COLUMNS[len(OWN_COLUMNS) - 1 :]


class DamagedImages(Callback):
    """Tells all processes after every epoch which images were damaged, and keeps that with the run."""

    def __init__(self, dataset: folders.Folder):
        self.dataset = dataset

    def on_epoch_end(self, training: Training):
        self.dataset.note_damaged(distributed.gathered(self.dataset.damaged))

    def state(self) -> dict:
        return {"paths": sorted(set(distributed.gathered(self.dataset.damaged)))}

    def restore(self, training: Training, state: dict):
        self.dataset.note_damaged(state["paths"])


def constants(settings: SimpleNamespace) -> dict:
    """What a run is told by, beside the constants of every script. MICRO_BATCH, like the number of processes, is not
    among them: both may change when a run goes on."""
    names = ("image_size", "pretrained", "label_smoothing", "learning_rate_warmup")
    return {name: getattr(settings, name) for name in names}


def load(settings: SimpleNamespace) -> folders.Folder:
    """The images; prints how the processes share a step."""
    settings.dataset = settings.data_dir
    dataset = folders.load(settings)
    ranks, passes = environment.ranks(), settings.passes
    print(
        f"{len(dataset.train):,} training and {len(dataset.test):,} test images of {len(dataset.classes):,} classes\n"
        f"a step: {settings.batch_size} images in all = {ranks} process{'es' * (ranks > 1)} x {passes} "
        f"pass{'es' * (passes > 1)} of {settings.per_pass}; the learning rate is that of the whole step"
    )
    return dataset


def own_row(settings, dataset, final: dict, reference: dict | None) -> dict:
    return {
        **row_of(settings, dataset, final, reference),
        "test_top5_accuracy": final["rows"][-1]["test_top5_accuracy"],
    }


def study(settings: SimpleNamespace) -> int:
    """Trains every method at every sparsity, writes imagenet.csv, .md and .png; the exit status."""
    dataset = distributed.everywhere(lambda: load(settings))
    print(f"learning rate {settings.pruning_learning_rate:g}, {settings.schedule}")
    shared = {**accumulation.common_config(settings, dataset, "resnet50"), **constants(settings)}
    shared |= {"gradient_clip": 0.0, "noise_std": 0.0}
    rows, failures, dense = [], [], {}
    for method, point, seed, final in finished(settings, dataset, shared, failures, more=[DamagedImages(dataset)]):
        if final is None:
            rows.append({**empty_row(settings, method, point, seed), "test_top5_accuracy": None})
            continue
        dataset.note_damaged(final["DamagedImages"]["paths"])  # where the run was finished before
        if method == "dense":
            dense[seed] = final
        reference = dense.get(seed)
        rows.append(distributed.by_first(partial(own_row, settings, dataset, final, reference)))
        distributed.by_first(lambda: write_table(settings, shared, rows))
    if rows:
        distributed.by_first(lambda: present(settings, dataset, rows))
    return exit_status(failures, rows)


def write_table(settings, shared: dict, rows: list[dict]) -> None:
    """After every run: a table that took weeks is never all or nothing."""
    folder = settings.output_dir / settings.script
    folder.mkdir(exist_ok=True)
    write_csv(folder / "imagenet.csv", OWN_COLUMNS, rows)
    write_text(folder / "imagenet.json", json.dumps(accumulation.provenance(shared), indent=1) + "\n")
    write_text(folder / "imagenet.md", markdown(rows))


def present(settings, dataset: folders.Folder, rows: list[dict]) -> None:
    """The table, the figure, and the damaged images."""
    folder = settings.output_dir / settings.script
    print(f"\n{summary(rows)}\n\ntable: {folder / 'imagenet.csv'}\ntable: {folder / 'imagenet.md'}")
    figure = draw(settings, dataset, rows, folder)
    print("".join(f"figure: {path}\n" for path in figure), end="")
    damaged = dataset.damaged
    if damaged:
        print(f"{len(damaged)} damaged image{'s' * (len(damaged) > 1)} left out:")
        print("".join(f"  {path}\n" for path in damaged), end="")


def draw(settings, dataset: folders.Folder, rows: list[dict], folder: Path) -> list[Path]:
    """Accuracy against weight sparsity, with the paper's DS-Pruning where the images are the paper's."""
    if all(row["method"] == "dense" or row["test_accuracy"] is None for row in rows):
        return []
    theirs = paper.imagenet(len(dataset.classes))
    line = {target: values[0] for (method, target), values in theirs.items() if method == "ds-pruning"}
    published = {"ds-pruning": line} if line else {}
    title = f"ResNet-50 on {canvas.dataset_name(settings.dataset)}"
    path = folder / "imagenet.png"
    axis = "Weight sparsity (%)"  # to a whole per cent, so that all lines end at one place and labels find room
    tradeoff.tradeoff_figure(rows, path, title, lambda row: round(100 * row["weight_sparsity"]), axis, published)
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
    titles = ["Method", "Target (%)", *(title for title, *_ in CELLS)]
    lines = [titles, ["---"] * len(titles)]
    for (method, point), group in groups.items():
        reached = [row for row in group if row["test_accuracy"] is not None]
        published = paper.IMAGENET.get((method, point.target), (None,) * 6)
        name = canvas.NAMES.get(method, method)
        values = [cell(shape, [ours(row) for row in reached], theirs(published)) for _, shape, ours, theirs in CELLS]
        at = str(point) if point.strength else f"{100 * point.target:g}" if point.target else "-"
        lines.append([name, at, *values])
    text = "".join(f"| {' | '.join(line)} |\n" for line in lines)
    seeds, epochs = len({row["seed"] for row in rows}), {row["epochs"] for row in rows} - {None}
    spread = "one seed" if seeds == 1 else f"mean ± standard deviation of {seeds} seeds"
    return (
        f"{text}\nIn brackets: the paper's value, for ImageNet and its training. Ours: {max(epochs, default=0)} "
        f"epochs, {spread}. FLOPs are shares of the dense network's, speedup is dense training time "
        "over this method's.\n"
    )
