"""The sparsity studies: accuracy against neuron or weight sparsity or FLOPs, for every method in one harness."""

import json
import statistics
import time
from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import torch
from torch import nn

from common import data, saved, sparsity
from common.files import remove_unfinished, write_text
from common.machine import devices, distributed
from common.models import build
from common.names import MEASURES
from common.pruning import METHODS
from common.pruning.task import Point, Task, Unreachable, point_of
from common.settings.identity import OF_METHODS
from common.studies.study import Study
from common.training.fit import finished, fit
from common.training.gradients import changes
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
    "code",
]


class Trial(NamedTuple):
    """A pruning run."""

    method: str
    point: Point
    seed: int

    def __str__(self) -> str:
        return f"{self.method} {self.point} seed {self.seed}" if any(self.point) else f"{self.method} seed {self.seed}"


def points(settings: SimpleNamespace, method: str) -> list[Point]:
    """Those that a study runs a method at."""
    if not METHODS[method].targeted:
        return [Point(None, strength) for strength in settings.demp_strengths]
    return [Point(target) for target in ((0.0,) if method == "dense" else settings.sparsities)]


class Cost(Callback):
    """Training FLOPs: 3 x those of a forward pass, for every example, at the widths and densities of that moment."""

    def __init__(self, example: torch.Tensor):
        self.example = example
        self.flops, self.known, self.forward = 0, None, 0
        self.layers: dict[str, int] = {}  # what each took when this process began
        self.rest = 0  # of them, what is no layer's that groups have a part in

    def on_step(self, training: Training):
        known = training.groups.version, training.densities
        if known != self.known:
            if self.known is None:
                self.layers = sparsity.layer_flops(training.groups.compact(training.model), self.example)
                self.rest = self.layers[""] - int(sparsity.flops_left(training.groups)[0])
            self.known = known
            # Whose weights are masked is not cut: its layers are those of the start.
            dense = self.rest + int(sparsity.flops_left(training.groups)[0])
            self.forward = sparsity.masked_flops({**self.layers, "": dense}, training.densities)
        self.flops += 3 * self.forward * training.examples

    def state(self) -> dict:
        return {"flops": self.flops}

    def restore(self, training: Training, state: dict):
        self.flops = state["flops"]


# One run --------------------------------------------------------------------------------------------------------


def constants_of(settings: SimpleNamespace, method: str) -> dict:
    """The constants that tell a method's runs apart: those its record names, else all that are any method's."""
    found = METHODS[method].constants_of(settings, MEASURES[settings.study])
    if found is None:
        return {name: value for name, value in vars(settings).items() if name in OF_METHODS}
    return found


def run_of(settings: SimpleNamespace, shared: dict, trial: Trial) -> Run:
    """The folder of a run. A run that no target is measured in is the same in all studies."""
    measured = trial.method != "dense" and METHODS[trial.method].targeted
    config = {
        **shared,
        **{"method": trial.method, **trial.point._asdict(), "seed": trial.seed},
        "measure": MEASURES[settings.study] if measured else None,
        "learning_rate": settings.pruning_learning_rate,
        "regularization": settings.regularization[0],
        "constants": constants_of(settings, trial.method),
    }
    return Run(settings.run_dir / settings.script / (settings.study if measured else trial.method), str(trial), config)


def train(settings, dataset: data.Dataset, shared: dict, trial: Trial, more: Sequence[Callback] = ()) -> dict:
    """One run, and before it the run whose result its method needs; returns what final.pt holds.

    shared: what `study.conditions` gives for these settings. more: callbacks of the caller's own.
    """
    method, point, seed = METHODS[trial.method], trial.point, trial.seed
    before = train(settings, dataset, shared, trial._replace(method=method.needs), more) if method.needs else None
    measure, multiple = MEASURES[settings.study], devices.width_multiple(settings.device)
    task = Task(point.target, measure, seed, multiple, settings, before, dataset, point.strength)
    extra = [*method.callbacks(task), *changes(settings.regularization[0]), Cost(dataset.example), *more]
    run, rate = run_of(settings, shared, trial), settings.pruning_learning_rate
    return fit(settings, dataset, run, shared["network"], rate, seed, extra, cuts=True)


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


