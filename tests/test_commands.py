"""Every command that a page or a docstring names is one that the script takes."""

import re
import shlex

import pytest

from common.settings import given
from tests.conftest import ROOT, script_module

SCRIPTS = ("Resnet18", "LeakyReLU", "Swish", "SGD_noise", "SGD", "Imagenet")
PAGES = [ROOT / "README.md", ROOT / "RESULTS.md", *ROOT.glob("docs/**/*.md"), *ROOT.glob("*.py")]
PAGES += [*ROOT.glob("common/reports/*.py"), *ROOT.glob("benchmarks/*.py")]


def commands() -> list[tuple[str, str]]:
    found = set()
    for page in PAGES:
        for line in page.read_text(encoding="utf-8").splitlines():
            for script, flags in re.findall(rf"\b({'|'.join(SCRIPTS)})\.py((?: +-[-\w.]+(?: [-\w./]+)*)+)", line):
                words = re.split(r"  +", flags.strip())[0]  # what comes after is a remark
                if "..." not in words:
                    found.add((script, words))
    return sorted(found)


COMMANDS = commands()


def test_there_are_commands():
    assert len(COMMANDS) > 15


@pytest.mark.parametrize(("script", "flags"), COMMANDS, ids=[" ".join(command) for command in COMMANDS])
def test_a_command_that_is_written_down_is_taken(script, flags):
    module = script_module(script)
    studies = getattr(module, "STUDIES", ("imagenet", "accumulation"))
    given(vars(module), studies, shlex.split(flags))
