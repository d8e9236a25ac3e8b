"""A study as jobs of a cluster, on one machine: workers that are stopped and killed on the way."""

import os
import re
import signal
import subprocess
import sys
import time

import psutil
import pytest

from common import files
from common.errors import UserError
from common.machine import cluster
from tests.conftest import ROOT
from tests.test_distributed import free_port

STUDY = "--dataset digits --study neuron-sparsity --sparsities 0.5 --epochs 6 --hold-out 1300 --width 2"
TWO = f"{STUDY} --precision fp32 --methods random magnitude ds-pruning --slurm time=30 --cluster local --jobs 2"


def test_a_study_of_two_jobs_is_whole_though_one_is_requeued_and_one_is_killed(start, tmp_path):
    pytest.importorskip("submitit")
    process, stopped = start("Resnet18", f"{TWO} --output-dir out --run-dir state"), {}
    while len(stopped) < 2 and process.poll() is None:
        time.sleep(0.05)
        for controller in psutil.Process(process.pid).children():
            log = tmp_path / "state" / "cluster" / f"{controller.pid}_0_log.out"
            if controller.pid not in stopped and log.exists() and ", epoch 2/" in log.read_text():
                (job,) = controller.children()
                if stopped:
                    job.children()[0].kill()
                else:
                    job.send_signal(signal.SIGUSR2)
                stopped[controller.pid] = log
    requeued = next(iter(stopped.values()))
    output, error = process.communicate()
    assert "submitted: " in output
    assert process.returncode == 2
    assert error.count("did not end well") == 1  # the killed one
    assert "goes on from a checkpoint" in requeued.read_text()
    rows = files.read_csv(tmp_path / "out/Resnet18/neuron-sparsity.csv")
    assert [row["method"] for row in rows] == ["random", "ds-pruning", "magnitude"]


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """The commands of Slurm that a submission calls; submitted() gives what sbatch got."""
    pytest.importorskip("submitit")
    (tmp_path / "bin").mkdir()
    for name, text in (("srun", ""), ("sbatch", f'cp "$1" {tmp_path}/job.sh; echo Submitted batch job 12')):
        path = tmp_path / "bin" / name
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", "")
    return lambda: (tmp_path / "job.sh").read_text()


def test_the_jobs_are_an_array_with_what_the_constants_say(call, slurm):
    options = "partition=gpus time=1:30:00 gpus-per-node=2 cpus-per-task=3 mem=8GB exclusive"
    with pytest.raises(SystemExit) as end:
        call("Resnet18", f"--cluster slurm --jobs 32 --slurm {options}")
    assert end.value.code == 0
    for line in (
        "array=0-31%",
        "partition=gpus",
        "time=90",
        "gpus-per-node=2",
        "cpus-per-task=3",
        "mem=8GB",
        "exclusive",
    ):
        assert f"#SBATCH --{line}" in slurm()
    assert re.search("#SBATCH --signal=USR2@", slurm())


@pytest.mark.parametrize(("without", "says"), [("submitit", "pip install submitit"), ("srun", '"srun"')])
def test_what_a_cluster_lacks_is_said_in_one_line(call, monkeypatch, without, says):
    if without == "submitit":
        monkeypatch.setitem(sys.modules, "submitit", None)
    else:
        pytest.importorskip("submitit")
    status, _, error = call("Resnet18", "--cluster slurm --jobs 2")
    assert (status, error.count("\n"), says in error) == (2, 1, True)


@pytest.mark.parametrize(
    ("limit", "minutes"),
    [("90", 90), ("90:30", 91), ("1:30:00", 90), ("2-12", 3600), ("1-0:0:1", 1441), ("0", 1)],
)
def test_a_time_limit_is_read_as_sbatch_reads_it(limit, minutes):
    assert cluster.minutes(limit) == minutes


@pytest.mark.parametrize("limit", ["", "soon", "1:2:3:4", "1-"])
def test_any_other_time_limit_is_refused(limit):
    with pytest.raises(UserError, match="SLURM: got time="):
        cluster.minutes(limit)


@pytest.fixture
def page(tmp_path):
    """page(srun): docs/cluster.md's script for Imagenet.py as a process, where Slurm gave it a machine of two GPUs."""
    (script,) = re.findall("```bash\n(.*?)```", (ROOT / "docs" / "cluster.md").read_text(encoding="utf-8"), re.DOTALL)
    port = free_port()
    commands = {
        "scontrol": 'if [ "$1" = show ]; then echo 127.0.0.1; else echo "$@"; fi',
        "torchrun": f'exec {sys.executable} -m torch.distributed.run "${{@/29500/{port}}}"',
    }

    def begin(srun: str, *flags: str) -> subprocess.Popen:
        for name, text in {**commands, "srun": srun}.items():
            path = tmp_path / name
            path.write_text(f"#!/bin/bash\n{text}\n")
            path.chmod(0o755)
        given = {"SLURM_JOB_ID": "12", "SLURM_JOB_NODELIST": "node1", "SLURM_NNODES": "1", "SLURM_GPUS_ON_NODE": "2"}
        given |= {"PATH": f"{tmp_path}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        command = ["bash", "-c", script, "imagenet.sh", *flags]
        return subprocess.Popen(command, cwd=ROOT, env={**os.environ, **given}, **pipes)

    return begin


def test_the_script_for_slurm_trains_in_two_processes(page, photos, tmp_path):
    small = "--study accumulation --no-pretrained --image-size 32 --width 4 --epochs 1 --batch-size 16 --workers 0"
    places = f"--device cpu --data-dir {photos} --output-dir {tmp_path}/out --run-dir {tmp_path}/state"
    output, error = page('exec "$@"', *small.split(), *places.split()).communicate()
    assert "a step: 16 images in all = 2 processes x 1 pass of 8" in output, error
    (row,) = files.read_csv(tmp_path / "out" / "Imagenet" / "accumulation.csv")
    assert row["epoch"] == 1


def test_the_script_for_slurm_is_requeued_before_its_time_ends(page):
    process = page("echo begun; exec sleep 60")
    assert process.stdout.readline() == "begun\n"
    process.send_signal(signal.SIGUSR1)
    assert process.stdout.readline() == "requeue 12\n"
