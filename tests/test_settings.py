"""Every wrong constant ends in one line that names it, with exit status 2, before anything is computed."""

import ctypes
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from common import settings
from common.errors import UserError
from common.settings import folder_for
from common.settings.kinds import PROTOCOLS
from tests.conftest import script_module

SCRIPTS = ("Resnet18", "LeakyReLU", "Swish", "SGD", "SGD_noise")


def assert_refused(result, *words):
    status, _, error = result
    assert status == 2
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    for word in words:
        assert word in error


WRONG = [
    ("--study nothing", "STUDY", "'nothing'", "accumulation"),
    ("--activation tanh", "ACTIVATION", "'tanh'", "relu, leaky-relu, swish"),
    ("--protocol mine", "PROTOCOL", "'mine'", "published"),
    ("--stem 5x5", "STEM", "'5x5'", "cifar, imagenet"),
    ("--schedule cosine", "SCHEDULE", "'cosine'", "one-cycle"),
    ("--augmentation blur", "AUGMENTATION", "'blur'", "cutout"),
    ("--learning-rates 0.1 0", "LEARNING_RATES", "'0'", "> 0"),
    ("--learning-rates -0.1", "LEARNING_RATES", "'-0.1'"),
    ("--learning-rates fast", "LEARNING_RATES", "'fast'"),
    ("--learning-rates nan", "LEARNING_RATES", "'nan'"),
    ("--learning-rates inf", "LEARNING_RATES", "'inf'"),
    ("--epochs 0", "EPOCHS", "'0'", "whole number > 0"),
    ("--epochs 2.5", "EPOCHS", "'2.5'"),
    ("--batch-size -1", "BATCH_SIZE", "'-1'"),
    ("--batch-size many", "BATCH_SIZE", "'many'"),
    ("--batch-size 5000", "BATCH_SIZE", "5000", "1437 training images"),
    ("--width 0", "WIDTH", "'0'"),
    ("--width wide", "WIDTH", "'wide'"),
    ("--momentum 1", "MOMENTUM", "'1'", "[0, 1)"),
    ("--weight-decay -1", "WEIGHT_DECAY", "'-1'"),
    ("--gradient-clip -1", "GRADIENT_CLIP", "'-1'"),
    ("--noise-std -1", "NOISE_STD", "'-1'"),
    ("--regularization -1", "REGULARIZATION", "'-1'"),
    ("--seeds -1", "SEEDS", "'-1'"),
    ("--device abacus", "DEVICE", "'abacus'", "cuda"),
    ("--device cuda:99", "DEVICE", "'cuda:99'"),
    ("--precision fp8", "PRECISION", "'fp8'"),
    ("--momentun 0.9", "--momentun", "--help"),
    ("--epoch 3", "--epoch", "--help"),  # no guessing at abbreviations
    ("--epochs", "--epochs", "expected one argument"),
]


@pytest.mark.parametrize("case", WRONG, ids=lambda case: case[0])
def test_a_wrong_constant_is_named_with_what_it_got_and_what_it_takes(call, tmp_path, case):
    flags, *words = case
    assert_refused(call("Resnet18", flags), *words)
    assert not list(tmp_path.glob("state/**/final.pt"))


def test_an_unknown_dataset_is_named(call):
    assert_refused(call("Resnet18", dataset="cifar11"), "DATASET", "'cifar11'", "cifar10, digits")


@pytest.mark.parametrize("place", ["output_dir", "run_dir"])
def test_a_folder_that_cannot_be_written_is_named(call, tmp_path, place):
    (tmp_path / "file").write_text("in the way")
    assert_refused(call("Resnet18", **{place: tmp_path / "file"}), place.upper(), "can be written")


def test_runs_that_start_at_the_same_moment_share_a_folder(tmp_path):
    with ThreadPoolExecutor(4) as starts:
        assert set(starts.map(lambda _: folder_for("RUN_DIR", tmp_path), range(400))) == {tmp_path}
    assert not list(tmp_path.iterdir())


def test_a_wrong_constant_in_the_script_itself_is_named(monkeypatch, capsys):
    module = script_module("Resnet18")
    module.LEARNING_RATES = "0.1, 0.2"
    with pytest.raises(UserError, match="LEARNING_RATES: got '0.1, 0.2', takes numbers > 0"):
        settings.read(vars(module), ("accumulation",), [])


