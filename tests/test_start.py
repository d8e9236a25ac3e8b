"""Nothing is imported before it is needed: help and mistakes are answered without torch, and torch comes alone."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from common.machine.process import STOPPED
from tests.conftest import ROOT

SCRIPTS = ("Resnet18", "LeakyReLU", "Swish", "SGD", "SGD_noise", "Imagenet")
# The scripts that do, and a study in which they do it.
PRUNING = {"Resnet18": "neuron-sparsity", "LeakyReLU": "weight-sparsity", "Imagenet": "imagenet"}
BENCHMARKS = ("ablation", "first_hour", "pruning", "training_speed", "watching")
COMMANDS = [*(f"{script}.py" for script in SCRIPTS), *(f"benchmarks/{name}.py" for name in BENCHMARKS), "common.export"]

OBSERVED = """
import json, sys
try:
    exec(sys.argv.pop(1))
    status = 0
except SystemExit as stop:
    status = stop.code
libraries = "numpy PIL torch torchvision matplotlib pandas scipy sklearn torch_pruning tqdm".split()
print(json.dumps([status, [name for name in libraries if name in sys.modules]]))
"""


def observed(code: str, folder: Path, *arguments: str) -> tuple[int, set[str], str]:
    """Of a process that runs `code`: its exit status, the libraries that it has imported, its error lines."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", OBSERVED, code, *arguments]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    status, imported = json.loads(done.stdout.splitlines()[-1])
    return status, set(imported), done.stderr


def called(command: str, flags: str, folder: Path) -> tuple[int, set[str], str]:
    """The same of a script, or of a module that is called as one."""
    run = f'import runpy; runpy.run_path(r"{ROOT / command}", run_name="__main__")'
    if not command.endswith(".py"):
        run = f'import runpy; runpy.run_module("{command}", run_name="__main__", alter_sys=True)'
    return observed(run, folder, *flags.split())


@pytest.mark.parametrize("command", COMMANDS)
def test_help_takes_no_library(tmp_path, command):
    assert called(command, "--help", tmp_path) == (0, set(), "")


MISTAKES = [
    *((command, "--nonsense", "--nonsense") for command in COMMANDS[:-1]),
    *((f"{script}.py", "--epochs 0", "EPOCHS: got '0'") for script in SCRIPTS),
    *((f"{script}.py", "--study nonsense", "STUDY: got 'nonsense'") for script in SCRIPTS),
    *((f"{script}.py", "--methods nonsense", "METHODS: got 'nonsense'") for script in PRUNING),
    *((f"{script}.py", f"--study {study} --settle 0.1", "SETTLE: got 0.1") for script, study in PRUNING.items()),
    ("Resnet18.py", "--activation tanh", "ACTIVATION: got 'tanh'"),
    ("Resnet18.py", "--study neuron-sparsity --methods rigl", "METHODS: got 'rigl', which removes single weights"),
    ("Resnet18.py", "--study flops-sparsity --methods set", "METHODS: got 'set', which removes single weights"),
    ("Resnet18.py", "--study weight-sparsity --regularization 0 1", "REGULARIZATION: got 2 values"),
    (
        "Resnet18.py",
        "--study regularization --regularization 1",
        "REGULARIZATION: the study",
    ),
    ("Imagenet.py", "--batch-size 9 --micro-batch 2", "BATCH_SIZE: got 9"),
    ("common.export", "--nonsense a b.pt2", "--nonsense"),
    ("common.export", "nowhere.pt network.pt2", "could not read nowhere.pt"),
    ("common.export", "a b.pt2 --image-size 2", "IMAGE_SIZE: got '2'"),
    ("benchmarks/first_hour.py", "--minutes 0", "MINUTES: got '0'"),
    ("benchmarks/first_hour.py", "-- --colour red", "--colour: no script has that flag"),
    ("benchmarks/training_speed.py", "--rounds 0", "ROUNDS: got '0'"),
    ("benchmarks/watching.py", "--steps 0", "STEPS: got '0'"),
    ("benchmarks/pruning.py", "--sparsity 1", "SPARSITIES: got '1'"),
    ("benchmarks/ablation.py", "--variants nonsense", "no variant 'nonsense'"),
]