def kept(path: Path, measure: Callable[[], float]) -> float:
    """What was measured before, or is now: also where what was kept is damaged."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(found, float):  # of an earlier version
            return found
        if found["sum"] == distributed.digest(json.dumps(found["value"]).encode()):
            return float(found["value"])
    except (OSError, ValueError, TypeError, KeyError):
        pass
    value = measure()
    remove_unfinished(path)
    text = {"value": value, "sum": distributed.digest(json.dumps(value).encode())}
    write_text(path, f"{json.dumps(text)}\n")
    return value


def row_of(settings, dataset, final: dict, folder: Path) -> dict:
    """One row of the CSV.

    folder: the run's; what is measured of its network anew is kept there, so that a row stays as it is.
    """
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
        "training_speedup": None,
        "inference_speedup": kept(
            folder / "inference-speedup.json",
            lambda: inference_speedup(dense.to(settings.device), model.to(settings.device), settings, dataset.example),
        )
        if config["method"] != "dense"
        else 1.0,
        "seed": config["seed"],
        "epochs": len(final["rows"]),
        "width": settings.width,
        "device": settings.device.type,
        "seconds": seconds,
        "strength": config["strength"],
        "code": final.get("code"),
    }


# The study ------------------------------------------------------------------------------------------------------


class Sparsity(Study):
    """Every method at every target (or strength)."""

    columns = COLUMNS
    later = ("strength", "code")
    more: Sequence[Callback] = ()  # callbacks of all runs

    def __init__(self, settings: SimpleNamespace, dataset: data.Dataset, network: str | None = None):
        super().__init__(settings, dataset, network)
        order = sorted(settings.methods, key=list(METHODS).index)
        runs = product(settings.seeds, order)
        self.begin([Trial(method, at, seed) for seed, method in runs for at in points(settings, method)])

    def conditions(self) -> dict:
        """With the constants of the methods."""
        own = {name: getattr(self.settings, name) for name in ("pruning_learning_rate", "regularization")}
        methods = {method: constants_of(self.settings, method) for method in self.settings.methods}
        return super().conditions(**own, methods=methods)

    def key(self, row: dict) -> Trial:
        return Trial(row["method"], point_of(row), row["seed"])

    def order(self, row: dict) -> tuple:
        return row["seed"], list(METHODS).index(row["method"]), point_of(row).order

    def run_of(self, trial: Trial) -> Run:
        return run_of(self.settings, self.shared, trial)

    def make(self, trial: Trial, changes: Sequence[Callback]) -> dict:
        """{} where the target is out of reach, which is a result, too."""
        try:
            return train(self.settings, self.dataset, self.shared, trial, [*changes, *self.more])
        except Unreachable as error:
            self.failures.append(f"{trial}: {error}")
            known = {"script": self.settings.script, "width": self.settings.width, "device": self.settings.device.type}
            named = {"method": trial.method, **trial.point._asdict(), "seed": trial.seed}
            self.made[trial] = ([dict.fromkeys(self.columns) | known | named],)
            return {}

    def adds(self, trial: Trial, final: dict, folder: Path) -> tuple[list[dict]]:
        return ([row_of(self.settings, self.dataset, final, folder)],)

    def write(self, tables: dict[str, list[dict]], made: dict) -> None:
        """With the speedup of training, which takes the dense network's time."""
        dense = {row["seed"]: row["seconds"] for row in tables[""] if row["method"] == "dense"}
        for row in tables[""]:
            if row["seed"] in dense and row["seconds"]:
                row["training_speedup"] = dense[row["seed"]] / row["seconds"]
        super().write(tables, made)

    def courses(self) -> dict[str, dict]:
        """Target -> what final.pt holds of the first seed's DS-Pruning runs, as far as these are there."""
        mine = [trial for trial in self.runs if (trial.method, trial.seed) == ("ds-pruning", self.settings.seeds[0])]
        found = {f"{trial.point.target:.0%}": finished(self.run_of(trial)) for trial in mine}
        return {target: final for target, final in found.items() if final}

    def present(self) -> None:
        from common.reports.sparsity import present  # not before: pandas takes its time

        steps = self.settings.epochs * self.dataset.steps_per_epoch(self.settings.batch_size)
        present(self.settings, self.table, self.courses(), steps)
