"""What tells runs apart: every constant of a script by default, one that nobody has heard of as well."""

import importlib.util
import sys

import pytest

from common.machine import process
from common.pruning import METHODS, Method
from common.pruning.shapes import RandomAtStart
from common.settings import constants_of, identity, read
from tests.conftest import ROOT, script_module

SCRIPTS = ("Resnet18", "LeakyReLU", "Swish", "SGD", "SGD_noise", "Imagenet")
STUDY = "--dataset digits --study neuron-sparsity --sparsities 0.5 --epochs 1 --hold-out 1300 --width 4"


@pytest.fixture
def trained(tmp_path, monkeypatch, capsys):
    """trained(flags) -> how many runs there are after a call of a Resnet18.py that has a constant of its own."""
    text = (ROOT / "Resnet18.py").read_text(encoding="utf-8")
    text = text.replace("\nEXTEND =", "\nMY_SHARE = 0.5  # what the method `mine` goes by\nEXTEND =")
    (tmp_path / "Mine.py").write_text(text, encoding="utf-8")
    spec = importlib.util.spec_from_file_location("Mine", tmp_path / "Mine.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    monkeypatch.setitem(METHODS, "mine", Method("Mine", callback=RandomAtStart))

    def call(flags: str) -> int:
        words = [*STUDY.split(), "--output-dir", str(tmp_path / "out"), "--run-dir", str(tmp_path / "state")]
        monkeypatch.setattr(sys, "argv", ["Mine.py", *words, *flags.split()])
        assert process.run(script.main) == 0, capsys.readouterr().err
        return len(list((tmp_path / "state").rglob("final.pt")))

    return call


def test_a_new_method_and_a_new_constant_make_new_runs_without_being_named_anywhere(trained):
    assert trained("--methods mine") == 1
    assert trained("--methods mine --my-share 0.5") == 1
    assert trained("--methods mine --my-share 0.6") == 2
    assert trained("--methods mine --warmup 0.3") == 3  # its record does not say that it reads none of these
    assert trained("--methods random") == 4
    assert trained("--methods random --warmup 0.3") == 4  # its record does
    assert trained("--methods random --my-share 0.6") == 5
    assert trained("--methods random --data-dir elsewhere") == 5


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_constant_is_part_of_the_conditions_or_on_a_list_of_those_that_are_not(tmp_path, script):
    module = script_module(script)
    study = "imagenet" if script == "Imagenet" else "accumulation"
    places = ["--output-dir", str(tmp_path), "--run-dir", str(tmp_path), "--device", "cpu", "--study", study]
    constants = read(vars(module), (study,), places, processes=True)
    conditions = identity.conditions(constants)
    for name in map(str.lower, constants_of(ROOT / f"{script}.py")):
        listed = name in identity.CHANGES_NOTHING | identity.OF_THE_RUN | identity.OF_METHODS
        swept = name in ("batch_sizes", "regularizations", "learning_rates")
        assert (name in conditions) != (listed or swept or not identity.is_read(name, study)), name


UNREAD = [
    ("Resnet18", "--study neuron-sparsity --gradient-clip 1", "GRADIENT_CLIP"),
    ("Resnet18", "--study flops-sparsity --learning-rates 0.1", "LEARNING_RATES"),
    ("Resnet18", "--methods snap", "METHODS"),
    ("Resnet18", "--batch-sizes 16 32", "BATCH_SIZES"),
    ("Resnet18", "--study batch-size --batch-size 64", "BATCH_SIZE"),
    ("Resnet18", "--study regularization --regularization 0.1", "REGULARIZATION"),
    ("Resnet18", "--study batch-size --regularizations 0.1", "REGULARIZATIONS"),
    ("LeakyReLU", "--warmup 0.1", "WARMUP"),
    ("Imagenet", "--study accumulation --sparsities 0.5", "SPARSITIES"),
    ("Imagenet", "--gradient-clip 1", "GRADIENT_CLIP"),
]


@pytest.mark.parametrize(("script", "flags", "name"), UNREAD, ids=[" ".join(case[:2]) for case in UNREAD])
def test_a_flag_that_the_study_does_not_read_is_refused(call, script, flags, name):
    status, _, error = call(script, flags)
    assert status == 2
    assert error.startswith(f"error: {name}: the study ")
    assert error.endswith("does not read it; leave the flag out\n")


@pytest.mark.parametrize("flags", ["--image-size 16", "--workers 3"])
def test_a_flag_of_folders_is_refused_where_there_is_none(call, flags):
    status, _, error = call("SGD", flags)
    name = flags.split()[0][2:].upper().replace("-", "_")
    assert (status, error) == (2, f"error: {name}: is of folders of images, not of digits; leave the flag out\n")
