"""The table that compares methods."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from common.reports.comparison import claim, comparison, holm, markdown


def rows_of(**methods):
    return pd.DataFrame(
        {"method": name.replace("_", "-"), "target": 0.8, "seed": seed, "test_accuracy": accuracy}
        for name, accuracies in methods.items()
        for seed, accuracy in enumerate(accuracies)
    )


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


def test_holm_is_the_textbooks_step_down():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.9]) == [1.0, 1.0]
    assert holm([0.02]) == [0.02]
    assert holm([]) == []


OURS = [0.80, 0.82, 0.81]


def verdicts(**methods):
    table = comparison(rows_of(ds_pruning=OURS, **methods))
    return {row["method"]: row["verdict"] for row in table}, claim(table)


def test_ahead_of_every_method_holds_where_each_corrected_p_says_so():
    found, claimed = verdicts(random=[0.70, 0.721, 0.709], snap=[0.60, 0.622, 0.609])
    assert found == {"ds-pruning": None, "random": "ahead", "snap": "ahead"}
    assert claimed == "holds"


def test_one_method_that_is_ahead_of_it_refutes_the_claim():
    found, claimed = verdicts(random=[0.70, 0.721, 0.709], magnitude=[0.90, 0.921, 0.909])
    assert found["magnitude"] == "behind"
    assert claimed == "does not hold"


def test_what_one_comparison_would_tell_several_do_not():
    near = [0.790, 0.814, 0.800]  # p 0.009 by itself
    assert verdicts(random=near)[0]["random"] == "ahead"
    others = {f"m{number}": [0.81, 0.80 + number / 1000, 0.83] for number in range(6)}
    found, claimed = verdicts(random=near, **others)
    assert found["random"] == claimed == "cannot be told"


def test_one_seed_tells_nothing_and_no_spread_all():
    found, claimed = verdicts(random=[0.1], snap=[accuracy - 0.1 for accuracy in OURS], set=OURS)
    assert found == {"ds-pruning": None, "random": "cannot be told", "snap": "ahead", "set": "cannot be told"}
    assert claimed == "cannot be told"


def test_the_text_has_the_claim_of_each_target_and_the_rule():
    text = markdown(comparison(rows_of(ds_pruning=OURS, random=[0.70, 0.721, 0.709])))
    assert "- At 80 %, DS-Pruning is ahead of every method: **holds**." in text
    assert "Holm" in text
