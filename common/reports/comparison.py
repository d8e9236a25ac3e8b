"""Methods against DS-Pruning: means over seeds, ranks, paired differences with their intervals, verdicts by a rule."""

from collections import defaultdict
from itertools import product

import numpy as np

from common.pruning import label
from common.reports import tables

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


def paired(ours: dict[int, float], theirs: dict[int, float]) -> tuple[float | None, ...]:
    """Mean of theirs - ours over the seeds that both have, and its 95 % interval and p (paired t-test, two-sided).

    Args:
        ours, theirs: seed -> accuracy in [0, 1].

    Returns:
        mean, low, high, p; None for what the seeds cannot tell (an interval takes two).
    """
    seeds = sorted(ours.keys() & theirs.keys())
    if not seeds:
        return None, None, None, None
    mine, other = (np.array([accuracies[seed] for seed in seeds]) for accuracies in (ours, theirs))
    difference = float((other - mine).mean())
    if len(seeds) < 2:
        return difference, None, None, None
    if np.ptp(other - mine) == 0:  # no spread: scipy divides by it
        return difference, difference, difference, 0.0 if difference else 1.0
    from scipy import stats

    test = stats.ttest_rel(other, mine)
    interval = test.confidence_interval(0.95)
    return difference, float(interval.low), float(interval.high), float(test.pvalue)


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


def removed(row: dict, kind: str) -> float:
    """The share of units (kind: neuron), weights or FLOPs that the network of a row has lost, in [0, 1]."""
    return 1 - row["inference_flops_ratio"] if kind == "flops" else row[f"{kind}_sparsity"]


def nearest(rows: list[dict], target: float, kind: str) -> tuple[float, list[dict]]:
    """Of the rows of a method without targets those of the strength whose mean sparsity is nearest to the target, and
    that sparsity."""
    strengths = defaultdict(list)
    for row in rows:
        strengths[row["strength"]].append(row)
    means = {strength: float(np.mean([removed(row, kind) for row in found])) for strength, found in strengths.items()}
    best = min(means, key=lambda strength: (abs(means[strength] - target), strength))
    return means[best], strengths[best]


def comparison(rows: list[dict], kind: str = "neuron") -> list[dict]:
    """For every target, its methods from the best mean accuracy to the worst.

    Args:
        rows: as in neuron-sparsity.csv; those of the dense network and those without an accuracy are left out.
        kind: of the sparsity that the targets are of: neuron, weight or flops.

    Returns:
        Rows with COLUMNS; accuracies in [0, 1], the deviation with n - 1 (None for one seed), differences to
        DS-Pruning (None where it was not run), p corrected over the target's methods, and DS-Pruning's verdict.
    """
    found: dict[float, dict] = defaultdict(lambda: defaultdict(dict))
    untargeted, reached = defaultdict(list), {}
    for row in rows:
        if row["target"] is None:
            untargeted[row["method"]].append(row)
        elif row["test_accuracy"] is not None and row["method"] != "dense":
            found[row["target"]][row["method"]][row["seed"]] = row["test_accuracy"]
    for target, (method, own) in product(sorted(found), untargeted.items()):
        reached[target, method], chosen = nearest(own, target, kind)
        found[target][method] = {row["seed"]: row["test_accuracy"] for row in chosen}
    table = []
    for target in sorted(found):
        methods = sorted(found[target].items(), key=lambda item: -np.mean(list(item[1].values())))
        ranked = []
        for rank, (method, accuracies) in enumerate(methods, 1):
            values = list(accuracies.values())
            against = paired(found[target].get(OURS, {}), accuracies) if method != OURS else (None,) * 4
            spread = float(np.std(values, ddof=1)) if len(values) > 1 else None
            cells = (target, method, len(values), float(np.mean(values)), spread, rank, *against)
            verdict = OPEN if method != OURS else None
            ranked.append(dict(zip(COLUMNS, (*cells, verdict, reached.get((target, method))), strict=True)))
        judge(ranked)
        table += ranked
    return table


def markdown(table: list[dict]) -> str:
    """The table in points of per cent, the claim at each target, and the rule."""

    def points(value: float | None, sign: str = "") -> str:
        return "-" if value is None else f"{100 * value:{sign}.2f}"

    header = ["target (%)", "rank", "method", "test accuracy (%)", "seeds", "against DS-Pruning (points)"]
    header, lines = [*header, "95 % interval", "p", "DS-Pruning is"], []
    for row in table:
        spread = "" if row["deviation"] is None else f" ± {points(row['deviation'])}"
        interval = "-" if row["low"] is None else f"{points(row['low'], '+')} to {points(row['high'], '+')}"
        name = label(row["method"])
        name += "" if row["sparsity"] is None else f" (at {100 * row['sparsity']:.1f} %)"
        cells = [f"{100 * row['target']:g}", row["rank"], name]
        cells += [f"{points(row['mean'])}{spread}", row["seeds"], points(row["difference"], "+"), interval]
        cells += ["-" if row["p"] is None else f"{row['p']:.2g}", row["verdict"] or "-"]
        lines.append(cells)
    claims = []
    for target in dict.fromkeys(row["target"] for row in table):
        these = [row for row in table if row["target"] == target]
        if OURS in {row["method"] for row in these} and len(these) > 1:
            claims.append(f"- At {100 * target:g} %, DS-Pruning is ahead of every method: **{claim(these)}**.")
    return tables.markdown(header, lines) + "\n" + "".join(f"{line}\n" for line in claims) + RULE
