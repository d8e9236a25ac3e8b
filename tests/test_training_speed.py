"""What benchmarks/training_speed.py prints, on the CPU and on the pretend accelerator."""

import json
import sys

import pytest

from benchmarks import training_speed
from common.machine import process

KINDS = {"bare", "whole", "ds-pruning", "plain"}
SMALL = "--dataset digits --width 2 --batch-size 32 --steps 12 --rounds 2"


@pytest.fixture
def printed(capsys, monkeypatch):
    def run(flags: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["training_speed.py", *flags.split()])
        status = process.run(training_speed.main)
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return run


def test_on_the_cpu(printed):
    status, output, _ = printed(f"{SMALL} --device cpu")
    found = json.loads(output)  # one line, and nothing else
    assert status == 0
    assert found["images_per_second"].keys() == found["peak_memory_mib"].keys() == KINDS
    assert all(rate > 0 for rate in found["images_per_second"].values())
    assert all(100 < size < 8192 for size in found["peak_memory_mib"].values())
    assert found["testing_seconds"].keys() == {"whole", "ds-pruning"}
    assert found["over_bare"]["bare"] == found["over_plain"]["plain"] == 1
    assert "launches_per_step" not in found


def test_one_kind_alone(printed):
    status, output, _ = printed(f"{SMALL} --device cpu --kinds whole")
    found = json.loads(output)
    assert (status, found["over_bare"]) == (0, {})
    assert found["images_per_second"].keys() == found["peak_memory_mib"].keys() == {"whole"}


def test_on_an_accelerator_that_counts(printed, pretended):
    status, output, _ = printed(f"{SMALL} --device pretend")
    found = json.loads(output)
    launches, waits = found["launches_per_step"], found["waits_per_turn"]
    assert status == 0
    assert 0 < found["peak_memory_mib"]["bare"] < 100
    assert waits["bare"] == 2  # for the turn to begin, and to end
    assert waits["plain"] > 2 * 12  # two .item() a step
    assert launches["bare"] < launches["whole"] < launches["ds-pruning"]


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("--dataset digits --steps 100", ("STEPS", "11")),
        ("--device abacus", ("DEVICE", "'abacus'")),
        ("--batch-size 1", ("BATCH_SIZE", "'1'")),
        ("--dataset nowhere", ("DATASET", "'nowhere'")),
    ],
)
def test_a_mistake_is_one_line(flags, words, printed):
    status, output, error = printed(flags)
    assert (status, output, error.count("\n")) == (2, "", 1)
    assert all(word in error for word in words)
