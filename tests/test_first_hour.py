"""benchmarks/first_hour.py, rehearsed with the digits on the CPU and on the pretend accelerator."""

import json
import sys
import time

import psutil
import pytest

from benchmarks import first_hour, steps
from common import files
from common.machine import process
from tests.conftest import ROOT

SPEED = "--rounds 1 --steps 4 --kinds whole --no-memory"
TINY = f"--dataset digits --protocol quick --epochs 2 --width 2 --batch-size 64 --precision fp32 {SPEED}"
PRUNED = f"{TINY} --sparsities 0.5 0.8 --methods dense random magnitude"
SAME = {"method", "target", "strength", "seed", "test_accuracy", "neuron_sparsity", "inference_flops"}


@pytest.fixture
def hour(tmp_path, capsys, monkeypatch):
    """hour(flags, rest) -> (exit status, output, error lines)."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))

    def run(flags: str, rest: str = PRUNED, python: tuple[str, ...] = (sys.executable,)) -> tuple[int, str, str]:
        places = ["--output-dir", str(tmp_path / "out"), "--run-dir", str(tmp_path / "runs")]
        given = [*flags.split(), *places, "--", *rest.split()]
        capsys.readouterr()
        status = process.run(lambda: first_hour.main(given, python))
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return run


def test_the_list_names_every_step_and_shares_out_the_minutes(hour):
    status, output, _ = hour("--list --minutes 100")
    lines = [line.split() for line in output.splitlines()]
    assert status == 0
    assert [line[0] for line in lines] == list(first_hour.STEPS)
    assert sum(float(line[1]) for line in lines) == pytest.approx(100)


def test_a_study_by_several_processes_is_the_study_and_is_not_repeated(hour, call, tmp_path):
    pruned = f"{PRUNED} demp --demp-strengths 0.05".replace("0.5 0.8", "0.5")
    status, output, error = hour("--device cpu --jobs 2 --steps neuron-sparsity", pruned)
    assert (status, error) == (0, ""), output
    assert "neuron-sparsity: done: " in output
    ours = files.read_csv(tmp_path / "out" / "Resnet18" / "neuron-sparsity.csv")
    assert (tmp_path / "out" / "Resnet18" / "neuron-sparsity.png").exists()
    flags = pruned.replace("--dataset digits", "").replace(SPEED, "")
    assert call("Resnet18", f"--device cpu --study neuron-sparsity {flags}")[0] == 0
    whole = files.read_csv(tmp_path / "out" / "Resnet18" / "neuron-sparsity.csv")
    assert len(ours) == 4
    assert [{name: row[name] for name in SAME} for row in ours] == [{n: row[n] for n in SAME} for row in whole]
    status, output, _ = hour("--device cpu --jobs 2 --steps neuron-sparsity", pruned)
    assert (status, "done before" in output, ": begins" in output) == (0, True, False)


def test_what_was_done_with_other_flags_is_done_again(hour, tmp_path):
    folder = tmp_path / "runs" / "first-hour"
    folder.mkdir(parents=True)
    key = {"commit": first_hour.commit(), "device": "cpu", "flags": ["--epochs", "9"]}
    (folder / "state.json").write_text(json.dumps({"speed": {"key": key, "result": "done: long ago"}}))
    status, output, _ = hour("--device cpu --steps speed", TINY)
    assert status == 0
    assert "long ago" not in output
    assert json.loads((tmp_path / "out" / "training-speed-128.json").read_text())["batch_size"] == 64


def test_how_many_trainings_at_a_time_is_tried(hour, tmp_path, monkeypatch):
    monkeypatch.setattr(first_hour, "AT_ONCE", (1, 2))
    monkeypatch.setattr(first_hour.os, "cpu_count", lambda: 2)
    monkeypatch.setattr(first_hour, "STUDIES", ("SGD",))
    status, output, _ = hour("--device cpu --steps accumulation", f"{TINY} --learning-rates 0.05")
    assert status == 0, output
    assert "trainings at a time: 1: " in output
    assert (tmp_path / "out" / "SGD" / "accumulation.csv").exists()


def test_a_step_that_fails_or_runs_out_of_time_does_not_stop_the_next(hour, tmp_path):
    long = PRUNED.replace("--epochs 2", "--epochs 200").replace("0.5 0.8", "0.8")
    status, output, _ = hour("--device cpu --jobs 1 --minutes 0.2 --steps neuron-sparsity speed", long)
    assert status == 1
    assert "neuron-sparsity: out of time: 0 of 1 targets complete" in output
    assert "speed: begins" in output
    assert not [child for child in psutil.Process().children(recursive=True) if "Resnet18.py" in child.cmdline()]


def test_a_target_that_fails_leaves_the_table_of_the_others(hour, tmp_path):
    pruned = PRUNED.replace("0.5 0.8", "0.5 0.999").replace("dense random magnitude", "random")
    status, output, _ = hour("--device cpu --jobs 2 --steps neuron-sparsity", pruned)
    assert status == 1
    assert "neuron-sparsity: failed: 1 of 2 targets complete" in output
    rows = files.read_csv(tmp_path / "out" / "Resnet18" / "neuron-sparsity.csv")
    assert {row["target"] for row in rows} == {0.5}


def test_on_the_pretend_accelerator(hour, pretended, tmp_path):
    python = (sys.executable, "-m", "tests.pretend")
    pruned = PRUNED.replace("0.5 0.8", "0.5").replace("dense random magnitude", "random")
    status, output, error = hour("--jobs 2 --steps neuron-sparsity", pruned, python)
    assert (status, error) == (0, ""), output
    rows = files.read_csv(tmp_path / "out" / "Resnet18" / "neuron-sparsity.csv")
    assert {row["device"] for row in rows} == {"pretend"}


@pytest.mark.parametrize(
    ("flags", "rest", "words"),
    [
        ("--device abacus", TINY, "DEVICE: got 'abacus'"),
        ("--device cpu", "--colour red", "--colour: no script has that flag"),
        ("--device cpu", "--epochs 0", "EPOCHS: got '0'"),
        ("--device cpu --minutes 0", TINY, "MINUTES: got '0'"),
        ("--device cpu --steps lunch", TINY, "invalid choice: 'lunch'"),
    ],
)
def test_a_mistake_is_one_line_before_anything_runs(flags, rest, words, hour, tmp_path):
    status, output, error = hour(flags, rest)
    assert (status, output, error.count("\n")) == (2, "", 1)
    assert words in error
    assert not (tmp_path / "runs").exists()


def test_commands_are_stopped_with_all_that_they_started_and_may_save_what_they_have(tmp_path):
    code = """
import pathlib, subprocess, sys, time
subprocess.Popen([sys.executable, "-c", "import time; time.sleep(99)"])
try:
    time.sleep(99)
except KeyboardInterrupt:
    pathlib.Path(sys.argv[1]).write_text("saved")
"""
    sleeper = steps.Command((sys.executable, "-c", code, str(tmp_path / "state")), tmp_path / "log")
    with pytest.raises(steps.OutOfTime):
        list(steps.run_all([sleeper], 1, time.monotonic() + 4))
    assert (tmp_path / "state").read_text() == "saved"
    assert not [one for one in psutil.Process().children(recursive=True) if "time.sleep(99)" in " ".join(one.cmdline())]