@pytest.mark.parametrize(("command", "flags", "words"), MISTAKES, ids=[" ".join(case[:2]) for case in MISTAKES])
def test_a_mistake_is_told_without_a_library(tmp_path, command, flags, words):
    status, imported, error = called(command, flags, tmp_path)
    assert (status, imported, error.count("\n")) == (2, set(), 1)
    assert error.startswith("error: ")
    assert words in error


BY_TORCH = {"torch", "numpy", "tqdm"}  # it imports these two itself


@pytest.mark.parametrize("command", [*COMMANDS[: len(SCRIPTS)], "benchmarks/pruning.py", "benchmarks/watching.py"])
def test_a_wrong_device_takes_torch_alone(tmp_path, command):
    status, imported, error = called(command, "--device abacus", tmp_path)
    assert (status, imported | BY_TORCH) == (2, BY_TORCH)
    assert error.startswith("error: DEVICE: got 'abacus'")


IMPORT = """
import importlib, pkgutil
import common
for _, name, _ in pkgutil.walk_packages(common.__path__, "common."):
    if name != "common.training.pretrained":  # torchvision's weights
        importlib.import_module(name)
"""


def test_the_studies_are_there_without_what_draws_prunes_or_reads_images(tmp_path):
    assert observed(IMPORT, tmp_path)[1] | BY_TORCH == {*BY_TORCH, "PIL", "pandas"}  # the last: of the reports


BEGIN = """
import Resnet18
from common.machine import process
from common.training import fit
from common.errors import UserError

def train(*_):
    raise UserError("the training would begin")

fit.train = train
raise SystemExit(process.run(Resnet18.main))
"""


def test_a_training_begins_without_what_draws_its_figures_or_prunes(tmp_path):
    flags = ["--dataset", "digits", "--output-dir", "out", "--run-dir", "state"]
    status, imported, error = observed(BEGIN, tmp_path, *flags)
    assert (status, error) == (2, "error: the training would begin\n")
    assert imported | BY_TORCH == {*BY_TORCH, "PIL", "sklearn", "scipy", "pandas"}  # three for the digits


@pytest.mark.parametrize(("number", "status"), [("SIGINT", 130), ("SIGTERM", 143)])
def test_a_signal_before_anything_is_imported_ends_with_the_line(tmp_path, number, status):
    (tmp_path / "common").symlink_to(ROOT / "common")
    script, early = tmp_path / "script.py", f"os.kill(os.getpid(), signal.{number})"
    script.write_text(f"import common, os, signal, time\n{early}\ntime.sleep(9)\nprocess.run(main)\n")
    done = subprocess.run([sys.executable, script], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (status, "", f"{STOPPED}\n")


def test_signals_stay_those_of_a_program_that_is_no_script_though_it_stands_beside_common(tmp_path):
    (tmp_path / "common").symlink_to(ROOT / "common")
    mine = tmp_path / "mine.py"
    mine.write_text("import signal, common\nprint(signal.getsignal(signal.SIGINT) is signal.default_int_handler)\n")
    done = subprocess.run([sys.executable, mine], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "True\n", "")


def test_a_program_that_comes_through_a_pipe_can_import_common(tmp_path):
    program = f"import sys; sys.path.insert(0, {str(ROOT)!r}); import common; print(len(common.PUBLIC) > 5)"
    done = subprocess.run([sys.executable, "-"], input=program, capture_output=True, text=True, cwd=ROOT)
    assert (done.returncode, done.stdout, done.stderr) == (0, "True\n", "")


SIGNALLED_IN_DEL = """
import os, signal, sys, time
sys.path.insert(0, {root!r})
from common.machine import process

class Ended:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.1)

def main():
    Ended()  # where Python passes over exceptions
    process.Interrupts.check()

raise SystemExit(process.run(main))
"""


def test_a_signal_while_an_object_is_finalised_is_one_line(tmp_path):
    code = SIGNALLED_IN_DEL.format(root=str(ROOT))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (143, f"{STOPPED}\n")
