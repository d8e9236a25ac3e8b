"""The sparsity studies: accuracy against neuron or weight sparsity, for every method in one harness."""

import json
import statistics
import sys
import time
from collections.abc import Container, Iterator, Sequence
from dataclasses import asdict
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import torch
from torch import nn

from common import data, saved, sparsity
from common.errors import RunFailed
from common.files import write_csv, write_text
from common.machine import devices
from common.models import build
from common.names import MEASURES, SPARSITY, SPARSITY_LABELS
from common.pruning import METHODS, NEEDS, UNTARGETED
from common.pruning.ds_pruning import Constants
from common.pruning.scores import definition_of
from common.pruning.task import Task, Unreachable
from common.reports import canvas, comparison, figures, paper, tradeoff
from common.reports.tables import exit_status, rows_to_extend
from common.studies import accumulation
from common.training.fit import fit
from common.training.gradients import BatchNormPull
from common.training.loop import Callback, Training
from common.training.runs import Run

COLUMNS = [
    "script",
    "method",
    "target",
    "neuron_sparsity",
    "weight_sparsity",
    "test_accuracy",
    "parameters",
    "inference_flops",
    "inference_flops_ratio",
    "training_flops_ratio",
    "training_speedup",
    "inference_speedup",
    "seed",
    "epochs",
    "width",
    "device",
    "seconds",
    "strength",
]


class Point(NamedTuple):
    """Where a method is run: at a target in [0, 1), 0 for the dense network, or at a strength."""

    target: float | None
    strength: float | None = None

    def __str__(self) -> str:
        return f"{self.target:g}" if self.strength is None else f"strength {self.strength:g}"

    @property
    def order(self) -> tuple[float, float]:
        return self.target or 0.0, self.strength or 0.0


def points(settings, method: str) -> list[Point]:
    """Those that a study runs a method at."""
    if method in UNTARGETED:
        return [Point(None, strength) for strength in settings.demp_strengths]
    return [Point(target) for target in ((0.0,) if method == "dense" else settings.sparsities)]


class Cost(Callback):
    """Training FLOPs: 3 x those of a forward pass, for every example, at the widths and densities of that moment."""

    def __init__(self, example: torch.Tensor):
        self.example = example
        self.flops, self.known, self.forward = 0, None, 0

    def on_step(self, training: Training):
        known = training.groups.version, training.densities
        if known != self.known:
            self.known = known
            small = training.groups.compact(training.model)
            self.forward = sparsity.forward_flops(small, self.example, training.densities)
        self.flops += 3 * self.forward * training.examples

    def state(self) -> dict:
        return {"flops": self.flops}

    def restore(self, training: Training, state: dict):
        self.flops = state["flops"]


def train_one(settings, dataset, shared: dict, method: str, point: Point, seed: int, more: Sequence = ()) -> dict:
    """One run of one method, and before it the run whose result it needs; returns what final.pt holds.

    more: callbacks of the caller's own.
    """
    needs = train_one(settings, dataset, shared, NEEDS[method], point, seed, more) if method in NEEDS else None
    measure, multiple = MEASURES[settings.study], devices.width_multiple(settings.device)
    task = Task(point.target, measure, seed, multiple, settings, needs, dataset, point.strength)
    measured = method != "dense" and method not in UNTARGETED  # else a run is the same in all studies
    rate, strength = settings.pruning_learning_rate, settings.regularization[0]
    config = {
        **shared,
        "method": method,
        "target": point.target,
        "measure": task.measure if measured else None,
        "seed": seed,
        "learning_rate": rate,
    }
    config["regularization"] = strength
    pruning = METHODS[method](task)
    for part in pruning:
        config |= part.identity()
    parts = [
        *pruning,
        BatchNormPull(strength) if strength else None,
        Cost(dataset.example),
        *more,
    ]
    label = f"{method} {point} seed {seed}" if any(point) else f"{method} seed {seed}"
    folder = settings.study if measured else method
    run = Run(settings.run_dir / settings.script / folder, label, config)
    return fit(settings, dataset, run, shared["network"], rate, seed, [part for part in parts if part], cuts=True)


def seconds_of_inference(model: nn.Module, settings, images: torch.Tensor) -> float:
    start = time.perf_counter()
    with (
        torch.inference_mode(),
        torch.autocast(settings.device.type, torch.bfloat16, enabled=settings.precision == "bf16"),
    ):
        model(images)
    devices.synchronize(settings.device)
    return time.perf_counter() - start


