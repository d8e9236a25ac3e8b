"""When methods prune by a score, and in how many rounds."""

import pytest

from common.pruning import scores


@pytest.mark.parametrize(
    ("target", "rounds"),
    [
        (0.9, [0.5, 0.7, 0.8, 0.85, 0.875, 0.8875, 0.9]),
        (0.8, [0.5, 0.65, 0.725, 0.7625, 0.78125, 0.790625, 0.8]),
        (0.5, [0.25, 0.375, 0.4375, 0.46875, 0.484375, 0.4921875, 0.5]),
        (0.3, [0.15, 0.225, 0.2625, 0.28125, 0.290625, 0.2953125, 0.3]),
    ],
)
def test_the_rounds_are_those_of_the_authors(target, rounds):
    assert scores.rounds(target) == pytest.approx(rounds)


RECORDED = [1.0, 0.5, 0.35, 0.3, 0.29, 0.29]


@pytest.mark.parametrize(
    ("target", "epoch"),
    [
        (0.3, 2),  # |d_2 - d_1| = 0.5 < 0.6
        (0.5, 3),  # 0.5 is not below 0.4, 0.15 is
        (0.8, 4),  # 0.15 is not below 0.1, 0.05 is
        (0.895, 6),  # 0.01 is not below 0.005, 0 is
        (0.9, 10),  # the threshold is 0: nothing is below it
        (0.97, 10),  # and here it is negative
    ],
)
def test_early_pruning_fires_where_the_formula_says(target, epoch):
    recorded = RECORDED + [0.29] * 10
    moments = [scores.pruning_epoch(recorded[:count], target, 30) for count in range(17)]
    assert moments == [None] * epoch + [epoch] * (17 - epoch)


def test_early_pruning_comes_by_a_third_of_training_at_the_latest():
    restless = [2.0**epoch for epoch in range(40)]
    for epochs in (1, 2, 3, 10, 30, 31):
        found = [scores.pruning_epoch(restless[:count], 0.5, epochs) for count in range(epochs)]
        assert next(epoch for epoch in found if epoch is not None) == epochs // 3
