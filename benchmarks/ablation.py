"""Which form of each part of DS-Pruning keeps most accuracy, on held-out training images.

    python benchmarks/ablation.py --list              the variants, and what each changes
    python benchmarks/ablation.py                     all of them on CIFAR-10: hours; goes on where it stopped
    python benchmarks/ablation.py --variants random   some of them
    python benchmarks/ablation.py --measure weight    those that were tried at equal weight sparsity

Trains by the `cpu` protocol on 45,000 of CIFAR-10's training images and tests on the other 5,000; at 80 % neuron
sparsity, 75, 90 and 97 % weight sparsity, or 50, 75 and 90 % of the FLOPs removed, unless told otherwise. A row that
plots/ablation.csv (ablation-weight.csv, ablation-flops.csv) has stays; the figure of the same name is drawn from all.
"""

import itertools
import json
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

sys.path.insert(0, str(Path(__file__).parent.parent))
import Resnet18
from common import settings
from common.errors import UserError
from common.machine import process
from common.pruning import METHODS

COLUMNS = [
    "part",
    "variant",
    "method",
    "changes",
    "target",
    "seed",
    "held_out_accuracy",
    "neuron_sparsity",
    "weight_sparsity",
    "inference_flops_ratio",
    "training_flops_ratio",
    "widths",
]
TARGETS = {"neuron": [0.8], "weight": [0.75, 0.9, 0.97], "flops": [0.5, 0.75, 0.9]}
# measure -> part -> variant -> what it changes: constants of the method, or of the script. Most forms were tried while
# layers competed half as evenly as now, the first of them with longer presses.
HALF = {"evenness": 0.5}
LONG = {**HALF, "settle": 0.8, "press_steps": 200}
UNITS = {"evenness": 1.0, "floor": 0.5}  # what equal neuron sparsity has
# Each score with one choice of its definition made otherwise. (Along DS-Pruning's plan the early two are the others.)
FLOOR = {"floor": 0.5}  # that of DS-Pruning
CHOICES = {
    "": {},
    ", the mean of a group": {"combine": "mean"},
    ", summed over a group": {"combine": "sum"},
    ", the largest of a group": {"combine": "maximum"},
    ", training mode": {"training": True},
    ", floor of 10 %": FLOOR,
}
SCORES = {"snap": "SNAP", "cropit-s": "CroPit-S", "earlysnap": "EarlySNAP", "earlycrop-s": "EarlyCroP-S"}
RIVALS = {
    f"{name}{choice}": {"method": method, **({"definition": made} if made else {})}
    for method, name in SCORES.items()
    for choice, made in CHOICES.items()
    if made != {"combine": METHODS[method].combine}
} | {
    f"{name}, plan and floor of DS-Pruning": {"method": method, "definition": {**FLOOR, "gradual": True}}
    for method, name in list(SCORES.items())[:2]
}
RIVALS["EarlyCroP-S, the mean of a group, training mode"] = {
    "method": "earlycrop-s",
    "definition": {"combine": "mean", "training": True},
}
RIVALS["EarlySNAP, training mode, floor of 10 %"] = {"method": "earlysnap", "definition": {**FLOOR, "training": True}}
PARTS: dict[str, dict[str, dict[str, dict]]] = {
    "neuron": {
        "as it is": {"DS-Pruning": {}},
        "controls": {
            "random": {"method": "random"},
            "its shape from scratch": {"method": "scratch"},
            "magnitude, 20 to 80 %": {"method": "magnitude", **LONG},
        },
        "rivals": RIVALS,
        "plan, evenness 0.5, pressed for 200 steps": {
            "5 to 40 %, cubic, evenness 0": {**LONG, "warmup": 0.05, "settle": 0.4, "plan_power": 3.0, "evenness": 0.0},
            "10 to 60 %, quadratic": {**LONG, "warmup": 0.1, "settle": 0.6, "plan_power": 2.0},
            "5 to 80 %, cubic": {**LONG, "warmup": 0.05, "plan_power": 3.0},
            "30 to 90 %, straight": {**LONG, "warmup": 0.3, "settle": 0.9, "plan_power": 1.0},
            "20 to 80 %": LONG,
        },
        "20 to 80 %, pressed for 200 steps": {
            "evenness 0": {**LONG, "evenness": 0.0},
            "evenness 1": {**LONG, "evenness": 1.0},
            "evenness 0.5, floor of 5 %": {**LONG, "floor": 0.25},
        },
        "layers": {"evenness 0.5": HALF, "evenness 0.75": {"evenness": 0.75}},
        "evenness 0.5 and": {
            "floor of 15 %": {**HALF, "floor": 0.75},
            "floor of 18 %": {**HALF, "floor": 0.9},
            "plan from 20 to 65 %": {**HALF, "settle": 0.65},
            "memory of 30 steps": {**HALF, "memory": 30},
            "memory of 300 steps": {**HALF, "memory": 300},
            "pressed for 10 steps": {**HALF, "press_steps": 10},
            "cut at once": {**HALF, "press_steps": 1},
            "faded, not sunk": {**HALF, "sink": 0.0},
            "L1 pull of 0.0003 on all": {**HALF, "regularization": (0.0003,)},
            "L1 pull of 0.002 on all": {**HALF, "regularization": (0.002,)},
            "noise of 0.001 on live units": {**HALF, "noise": 0.001},
        },
    },
    "weight": {
        "as it is": {"DS-Pruning": {}},
        "layers": {
            "evenness 0, floor of a tenth": {"evenness": 0.0},
            "evenness 0.5, floor of a half": {"floor": 0.5},
            "evenness 0, floor of a half": {"evenness": 0.0, "floor": 0.5},
            "evenness 1, floor of a half": UNITS,
        },
        "evenness 1, floor of a half and": {
            "per weight once layers are even": {**UNITS, "per_weight": True},
            "plan from 10 to 50 %": {**UNITS, "warmup": 0.1, "settle": 0.5},
            "plan from 30 to 90 %": {**UNITS, "warmup": 0.3, "settle": 0.9},
        },
    },
    "flops": {
        "as it is": {"DS-Pruning": {}},
        "controls": {"random": {"method": "random"}, "magnitude": {"method": "magnitude"}},
        "layers": {
            "evenness 1, floor of a half": UNITS,
            "evenness 1, floor of 0.7": {"evenness": 1.0, "floor": 0.7},
            "evenness 1, floor of 0.9": {"evenness": 1.0, "floor": 0.9},
            "evenness 0, floor of a quarter": {"evenness": 0.0},
        },
        "plan": {
            "10 to 50 %": {"warmup": 0.1, "settle": 0.5},
            "10 to 75 %": {"warmup": 0.1},
            "20 to 90 %": {"settle": 0.9},
        },
    },
}


