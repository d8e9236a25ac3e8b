"""Figures by epoch: dying units, dead units and accuracy; dead units by layer."""

from pathlib import Path

import numpy as np
import pandas as pd

from common.reports.canvas import QUIET, STYLE, canvas, label_points, lowest, mean_of, style
from common.reports.tables import Series, over

Lines = dict[str, pd.DataFrame]  # label of a line -> its rows


def draw_lines(axes, lines: dict[str, Series], last_epoch: int) -> None:
    """One line a label, and a band of one standard deviation over seeds."""
    from matplotlib.ticker import MaxNLocator

    for index, (epochs, mean, spread) in enumerate(lines.values()):
        lone = {"marker": "o", "clip_on": False} if len(epochs) == 1 else {}
        (line,) = axes.plot(epochs, mean, **lone, **style(index))
        if spread.any():
            axes.fill_between(epochs, mean - spread, mean + spread, color=line.get_color(), alpha=0.15, linewidth=0)
    axes.set_xlim((1, last_epoch) if last_epoch > 1 else (0.5, 1.5))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))


PANELS = (
    ("Dying units (% of all)", lambda rows: 100 * rows["dying_units"] / rows["units"]),
    ("Dead units (% of all)", lambda rows: 100 * rows["dead_units"] / rows["units"]),
    ("Test accuracy (%)", lambda rows: 100 * rows["test_accuracy"]),
)


def limits(panel: int, groups: list[pd.DataFrame], references: list[float]) -> tuple[float, float]:
    """The range of one quantity over all lines and references that are drawn of it."""
    value = PANELS[panel][1]
    series = [over(rows["epoch"], value(rows)) for rows in groups]
    values = [v for _, mean, spread in series for v in (*(mean - spread), *(mean + spread))]
    values += [45, 55, *references] if panel == 0 else [0, 1] if panel == 1 else []
    margin = 0.06 * max(max(values) - min(values), 1)
    return min(values) - margin, max(values) + margin


def draw_panel(axes, panel: int, groups: Lines, span: tuple[float, float], published: dict) -> None:
    """One quantity by epoch: a line a group, its label at the end; for dying units the coin toss and the paper's."""
    name, value = PANELS[panel]
    lines = {label: over(rows["epoch"], value(rows)) for label, rows in groups.items()}
    last = max(rows["epoch"].max() for rows in groups.values())
    draw_lines(axes, lines, last)
    right = axes.get_xlim()[1]
    axes.set(xlabel="Epoch", title=name, ylim=span)
    ends = [
        (last, mean[-1], label, style(i)["color"]) for i, (label, (_, mean, _)) in enumerate(lines.items()) if len(mean)
    ]
    if panel == 0:
        axes.axhline(50, color=QUIET, linewidth=0.8, linestyle=":")
        if not ends:
            axes.text(0.5, 0.25, "known from epoch 2 on", transform=axes.transAxes, ha="center", color=QUIET)
        ends.append((right, 50, "coin toss", QUIET))
        for label, shares in published.items():
            for share in shares:
                axes.axhline(share, xmin=0.9, color=QUIET, linewidth=0.9)
            ends.append((right, float(np.mean(shares)), label, QUIET))
    label_points(axes, ends)


def caption(groups: list[pd.DataFrame]) -> str:
    first, seeds = groups[0].iloc[0], len(set().union(*(rows["seed"] for rows in groups)))
    spread = mean_of([seeds]) + (", bands: one standard deviation" if seeds > 1 else "")
    return f"{first['units']:,} units, batch size {first['batch_size']}, {spread}"


def epochs_figure(columns: dict[str, Lines], path: Path, title: str, published: dict[str, dict]) -> None:
    """Dying units, dead units and test accuracy by epoch.

    Args:
        columns: title of a column of panels -> label of a line -> rows as in accumulation.csv. A single column is
            laid out as a row.
        published: title of a column -> label -> the paper's shares of dying units, in per cent.
    """
    groups = [rows for lines in columns.values() for rows in lines.values()]
    references = [share for labels in published.values() for shares in labels.values() for share in shares]
    spans = [limits(panel, groups, references) for panel in range(len(PANELS))]
    shape, size = ((1, 3), (11.5, 3.2)) if len(columns) == 1 else ((3, len(columns)), (4.1 * len(columns), 7.2))
    with canvas(path, f"{title}. {caption(groups)}", shape, size) as grid:
        for axes_of_column, (name, lines) in zip(grid if len(columns) == 1 else grid.T, columns.items(), strict=True):
            for panel, axes in enumerate(axes_of_column):
                draw_panel(axes, panel, lines, spans[panel], published.get(name, {}))
                if len(columns) > 1:
                    axes.set_title(f"{name}: {PANELS[panel][0].lower()}")


def layers_figure(table: pd.DataFrame, layers: list[str], path: Path, title: str) -> None:
    """The share of dead units by layer and epoch, a heat map for each label, a mean over its seeds.

    Args:
        table: columns label, epoch and the layers, with shares in [0, 1].
    """
    from matplotlib.colors import PowerNorm
    from matplotlib.ticker import MaxNLocator

    labels = {label: rows.groupby("epoch")[layers].mean() for label, rows in table.groupby("label", sort=False)}
    columns = min(len(labels), min((3, 4), key=lambda count: -len(labels) % count))  # fewest places left empty
    lines = -(-len(labels) // columns)
    size = (2.2 + 2.2 * columns, 0.6 + lines * (0.6 + 0.19 * len(layers)))
    framed = {**STYLE, "axes.spines.top": True, "axes.spines.right": True}
    with canvas(path, title, (lines, columns), size, style=framed, sharex=True, sharey=True) as grid:
        for axes in grid.flat[len(labels) :]:
            axes.set_axis_off()
        for axes, (label, share) in zip(grid.flat, labels.items(), strict=False):
            # square-root scale: a few dead units are seen beside many
            extent = (0.5, len(share) + 0.5, len(layers) - 0.5, -0.5)
            look = {"cmap": "Greys", "norm": PowerNorm(0.5, 0, 1), "interpolation": "nearest"}
            image = axes.imshow(share.to_numpy().T, aspect="auto", extent=extent, **look)
            axes.set(title=label, yticks=range(len(layers)), yticklabels=layers)
            axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
            if not share.any(axis=None):
                axes.text(0.5, 0.5, "no unit dead", transform=axes.transAxes, ha="center", color=QUIET)
        for axes in lowest(grid):
            axes.set_xlabel("Epoch")
        bar = axes.figure.colorbar(image, ax=grid, label="Share of dead units (square-root scale)", pad=0.02)
        bar.outline.set_linewidth(0.5)
