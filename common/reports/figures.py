"""Figures of the sweeps, of fire rates, of dead units that come back, and of what DS-Pruning decided."""

import textwrap
from pathlib import Path

import numpy as np
import pandas as pd

from common.names import Sweep, short
from common.reports.canvas import COLOURS, QUIET, canvas, label_ends, lowest, mean_of, style
from common.reports.curves import Lines
from common.reports.tables import over

FOOTINGS = {"epochs": "equal epochs", "steps": "equal steps"}
DEAD_TIME = "Dead unit-epochs (% of all)"
PANELS = (
    ("Dead at the end (% of units)", lambda rows: 100 * rows["dead_at_end"] / rows["units"]),
    (DEAD_TIME, lambda rows: 100 * rows["cumulative_dead"] / rows["units"] / rows["epochs"]),
    ("Dying units an epoch (% of units)", lambda rows: 100 * rows["dying_units"] / rows["units"]),
    ("Test accuracy (%)", lambda rows: 100 * rows["test_accuracy"]),
)


def places(swept: Sweep, values: list[float]) -> dict[float, float]:
    """Where each swept value lies on its axis; on one of logarithms, 0 a step below the others."""
    if swept.scale == "linear":
        return {value: value for value in values}
    scale = np.log2 if swept.scale == "log2" else np.log10
    above = [value for value in values if value > 0]
    zero = float(scale(min(above))) - 1 if above else 0.0
    return {value: float(scale(value)) if value > 0 else zero for value in values}


def draw_sweep(axes, lines: Lines, swept: Sweep, at: dict[float, float], panel: int, published: dict) -> list:
    """One quantity against what is swept: a line a group; returns the labels of their ends."""
    from matplotlib.ticker import NullLocator

    name, value = PANELS[panel]
    last = max(at.values())
    ends, largest = [], 0.0
    for index, (label, rows) in enumerate(lines.items()):
        values, means, spreads = over(rows[swept.column], value(rows))
        if not len(values):
            continue
        x, colour = [at[v] for v in values], style(index)["color"]
        bars = spreads if spreads.any() else None
        axes.errorbar(x, means, bars, marker="o", markersize=3.5, capsize=2.5, **style(index))
        largest = max(largest, means.max())
        if label and x[-1] == last:
            ends.append((means[-1], label, colour))
        elif label:
            axes.annotate(label, (x[-1], means[-1]), (4, 2), textcoords="offset points", color=colour, fontsize=8)
    if name == DEAD_TIME and largest and len(shown := [v for v in at if v in published]) > 1:
        scaled = [largest * published[v] / max(published[v] for v in shown) for v in shown]
        axes.plot([at[v] for v in shown], scaled, color=QUIET, linewidth=0.9, linestyle=":")
        if shown[-1] == max(at):
            ends.append((scaled[-1], "paper, scaled", QUIET))
        else:
            look = {"textcoords": "offset points", "color": QUIET, "fontsize": 8}
            axes.annotate("paper, scaled", (at[shown[-1]], scaled[-1]), (4, 0), **look)
    if panel == 2:
        axes.axhline(50, color=QUIET, linewidth=0.8, linestyle=":")
        ends.append((50, "coin toss", QUIET))
    axes.set_xticks(list(at.values()), [short(v) for v in at], rotation=60 if swept.scale == "log10" else 0)
    axes.xaxis.set_minor_locator(NullLocator())
    margin = 0.05 * (last - min(at.values())) or 0.5
    axes.set(xlim=(min(at.values()) - margin, last + margin), xlabel=swept.axis)
    if panel < 2 and axes.get_ylim()[1] < 1:  # no death: no noise magnified
        axes.set_ylim(-0.03, 1)
    return ends


