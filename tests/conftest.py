"""Scripts are called as a user calls them, in this process (fast) or in one of their own (to be killed)."""

import importlib.util
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))
torch.set_num_threads(1)  # two test processes share the cores

from common.machine.devices import avoid_broken_kernel  # noqa: E402  (found by the path above)
from tests import pretend  # noqa: E402
from tests.finals import finals, make, models  # noqa: E402, F401  (fixtures)
from tests.image_folders import mixed, own, plain  # noqa: E402, F401

avoid_broken_kernel()

try:
    pretend.install()
    NO_PRETENDING = ""
except pretend.Unsupported as reason:
    NO_PRETENDING = str(reason)


def script_module(name: str):
    spec = importlib.util.spec_from_file_location(name, ROOT / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def call(tmp_path, capsys, monkeypatch):
    """call("Resnet18", "--epochs 2 ...") -> (exit status, output, error lines), on the digits unless told otherwise.

    Figures are not laid out and the speed of inference is measured once: half the time of a short study.
    """
    from common.machine import process
    from common.reports import canvas
    from common.studies import sparsity

    monkeypatch.setitem(canvas.STYLE, "figure.constrained_layout.use", False)
    monkeypatch.setattr(sparsity, "inference_speedup", partial(sparsity.inference_speedup, rounds=1))

    def run(script: str, flags: str = "", **places) -> tuple[int, str, str]:
        images = {} if script == "Imagenet" else {"dataset": "digits"}
        places = {**images, "output_dir": tmp_path / "out", "run_dir": tmp_path / "state", **places}
        given = [text for name, value in places.items() for text in ("--" + name.replace("_", "-"), str(value))]
        monkeypatch.setattr(sys, "argv", [f"{script}.py", *given, *flags.split()])
        capsys.readouterr()
        status = process.run(script_module(script).main)
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return run


@pytest.fixture
def start(tmp_path):
    """Starts a script in a process of its own: start("Resnet18", "--epochs 2") -> subprocess.Popen."""
    started = []

    def run(script: str, flags: str) -> subprocess.Popen:
        command = [sys.executable, str(ROOT / f"{script}.py"), *flags.split()]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path, env=environment
        )
        started.append(process)
        return process

    yield run
    for process in started:
        process.kill()


@pytest.fixture(scope="session")
def cifar10():
    """The real CIFAR-10, where it is in data/."""
    from types import SimpleNamespace

    from common import data

    if not (ROOT / "data" / "cifar-10-batches-py").exists():
        pytest.skip("CIFAR-10 is not in data/")
    where = SimpleNamespace(dataset="cifar10", data_dir=ROOT / "data", device=torch.device("cpu"), batch_size=128)
    return data.load(where)


@pytest.fixture(scope="session")
def photos(tmp_path_factory):
    """An image folder as ImageNet's: four classes of JPEG files of mixed sizes and modes, one turned by its EXIF."""
    root, random = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for part, count in (("train", 17), ("val", 5)):
        for shade, name in enumerate(("ant", "bee", "cat", "dog")):
            (root / part / name).mkdir(parents=True)
            for number in range(count):
                height, width = random.integers(40, 90, 2)
                pixels = random.normal(60 + 40 * shade, 40, (height, width, 3)).clip(0, 255).astype(np.uint8)
                image, exif = Image.fromarray(pixels), Image.Exif()
                if number == 3:
                    exif[0x0112] = 6
                mode = {4: "L", 9: "CMYK"}.get(number, "RGB")
                image.convert(mode).save(root / part / name / f"{number}.jpg", exif=exif)
    return root


@pytest.fixture
def pretended():
    """The pretend accelerator, for one test; the test is skipped where it cannot be had."""
    if NO_PRETENDING:
        pytest.skip(NO_PRETENDING)
    with pretend.on():
        yield torch.device("pretend:0")
