"""Accuracy against sparsity or FLOPs, a line a method."""

from collections import defaultdict
from pathlib import Path

import numpy as np

from common.pruning import label
from common.reports.canvas import COLOURS, LINES, QUIET, Rows, Series, canvas, label_points, save, seeds_of


def over_targets(rows: Rows, x) -> Series:
    """Mean of `x(row)`, and mean and standard deviation of the accuracy in per cent, for every target in order; for
    every strength, of a method without targets."""
    found = defaultdict(list)
    for row in rows:
        at = row["strength"] if row["target"] is None else row["target"]
        found[at].append((x(row), 100 * row["test_accuracy"]))
    points = [np.array(found[target]) for target in sorted(found)]
    spreads = [p[:, 1].std(ddof=1) if len(p) > 1 else 0.0 for p in points]
    return np.array([p[:, 0].mean() for p in points]), np.array([p[:, 1].mean() for p in points]), np.array(spreads)


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
        ends = []  # (place, height, label, colour) of every line's right end
        ours_first = sorted(groups.items(), key=lambda item: item[0] != "ds-pruning")  # dark and solid
        for index, (method, group) in enumerate(ours_first):
            places, means, spreads = over_targets(group, x)
            style = {"color": COLOURS[index % len(COLOURS)], "linestyle": LINES[index % len(LINES)]}
            axes.errorbar(places, means, spreads, marker="o", markersize=3, capsize=2, clip_on=False, **style)
            ends.append((places.max(), means[places.argmax()], label(method), style["color"]))
        for method, line in published.items():
            shown = {100 * target: accuracy for target, accuracy in line.items() if target in targets}
            if len(shown) > 1:
                axes.plot(shown.keys(), shown.values(), color=QUIET, linewidth=0.8, linestyle=":")
                ends.append((max(shown), shown[max(shown)], f"paper, {label(method)}", QUIET))
        if len(dense):
            axes.axhline(dense.mean(), color="black", linewidth=0.9)
            if len(dense) > 1:
                band = dense.std(ddof=1)
                axes.axhspan(dense.mean() - band, dense.mean() + band, color="black", alpha=0.08, linewidth=0)
        right = max((place for place, *_ in ends), default=axes.get_xlim()[1])
        if len(dense):
            ends.append((right, dense.mean(), "dense", "black"))
        axes.set(xlabel=axis, ylabel="Test accuracy (%)")
        if wide:
            from matplotlib.ticker import LogLocator, NullLocator

            axes.set_xscale("log")
            axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5)))
            axes.xaxis.set_major_formatter("{x:g}")
            axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xlim(right=right)
        label_points(axes, ends)
        figure.suptitle(f"{title}: {seeds_of(list(groups.values()), 'target')}", x=0.01, ha="left", fontsize=10)
        if missed:
            figure.supxlabel(f"out of reach: {', '.join(missed)}", x=0.01, ha="left", color=QUIET, fontsize=8)
        save(figure, path)
