"""Constants of any type, range and combination: settings, or one line that names the constant."""

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, strategies
from hypothesis import settings as budget

from common import settings
from common.errors import UserError
from tests.conftest import script_module

SCRIPTS = ("Resnet18", "LeakyReLU", "Swish", "SGD", "SGD_noise", "Imagenet")
WORDS = ["relu", "cifar", "digits", "0", "1", "0.5", "16", "auto", "cpu", "True", "-", "--", "", " ", "a\nb", "ümlaut"]
WORDS += ["nan", "inf", "1e308", "-1e308", "1e30", "2" * 30, "None", "[1, 2]", "mine:tiny", "neuron-sparsity"]
VALUE = strategies.one_of(
    strategies.sampled_from(WORDS),
    strategies.integers(-(2**70), 2**70).map(str),
    strategies.floats().map(str),
    strategies.text(strategies.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=8),
)
PLACES = {"output_dir", "run_dir", "data_dir"}  # folders would be made


def told(*script) -> str:
    """What is wrong, or ""."""
    try:
        settings.read(*script)
    except UserError as error:
        return str(error)
    except SystemExit as error:  # --help, as a value may be
        return f"exit status {error.code}\n" * (error.code != 0)
    return ""


@pytest.mark.parametrize("script", SCRIPTS)
def test_any_constants_are_settings_or_one_line(script, tmp_path, capsys):
    module = script_module(script)
    names = [name.lower() for name in settings.constants_of(Path(module.__file__))]
    flags = sorted(set(names) - PLACES)
    studies = getattr(module, "STUDIES", (module.STUDY,))
    places = [f"--output-dir={tmp_path}", f"--run-dir={tmp_path}", "--device", "cpu"]
    some = strategies.dictionaries(strategies.sampled_from(flags), strategies.lists(VALUE, min_size=1, max_size=3))

    @budget(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck), database=None)
    @given(some)
    def check(values):
        arguments = list(places)
        for name, given_values in values.items():
            arguments += [f"--{name.replace('_', '-')}", *given_values]
        assert "\n" not in told(vars(module), studies, arguments), values

    check()
    capsys.readouterr()
