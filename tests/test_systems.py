"""No operating system is asked for: what Windows lacks is hidden, and everything still imports and trains."""

import json
import os
import re
import subprocess
import sys
import textwrap

import pytest
import torch
from filelock import FileLock
from torch import nn

from common.errors import RunFailed
from common.machine import devices
from common.training import runs
from tests.conftest import ROOT

# Python and the libraries have forms of their own for every system, so they are imported before the hiding begins.
WINDOWS = """
    import warnings
    warnings.simplefilter("ignore", EncodingWarning)  # of the libraries
    import ctypes, importlib, json, os, pathlib, pkgutil, signal, sys
    import filelock, matplotlib.figure, PIL.Image, psutil, scipy.stats, sklearn.datasets, sklearn.model_selection
    import torch, torch_pruning, torchvision, tqdm
    import torch._dynamo, torch.distributed, torch.utils.data, torch.utils.flop_counter, torchvision.transforms.v2

    for name in ("fcntl", "resource", "termios", "pwd", "grp", "posix"):
        sys.modules[name] = None
    for name in ("fork", "register_at_fork", "sysconf", "getuid", "uname", "statvfs", "sched_getaffinity", "killpg"):
        delattr(os, name)
    there = {"SIGABRT", "SIGFPE", "SIGILL", "SIGINT", "SIGSEGV", "SIGTERM"}
    for name in {name for name in dir(signal) if name.startswith("SIG") and "_" not in name} - there:
        delattr(signal, name)
    for name in ("alarm", "setitimer", "pthread_kill", "sigwait"):
        delattr(signal, name)

    class CDLL(ctypes.CDLL):
        def __init__(self, name, *rest, **options):
            if name is None:
                raise TypeError("bad argument type for built-in operation")
            super().__init__(name, *rest, **options)

    ctypes.CDLL = CDLL
    warnings.filterwarnings("error", category=EncodingWarning, module="common")  # text is UTF-8 everywhere
    torch.set_num_threads(1)
"""


def on_windows(code: str, folder, *arguments) -> subprocess.CompletedProcess:
    """Runs `code` in a process of its own that has what a Python on Windows has."""
    command = [sys.executable, "-X", "warn_default_encoding", "-c", textwrap.dedent(WINDOWS) + textwrap.dedent(code)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run([*command, *arguments], cwd=folder, env=environment, capture_output=True, text=True)


IMPORT = """
    import common
    imported = [name for _, name, _ in pkgutil.walk_packages(common.__path__, "common.")]
    imported += [path.stem for path in pathlib.Path(sys.path[1]).glob("*.py")]
    imported += [f"benchmarks.{path.stem}" for path in pathlib.Path(sys.path[1], "benchmarks").glob("*.py")]
    for name in imported:
        importlib.import_module(name)
    print(json.dumps(imported))
"""


def test_every_module_and_script_can_be_imported_without_what_windows_lacks(tmp_path):
    done = on_windows(IMPORT, tmp_path)
    assert done.returncode == 0, done.stderr
    imported = json.loads(done.stdout)
    assert {"common.training.runs", "common.folders", "common.pruning.sparse", "Resnet18", "Imagenet"} <= set(imported)
    assert len(imported) > 40


TRAIN = """
    import multiprocessing
    from torch.utils.data._utils import signal_handling

    multiprocessing.set_start_method("spawn")
    signal_handling._set_SIGCHLD_handler = lambda: None  # as it is there
    from common.machine import process
    script = importlib.import_module(sys.argv.pop(1))
    sys.exit(process.run(script.main))
"""
SMALL = "--width 4 --epochs 2 --batch-size 16 --output-dir out --run-dir state"
CASES = {
    "digits": "Resnet18 --dataset digits",
    "pruning": "Resnet18 --dataset digits --study neuron-sparsity --methods dense ds-pruning snap --sparsities 0.5",
    "images in memory": "Resnet18 --dataset {photos} --image-size 32",
    "images read by workers": "Imagenet --data-dir {photos} --image-size 32 --study accumulation --no-pretrained",
}


@pytest.mark.parametrize("case", CASES)
def test_it_trains_without_what_windows_lacks(tmp_path, photos, case):
    done = on_windows(TRAIN, tmp_path, *CASES[case].format(photos=photos).split(), *SMALL.split())
    assert (done.returncode, done.stderr) == (0, "")
    assert list(tmp_path.glob("state/**/final.pt"))
    assert list(tmp_path.glob("out/*/*.png"))


HOLD = """
import pathlib, sys
from common.training.runs import Run
with Run(pathlib.Path("state"), "run", {"seed": 0}).locked():
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_run_is_locked_against_other_processes_until_its_own_ends_however_that_ends(tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", HOLD], cwd=tmp_path, env=environment, **pipes) as holder:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(runs.Busy) as error, runs.Run(tmp_path / "state", "run", {"seed": 0}).locked():
            pass
        assert re.fullmatch("another process is training .*; wait for it or move RUN_DIR", str(error.value))
        holder.kill()
    with runs.Run(tmp_path / "state", "run", {"seed": 0}).locked():
        pass


@pytest.mark.parametrize("error", [OSError(37, "No locks available"), NotImplementedError("no flock")])
def test_a_file_system_without_locks_is_named(tmp_path, monkeypatch, error):
    def acquire(*_, **__):
        raise error

    monkeypatch.setattr(FileLock, "acquire", acquire)
    with pytest.raises(RunFailed, match=r"run-\w+ cannot be locked .*lock.*; move RUN_DIR"):
        runs.Run(tmp_path, "run", {}).locked().__enter__()


@pytest.mark.parametrize("options", [{"stride": 2}, {"stride": (1, 3), "groups": 2, "bias": False}])
def test_picking_the_pixels_first_is_what_a_strided_1x1_convolution_does(options):
    conv = nn.Conv2d(6, 8, 1, dtype=torch.float64, **options)  # which oneDNN has no part in
    x = torch.randn(3, 6, 9, 8, dtype=torch.float64, requires_grad=True)
    found = [convolve(conv, x, conv.weight, conv.bias) for convolve in (devices._convolve, devices.CONVOLVE)]
    inputs = [x, *conv.parameters()]
    direction = torch.randn_like(found[0])
    gradients = [torch.autograd.grad(out, inputs, direction, retain_graph=True) for out in found]
    assert len(gradients[0]) == len(inputs)
    for mine, theirs in zip([found[0], *gradients[0]], [found[1], *gradients[1]], strict=True):
        torch.testing.assert_close(mine, theirs)


def test_narrow_networks_train_without_a_broken_kernel(tmp_path):
    """Ended by malloc within a few layers, on a CPU that has it."""
    code = """
        import random, sys, torch
        from common.machine import devices
        devices.pick("cpu")
        torch.set_num_threads(1)
        for inputs in (3, 4, 5, 6, 7, 12) * 8:
            conv = torch.nn.Conv2d(inputs, random.randint(1, 64), 1, random.choice([2, 3]), bias=False)
            conv.to(memory_format=torch.channels_last)
            images = torch.randn(random.choice([4, 16, 50]), inputs, random.choice([4, 8, 16, 32]), 32)
            out = conv(images.to(memory_format=torch.channels_last).requires_grad_())
            out.backward(torch.randn_like(out))
            torch.empty(random.randint(1, 3000))
        print("all")
    """
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "MALLOC_PERTURB_": "85"}
    command = [sys.executable, "-c", textwrap.dedent(code)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, "all\n"), done.stderr