def inference_speedup(dense: nn.Module, pruned: nn.Module, settings, example: torch.Tensor, rounds: int = 15) -> float:
    """Dense time over pruned time of one batch of 128: the median ratio of runs in turn."""
    images = torch.randn(128, *example.shape[1:], device=settings.device).to(memory_format=torch.channels_last)
    for model in (dense, pruned):  # warm
        seconds_of_inference(model, settings, images)
    times = [[seconds_of_inference(model, settings, images) for model in (dense, pruned)] for _ in range(rounds)]
    return statistics.median(before / after for before, after in times)


def row_of(settings, dataset, final: dict, reference: dict | None) -> dict:
    """One row of the CSV; what compares with the dense run of the same seed is empty where there is none."""
    config = final["config"]
    model, dense = saved.rebuild(final, f"the run of {config['method']}"), build(final["network"])
    dense = dense.to(memory_format=torch.channels_last).eval()
    size = sparsity.measure(model, dataset.example, final.get("Masked", {}).get("densities"))
    full = sparsity.measure(dense, dataset.example)
    seconds = sum(row["seconds"] for row in final["rows"])
    in_steps = dataset.steps_per_epoch(settings.batch_size) * settings.batch_size
    examples = settings.epochs * min(len(dataset.train), in_steps)
    return {
        "script": settings.script,
        "method": config["method"],
        "target": config["target"],
        "neuron_sparsity": size.neuron_sparsity(full),
        "weight_sparsity": size.weight_sparsity(full),
        "test_accuracy": final["rows"][-1]["test_accuracy"],
        "parameters": size.parameters,
        "inference_flops": size.flops,
        "inference_flops_ratio": size.flops / full.flops,
        "training_flops_ratio": final["Cost"]["flops"] / (3 * full.flops * examples),
        "training_speedup": sum(row["seconds"] for row in reference["rows"]) / seconds if reference else None,
        "inference_speedup": inference_speedup(
            dense.to(settings.device), model.to(settings.device), settings, dataset.example
        ),
        "seed": config["seed"],
        "epochs": len(final["rows"]),
        "width": settings.width,
        "device": settings.device.type,
        "seconds": seconds,
        "strength": final["config"].get("constants", {}).get("strength"),
    }


def empty_row(settings, method: str, point: Point, seed: int) -> dict:
    """The row of a run that cannot reach its target: nothing measured."""
    known = {"script": settings.script, "method": method, "seed": seed, "width": settings.width, **point._asdict()}
    return dict.fromkeys(COLUMNS) | known | {"device": settings.device.type}


def shown(value: float | None, scale: float, decimals: int) -> str:
    return "-" if value is None else f"{scale * value:.{decimals}f}"


def summary(rows: list[dict]) -> str:
    cells = [
        [
            row["method"],
            str(point_of(row)),
            row["seed"],
            *(shown(row[name], 100, 2) for name in ("neuron_sparsity", "weight_sparsity", "test_accuracy")),
            *(shown(row[name], 1, 3) for name in ("inference_flops_ratio", "training_flops_ratio")),
            *(shown(row[name], 1, 2) for name in ("training_speedup", "inference_speedup")),
        ]
        for row in rows
    ]
    header = "method target seed neuron-% weight-% test-% FLOPs training-FLOPs training-speedup inference-speedup"
    return canvas.table(header.split(), cells)


def draw(settings, dataset: data.Dataset, rows: list[dict], courses: dict[str, dict], folder: Path) -> list[Path]:
    """Accuracy against sparsity, accuracy against FLOPs, and the course of every DS-Pruning run; their paths."""
    kind, title = SPARSITY[settings.study], f"{settings.script}.py on {canvas.dataset_name(settings.dataset)}"
    paths = [folder / f"{settings.study}{ending}.png" for ending in ("", "-flops", "-course")]
    theirs = paper.accuracies(settings.dataset, settings.activation, kind)
    published = {"ds-pruning": theirs["ds-pruning"]} if theirs else {}
    if all(row["method"] == "dense" or row["test_accuracy"] is None for row in rows):
        return []
    axis = f"{SPARSITY_LABELS[settings.study]} (%)"

    def whole(row: dict) -> int:  # so that all lines end at one place
        return round(100 * comparison.removed(row, kind))

    tradeoff.tradeoff_figure(rows, paths[0], title, whole, axis, published)
    axis = "Inference FLOPs (% of dense)"
    tradeoff.tradeoff_figure(rows, paths[1], title, lambda row: 100 * row["inference_flops_ratio"], axis, {}, wide=True)
    if courses:
        figures.course_figure(courses, paths[2], f"{title}: what DS-Pruning decided")
    return paths if courses else paths[:2]


