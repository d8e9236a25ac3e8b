"""Figures, summary and printed table of a sparsity study."""

from pathlib import Path
from types import SimpleNamespace

import pandas as pd

from common.files import origin, write_text
from common.names import SPARSITY, SPARSITY_LABELS
from common.pruning import METHODS, label
from common.reports import canvas, comparison, figures, paper, tables, tradeoff

SHOWN = {  # header -> column, what it is multiplied by, decimals
    "neuron-%": ("neuron_sparsity", 100, 2),
    "weight-%": ("weight_sparsity", 100, 2),
    "test-%": ("test_accuracy", 100, 2),
    "FLOPs": ("inference_flops_ratio", 1, 3),
    "training-FLOPs": ("training_flops_ratio", 1, 3),
    "training-speedup": ("training_speedup", 1, 2),
    "inference-speedup": ("inference_speedup", 1, 2),
}


def summary(rows: pd.DataFrame) -> str:
    cells = {"method": rows["method"], "target": map(tradeoff.named, rows["target"], rows["strength"])}
    return tables.text(pd.DataFrame({**cells, "seed": rows["seed"], **tables.columns(rows, SHOWN)}))


SCORES = ("snap", "cropit-s", "earlysnap", "earlycrop-s")  # which an earlier version took in training mode


def void_in(made: dict, rows: pd.DataFrame) -> list[str]:
    """Those of SCORES that were; made: the constants of methods, which such a table's .json does not have."""
    return [method for method in SCORES if method in set(rows["method"]) - set(made)]


def combined_otherwise(methods: dict, rows: pd.DataFrame) -> str:
    """Names the methods whose groups were ranked by something else than today; "" for none."""
    names_of = {"mean": "the mean", "sum": "the sum", "maximum": "the largest"}
    found = []
    for method, constants in methods.items():
        now = METHODS[method].combine
        if method in set(rows["method"]) and (then := constants.get("combine", now)) != now:
            found.append(f"{label(method)} by {names_of[then]} of their channels, now by {names_of[now]}")
    return "; ".join(found)


def notes_of(made: dict, rows: pd.DataFrame) -> list[str]:
    """What has to stand below a figure of rows that were made otherwise than today's would be."""
    void, other = void_in(made, rows), combined_otherwise(made, rows)
    notes = [f"void: {', '.join(map(label, void))}, scored in training mode, unlike their authors"] if void else []
    return notes + ([f"ranked otherwise than today: {other}"] if other else [])


def draw(settings: SimpleNamespace, rows: pd.DataFrame, courses: dict[str, dict], folder: Path) -> list[Path]:
    """Accuracy against sparsity, accuracy against FLOPs, and the course of every DS-Pruning run; their paths."""
    kind, title = SPARSITY[settings.study], canvas.what(settings)
    paths = [folder / f"{settings.study}{ending}.png" for ending in ("", "-flops", "-course")]
    theirs = paper.accuracies((settings.dataset, settings.network), settings.activation, kind)
    published = {"ds-pruning": theirs["ds-pruning"]} if theirs and settings.width == paper.WIDTH else {}
    if not tradeoff.can_be_drawn(rows):
        return []
    notes = notes_of(origin(folder / f"{settings.study}.csv")["settings"].get("methods", {}), rows)
    axis, removed = f"{SPARSITY_LABELS[settings.study]} (%)", comparison.with_removed(rows, kind)
    tradeoff.tradeoff_figure(removed, paths[0], title, "removed", axis, published, notes)
    axis = "Inference FLOPs (% of dense)"
    tradeoff.tradeoff_figure(rows, paths[1], title, "inference_flops_ratio", axis, {}, notes, wide=True)
    if courses:
        figures.course_figure(courses, paths[2], f"{title}: what DS-Pruning decided")
    return paths if courses else paths[:2]


def course_of(final: dict, steps: int) -> dict:
    """What `figures.course_figure` shows of a DS-Pruning run of so many steps."""
    found = {name: final["DSPruning"][name] for name in ("log", "couplings", "widths", "dense_widths")}
    return {**found, "steps": steps, "revived": [row["revived_units"] or 0 for row in final["rows"]]}


def present(settings: SimpleNamespace, table: Path, finals: dict[str, dict], steps: int) -> None:
    """Writes and prints what follows from the table; finals: label -> that of a DS-Pruning run of so many steps."""
    rows, ranks = tables.read(table), table.with_name(f"{settings.study}-summary.md")
    write_text(ranks, comparison.markdown(comparison.comparison(rows, SPARSITY[settings.study])))
    paths = draw(settings, rows, {label: course_of(final, steps) for label, final in finals.items()}, table.parent)
    print(f"\n{summary(rows)}\n\ntable: {table}\nsummary: {ranks}")
    canvas.tell(paths)
