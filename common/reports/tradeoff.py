"""Accuracy against sparsity or FLOPs, a line a method."""

import textwrap
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from common.pruning import METHODS, label
from common.reports.canvas import QUIET, canvas, label_points, mean_of, style
from common.reports.tables import over

POINT = ["target", "strength"]  # where a method was run


def named(target: float, strength: float) -> str:
    """Where a method was run, as text."""
    return f"{target:g}" if pd.isna(strength) else f"strength {strength:g}"


def can_be_drawn(rows: pd.DataFrame) -> bool:
    """Whether any pruned network has an accuracy."""
    return bool((rows["test_accuracy"].notna() & (rows["method"] != "dense")).any())


def style_of(method: str) -> dict:
    """Colour and dash of a method, the same in every figure: dark and solid for DS-Pruning."""
    order = sorted(METHODS, key=lambda name: name != "ds-pruning")
    return style(order.index(method) if method in order else len(order))


def draw_method(axes, method: str, rows: pd.DataFrame, x: pd.Series) -> tuple:
    """The line of a method over its targets, or strengths; returns its right end: place, height, label, colour."""
    at, look = rows["target"].fillna(rows["strength"]), style_of(method)
    (_, places, _), (_, means, spreads) = over(at, x), over(at, 100 * rows["test_accuracy"])
    axes.errorbar(places, means, spreads, marker="o", markersize=3, capsize=2, clip_on=False, **look)
    return places.max(), means[places.argmax()], label(method), look["color"]


def seeds_behind(rows: pd.DataFrame) -> tuple[str, str]:
    """How many seeds are behind most points; and which have another number, "" for none."""
    groups = rows.fillna(dict.fromkeys(POINT, 0.0)).groupby(["method", *POINT], sort=False)
    counts = groups["seed"].nunique().sort_index(level=POINT, kind="stable", sort_remaining=False)
    usual, others = counts.mode().max(), defaultdict(list)
    for (method, target, strength), count in counts[counts != usual].items():
        others[method, count].append(f"strength {strength:g}" if strength else f"{100 * target:g} %")
    named = [f"{count} of {label(method)} at {', '.join(points)}" for (method, count), points in others.items()]
    bars = ", bars: one standard deviation" if counts.max() > 1 else ""
    return mean_of([usual]) + bars, f"other numbers of seeds: {'; '.join(named)}" if named else ""


def draw_dense(axes, accuracies: pd.Series) -> None:
    axes.axhline(accuracies.mean(), color="black", linewidth=0.9)
    if len(accuracies) > 1:
        low, high = (accuracies.mean() + sign * accuracies.std() for sign in (-1, 1))
        axes.axhspan(low, high, color="black", alpha=0.08, linewidth=0)


def logarithmic(axes) -> None:
    from matplotlib.ticker import LogLocator, NullLocator

    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5)))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_locator(NullLocator())


def limit(axes, wide: bool) -> None:
    """Ends the axis at the last point; where all points are near each other, as those of one target, gives them room:
    10 per cent, or on a logarithmic axis a factor of 4."""
    low, high = axes.dataLim.intervalx
    spare = 2 / (high / low) ** 0.5 if wide else 5 - (high - low) / 2
    if spare > wide:
        axes.set_xlim((low / spare, high * spare) if wide else (low - spare, high + spare))
    else:
        axes.set_xlim(right=high)


def tradeoff_figure(
    rows: pd.DataFrame,
    path: Path,
    title: str,
    x: str,
    axis: str,
    published: dict[str, dict[float, float]],
    notes: Sequence[str] = (),
    wide: bool = False,
) -> None:
    """Test accuracy of every method against a column: means over seeds, bars of one standard deviation.

    Args:
        rows: as in neuron-sparsity.csv and weight-sparsity.csv; those without an accuracy are named as out of reach.
        x: the column, drawn in per cent. axis: the name of the horizontal axis, with its unit.
        published: method -> target -> the paper's accuracy in per cent, drawn without colour; {} for none.
        notes: to stand below, beside those on what is out of reach and on seeds.
        wide: whether the horizontal axis is logarithmic.
    """
    reached = rows["test_accuracy"].notna()
    missed = [f"{label(row.method)} at {100 * row.target:g} %" for row in rows[~reached].itertuples()]
    notes = [*notes, *([f"out of reach: {', '.join(dict.fromkeys(missed))}"] if missed else [])]
    dense, pruned = (rows[reached & found] for found in (rows["method"] == "dense", rows["method"] != "dense"))
    seeds, others = seeds_behind(pruned)
    notes = [line for note in (*notes, others) for line in textwrap.wrap(note, 110)]
    with canvas(path, f"{title}\n{seeds}", (1, 1), (6.4, 4.0), "\n".join(notes)) as ((axes,),):
        groups = pruned.groupby("method", sort=False)
        ends = [draw_method(axes, method, group, 100 * group[x]) for method, group in groups]
        for method, line in published.items():
            shown = {100 * target: accuracy for target, accuracy in line.items() if target in set(rows["target"])}
            if len(shown) > 1:
                axes.plot(shown.keys(), shown.values(), color=QUIET, linewidth=0.8, linestyle=":")
                ends.append((max(shown), shown[max(shown)], f"paper, {label(method)}", QUIET))
        axes.set(xlabel=axis, ylabel="Test accuracy (%)")
        if wide:
            logarithmic(axes)
        limit(axes, wide)
        if len(dense):
            accuracies = 100 * dense["test_accuracy"]
            draw_dense(axes, accuracies)
            ends.append((axes.get_xlim()[1], accuracies.mean(), "dense", "black"))
        label_points(axes, ends)
