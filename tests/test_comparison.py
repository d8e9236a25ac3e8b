"""The table that compares methods."""

import numpy as np
import pytest
from scipy import stats

from common.comparison import comparison, markdown


def rows_of(**methods):
    return [
        {"method": name.replace("_", "-"), "target": 0.8, "seed": seed, "test_accuracy": accuracy}
        for name, accuracies in methods.items()
        for seed, accuracy in enumerate(accuracies)
    ]


def test_ranks_means_and_paired_intervals_are_those_of_the_textbook():
    ours, theirs = [0.70, 0.72, 0.77], [0.69, 0.70, 0.73]
    table = comparison(rows_of(dense=[0.9] * 3, random=theirs, ds_pruning=ours))
    assert [(row["method"], row["rank"]) for row in table] == [("ds-pruning", 1), ("random", 2)]
    assert table[1]["mean"] == pytest.approx(np.mean(theirs))
    assert table[1]["deviation"] == pytest.approx(np.std(theirs, ddof=1))
    difference = np.subtract(theirs, ours)
    half = stats.t.ppf(0.975, 2) * difference.std(ddof=1) / np.sqrt(3)
    assert table[1]["difference"] == pytest.approx(difference.mean())
    assert (table[1]["low"], table[1]["high"]) == pytest.approx((difference.mean() - half, difference.mean() + half))


def test_only_seeds_that_both_have_are_paired():
    rows = rows_of(ds_pruning=[0.5, 0.6, 0.7], random=[0.4, 0.4])
    (_, other) = comparison(rows)
    assert other["difference"] == pytest.approx(-0.15)


def test_one_seed_gives_a_difference_and_no_interval():
    (_, other) = comparison(rows_of(ds_pruning=[0.5], random=[0.4]))
    assert (other["deviation"], other["low"], other["high"]) == (None, None, None)
    assert "| -10.00 | - |" in markdown([other])


def test_a_run_out_of_reach_has_no_place():
    assert [row["method"] for row in comparison(rows_of(ds_pruning=[0.5], snap=[None]))] == ["ds-pruning"]
