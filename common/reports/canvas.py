"""What all figures share: a canvas, colours, labels beside lines; and tables as text.

Figures are made without pyplot, which would look for a screen; and what draws imports matplotlib itself, as every
study imports this module before it trains.
"""

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np

from common import names
from common.files import write

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


formats = ["png"]  # what figures are saved as, beside the PNG, which always is


def save(figure, path: Path) -> None:
    """Writes the PNG in the place of `path`, and what else `formats` asks for beside it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    for form in dict.fromkeys(["png", *formats]):
        write(path.with_suffix(f".{form}"), partial(figure.savefig, format=form))


def what(settings) -> str:
    """What was trained, as the title of a figure says it."""
    network = names.NETWORKS.get(settings.network, settings.network)
    parts = [f"{network} with {names.ACTIVATION_LABELS.get(settings.activation, settings.activation)}"]
    parts += [f"width {settings.width}", f"{settings.epochs} epoch{'s' * (settings.epochs != 1)}"]
    parts += [f"gradient noise {settings.noise_std:g}"] if getattr(settings, "noise_std", 0) else []
    return ", ".join([*parts, dataset_name(settings.dataset)])


def dataset_name(dataset: str) -> str:
    return {"cifar10": "CIFAR-10", "digits": "8x8 digits"}.get(dataset, Path(dataset).name)


def over(pairs: Iterable[tuple[float, float | None]]) -> Series:
    """(key, value) of every run to keys in order, and mean and standard deviation (n - 1; 0 for one) of the values that
    are not None."""
    found = defaultdict(list)
    for key, value in pairs:
        if value is not None:
            found[key].append(value)
    keys = sorted(found)
    spreads = [np.std(found[key], ddof=1) if len(found[key]) > 1 else 0.0 for key in keys]
    return np.array(keys), np.array([np.mean(found[key]) for key in keys]), np.array(spreads)


def table(header: list[str], rows: list[list]) -> str:
    """Columns aligned, numbers to the right; every cell as `str` gives it."""
    cells = [header] + [[str(cell) for cell in row] for row in rows]
    widths = [max(len(row[column]) for row in cells) for column in range(len(header))]
    lines = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


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
