"""Does a quantity rise or fall with what is swept? Rank correlations, with intervals and tests over seeds."""

import numpy as np
import pandas as pd

from common.reports import tables

LEAST = 3  # values of the swept constant that a trend takes
NOTE = """
Rank correlation: Spearman's, the mean over seeds. p: Page's test, two-sided. -: cannot be told, for one seed, fewer
than three values, or nothing that varies.
"""


def trend(points: list[tuple[float, int, float | None]]) -> dict:
    """Spearman's rank correlation of the swept value with the measured one, within each seed.

    Args:
        points: swept value, seed, measured; one without a measurement counts as absent.

    Returns:
        seeds (that have every value); correlation: the mean over seeds, in [-1, 1], where a seed in which nothing
        varies counts as 0; low, high: its 95 % interval over seeds (Student's t, cut off at -1 and 1); p: two-sided, of
        no trend against one that all seeds share (Page's test, Page 1963, seeds as blocks; with ties too large
        rather than too small). None for what cannot be told: everything where there are fewer than three values or
        nothing varies, interval and p with one seed, the interval where all seeds have the same correlation.
    """
    table = pd.DataFrame(points, columns=["value", "seed", "measured"]).dropna()
    table = table.pivot(index="seed", columns="value", values="measured").dropna()
    values, measured = table.columns, table.to_numpy(float)
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


def markdown(found: list[dict], groups: list[str]) -> str:
    """A table of trends: the columns `groups` and quantity, then what `trend` found."""
    table = pd.DataFrame(found)[[*groups, "quantity", "seeds"]]
    table["rank correlation"] = [tables.digits(row["correlation"], 2, "+") for row in found]
    table["95 % interval"] = [
        "-"
        if row["p"] is None
        else "all seeds alike"
        if row["low"] is None
        else f"{row['low']:+.2f} to {row['high']:+.2f}"
        for row in found
    ]
    table["p"] = ["-" if row["p"] is None else f"{row['p']:.2g}" for row in found]
    return tables.markdown(table) + NOTE
