"""Does a quantity rise or fall with what is swept? Rank correlations, with intervals and tests over seeds."""

from collections import defaultdict

import numpy as np

from common.reports import tables

LEAST = 3  # values of the swept constant that a trend takes
NOTE = """
Rank correlation: Spearman's, the mean over seeds. p: Page's test, two-sided. -: cannot be told, for one seed, fewer
than three values, or nothing that varies.
"""


def blocks(points: list[tuple[float, int, float | None]]) -> tuple[list[float], np.ndarray]:
    """(swept value, seed, measured) -> the values in order, and measured as [seeds, values] of seeds that have all.

    A point without a measurement counts as absent.
    """
    found: dict[int, dict[float, float]] = defaultdict(dict)
    for value, seed, measured in points:
        if measured is not None:
            found[seed][value] = measured
    values = sorted({value for row in found.values() for value in row})
    whole = [[found[seed][value] for value in values] for seed in sorted(found) if len(found[seed]) == len(values)]
    return values, np.array(whole).reshape(len(whole), len(values))


def trend(points: list[tuple[float, int, float | None]]) -> dict:
    """Spearman's rank correlation of the swept value with the measured one, within each seed.

    Returns:
        seeds (that have every value); correlation: the mean over seeds, in [-1, 1], where a seed in which nothing
        varies counts as 0; low, high: its 95 % interval over seeds (Student's t, cut off at -1 and 1); p: two-sided, of
        no trend against one that all seeds share (Page's test, Page 1963, seeds as blocks; with ties too large
        rather than too small). None for what cannot be told: everything where there are fewer than three values or
        nothing varies, interval and p with one seed, the interval where all seeds have the same correlation.
    """
    values, measured = blocks(points)
    found = {"seeds": len(measured), **dict.fromkeys(("correlation", "low", "high", "p"))}
    if not len(measured) or len(values) < LEAST or not np.ptp(measured, axis=1).any():
        return found
    from scipy import stats  # here, as a study imports this module before it trains

    each = np.array([stats.spearmanr(values, row).statistic if np.ptp(row) else 0.0 for row in measured])
    found["correlation"] = float(each.mean())
    if len(each) < 2:
        return found
    if np.ptp(each) > 1e-12:
        low, high = stats.ttest_1samp(each, 0).confidence_interval(0.95)
        found |= {"low": float(max(low, -1)), "high": float(min(high, 1))}
    one_sided = [stats.page_trend_test(m).pvalue for m in (measured, measured[:, ::-1])]
    found["p"] = float(min(1, 2 * min(one_sided)))
    return found


def markdown(table: list[dict], groups: list[str]) -> str:
    """A table of trends: the columns `groups` and quantity, then what `trend` found."""

    def cell(value: float | None, form: str) -> str:
        return "-" if value is None else format(value, form)

    header, lines = [*groups, "quantity", "seeds", "rank correlation", "95 % interval", "p"], []
    for row in table:
        interval = "-" if row["p"] is None else "all seeds alike"
        if row["low"] is not None:
            interval = f"{row['low']:+.2f} to {row['high']:+.2f}"
        cells = [*(str(row[name]) for name in groups), row["quantity"], str(row["seeds"])]
        cells += [cell(row["correlation"], "+.2f"), interval, cell(row["p"], ".2g")]
        lines.append(cells)
    return tables.markdown(header, lines) + NOTE