def sweep_figure(
    groups: dict[str, Lines], swept: Sweep, path: Path, title: str, published: dict, missed: list[str]
) -> None:
    """Dead units at the end and over time, dying units and test accuracy against what is swept; means over seeds.

    Args:
        groups: footing (a row of panels each) -> label of a line -> rows as in batch-size.csv.
        swept: the horizontal axis.
        published: swept value -> the paper's count of dead units, drawn to our scale where epochs are equal; {} for
            none.
        missed: runs that are not there, named at the bottom.
    """
    flat = [rows for lines in groups.values() for rows in lines.values()]
    at = places(swept, sorted(set().union(*(rows[swept.column] for rows in flat))))
    notes = ["dead at the end: no firing in the last tenth of all steps, one epoch at most"]
    notes += ["paper, scaled: its counts, the largest drawn as large as ours"] if published else []
    notes += [f"not finished: {', '.join(missed)}"] if missed else []
    notes = textwrap.wrap("; ".join(notes), 190)  # characters of this size in 13 inches
    size = (13.0, 0.4 + 2.9 * len(groups) + 0.14 * len(notes))
    units = min(rows["units"].min() for rows in flat)
    seeds = [count for rows in flat for count in rows.groupby(swept.column)["seed"].nunique()]
    head = f"{title}. {units:,} units, {mean_of(seeds)}{', bars: one standard deviation' * (max(seeds) > 1)}"
    with canvas(path, head, (len(groups), len(PANELS)), size, "\n".join(notes), sharey="col") as grid:
        for panel, column in enumerate(grid.T):
            labels = []
            for axes, (footing, lines) in zip(column, groups.items(), strict=True):
                labels.append(draw_sweep(axes, lines, swept, at, panel, published if footing == "epochs" else {}))
                head = f"{FOOTINGS[footing]}: " if len(groups) > 1 else ""
                name = PANELS[panel][0]
                axes.set_title(head + (name[0].lower() + name[1:] if head else name))
            for axes, ends in zip(column, labels, strict=True):  # when the limits are settled
                label_ends(axes, ends)


FEW = 20


def returns_figure(rows: pd.DataFrame, path: Path, title: str, patience: int | None) -> None:
    """The share of dead units that fire again, by how long they had been dead; all runs together.

    A length that occurs fewer than FEW times is left out, where others are there. Bars are Wilson's 95 % intervals, as
    if units were independent, which those of one run are not quite.

    Args:
        rows: as `death.return_rows` makes them.
        patience: epochs after which DS-Pruning cuts a dead unit out; marked where given.
    """
    from scipy import stats

    sums = rows.groupby("dead_for")[["at_risk", "came_back", "came_back_later"]].sum()
    sums = sums[sums["at_risk"] >= FEW] if (sums["at_risk"] >= FEW).any() else sums
    lengths, counts = sums.index, sums["at_risk"]
    runs = len(rows.drop(columns=["dead_for", *sums]).drop_duplicates())
    title += f"\nDead units that come back, {'one run' if runs == 1 else f'{runs} runs in which units died'}"
    with canvas(path, title, (1, 1), (6.4, 3.6)) as ((axes,),):
        ends = []
        kinds = {"in the next epoch": "came_back", "ever again": "came_back_later"}
        for index, (label, name) in enumerate(kinds.items()):
            shares, bars = 100 * sums[name] / counts, []
            for share, came, at_risk in zip(shares, sums[name], counts, strict=True):
                interval = stats.binomtest(came, at_risk).proportion_ci(0.95, method="wilson")
                bars.append((max(share - 100 * interval.low, 0), max(100 * interval.high - share, 0)))
            look = {**style(index), "marker": "os"[index], "markersize": 4}
            axes.errorbar(lengths + 0.06 * (2 * index - 1), shares, np.array(bars).T, capsize=2.5, **look)
            ends.append((shares.iloc[-1], label, COLOURS[index]))
        top = axes.get_ylim()[1]
        axes.set_ylim(-0.03 * top, top)
        axes.set_xlim(lengths[0] - 0.5, lengths[-1] + 0.5)
        axes.set_xticks(lengths, [f"{length}\n{count:,}" for length, count in counts.items()])
        axes.set(xlabel="Epochs for which a unit had been dead; below: how many times", ylabel="Fire again (%)")
        if patience is not None and lengths[0] <= patience <= lengths[-1]:
            axes.axvline(patience, color=QUIET, linewidth=0.8, linestyle=":")
            place = {"xycoords": axes.get_xaxis_transform(), "textcoords": "offset points"}
            axes.annotate(f"PATIENCE {patience}", (patience, 1), (4, -8), color=QUIET, fontsize=8, **place)
        label_ends(axes, ends)


ALWAYS = 0.999  # the fire rate of a unit that is as good as never silent; nearly dead is 0.001


def fire_rates_figure(columns: dict[str, Lines], path: Path, title: str) -> None:
    """How the fire rates of all units are distributed, the median dashed: a column of panels a condition, a row an
    activation.

    Args:
        columns: condition -> activation -> rows as in accumulation-fire-rates.csv.
    """
    names = list(dict.fromkeys(name for column in columns.values() for name in column))
    edges = np.linspace(0, 1, 41)
    size = (0.6 + 3.1 * len(columns), 0.7 + 1.6 * len(names))
    with canvas(path, title, (len(names), len(columns)), size, sharex=True, sharey=True) as grid:
        for column, (condition, found) in zip(grid.T, columns.items(), strict=True):
            for axes, name in zip(column, names, strict=True):
                if name not in found:
                    axes.set_axis_off()
                    continue
                rates, colour = found[name]["fire_rate"], style(names.index(name))["color"]
                weights = np.full(len(rates), 100 / len(rates))
                axes.hist(rates, edges, weights=weights, color=colour, alpha=0.35)
                axes.hist(rates, edges, weights=weights, color=colour, histtype="step", linewidth=1.0)
                axes.axvline(np.median(rates), color=colour, linewidth=1.0, linestyle=(0, (3, 2)))
                never, always = 100 * (rates == 0).mean(), 100 * (rates >= ALWAYS).mean()
                axes.set_title(f"{name}, {condition}\nnever fire: {never:.1f} %, rate ≥ {ALWAYS}: {always:.1f} %")
        for axes in lowest(grid):
            axes.set_xlabel("Fire rate in the last epoch")
        for axes in grid[:, 0]:
            axes.set_ylabel("Units (%)")
        grid[0, 0].set_xlim(0, 1)


