"""Accuracy against sparsity or FLOPs, a line a method."""

import textwrap
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np

from common.pruning import METHODS, label
from common.pruning.task import point_of
from common.reports.canvas import COLOURS, LINES, QUIET, Rows, Series, canvas, label_points, mean_of, over, save


def over_targets(rows: Rows, x) -> Series:
    """Mean of `x(row)`, and mean and standard deviation of the accuracy in per cent, for every target in order; for
    every strength, of a method without targets."""
    at = [row["strength"] if row["target"] is None else row["target"] for row in rows]
    _, places, _ = over(zip(at, map(x, rows), strict=True))
    return places, *over(zip(at, [100 * row["test_accuracy"] for row in rows], strict=True))[1:]


def style_of(method: str) -> dict:
    """Colour and dash of a method, the same in every figure: dark and solid for DS-Pruning."""
    order = sorted(METHODS, key=lambda name: name != "ds-pruning")
    index = order.index(method) if method in order else len(order)
    return {"color": COLOURS[index % len(COLOURS)], "linestyle": LINES[index % len(LINES)]}


def draw_method(axes, method: str, rows: Rows, x) -> tuple:
    """The line of a method; returns its right end: place, height, label, colour."""
    places, means, spreads = over_targets(rows, x)
    style = style_of(method)
    axes.errorbar(places, means, spreads, marker="o", markersize=3, capsize=2, clip_on=False, **style)
    return places.max(), means[places.argmax()], label(method), style["color"]


def seeds_behind(groups: dict[str, Rows]) -> tuple[str, str]:
    """How many seeds are behind most points; and which have another number, "" for none."""
    found = defaultdict(set)
    for method, rows in groups.items():
        for row in rows:
            found[method, point_of(row)].add(row["seed"])
    usual = max(Counter(map(len, found.values())).items(), key=lambda item: item[::-1])[0]
    others = defaultdict(list)
    for (method, point), seeds in sorted(found.items(), key=lambda item: item[0][1].order):
        if len(seeds) != usual:
            others[method, len(seeds)].append(str(point) if point.target is None else f"{100 * point.target:g} %")
    named = [f"{count} of {label(method)} at {', '.join(points)}" for (method, count), points in others.items()]
    bars = ", bars: one standard deviation" if max(map(len, found.values())) > 1 else ""
    return mean_of([usual]) + bars, f"other numbers of seeds: {'; '.join(named)}" if named else ""


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
        ends = [draw_method(axes, method, group, x) for method, group in groups.items()]
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
        seeds, others = seeds_behind(groups)
        figure.suptitle(f"{title}\n{seeds}", x=0.01, ha="left", fontsize=10)
        notes = [f"out of reach: {', '.join(missed)}"] if missed else []
        notes += textwrap.wrap(others, 110)
        if notes:
            figure.supxlabel("\n".join(notes), x=0.01, ha="left", color=QUIET, fontsize=8)
        save(figure, path)
