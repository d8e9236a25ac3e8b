"""Figures by epoch: dying units, dead units and accuracy; dead units by layer."""

from pathlib import Path

import numpy as np

from common.reports.canvas import COLOURS, LINES, QUIET, STYLE, Rows, Series, canvas, label_ends, mean_of, over, save


def by_epoch(rows: Rows, value) -> Series:
    """Epochs, and mean and standard deviation over seeds of `value(row)`."""
    return over((row["epoch"], value(row)) for row in rows)


def per_cent_of_units(name: str):
    return lambda row: None if row[name] is None else 100 * row[name] / row["units"]


def draw_lines(axes, lines: dict[str, Series], last_epoch: int) -> None:
    """One line a label, and a band of one standard deviation over seeds."""
    from matplotlib.ticker import MaxNLocator

    for index, (epochs, mean, spread) in enumerate(lines.values()):
        colour, line = COLOURS[index % len(COLOURS)], LINES[index % len(LINES)]
        axes.plot(epochs, mean, color=colour, linestyle=line, marker="o" if len(epochs) == 1 else None)
        if spread.any():
            axes.fill_between(epochs, mean - spread, mean + spread, color=colour, alpha=0.15, linewidth=0)
    axes.set_xlim(1 if last_epoch > 1 else 0.5, last_epoch)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


PANELS = (
    ("Dying units (% of all)", per_cent_of_units("dying_units")),
    ("Dead units (% of all)", per_cent_of_units("dead_units")),
    ("Test accuracy (%)", lambda row: 100 * row["test_accuracy"]),
)


def limits(panel: int, groups: list[Rows], references: list[float]) -> tuple[float, float]:
    """The range of one quantity over all lines and references that are drawn of it."""
    value = PANELS[panel][1]
    series = [by_epoch(rows, value) for rows in groups]
    values = [v for _, mean, spread in series for v in (*(mean - spread), *(mean + spread))]
    values += [45, 55, *references] if panel == 0 else [0, 1] if panel == 1 else []
    margin = 0.06 * max(max(values) - min(values), 1)
    return min(values) - margin, max(values) + margin


def draw_panel(axes, panel: int, groups: dict[str, Rows], span: tuple[float, float], published: dict) -> None:
    """One quantity by epoch: a line a group, its label at the end; for dying units the coin toss and the paper's."""
    name, value = PANELS[panel]
    last = max(row["epoch"] for rows in groups.values() for row in rows)
    lines = {label: by_epoch(rows, value) for label, rows in groups.items()}
    draw_lines(axes, lines, last)
    axes.set(xlabel="Epoch", title=name, ylim=span)
    ends = [
        (mean[-1], label, COLOURS[i % len(COLOURS)])
        for i, (label, (_, mean, _)) in enumerate(lines.items())
        if len(mean)
    ]
    if panel == 0:
        axes.axhline(50, color=QUIET, linewidth=0.8, linestyle=":")
        ends.append((50, "coin toss", QUIET))
        for label, shares in published.items():
            for share in shares:
                axes.axhline(share, xmin=0.9, color=QUIET, linewidth=0.9)
            ends.append((float(np.mean(shares)), label, QUIET))
    label_ends(axes, ends)


def caption(rows: Rows) -> str:
    seeds = len({row["seed"] for row in rows})
    spread = mean_of([seeds]) + (", bands: one standard deviation" if seeds > 1 else "")
    return f"{rows[0]['units']:,} units, batch size {rows[0]['batch_size']}, {spread}"


def epochs_figure(columns: dict[str, dict[str, Rows]], path: Path, title: str, published: dict[str, dict]) -> None:
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
    with canvas(*shape, size) as (figure, grid):
        for axes_of_column, (name, lines) in zip(grid if len(columns) == 1 else grid.T, columns.items(), strict=True):
            for panel, axes in enumerate(axes_of_column):
                draw_panel(axes, panel, lines, spans[panel], published.get(name, {}))
                if len(columns) > 1:
                    axes.set_title(f"{name}: {PANELS[panel][0].lower()}")
        figure.suptitle(f"{title}. {caption([row for rows in groups for row in rows])}", x=0.01, ha="left", fontsize=10)
        save(figure, path)


def layers_figure(shares: dict[str, np.ndarray], layers: list[str], path: Path, title: str) -> None:
    """The share of dead units by layer and epoch, a heat map for each group of runs.

    Args:
        shares: label -> [epochs, layers], in [0, 1].
    """
    from matplotlib.colors import PowerNorm
    from matplotlib.ticker import MaxNLocator

    columns = min(len(shares), min((3, 4), key=lambda count: -len(shares) % count))  # fewest places left empty
    lines = -(-len(shares) // columns)
    size = (2.2 + 2.2 * columns, 0.6 + lines * (0.6 + 0.19 * len(layers)))
    framed = {**STYLE, "axes.spines.top": True, "axes.spines.right": True}
    with canvas(lines, columns, size, framed, sharex=True, sharey=True) as (figure, grid):
        for axes in grid.flat[len(shares) :]:
            axes.set_axis_off()
        for axes, (label, share) in zip(grid.flat, shares.items(), strict=False):
            # square-root scale: a few dead units are seen beside many
            extent = (0.5, len(share) + 0.5, len(layers) - 0.5, -0.5)
            norm = PowerNorm(0.5, 0, 1)
            image = axes.imshow(share.T, aspect="auto", cmap="Greys", norm=norm, extent=extent, interpolation="nearest")
            axes.set(title=label, yticks=range(len(layers)), yticklabels=layers)
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
            if not share.any():
                axes.text(0.5, 0.5, "no unit dead", transform=axes.transAxes, ha="center", color=QUIET)
        for lowest in grid.flat[max(0, len(shares) - columns) : len(shares)]:
            lowest.set_xlabel("Epoch")
            lowest.tick_params(labelbottom=True)
        bar = figure.colorbar(image, ax=grid, label="Share of dead units (square-root scale)", pad=0.02)
        bar.outline.set_linewidth(0.5)
        figure.suptitle(title, x=0.01, ha="left", fontsize=10)
        save(figure, path)
