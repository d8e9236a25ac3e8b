"""Accuracy against sparsity or FLOPs, a line a method."""

from collections import defaultdict
from pathlib import Path

import numpy as np

from common.pruning import label
from common.reports.canvas import COLOURS, LINES, QUIET, Rows, Series, canvas, label_points, over, save, seeds_of


def over_targets(rows: Rows, x) -> Series:
    """Mean of `x(row)`, and mean and standard deviation of the accuracy in per cent, for every target in order; for
    every strength, of a method without targets."""
    at = [row["strength"] if row["target"] is None else row["target"] for row in rows]
    _, places, _ = over(zip(at, map(x, rows), strict=True))
    return places, *over(zip(at, [100 * row["test_accuracy"] for row in rows], strict=True))[1:]


def draw_method(axes, method: str, rows: Rows, x, index: int) -> tuple:
    """The line of a method; returns its right end: place, height, label, colour."""
    places, means, spreads = over_targets(rows, x)
    style = {"color": COLOURS[index % len(COLOURS)], "linestyle": LINES[index % len(LINES)]}
    axes.errorbar(places, means, spreads, marker="o", markersize=3, capsize=2, clip_on=False, **style)
    return places.max(), means[places.argmax()], label(method), style["color"]


def draw_dense(axes, accuracies: np.ndarray) -> None:
    axes.axhline(accuracies.mean(), color="black", linewidth=0.9)
    if len(accuracies) > 1:
        low, high = (accuracies.mean() + sign * accuracies.std(ddof=1) for sign in (-1, 1))
        axes.axhspan(low, high, color="black", alpha=0.08, linewidth=0)


def logarithmic(axes) -> None:
    from matplotlib.ticker import LogLocator, NullLocator

    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5)))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_locator(NullLocator())


def tradeoff_figure(
    rows: Rows, path: Path, title: str, x, axis: str, published: dict[str, dict[float, float]], wide: bool = False
) -> None:
    """Test accuracy of every method against `x(row)`: means over seeds, bars of one standard deviation.

    Args:
        rows: as in neuron-sparsity.csv and weight-sparsity.csv; those without an accuracy are named as out of reach.
        axis: the name of the horizontal axis, with its unit.
        published: method -> target -> the paper's accuracy in per cent, drawn without colour; {} for none.
        wide: whether the horizontal axis is logarithmic.
    """
    missed = [row for row in rows if row["test_accuracy"] is None]
    missed = dict.fromkeys(f"{label(row['method'])} at {100 * row['target']:g} %" for row in missed)
    rows = [row for row in rows if row["test_accuracy"] is not None]
    groups = defaultdict(list)
    for row in rows:
        groups[row["method"]].append(row)
    dense = np.array([100 * row["test_accuracy"] for row in groups.pop("dense", [])])
    targets = {row["target"] for row in rows}
    with canvas(1, 1, (6.4, 4.0)) as (figure, ((axes,),)):
        ours_first = sorted(groups.items(), key=lambda item: item[0] != "ds-pruning")  # dark and solid
        ends = [draw_method(axes, method, group, x, index) for index, (method, group) in enumerate(ours_first)]
        for method, line in published.items():
            shown = {100 * target: accuracy for target, accuracy in line.items() if target in targets}
            if len(shown) > 1:
                axes.plot(shown.keys(), shown.values(), color=QUIET, linewidth=0.8, linestyle=":")
                ends.append((max(shown), shown[max(shown)], f"paper, {label(method)}", QUIET))
        right = max((place for place, *_ in ends), default=axes.get_xlim()[1])
        if len(dense):
            draw_dense(axes, dense)
            ends.append((right, dense.mean(), "dense", "black"))
        axes.set(xlabel=axis, ylabel="Test accuracy (%)")
        if wide:
            logarithmic(axes)
        axes.set_xlim(right=right)
        label_points(axes, ends)
        figure.suptitle(f"{title}: {seeds_of(list(groups.values()), 'target')}", x=0.01, ha="left", fontsize=10)
        if missed:
            figure.supxlabel(f"out of reach: {', '.join(missed)}", x=0.01, ha="left", color=QUIET, fontsize=8)
        save(figure, path)