def read(script, *flags, tmp_path):
    places = ["--output-dir", str(tmp_path), "--run-dir", str(tmp_path)]
    return settings.read(vars(script_module(script)), ("accumulation",), [*places, *flags])


def test_the_protocol_fills_in_what_the_script_leaves_open(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    cpu = read("Resnet18", tmp_path=tmp_path)
    assert (cpu.protocol, cpu.width, cpu.epochs, cpu.batch_size, cpu.weight_decay) == ("cpu", 16, 10, 128, 5e-4)
    assert (cpu.schedule, cpu.augmentation) == ("one-cycle", ("crop", "flip", "cutout"))
    quick = read("Resnet18", "--dataset", "digits", "--epochs", "2", tmp_path=tmp_path)
    assert (quick.protocol, quick.width, quick.epochs) == ("quick", 8, 2)
    published = read("SGD", "--protocol", "published", tmp_path=tmp_path)
    assert (published.stem, published.batch_size, published.epochs) == ("imagenet", 16, 100)
    assert (published.schedule, published.augmentation, published.weight_decay) == ("constant", (), 0.0)


def test_the_scripts_differ_in_what_they_study(tmp_path):
    found = {script: read(script, "--device", "cpu", tmp_path=tmp_path) for script in SCRIPTS}
    assert [found[script].activation for script in SCRIPTS] == ["relu", "leaky-relu", "swish", "relu", "relu"]
    assert [found[script].noise_std for script in SCRIPTS] == [0, 0, 0, 0, 0.5]
    assert [found[script].gradient_clip for script in SCRIPTS] == [1, 1, 1, 0, 0]
    assert found["SGD"].learning_rates == found["SGD_noise"].learning_rates == (0.01, 0.025, 0.05)


def test_values_given_twice_count_once(tmp_path):
    assert read("SGD", "--seeds", "1", "0", "1", tmp_path=tmp_path).seeds == (1, 0)


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_lists_every_constant_with_its_meaning_and_default(call, capsys, script):
    module = script_module(script)
    by_study = [settled for settled in getattr(module, "BY_STUDY", {}).values()]
    constants = [name for name in vars(module) if name.isupper() and name not in ("STUDIES", "BY_STUDY")]
    with pytest.raises(SystemExit) as stop:
        call(script, "--help")
    assert stop.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    assert len(constants) > 20
    for name in constants:
        value = getattr(module, name)
        settled = [own[name] for own in by_study if name in own]
        settled = settled or [own[name.lower()] for own in PROTOCOLS.values() if name.lower() in own]
        default = shown(value)
        flag, after = f"--{name.lower().replace('_', '-')}", text.split(" options: ")[1]
        flag = f" {flag}, --no{flag[1:]} " if isinstance(value, bool) else f" {flag} "
        entry = after.split(flag)[2 if flag in after.split(" --help ")[0] else 1]
        entry = re.sub(r"^(VALUE )?(\[VALUE \.\.\.\] )?", "", entry)
        meaning, found = re.match(r"(.*?) \[((?:[^]]|\](?! ))*)\](?: |$)", entry).groups()
        assert 10 < len(meaning) < 200, name
        if value is None:  # where it is settled, and to what
            assert settled, name
            assert all(f": {shown(own)}" in found for own in settled), name
        else:
            assert found == default, name


def shown(value) -> str:
    if isinstance(value, (list, tuple)):
        return " ".join(map(shown, value)) or "none"
    return f"{value:g}" if isinstance(value, float) else str(value)


MEASURE = """
import ctypes, sys
from common.machine.process import keep_freed_memory

class Mallinfo(ctypes.Structure):
    names = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost"
    _fields_ = [(name, ctypes.c_size_t) for name in names.split()]

libc = ctypes.CDLL(None)
libc.mallinfo2.restype = Mallinfo
libc.malloc.restype = ctypes.c_void_p
libc.free.argtypes = [ctypes.c_void_p]
if sys.argv[1] == "kept":
    keep_freed_memory()
before = libc.mallinfo2()
libc.free(libc.malloc(30 * 2**20))
after = libc.mallinfo2()
print(after.arena + after.hblkhd - before.arena - before.hblkhd)
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallinfo2"), reason="takes glibc 2.33")
def test_freed_memory_stays_with_the_process():
    command = [sys.executable, "-c", MEASURE]
    left = {
        case: int(subprocess.run([*command, case], capture_output=True, text=True, check=True).stdout)
        for case in ("kept", "returned")
    }
    assert left["kept"] >= 25 * 2**20 > left["returned"]
