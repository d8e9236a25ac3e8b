"""Does the lead of DS-Pruning last towards the paper's scale? Two figures from the tables of neuron-sparsity.

    python -m common.reports.scale          plots/lead-width.png and plots/lead-epochs.png

At 80 % neuron sparsity: the lead over every other method against the width of the network, and against the length of
its training. Every table of Resnet18.py on CIFAR-10 below plots/ counts, so runs at another width or length go to a
folder of their own there:

    python Resnet18.py --study neuron-sparsity --sparsities 0.8 --seeds 0 1 2 --width 32 --output-dir plots/width-32
    python Resnet18.py --study neuron-sparsity --sparsities 0.8 --seeds 0 1 2 --epochs 30 --output-dir plots/epochs-30

Points are means over the seeds that both methods have, bars their 95 % intervals (paired t); a hollow point has one
seed and no bar.
"""

import argparse
import sys
from collections import defaultdict
from pathlib import Path

import pandas as pd

from common.files import origin
from common.pruning import METHODS, label
from common.reports import canvas, comparison, tables
from common.reports.results import ROOT

TARGET = 0.8
FIXED = {"width": ("epochs", 10), "epochs": ("width", 16)}  # axis of a figure -> what is held, and its value there
LABELS = {"width": "Width (channels of the first stage)", "epochs": "Epochs of training"}


def rows_below(plots: Path) -> pd.DataFrame:
    """The rows of all tables of neuron-sparsity made with ReLU on CIFAR-10 with scores as they are defined today."""
    found = []
    for path in sorted(plots.rglob("neuron-sparsity.csv")):
        settings = origin(path)["settings"]
        made = settings["dataset"], settings["activation"], settings["hold_out"]
        if made == ("cifar10", "relu", 0):
            rows = tables.read(path)
            found.append(rows[rows["method"].isin(settings["methods"])])
    return pd.concat(found) if found else pd.DataFrame(columns=["width", "epochs"])


def leads(rows: pd.DataFrame, axis: str) -> dict[str, dict[int, dict]]:
    """Method -> value of `axis` -> its row of `comparison.comparison` at the target, where it can be compared."""
    held, value = FIXED[axis]
    found: dict[str, dict[int, dict]] = defaultdict(dict)
    for place, group in rows[rows[held] == value].groupby(axis):
        for row in comparison.comparison(group):
            if row["target"] == TARGET and row["difference"] is not None:
                found[row["method"]][place] = row
    return dict(sorted(found.items(), key=lambda item: list(METHODS).index(item[0])))


def draw(found: dict[str, dict[int, dict]], axis: str, path: Path) -> None:
    """A panel a method, all of the same scale, which the points settle: an interval may go beyond its panel."""
    places = sorted({place for line in found.values() for place in line})
    heights = [0.0, *(-100 * row["difference"] for line in found.values() for row in line.values())]
    margin = 0.35 * (max(heights) - min(heights)) + 1
    columns = min(len(found), 4)
    lines = -(-len(found) // columns)
    held = {"width": "width {}", "epochs": "{} epochs"}[FIXED[axis][0]].format(FIXED[axis][1])
    title = f"ResNet-18 on CIFAR-10, {100 * TARGET:g} % neuron sparsity, {held}"
    size = (1.2 + 1.7 * columns, 1 + 1.6 * lines)
    with canvas.canvas(path, title, (lines, columns), size, sharex=True, sharey=True) as grid:
        for axes in grid.flat[len(found) :]:
            axes.set_axis_off()
        for axes, (method, line) in zip(grid.flat, found.items(), strict=False):
            draw_panel(axes, line)
            axes.set_title(label(method))
        canvas.lowest(grid)
        axes = grid[0, 0]
        axes.set_xscale("log")
        axes.set_xticks(places, [f"{place:g}" for place in places])
        axes.minorticks_off()
        axes.set_xlim(places[0] / 1.3, places[-1] * 1.3)
        axes.set_ylim(min(heights) - margin, max(heights) + margin)
        axes.figure.supxlabel(LABELS[axis], fontsize=9)
        axes.figure.supylabel("DS-Pruning's lead (points)", fontsize=9)


def draw_panel(axes, line: dict[int, dict]) -> None:
    """A method's mean lead at each value, and its interval where there is one."""
    colour = canvas.COLOURS[0]
    heights = {place: -100 * row["difference"] for place, row in line.items()}
    axes.axhline(0, color=canvas.QUIET, linewidth=0.8)
    axes.plot(list(heights), list(heights.values()), color=colour)
    for place, row in line.items():
        told = row["low"] is not None
        if told:
            axes.vlines(place, -100 * row["high"], -100 * row["low"], color=colour, linewidth=0.8)
        axes.plot(place, heights[place], "o", color=colour, markersize=4, markerfacecolor=colour if told else "white")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--plots", type=Path, default=ROOT / "plots", help="where the tables are, and the figures go")
    plots = parser.parse_args().plots
    rows, missing = rows_below(plots), []
    for axis in FIXED:
        found = leads(rows, axis)
        places = {place for line in found.values() for place in line}
        if len(places) < 2:
            missing.append(axis)
            print(f"lead against {axis}: takes tables of two values, found {sorted(places) or 'none'}; see --help")
            continue
        path = plots / f"lead-{axis}.png"
        draw(found, axis, path)
        print(f"figure: {path}")
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main())
