"""The tables of units that die and come back, from a run's counts."""

from types import SimpleNamespace

import pytest
import torch

from common import units
from common.reports import death
from common.training import callbacks


def counts_of(dead: list[list[int]]) -> dict:
    """The counts of a network of one layer, of which [epochs][units] were dead."""
    fired = 1 - torch.tensor(dead)
    whole = {"pairs": torch.ones_like(fired), "silent": torch.zeros_like(fired), "alive": fired > -1}
    return {"layers": {"act": fired.shape[1]}, "fired": fired, **whole, "batches": [1] * len(fired)}


def test_returns_are_counted_by_how_long_a_unit_had_been_dead():
    history = [[1, 0, 1, 1], [1, 0, 0, 1], [0, 1, 1, 1], [1, 1, 1, 1]]  # a column a unit
    rows = death.return_rows({"seed": 7}, counts_of(history))
    assert rows == [
        {"seed": 7, "dead_for": 1, "at_risk": 5, "came_back": 1, "came_back_later": 2},
        {"seed": 7, "dead_for": 2, "at_risk": 2, "came_back": 1, "came_back_later": 1},
        {"seed": 7, "dead_for": 3, "at_risk": 1, "came_back": 0, "came_back_later": 0},
    ]
    assert death.return_rows({}, counts_of([[0, 0], [0, 0]])) == []


@pytest.mark.parametrize(("epochs", "window"), [(1, 1), (2, 2), (5, 5), (10, 10), (30, 10)])
def test_dead_at_the_end_is_silence_in_the_last_tenth_of_the_steps_or_the_last_epoch(epochs, window):
    steps = 10
    for last_firing in range(steps + 1):  # of the one unit's firings in the last epoch; 0: none
        fired = torch.zeros(1, dtype=torch.int64)
        pairs = torch.zeros(1, dtype=torch.int64)
        watch = SimpleNamespace(fired_units=fired.clone, pairs_of_units=pairs.clone)
        training = SimpleNamespace(epoch=epochs - 1, epochs=epochs, steps_per_epoch=steps, watch=watch, step=0)
        training.total_steps, training.device = epochs * steps, torch.device("cpu")
        callback = callbacks.DeadAtEnd()
        callback.on_epoch_start(training)
        for step in range(1, steps + 1):
            training.step = step
            fired += step <= last_firing
            pairs += 1
            callback.on_step(training)
            state, callback = callback.state(), callbacks.DeadAtEnd()  # as if the run went on from here another day
            callback.restore(training, state)
        training.epoch += 1
        callback.on_epoch_end(training)
        seen = callback.state()
        assert seen["before"] is None
        assert units.is_dead(seen["fired"], seen["pairs"]).tolist() == [last_firing <= steps - window]
        assert seen["pairs"] == window
