"""The parts that every experiment script shares, and what a network of one's own needs of them.

    from common import Pruner, UnitWatch

docs/your-own-network.md shows these at work; docs/extending.md has the floor plan.
"""

import os
import sys
from importlib import import_module

# What is public, and where it is: imported when it is asked for, as torch takes its time.
PUBLIC = {
    "Counts": "units",
    "Groups": "groups",
    "Pruner": "pruning.pruner",
    "UnitWatch": "units",
    "find_groups": "tracing",
    "load_network": "saved",
    "load_pruned": "cutting",
    "own_activations": "models",
    "program": "export",
}
__all__ = list(PUBLIC)


def __getattr__(name: str):
    if name not in PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{PUBLIC[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *PUBLIC})


def is_script(main: str | None) -> bool:
    """Whether this file is one of the scripts: beside common/, and it hands its `main` to `process.run`, which sees to
    signals from then on. In any other program, signals are its own."""
    if not main or os.path.dirname(os.path.abspath(main)) != os.path.dirname(__path__[0]):
        return False
    try:
        with open(main, encoding="utf-8") as file:
            return "process.run(" in file.read()
    except OSError:  # as of a program that comes through a pipe, whose name is <stdin>
        return False


if is_script(getattr(sys.modules["__main__"], "__file__", None)):
    from common.machine import process

    process.end_at_once()