def measure(constants, dataset, variant: str, part: str, changes: dict, target: float, seed: int) -> dict:
    """One run and its row."""
    from benchmarks import forms
    from common.studies import sparsity, study

    changes = dict(changes)
    method = changes.pop("method", "ds-pruning")
    settled = SimpleNamespace(**{**vars(constants), **changes})
    shared, plain = study.conditions(settled, dataset, "resnet18"), dict(METHODS)
    for name, form in {"noise": forms.LiveNoise, "per_weight": forms.PerWeight}.items():
        if name in changes:
            METHODS["ds-pruning"] = replace(METHODS["ds-pruning"], callback=form)
    try:
        trial = sparsity.Trial(method, sparsity.Point(target), seed)
        final = sparsity.train(settled, dataset, shared, trial)
    finally:
        METHODS.update(plain)
    row = sparsity.row_of(settled, dataset, final, sparsity.run_of(settled, shared, trial).folder)
    found = {
        "part": part,
        "variant": variant,
        "method": method,
        "changes": json.dumps(changes),
        "target": target,
        "seed": seed,
        "held_out_accuracy": row["test_accuracy"],
        "widths": " ".join(map(str, final.get("DSPruning", {}).get("widths", []))),
    }
    return {name: found.get(name, row.get(name)) for name in COLUMNS}


def draw(rows: list[dict], path: Path, measure: str, dataset: str) -> None:
    """A panel a target, all of the same scale; in it a point a run, a row a variant below its part's name, the present
    method's mean as a line through all."""
    from common.reports import canvas

    lines: list[tuple] = []  # a part's name, or part and variant
    for part in dict.fromkeys(row["part"] for row in rows):
        lines += [(part,), *dict.fromkeys((part, row["variant"]) for row in rows if row["part"] == part)]
    targets = sorted({row["target"] for row in rows})
    limits = []
    size = (4.4 + 2.6 * len(targets), 0.9 + 0.2 * len(lines))
    counts = Counter((row["part"], row["variant"], row["target"]) for row in rows).values()
    seeds = " to ".join(map(str, sorted({min(counts), max(counts)})))
    at = f"{100 * targets[0]:g} % {measure} sparsity" if not targets[1:] else f"equal {measure} sparsity"
    title = f"Variants tried at {at}, {dataset}, seeds each: {seeds}"
    with canvas.canvas(path, title, (1, len(targets)), size, sharey=True) as panels:
        for target, axes in zip(targets, panels[0], strict=True):
            values = {line: [] for line in lines}
            for row in rows:
                if row["target"] == target:
                    values[row["part"], row["variant"]].append(100 * row["held_out_accuracy"])
            own = [value for line, found in values.items() if line[0] == "as it is" for value in found]
            draw_target(axes, values, own)
            limits.append(axes.get_xlim())
            axes.set(title=f"{100 * target:g} %" if targets[1:] else None, xlabel="Held-out accuracy (%)")
        widest = max(high - low for low, high in limits)
        for axes, (low, high) in zip(panels[0], limits, strict=True):
            axes.set_xlim((low + high - widest) / 2, (low + high + widest) / 2)
        axes.set(
            yticks=range(len(lines)), yticklabels=[line[-1] if line[1:] else line[0].capitalize() for line in lines]
        )
        for label, line in zip(panels[0][0].get_yticklabels(), lines, strict=True):
            label.set_fontweight("bold" if len(line) == 1 else "normal")


