"""Figures, summary and printed table of a sparsity study."""

from pathlib import Path
from types import SimpleNamespace

from common.files import write_text
from common.names import SPARSITY, SPARSITY_LABELS
from common.pruning.task import point_of
from common.reports import canvas, comparison, figures, paper, tradeoff


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


def draw(settings: SimpleNamespace, rows: list[dict], courses: dict[str, dict], folder: Path) -> list[Path]:
    """Accuracy against sparsity, accuracy against FLOPs, and the course of every DS-Pruning run; their paths."""
    kind, title = SPARSITY[settings.study], canvas.what(settings)
    paths = [folder / f"{settings.study}{ending}.png" for ending in ("", "-flops", "-course")]
    theirs = paper.accuracies((settings.dataset, settings.network), settings.activation, kind)
    published = {"ds-pruning": theirs["ds-pruning"]} if theirs and settings.width == paper.WIDTH else {}
    if all(row["method"] == "dense" or row["test_accuracy"] is None for row in rows):
        return []
    axis = f"{SPARSITY_LABELS[settings.study]} (%)"
    tradeoff.tradeoff_figure(rows, paths[0], title, lambda row: 100 * comparison.removed(row, kind), axis, published)
    axis = "Inference FLOPs (% of dense)"
    tradeoff.tradeoff_figure(rows, paths[1], title, lambda row: 100 * row["inference_flops_ratio"], axis, {}, wide=True)
    if courses:
        figures.course_figure(courses, paths[2], f"{title}: what DS-Pruning decided")
    return paths if courses else paths[:2]


def course_of(final: dict, steps: int) -> dict:
    """What `figures.course_figure` shows of a DS-Pruning run of so many steps."""
    found = {name: final["DSPruning"][name] for name in ("log", "couplings", "widths", "dense_widths")}
    return {**found, "steps": steps, "revived": [row["revived_units"] or 0 for row in final["rows"]]}


def present(settings: SimpleNamespace, rows: list[dict], courses: dict[str, dict], table: Path) -> None:
    """Writes and prints what follows from the rows; courses: label -> what `course_of` gives."""
    ranks = table.with_name(f"{settings.study}-summary.md")
    write_text(ranks, comparison.markdown(comparison.comparison(rows, SPARSITY[settings.study])))
    paths = draw(settings, rows, courses, table.parent)
    print(f"\n{summary(rows)}\n\ntable: {table}\nsummary: {ranks}")
    print("".join(f"figure: {path}\n" for path in paths), end="")
