"""Methods against DS-Pruning: means over seeds, ranks, and paired differences with their intervals."""

from collections import defaultdict

import numpy as np

from common import report

COLUMNS = ["target", "method", "seeds", "mean", "deviation", "rank", "difference", "low", "high"]
OURS = "ds-pruning"


def paired(ours: dict[int, float], theirs: dict[int, float]) -> tuple[float | None, ...]:
    """Mean of theirs - ours over the seeds that both have, and its 95 % interval (paired t-test).

    Args:
        ours, theirs: seed -> accuracy in [0, 1].

    Returns:
        mean, low, high; None for what the seeds cannot tell (an interval takes two).
    """
    seeds = sorted(ours.keys() & theirs.keys())
    if not seeds:
        return None, None, None
    mine, other = (np.array([accuracies[seed] for seed in seeds]) for accuracies in (ours, theirs))
    difference = (other - mine).mean()
    if len(seeds) < 2:
        return difference, None, None
    if np.ptp(other - mine) == 0:  # no spread: scipy divides by it
        return difference, difference, difference
    from scipy import stats

    interval = stats.ttest_rel(other, mine).confidence_interval(0.95)
    return difference, float(interval.low), float(interval.high)


def comparison(rows: list[dict]) -> list[dict]:
    """For every target, its methods from the best mean accuracy to the worst.

    Args:
        rows: as in neuron-sparsity.csv; those of the dense network and those without an accuracy are left out.

    Returns:
        Rows with COLUMNS; accuracies in [0, 1], the deviation with n - 1 (None for one seed), differences to
        DS-Pruning (None where it was not run).
    """
    found: dict[float, dict] = defaultdict(lambda: defaultdict(dict))
    for row in rows:
        if row["test_accuracy"] is not None and row["method"] != "dense":
            found[row["target"]][row["method"]][row["seed"]] = row["test_accuracy"]
    table = []
    for target in sorted(found):
        methods = sorted(found[target].items(), key=lambda item: -np.mean(list(item[1].values())))
        for rank, (method, accuracies) in enumerate(methods, 1):
            values = list(accuracies.values())
            against = paired(found[target].get(OURS, {}), accuracies) if method != OURS else (None, None, None)
            cells = (
                target,
                method,
                len(values),
                float(np.mean(values)),
                float(np.std(values, ddof=1)) if len(values) > 1 else None,
                rank,
                *against,
            )
            table.append(dict(zip(COLUMNS, cells, strict=True)))
    return table


def markdown(table: list[dict]) -> str:
    """The table in points of per cent."""

    def points(value: float | None, sign: str = "") -> str:
        return "-" if value is None else f"{100 * value:{sign}.2f}"

    lines = [
        "| target (%) | rank | method | test accuracy (%) | seeds | against DS-Pruning (points) | 95 % interval |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in table:
        spread = "" if row["deviation"] is None else f" ± {points(row['deviation'])}"
        interval = "-" if row["low"] is None else f"{points(row['low'], '+')} to {points(row['high'], '+')}"
        cells = [f"{100 * row['target']:g}", row["rank"], report.NAMES.get(row["method"], row["method"])]
        cells += [f"{points(row['mean'])}{spread}", row["seeds"], points(row["difference"], "+"), interval]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines) + "\n"
