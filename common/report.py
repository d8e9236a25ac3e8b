"""Tables and figures.

Figures are made without pyplot, which would look for a screen; and what draws imports matplotlib itself, as every
study imports this module before it trains.
"""

from collections import defaultdict
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from common.runs import write

# Dark to light in grey print too; the line style tells them apart where colour cannot.
COLOURS = ("#00204d", "#b2182b", "#35978f", "#d6a000", "#8073ac", "#7f3b08", "#4393c3", "#525252", "#de77ae")
COLOURS += ("#1b7837", "#f4773d", "#00a6b4")
LINES = ("-", (0, (5, 1.5)), (0, (1.5, 1.2)), (0, (5, 1.5, 1, 1.5)), (0, (8, 2)), (0, (3, 1, 1, 1, 1, 1)), (0, (1, 3)))
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


@contextmanager
def canvas(lines: int, columns: int, size: tuple[float, float], style: dict = STYLE, **shared) -> Iterator[tuple]:
    """A figure of `size` inches and its grid of axes [lines, columns], in our style as long as the context lasts.

    shared: `sharex` and `sharey` of matplotlib's `subplots`.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context(style):
        figure = Figure(size)
        yield figure, figure.subplots(lines, columns, squeeze=False, **shared)


def save(figure, path: Path) -> None:
    """Writes the PNG in the place of `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write(path, lambda file: figure.savefig(file, format="png"))


def dataset_name(dataset: str) -> str:
    return {"cifar10": "CIFAR-10", "digits": "8x8 digits"}.get(dataset, Path(dataset).name)


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
    """One line a label, and a band of one standard deviation over seeds."""
    from matplotlib.ticker import MaxNLocator

    for index, (epochs, mean, spread) in enumerate(lines.values()):
        colour, line = COLOURS[index % len(COLOURS)], LINES[index % len(LINES)]
        axes.plot(epochs, mean, color=colour, linestyle=line, marker="o" if len(epochs) == 1 else None)
        if spread.any():
            axes.fill_between(epochs, mean - spread, mean + spread, color=colour, alpha=0.15, linewidth=0)
    axes.set_xlim(1 if last_epoch > 1 else 0.5, last_epoch)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def apart(axes, heights: list[float]) -> list[float]:
    """The heights, from the lowest up, of labels that overlap neither each other nor the lower end of the panel."""
    low, high = axes.get_ylim()
    panel = axes.figure.get_figheight() / axes.get_gridspec().nrows * 72 - 55  # points, without title and axis label
    gap = 10 * (high - low) / panel
    heights = list(heights)
    for _ in range(500):  # push neighbours apart until none is too close
        for i in range(len(heights) - 1):
            overlap = gap - (heights[i + 1] - heights[i])
            if overlap > 0:
                heights[i] -= overlap / 2
                heights[i + 1] += overlap / 2
        if heights:
            heights[0] = max(heights[0], low)
    return heights


def label_ends(axes, ends: list[tuple[float, str, str]]) -> None:
    """Writes (height, text, colour) beside the right end of lines, moved apart where they would overlap."""
    ends, place = sorted(ends), axes.get_yaxis_transform()
    for (at, text, colour), height in zip(ends, apart(axes, [end[0] for end in ends]), strict=True):
        axes.plot((1, 1.03), (at, height), color=colour, linewidth=0.5, transform=place, clip_on=False)
        axes.text(1.04, height, text, color=colour, va="center", fontsize=8, transform=place)


def label_points(axes, ends: list[tuple[float, float, str, str]]) -> None:
    """Writes (place, height, text, colour) in a column on the right, moved apart as above, and a line to each point."""
    from matplotlib.transforms import ScaledTranslation

    place = max((end[0] for end in ends), default=None)
    beside = axes.transData + ScaledTranslation(12 / 72, 0, axes.figure.dpi_scale_trans)
    ends = sorted(ends, key=lambda end: end[1])
    for (*point, text, colour), height in zip(ends, apart(axes, [end[1] for end in ends]), strict=True):
        line = {"arrowstyle": "-", "color": colour, "linewidth": 0.5, "relpos": (0, 0.5), "shrinkA": 1, "shrinkB": 2}
        style = {"color": colour, "fontsize": 8, "va": "center", "textcoords": beside, "arrowprops": line}
        axes.annotate(text, point, (place, height), **style)


PANELS = (
    ("Dying units (% of all)", per_cent_of_units("dying_units")),
    ("Dead units (% of all)", per_cent_of_units("dead_units")),
    ("Test accuracy (%)", lambda row: 100 * row["test_accuracy"]),
)


def limits(panel: int, groups: list[Rows], references: list[float]) -> tuple[float, float]:
    """The range of one quantity over all lines and references that are drawn of it."""
    value = PANELS[panel][1]
    series = [over_seeds(rows, value) for rows in groups]
    values = [v for _, mean, spread in series for v in (*(mean - spread), *(mean + spread))]
    values += [45, 55, *references] if panel == 0 else [0, 1] if panel == 1 else []
    margin = 0.06 * max(max(values) - min(values), 1)
    return min(values) - margin, max(values) + margin


def draw_panel(axes, panel: int, groups: dict[str, Rows], span: tuple[float, float], published: dict) -> None:
    """One quantity by epoch: a line a group, its label at the end; for dying units the coin toss and the paper's."""
    name, value = PANELS[panel]
    last = max(row["epoch"] for rows in groups.values() for row in rows)
    lines = {label: over_seeds(rows, value) for label, rows in groups.items()}
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
        bar = figure.colorbar(image, ax=grid, label="Share of dead units", pad=0.02)
        bar.outline.set_linewidth(0.5)
        figure.suptitle(title, x=0.01, ha="left", fontsize=10)
        save(figure, path)


NAMES = {"ds-pruning": "DS-Pruning", "snap": "SNAP", "cropit-s": "CroPit-S", "earlysnap": "EarlySNAP"} | {
    "earlycrop-s": "EarlyCroP-S",
    "demp": "Demon Pruning",
    "set": "SET",
    "rigl": "RigL",
}


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


def seeds_of(groups: list[Rows], swept: str) -> str:
    """How many seeds are behind the points of a figure."""
    counts = defaultdict(set)
    for index, rows in enumerate(groups):
        for row in rows:
            counts[index, row[swept]].add(row["seed"])
    seeds = [len(found) for found in counts.values()]
    return mean_of(seeds) + (", bars: one standard deviation" if max(seeds) > 1 else "")


def mean_of(seeds: Collection[int]) -> str:
    """How many seeds are behind a mean, for a title, from the number behind each point."""
    least, most = min(seeds), max(seeds)
    if most == 1:
        return "one seed"
    return f"mean of {most if least == most else f'{least} to {most}'} seeds"


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
    missed = dict.fromkeys(f"{NAMES.get(row['method'], row['method'])} at {100 * row['target']:g} %" for row in missed)
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
            ends.append((places.max(), means[places.argmax()], NAMES.get(method, method), style["color"]))
        for method, line in published.items():
            shown = {100 * target: accuracy for target, accuracy in line.items() if target in targets}
            if len(shown) > 1:
                axes.plot(shown.keys(), shown.values(), color=QUIET, linewidth=0.8, linestyle=":")
                ends.append((max(shown), shown[max(shown)], f"paper, {NAMES.get(method, method)}", QUIET))
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
