"""What all figures share: a canvas, colours, labels beside lines.

Figures are made without pyplot, which would look for a screen; and what draws imports matplotlib itself, as every
study imports this module before it trains.
"""

import textwrap
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from common import names
from common.files import write
from common.settings import identity

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


def style(index: int) -> dict:
    """The colour and the dash of a line by its number."""
    return {"color": COLOURS[index % len(COLOURS)], "linestyle": LINES[index % len(LINES)]}


@contextmanager
def canvas(
    path: Path, title: str, shape: tuple[int, int], size: tuple[float, float], notes: str = "", style=STYLE, **shared
) -> Iterator:
    """The grid of axes [lines, columns] of a figure of `size` inches, which is saved when the context ends.

    notes: below the panels. shared: `sharex` and `sharey` of matplotlib's `subplots`.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context(style):
        figure = Figure(size)
        lines = [line for part in title.split("\n") for line in textwrap.wrap(part, int(12.5 * size[0]))]
        figure.suptitle("\n".join(lines), x=0.01, ha="left", fontsize=10)
        if notes:
            figure.supxlabel(notes, x=0.01, ha="left", color=QUIET, fontsize=8)
        yield figure.subplots(*shape, squeeze=False, **shared)
        save(figure, path)


def lowest(grid) -> list:
    """The lowest panel in use of each column, which shows the numbers of an axis that all share."""
    found = [[axes for axes in column if axes.axison][-1] for column in grid.T]
    for axes in found:
        axes.tick_params(labelbottom=True)
    return found


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
    for name, words in (("gradient_clip", "gradient norm clipped at"), ("noise_std", "gradient noise")):
        value = getattr(settings, name, 0)
        parts += [f"{words} {value:g}"] if value and identity.is_read(name, settings.study) else []
    return ", ".join([*parts, dataset_name(settings.dataset)])


def dataset_name(dataset: str) -> str:
    return {"cifar10": "CIFAR-10", "digits": "8x8 digits"}.get(dataset, Path(dataset).name)


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
            heights[0] = max(heights[0], low + gap / 2)
    return heights


def label_ends(axes, ends: list[tuple[float, str, str]]) -> None:
    """Writes (height, text, colour) beside the right end of lines, moved apart where they would overlap."""
    ends, place = sorted(ends), axes.get_yaxis_transform()
    for (at, text, colour), height in zip(ends, apart(axes, [end[0] for end in ends]), strict=True):
        axes.plot((1, 1.03), (at, height), color=colour, linewidth=0.5, transform=place, clip_on=False)
        axes.text(1.04, height, text, color=colour, va="center", fontsize=8, transform=place)


NEAR = 0.12  # of the panel's width


def label_points(axes, ends: list[tuple[float, float, str, str]]) -> None:
    """Writes (place, height, text, colour) right of the points, in a column for those that are near each other, moved
    apart as above, and a line to each point."""
    from matplotlib.patheffects import withStroke
    from matplotlib.transforms import ScaledTranslation

    across = axes.transData - axes.transAxes  # to shares of the panel
    beside = axes.transData + ScaledTranslation(12 / 72, 0, axes.figure.dpi_scale_trans)
    columns: list[list] = []
    for end in sorted(ends):
        at = across.transform(end[:2])[0]
        if not columns or at - across.transform(columns[-1][-1][:2])[0] > NEAR:
            columns.append([])
        columns[-1].append(end)
    for column in columns:
        place, column = column[-1][0], sorted(column, key=lambda end: end[1])
        for (*point, text, colour), height in zip(column, apart(axes, [end[1] for end in column]), strict=True):
            line = dict(arrowstyle="-", color=colour, linewidth=0.5, relpos=(0, 0.5), shrinkA=1, shrinkB=2)
            style = {"color": colour, "fontsize": 8, "va": "center", "textcoords": beside, "arrowprops": line}
            around = [withStroke(linewidth=2, foreground="white")]
            axes.annotate(text, point, (place, height), path_effects=around, **style)


def mean_of(seeds: Collection[int]) -> str:
    """How many seeds are behind a mean, for a title, from the number behind each point."""
    least, most = min(seeds), max(seeds)
    if most == 1:
        return "one seed"
    return f"mean of {most if least == most else f'{least} to {most}'} seeds"


def tell(paths: list[Path]) -> None:
    """Prints where figures are."""
    print("".join(f"figure: {path}\n" for path in paths), end="")