def draw_target(axes, values: dict[tuple, list[float]], own: list[float]) -> None:
    """One target's runs: line -> accuracies in per cent, and those of the present method."""
    from common.reports import canvas

    if own:
        axes.axvline(sum(own) / len(own), color=canvas.QUIET, linewidth=0.8, linestyle=":")
    box = {"boxstyle": "square,pad=0.1", "facecolor": "white", "edgecolor": "none"}
    for place, (line, found) in enumerate(values.items()):
        if not found:
            continue
        colour = canvas.COLOURS[1] if line[0] in ("as it is", "controls") else canvas.COLOURS[0]
        axes.plot(found, [place] * len(found), "o", color=colour, markersize=4)
        axes.annotate(
            f"{sum(found) / len(found):.1f}", (max(found), place), (6, -3), textcoords="offset points", bbox=box
        )
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(len(values) - 0.4, -0.6)
    axes.margins(x=0.16)


def compare(constants, options, variants: list[tuple[str, str, dict]]) -> None:
    """Trains what the table lacks, writes it after every run, and draws it."""
    from common import data
    from common.files import read_csv, write_csv
    from common.reports import canvas

    table = constants.output_dir / (
        "ablation.csv" if options.measure == "neuron" else f"ablation-{options.measure}.csv"
    )
    dataset = data.load(constants)
    places = {variant: place for place, (_, variant, _) in enumerate(variants)}
    for seed, target in itertools.product(options.seeds, options.targets or TARGETS[options.measure]):
        for part, name, changes in variants:
            if options.variants and name not in options.variants:
                continue
            rows = read_csv(table) if table.exists() else []
            if any((row["variant"], row["target"], row["seed"]) == (name, target, seed) for row in rows):
                continue
            rows.append(measure(constants, dataset, name, part, changes, target, seed))
            rows.sort(key=lambda row: (row["target"], places.get(row["variant"], len(places)), row["seed"]))
            write_csv(table, COLUMNS, rows)
    draw(read_csv(table), table.with_suffix(".png"), options.measure, canvas.dataset_name(options.dataset))


def main() -> int:
    parser = settings.Parser(__doc__)
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--variants", nargs="+", help="names as --list shows them")
    parser.add_argument("--measure", choices=TARGETS, default="neuron", help="of which sparsity")
    targets = settings.reader("SPARSITIES")
    parser.add_argument("--targets", type=targets, nargs="+", help="sparsities; by default those above")
    parser.add_argument("--seeds", type=settings.reader("SEEDS"), nargs="+", default=[0])
    parser.add_argument("--output-dir", default="plots")
    parser.add_argument("--run-dir", default="runs")
    parser.add_argument("--data-dir", default="data")
    parser.add_argument("--dataset", default="cifar10")
    parser.add_argument("--epochs", type=settings.reader("EPOCHS"), default=10)
    parser.add_argument("--hold-out", type=settings.reader("HOLD_OUT"), default=5000, help="training images to test on")
    options = parser.parse_args()
    parts = PARTS[options.measure]
    variants = [(part, name, changes) for part, forms in parts.items() for name, changes in forms.items()]
    if options.list:
        for part, name, changes in variants:
            print(f"{part}: {name}  {changes or ''}")
        return 0
    unknown = set(options.variants or []) - {name for _, name, _ in variants}
    if unknown:
        raise UserError(f"no variant {', '.join(map(repr, sorted(unknown)))}; --list shows them all")
    flags = ["--study", f"{options.measure}-sparsity", "--protocol", "cpu"]
    for name in ("output_dir", "run_dir", "data_dir", "dataset", "epochs", "hold_out"):
        flags += ["--" + name.replace("_", "-"), str(getattr(options, name))]
    constants = settings.read(vars(Resnet18), Resnet18.STUDIES, flags)
    constants.script = "ablation"
    compare(constants, options, variants)
    return 0


if __name__ == "__main__":
    raise SystemExit(process.run(main))