def course_of(settings, dataset: data.Dataset, final: dict) -> dict:
    """What `figures.course_figure` shows of a DS-Pruning run."""
    found = {name: final["DSPruning"][name] for name in ("log", "couplings", "widths", "dense_widths")}
    steps = settings.epochs * dataset.steps_per_epoch(settings.batch_size)
    return {**found, "steps": steps, "revived": [row["revived_units"] or 0 for row in final["rows"]]}


def conditions(settings, shared: dict) -> dict:
    """All that the rows of one table have in common, as JSON gives it back."""
    own = {name: getattr(settings, name) for name in ("pruning_learning_rate", "regularization")}
    constants = Constants.of(settings, MEASURES[settings.study])
    own |= {"constants": vars(constants), "definition": asdict(definition_of(settings))}
    return json.loads(json.dumps({**shared, **own}))


def point_of(row: dict) -> Point:
    return Point(row["target"], row["strength"])


def identity(row: dict) -> tuple:
    return row["method"], point_of(row), row["seed"]


def finished(
    settings, dataset: data.Dataset, shared: dict, failures: list[str], known: Container = (), more: Sequence = ()
) -> Iterator[tuple[str, Point, int, dict | None]]:
    """Trains every run that is not `known`: method, point, seed and what final.pt holds, None where the target is out
    of reach. A run that fails, or that another process is training, adds a line to `failures`, and the rest goes on."""
    for seed, method in product(settings.seeds, sorted(settings.methods, key=list(METHODS).index)):
        for point in points(settings, method):
            if (method, point, seed) in known:
                continue
            try:
                final = train_one(settings, dataset, shared, method, point, seed, more)
            except RunFailed as error:
                failures.append(f"{method} {point} seed {seed}: {error}")
                if not isinstance(error, Unreachable):
                    print(f"error: {failures[-1]}", file=sys.stderr)
                    continue
                final = None
            yield method, point, seed, final


def study(settings: SimpleNamespace, network: str = "resnet18") -> int:
    """Trains every method at every sparsity, writes the CSV after each and the figures at the end, prints a table; the
    exit status."""
    dataset = data.load(settings)
    shared = accumulation.common_config(settings, dataset, network)
    shared = {**shared, "gradient_clip": 0.0, "noise_std": 0.0, "hold_out": settings.hold_out}
    made = accumulation.provenance(conditions(settings, shared))
    folder = settings.output_dir / settings.script
    folder.mkdir(exist_ok=True)
    table = folder / f"{settings.study}.csv"
    rows = rows_to_extend(table, made["settings"], COLUMNS, ["strength"]) if settings.extend else []
    known = {identity(row) for row in rows}
    failures, dense, courses = [], {}, {}
    for method, point, seed, final in finished(settings, dataset, shared, failures, known):
        if method == "dense":
            dense[seed] = final
        if method == "ds-pruning" and final and seed == settings.seeds[0]:
            courses[f"{point.target:.0%}"] = course_of(settings, dataset, final)
        new = row_of(settings, dataset, final, dense.get(seed)) if final else empty_row(settings, method, point, seed)
        rows.append(new)
        rows.sort(key=lambda row: (row["seed"], list(METHODS).index(row["method"]), point_of(row).order))
        write_csv(table, COLUMNS, rows)  # first: beside the .json of other conditions it is not extended
        write_text(table.with_suffix(".json"), json.dumps(made, indent=1) + "\n")
    if rows:
        ranks = folder / f"{settings.study}-summary.md"
        write_text(ranks, comparison.markdown(comparison.comparison(rows, SPARSITY[settings.study])))
        paths = draw(settings, dataset, rows, courses, folder)
        print(f"\n{summary(rows)}\n\ntable: {table}\nsummary: {ranks}")
        print("".join(f"figure: {path}\n" for path in paths), end="")
    return exit_status(failures, rows)
