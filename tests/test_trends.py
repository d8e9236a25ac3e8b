"""The rank correlations by which the sweeps are judged."""

from itertools import permutations, product

import numpy as np
import pytest
from scipy import stats

from common.reports import trends


def points(rows: list[list[float]]) -> list[tuple]:
    return [(float(value), seed, y) for seed, row in enumerate(rows) for value, y in enumerate(row)]


def test_a_trend_that_every_seed_shows_is_told_from_none():
    noise = np.random.default_rng(0)
    rising = trends.trend(points([[value + noise.normal(0, 0.5) for value in range(6)] for _ in range(4)]))
    assert rising["correlation"] > 0.7
    assert 0 < rising["low"] < rising["correlation"] < rising["high"] <= 1
    assert rising["p"] < 1e-4
    flat = trends.trend(points([[noise.normal() for _ in range(6)] for _ in range(4)]))
    assert flat["low"] < 0 < flat["high"]
    assert flat["p"] > 0.05


def test_the_trends_p_is_the_share_of_orders_that_are_as_far_from_no_trend():
    measured = [[0.1, 0.3, 0.2, 0.4], [0.2, 0.1, 0.3, 0.5]]
    shuffled = [
        sum(stats.spearmanr(range(4), order).statistic for order in orders)
        for orders in product(permutations(range(4)), repeat=2)
    ]
    found = trends.trend(points(measured))
    as_far = np.mean([total >= 2 * found["correlation"] - 1e-9 for total in shuffled])
    assert found["p"] == pytest.approx(2 * as_far)


@pytest.mark.parametrize(
    ("rows", "known"),
    [
        ([[1, 2, 3]], {"correlation"}),  # one seed
        ([[1, 2, 3], [4, 5, 7]], {"correlation", "p"}),  # alike
        ([[0, 0, 0], [0, 0, 0]], set()),  # nothing varies
        ([[1, 2], [2, 3]], set()),  # two values order by chance
        ([[1, 2, 3], [1, 2, None]], {"correlation"}),  # a seed that lacks a run
    ],
)
def test_what_the_runs_cannot_tell_is_left_open(rows, known):
    found = trends.trend(points(rows))
    assert {name for name in ("correlation", "low", "high", "p") if found[name] is not None} == known
    line = trends.markdown([{"line": "λ 0", "quantity": "dead", **found}], ["line"]).splitlines()[2]
    assert line.count(" - ") + line.count("all seeds alike") == {0: 3, 1: 2, 2: 1}[len(known)]
