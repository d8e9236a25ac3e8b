"""Any number of processes share a study: the tables follow from the runs, whoever made them."""

import os
import signal
import subprocess
import sys

import pytest
from filelock import FileLock

from common import files
from common.machine import workers
from tests.conftest import ROOT

STUDY = (
    "--dataset digits --study neuron-sparsity --sparsities 0.5 --epochs 2 --hold-out 1200 --width 4 --precision fp32"
)
METHODS = "--methods dense random magnitude ds-pruning"
MEASURED = {"seconds", "training_speedup", "inference_speedup"}
LOG = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}


def begin(folder, flags: str) -> subprocess.Popen:
    command = [sys.executable, str(ROOT / "Resnet18.py"), "--output-dir", "out", "--run-dir", "state", *flags.split()]
    return subprocess.Popen(command, cwd=folder, env={**os.environ, "OMP_NUM_THREADS": "1"}, **LOG)


def table(folder, study: str = "neuron-sparsity") -> list[dict]:
    rows = files.read_csv(folder / "out" / "Resnet18" / f"{study}.csv")
    return [{name: value for name, value in row.items() if name not in MEASURED} for row in rows]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The study by one process."""
    folder = tmp_path_factory.mktemp("alone")
    process = begin(folder, f"{STUDY} {METHODS}")
    assert process.wait() == 0, process.stderr.read()
    return folder


def test_two_jobs_leave_what_one_process_leaves(alone, tmp_path):
    process = begin(tmp_path, f"{STUDY} {METHODS} --jobs 2")
    output, error = process.communicate()
    assert (process.returncode, error) == (0, "")
    assert table(tmp_path) == table(alone)
    assert all(row["training_speedup"] for row in files.read_csv(tmp_path / "out/Resnet18/neuron-sparsity.csv"))
    made = {path.name for path in (tmp_path / "out/Resnet18").iterdir()}
    assert made == {path.name for path in (alone / "out/Resnet18").iterdir()}
    assert output.count("table: ") == 1  # the workers print none


def test_three_processes_that_extend_one_table_with_a_seed_each_leave_all_three(tmp_path):
    flags = f"{STUDY} --methods random --extend --seeds"
    processes = [begin(tmp_path, f"{flags} {seed}") for seed in range(3)]
    for process in processes:
        assert process.wait() == 0, process.stderr.read()
    assert [row["seed"] for row in table(tmp_path)] == [0, 1, 2]
    assert not list(tmp_path.rglob("*.new"))


def test_a_sweep_by_two_jobs_and_an_accumulation_of_the_same_runs(call, tmp_path):
    flags = "--epochs 2 --width 4 --learning-rates 0.05 0.1 --regularization 0 --batch-size 128"
    assert begin(tmp_path, f"--dataset digits {flags} --study learning-rate --jobs 2").wait() == 0
    assert call("Resnet18", flags)[1].count("finished before") == 2
    assert [row["learning_rate"] for row in table(tmp_path, "learning-rate")] == [0.05, 0.1]
    assert [(row["learning_rate"], row["epoch"]) for row in table(tmp_path, "accumulation")] == [
        (rate, epoch) for rate in (0.05, 0.1) for epoch in (1, 2)
    ]
    assert len(list((tmp_path / "state").rglob("final.pt"))) == 2  # the two studies share them


def test_a_table_and_its_course_are_made_of_runs_that_an_earlier_command_finished(call, alone, tmp_path):
    flags = STUDY.replace("--dataset digits ", "")
    status, output, error = call("Resnet18", f"{flags} {METHODS}", run_dir=alone / "state")
    assert (status, error) == (0, "")
    assert output.count(": finished before") == 4
    assert (tmp_path / "out/Resnet18/neuron-sparsity-course.png").exists()
    assert table(tmp_path) == table(alone)


def test_a_run_that_another_process_left_unfinished_is_made_at_the_end(call, tmp_path, monkeypatch):
    from common.studies.sparsity import Sparsity

    flags, honest, held = STUDY.replace("--dataset digits ", ""), Sparsity.finish, []

    def finish(self):
        held.pop().release()
        honest(self)

    assert call("Resnet18", f"{flags} --methods random")[0] == 0
    (final,) = (tmp_path / "state").rglob("final.pt")
    final.unlink()
    held.append(FileLock(final.parent / "lock"))
    held[0].acquire()
    monkeypatch.setattr(Sparsity, "finish", finish)
    status, output, error = call("Resnet18", f"{flags} --methods random magnitude")
    assert (status, error) == (0, "")
    assert "random 0.5 seed 0: another process is training it" in output
    assert [row["method"] for row in table(tmp_path)] == ["random", "magnitude"]


def test_the_command_of_a_worker_has_no_jobs_and_its_own_device():
    words = ["--jobs", "3", "--width", "4", "--device", "cuda", "--jobs=2", "--seeds", "0", "1"]
    assert workers.without_jobs(words) == ["--width", "4", "--seeds", "0", "1"]


def test_ctrl_c_stops_all_jobs_and_the_same_command_goes_on(tmp_path):
    flags = f"{STUDY.replace('--epochs 2', '--epochs 8')} --methods random magnitude --jobs 2"
    process = begin(tmp_path, flags)
    for line in process.stdout:
        if ", epoch 2/" in line:
            break
    process.send_signal(signal.SIGINT)
    _, error = process.communicate()
    assert process.returncode == 130
    assert "stopped; the same command goes on from the last checkpoint" in error
    assert "Traceback" not in error
    assert list(tmp_path.rglob("checkpoint*.pt"))  # the one before, where the last was being written
    again = begin(tmp_path, flags)
    output, error = again.communicate()
    assert (again.returncode, error) == (0, "")
    assert "goes on from a checkpoint" in output
    assert [row["method"] for row in table(tmp_path)] == ["random", "magnitude"]


def test_jobs_are_one_or_more(call):
    status, _, error = call("Resnet18", "--jobs 0")
    assert (status, error.startswith("error: JOBS: got '0'")) == (2, True)
