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
    cases = ("a training", "DS-Pruning")
    faults = ("killed", "killed in a write", "killed around a cut", "SIGTERM", "Ctrl-C", "disk full")
    command = [sys.executable, "-m", "tests.faults", "--tries", "1", "--only", *cases, *faults]
    own = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=own, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    rows = [tuple(line.split(", ")) for line in done.stdout.splitlines()]
    expected = {(case, fault, "1", "0") for case in cases for fault in faults} - {(cases[0], faults[2], "1", "0")}
    assert set(rows) == expected


@linux
def test_the_harness_sees_one_weight_and_one_file_too_many(tmp_path):
    from tests.faults import left

    weights, kept = torch.zeros(3), tmp_path / "runs" / "final.pt"
    state = {"config": {}, "rows": [], "counts": {}}
    kept.parent.mkdir()
    torch.save({**state, "model": {"bias": weights}, "seconds": 1.0}, kept)
    before = left.left(tmp_path)
    torch.save({**state, "model": {"bias": weights}, "seconds": 2.0}, kept)
    assert left.different(left.left(tmp_path), before) == []
    torch.save({**state, "model": {"bias": weights + 1e-7}, "seconds": 1.0}, kept)
    (kept.parent / "another.pt").write_bytes(kept.read_bytes())
    assert left.different(left.left(tmp_path), before) == ["runs/another.pt", "runs/final.pt"]
