"""The harness of faults, a few tries of it; `python -m tests.faults --full` makes many."""

import os
import subprocess
import sys

import pytest
import torch

from tests.conftest import ROOT

linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the harness forks")


@linux
def test_nothing_is_lost():
    only = ("a training", "DS-Pruning", "killed in a write", "killed around a cut", "disk full")
    command = [sys.executable, "-m", "tests.faults", "--tries", "1", "--only", *only]
    own = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=own, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    rows = [line.split(", ") for line in done.stdout.splitlines()]
    assert [(row[0], row[2:]) for row in rows] == [(name, ["1", "0"]) for name in 2 * only[:1] + 3 * only[1:2]]


@linux
def test_the_harness_sees_one_weight_and_one_file_too_many(tmp_path):
    from tests import faults

    weights, kept = torch.zeros(3), tmp_path / "runs" / "final.pt"
    kept.parent.mkdir()
    torch.save({"model": weights, "seconds": 1.0}, kept)
    before = faults.left(tmp_path)
    torch.save({"model": weights, "seconds": 2.0}, kept)
    assert faults.different(faults.left(tmp_path), before) == []
    torch.save({"model": weights + 1e-7, "seconds": 1.0}, kept)
    (kept.parent / "checkpoint.pt").write_bytes(kept.read_bytes())
    assert faults.different(faults.left(tmp_path), before) == ["runs/checkpoint.pt", "runs/final.pt"]
