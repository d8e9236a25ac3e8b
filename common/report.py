"""Tables and figures."""

from collections import defaultdict
from pathlib import Path

import matplotlib
import numpy as np

matplotlib.use("Agg")
from matplotlib import pyplot  # noqa: E402
from matplotlib.ticker import MaxNLocator  # noqa: E402

from common.runs import write  # noqa: E402

# Dark to light in grey print too; the line style tells them apart where colour cannot.
COLOURS = ("#00204d", "#b2182b", "#35978f", "#d6a000", "#8073ac")
LINES = ("-", (0, (5, 1.5)), (0, (1.5, 1.2)), (0, (5, 1.5, 1, 1.5)), (0, (8, 2)))
QUIET = "#7f7f7f"
STYLE = {
    "figure.dpi": 100,
    "savefig.dpi": 160,
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "lines.linewidth": 1.6,
    "figure.constrained_layout.use": True,
}

Rows = list[dict]
Series = tuple[np.ndarray, np.ndarray, np.ndarray]


def save(figure, path: Path) -> None:
    """Writes the PNG in the place of `path` and closes the figure."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write(path, lambda file: figure.savefig(file, format="png"))
    pyplot.close(figure)


def table(header: list[str], rows: list[list]) -> str:
    """Columns aligned, numbers to the right; every cell as `str` gives it."""
    cells = [header] + [[str(cell) for cell in row] for row in rows]
    widths = [max(len(row[column]) for row in cells) for column in range(len(header))]
    lines = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def over_seeds(rows: Rows, value) -> Series:
    """Epochs, and mean and standard deviation over seeds of `value(row)`, leaving out epochs where it is None."""
    found = defaultdict(list)
    for row in rows:
        if value(row) is not None:
            found[row["epoch"]].append(value(row))
    epochs = np.array(sorted(found))
    mean = np.array([np.mean(found[epoch]) for epoch in epochs])
    spread = np.array([np.std(found[epoch], ddof=1) if len(found[epoch]) > 1 else 0.0 for epoch in epochs])
    return epochs, mean, spread


def per_cent_of_units(name: str):
    return lambda row: None if row[name] is None else 100 * row[name] / row["units"]


def draw_lines(axes, lines: dict[str, Series], last_epoch: int) -> None:
    """One line a label, a band of one standard deviation, and the label at its right end."""
    for index, (epochs, mean, spread) in enumerate(lines.values()):
        colour, line = COLOURS[index % len(COLOURS)], LINES[index % len(LINES)]
        marker = "o" if len(epochs) == 1 else None
        axes.plot(epochs, mean, color=colour, linestyle=line, marker=marker)
        if spread.any():
            axes.fill_between(epochs, mean - spread, mean + spread, color=colour, alpha=0.15, linewidth=0)
    axes.set_xlim(min(1, last_epoch - 1), last_epoch)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def label_ends(axes, ends: list[tuple[float, str, str]]) -> None:
    """Writes (height, text, colour) beside the right end of lines, moved apart where they would overlap."""
    low, high = axes.get_ylim()
    gap = 0.075 * (high - low)
    ends = sorted(ends)
    heights = [end[0] for end in ends]
    for _ in range(200):  # push neighbours apart until none is too close
        for i in range(len(heights) - 1):
            overlap = gap - (heights[i + 1] - heights[i])
            if overlap > 1e-9:
                heights[i] -= overlap / 2
                heights[i + 1] += overlap / 2
    lift = max(0.0, low + gap / 2 - heights[0]) if heights else 0.0
    for (at, text, colour), height in zip(ends, heights, strict=True):
        place = {"xycoords": axes.get_yaxis_transform(), "textcoords": axes.get_yaxis_transform()}
        arrow = {"arrowstyle": "-", "color": colour, "linewidth": 0.5, "shrinkA": 0, "shrinkB": 0}
        axes.annotate(
            text, (1.0, at), (1.03, height + lift), color=colour, va="center", fontsize=8, arrowprops=arrow,
            annotation_clip=False, **place,
        )  # fmt: skip


def epochs_figure(rows: Rows, line_of, path: Path, title: str, published: dict[float, float]) -> None:
    """Dying units, dead units and test accuracy by epoch, one line for each value of `line_of(row)`.

    Args:
        rows: as in accumulation.csv.
        published: learning rate -> the paper's share of dying units, in per cent.
    """
    groups = defaultdict(list)
    for row in rows:
        groups[line_of(row)].append(row)
    last, seeds = max(row["epoch"] for row in rows), len({row["seed"] for row in rows})
    panels = (
        ("Dying units (% of all)", per_cent_of_units("dying_units")),
        ("Dead units (% of all)", per_cent_of_units("dead_units")),
        ("Test accuracy (%)", lambda row: 100 * row["test_accuracy"]),
    )
    with pyplot.rc_context(STYLE):
        figure, all_axes = pyplot.subplots(1, 3, figsize=(11.5, 3.1))
        for axes, (name, value) in zip(all_axes, panels, strict=True):
            lines = {label: over_seeds(group, value) for label, group in groups.items()}
            lines = {label: line for label, line in lines.items() if len(line[0])}
            draw_lines(axes, lines, last)
            axes.set(xlabel="Epoch", title=name)
            ends = [(line[1][-1], label, COLOURS[i % len(COLOURS)]) for i, (label, line) in enumerate(lines.items())]
            if axes is all_axes[0]:
                axes.axhline(50, color=QUIET, linewidth=0.8, linestyle=":")
                axes.annotate("a coin toss", (0.02, 50), xycoords=axes.get_yaxis_transform(), color=QUIET, fontsize=7.5, va="bottom")
                for rate in sorted({row["learning_rate"] for row in rows} & set(published)):
                    axes.axhline(published[rate], xmin=0.9, color=QUIET, linewidth=0.8)
                    ends.append((published[rate], f"paper, lr {rate:g}", QUIET))
                reach = max([abs(v - 50) for line in lines.values() for v in line[1]] + [abs(v - 50) for v in published.values()])
                axes.set_ylim(50 - 1.1 * reach, 50 + 1.1 * reach)
            elif axes is all_axes[1]:
                top = max(v for line in lines.values() for v in line[1])
                axes.set_ylim(-0.03 * max(top, 1), 1.08 * max(top, 1))
            label_ends(axes, ends)
        spread = "one seed" if seeds == 1 else f"mean of {seeds} seeds, bands: one standard deviation"
        figure.suptitle(f"{title} ({spread})", x=0.01, ha="left", fontsize=10)
        save(figure, path)