SMALLEST = 1e-6  # a scale below it is drawn at the lower edge


def batch_norms_figure(panels: Lines, path: Path, title: str) -> None:
    """Scale and shift of the batch-norm before every unit; those that never fire, that always do, and the others.

    Args:
        panels: title -> rows as in accumulation-fire-rates.csv.
    """
    kinds = (
        ("others", QUIET, ".", lambda rate: (rate > 0) & (rate < ALWAYS)),
        (f"rate ≥ {ALWAYS}", COLOURS[1], "^", lambda rate: rate >= ALWAYS),
        ("rate 0", COLOURS[0], "v", lambda rate: rate == 0),
    )
    reach = 1.1 * max(rows["shift"].abs().max() for rows in panels.values())
    with canvas(path, title, (1, len(panels)), (0.6 + 3.4 * len(panels), 3.4), sharey=True) as grid:
        for axes, (name, rows) in zip(grid[0], panels.items(), strict=True):
            for kind, colour, marker, belongs in kinds:
                found = rows[belongs(rows["fire_rate"])]
                look = {"s": 12, "color": colour, "marker": marker, "alpha": 0.6, "linewidth": 0, "clip_on": False}
                scales = found["scale"].abs().clip(lower=SMALLEST)
                axes.scatter(found["shift"], scales, label=f"{kind}: {len(found)}", **look)
            axes.axvline(0, color=QUIET, linewidth=0.8, linestyle=":")
            axes.set(title=name, xlabel="Shift β", yscale="log", xlim=(-reach, reach))
            axes.set_ylim(bottom=SMALLEST)
            axes.legend(frameon=False, fontsize=8, loc="lower left", handletextpad=0.2)
        grid[0, 0].set_ylabel("Scale |γ|")


def course_figure(courses: dict[str, dict], path: Path, title: str) -> None:
    """What DS-Pruning decided in every run: a row of panels for each.

    Args:
        courses: label -> log (the controller's entries), steps (of the whole run), revived (units, in each epoch),
            couplings (names), widths (left), dense_widths.
    """
    with canvas(path, title, (len(courses), 3), (11.5, 2.5 * len(courses) + 0.4)) as grid:
        for (label, course), (plan, groups, widths) in zip(courses.items(), grid, strict=True):
            moments = [*(100 * entry["step"] / course["steps"] for entry in course["log"]), 100]
            ends = []
            for name, colour, line in (("planned", QUIET, ":"), ("measured", COLOURS[0], "-")):
                values = [100 * entry[name] for entry in (*course["log"], course["log"][-1])]
                plan.plot(moments, values, color=colour, linestyle=line)
                ends.append((values[-1], name, colour))
            plan.set(xlabel="Training (%)", title=f"{label}: sparsity (%)", xlim=(0, 100))
            label_ends(plan, ends)
            ends = []
            for index, name in enumerate(("chosen", "cut", "cut_dead_by_themselves")):
                values = np.cumsum([*(entry[name] for entry in course["log"]), 0])
                groups.plot(moments, values, **style(index))
                ends.append((values[-1], name.replace("cut_dead", "dead").replace("_", " "), COLOURS[index]))
            epochs = 100 * np.arange(1, len(course["revived"]) + 1) / len(course["revived"])
            values = np.cumsum(course["revived"])
            groups.plot(epochs, values, **style(3))
            ends.append((values[-1], "units revived", COLOURS[3]))
            groups.set(xlabel="Training (%)", title="Groups so far", xlim=(0, 100))
            label_ends(groups, ends)
            places = range(len(course["widths"]))
            widths.bar(places, course["dense_widths"], color="#dddddd")
            widths.bar(places, course["widths"], color=COLOURS[0])
            widths.set(title="Channels left of each coupling", xticks=places, xticklabels=course["couplings"])
            widths.tick_params(axis="x", rotation=90, labelsize=6)
