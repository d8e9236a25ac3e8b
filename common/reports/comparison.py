"""Methods against DS-Pruning: means over seeds, ranks, paired differences with their intervals, verdicts by a rule."""

import numpy as np
import pandas as pd

from common.pruning import label
from common.reports.tables import digits
from common.reports.tables import markdown as as_markdown

COLUMNS = ["target", "method", "seeds", "mean", "deviation", "rank", "difference", "low", "high", "p", "verdict"]
COLUMNS += ["sparsity"]  # what a method without targets really reached; None for the others
OURS = "ds-pruning"
TOLERANCE = 0.005  # between sparsities that are called equal
LEVEL = 0.05  # of the corrected p below which a difference is told
AHEAD, BEHIND, OPEN = "ahead", "behind", "cannot be told"  # DS-Pruning is
RULE = f"""
The rule: at each target DS-Pruning is compared with every other method over the seeds that both have, by a paired
t-test, and the p values of the target are corrected by Holm's method. DS-Pruning is ahead or behind where the
corrected p is below {LEVEL:g}; else, and with one seed, it cannot be told. A method without targets has the place of
its strength whose mean sparsity is nearest to the target. Where that network is sparser than the target, DS-Pruning is
not called ahead of it, and where it is less sparse, not behind it ({100 * TOLERANCE:g} points either way are called
equal). "Ahead of every method" holds where it is ahead of all, does not hold where it is behind one or more, and else
cannot be told. Intervals are of single comparisons, not corrected.
"""


def paired(ours: pd.Series, theirs: pd.Series) -> tuple[float | None, ...]:
    """Mean of theirs - ours over the seeds that both have, and its 95 % interval and p (paired t-test, two-sided).

    Args:
        ours, theirs: accuracies in [0, 1] by seed.

    Returns:
        mean, low, high, p; None for what the seeds cannot tell (an interval takes two).
    """
    differences = (theirs - ours).dropna()
    if not len(differences):
        return None, None, None, None
    mean = float(differences.mean())
    if len(differences) < 2:
        return mean, None, None, None
    if differences.nunique() == 1:  # no spread: scipy divides by it
        return mean, mean, mean, 0.0 if mean else 1.0
    from scipy import stats

    test = stats.ttest_1samp(differences, 0)
    interval = test.confidence_interval(0.95)
    return mean, float(interval.low), float(interval.high), float(test.pvalue)


def holm(values: list[float]) -> list[float]:
    """p values corrected for their number (Holm 1979): the k-th smallest of n times n - k + 1, and never below those
    before it."""
    corrected, largest = [0.0] * len(values), 0.0
    for rank, place in enumerate(np.argsort(values, kind="stable")):
        largest = max(largest, min(1.0, (len(values) - rank) * values[place]))
        corrected[place] = largest
    return corrected


def judge(table: list[dict]) -> None:
    """Corrects the p of a target's rows and writes the verdicts beside them, in place."""
    told = [row for row in table if row["p"] is not None]
    for row, p in zip(told, holm([row["p"] for row in told]), strict=True):
        row["p"] = p
        over = 0.0 if row["sparsity"] is None else row["sparsity"] - row["target"]
        if p < LEVEL and row["difference"] < 0 and over <= TOLERANCE:
            row["verdict"] = AHEAD
        if p < LEVEL and row["difference"] > 0 and over >= -TOLERANCE:
            row["verdict"] = BEHIND


def claim(table: list[dict]) -> str:
    """Whether DS-Pruning is ahead of every method in a target's rows."""
    verdicts = {row["verdict"] for row in table if row["method"] != OURS}
    if BEHIND in verdicts:
        return "does not hold"
    return "holds" if verdicts == {AHEAD} else OPEN


def with_removed(rows: pd.DataFrame, kind: str) -> pd.DataFrame:
    """The table with a column of the share of units (kind: neuron), weights or FLOPs that each network has lost."""
    return rows.assign(removed=1 - rows["inference_flops_ratio"] if kind == "flops" else rows[f"{kind}_sparsity"])


def nearest(rows: pd.DataFrame, target: float) -> tuple[float, pd.DataFrame]:
    """Of the rows of a method without targets those of the strength whose mean sparsity is nearest to the target, and
    that sparsity."""
    means = rows.groupby("strength")["removed"].mean()
    best = (means - target).abs().idxmin()
    return float(means[best]), rows[rows["strength"] == best]


def comparison(rows: pd.DataFrame, kind: str = "neuron") -> list[dict]:
    """For every target, its methods from the best mean accuracy to the worst.

    Args:
        rows: as in neuron-sparsity.csv; those of the dense network and those without an accuracy are left out.
        kind: of the sparsity that the targets are of: neuron, weight or flops.

    Returns:
        Rows with COLUMNS; accuracies in [0, 1], the deviation with n - 1 (None for one seed), differences to
        DS-Pruning (None where it was not run), p corrected over the target's methods, and DS-Pruning's verdict.
    """
    rows = rows[(rows["method"] != "dense") & rows["test_accuracy"].notna()]
    untargeted = rows[rows["target"].isna()]
    untargeted = with_removed(untargeted, kind) if len(untargeted) else untargeted
    table = []
    for target, here in rows.groupby("target"):
        others = {m: nearest(own, target) for m, own in untargeted.groupby("method", sort=False)}
        here = pd.concat([here, *(chosen for _, chosen in others.values())])
        by_seed = here.pivot_table("test_accuracy", "seed", "method", "last")[here["method"].unique()]
        means, ranked = by_seed.mean().sort_values(ascending=False, kind="stable"), []
        for rank, (method, mean) in enumerate(means.items(), 1):
            own = by_seed[method].dropna()
            theirs = method != OURS and OURS in by_seed
            against = paired(by_seed[OURS], own) if theirs else (None,) * 4
            spread = float(own.std()) if len(own) > 1 else None
            cells = (target, method, len(own), float(mean), spread, rank, *against, OPEN if method != OURS else None)
            ranked.append(dict(zip(COLUMNS, (*cells, others.get(method, (None,))[0]), strict=True)))
        judge(ranked)
        table += ranked
    return table


def markdown(table: list[dict]) -> str:
    """The table in points of per cent, the claim at each target, and the rule."""

    def points(value: float | None, sign: str = "") -> str:
        return digits(None if value is None else 100 * value, 2, sign)

    lines, claims = [], []
    for row in table:
        at = "" if row["sparsity"] is None else f" (at {100 * row['sparsity']:.1f} %)"
        spread = "" if row["deviation"] is None else f" ± {points(row['deviation'])}"
        ends = [points(row[end], "+") for end in ("low", "high")]
        interval = "-" if row["low"] is None else " to ".join(ends)
        lines.append(
            {
                "target (%)": f"{100 * row['target']:g}",
                "rank": row["rank"],
                "method": label(row["method"]) + at,
                "test accuracy (%)": points(row["mean"]) + spread,
                "seeds": row["seeds"],
                "against DS-Pruning (points)": points(row["difference"], "+"),
                "95 % interval": interval,
                "p": "-" if row["p"] is None else f"{row['p']:.2g}",
                "DS-Pruning is": row["verdict"] or "-",
            }
        )
    for target in dict.fromkeys(row["target"] for row in table):
        these = [row for row in table if row["target"] == target]
        if OURS in {row["method"] for row in these} and len(these) > 1:
            claims.append(f"- At {100 * target:g} %, DS-Pruning is ahead of every method: **{claim(these)}**.\n")
    return as_markdown(pd.DataFrame(lines)) + "\n" + "".join(claims) + RULE
