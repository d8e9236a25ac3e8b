"""A script's constants as flags: NAME is --name, the comment behind it is the help."""

import argparse
import ast
from pathlib import Path

from common.errors import UserError
from common.settings.kinds import KINDS, PROTOCOLS, kind_of, truth


def constants_of(script: Path) -> dict[str, str]:
    """NAME -> the comment behind it, for every constant at the top level of a script, in order: a name in capitals
    with a literal value that is no dictionary."""
    lines = script.read_text(encoding="utf-8").splitlines()
    found = {}
    for node in ast.parse("\n".join(lines)).body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and is_constant(node):
            found[node.targets[0].id] = lines[node.end_lineno - 1][node.end_col_offset :].lstrip(" #")
    return found


def is_constant(node: ast.Assign) -> bool:
    try:
        value = ast.literal_eval(node.value)
    except ValueError:
        return node.targets[0].id in KINDS  # computed, but known
    return node.targets[0].id.isupper() and not isinstance(value, dict)


class Parser(argparse.ArgumentParser):
    """Flags without abbreviations, whose mistakes are a UserError."""

    def __init__(self, doc: str, name: str | None = None, usage: str | None = None):
        form = argparse.RawDescriptionHelpFormatter
        super().__init__(prog=name, description=doc, allow_abbrev=False, formatter_class=form, usage=usage)

    def error(self, message: str):
        raise UserError(f"{message}; --help lists all flags")


def text_of(value) -> str:
    if isinstance(value, (list, tuple)):
        return " ".join(map(text_of, value)) or "none"
    return f"{value:g}" if isinstance(value, float) else str(value)


def shown(name: str, constants: dict) -> str:
    """The default of a constant; of one that is None, what each study or protocol makes of it."""
    if constants[name] is not None:
        return text_of(constants[name])
    studies = {study: values[name] for study, values in constants.get("BY_STUDY", {}).items() if name in values}
    protocols = {protocol: values[name.lower()] for protocol, values in PROTOCOLS.items() if name.lower() in values}
    found: dict[str, list[str]] = {}
    for where, value in (studies or protocols).items():
        found.setdefault(text_of(value), []).append(where)
    return "; ".join(f"{', '.join(where)}: {value}" for value, where in found.items())


def parse(script: Path, doc: str, constants: dict, arguments: list[str] | None) -> dict:
    """Lower-case name -> value, of the flags that were given."""
    brackets = "In brackets: the default, or what each study or protocol takes for it."
    parser = Parser(doc + brackets, script.name, f"{script.name} [--constant VALUE ...]")
    comments = constants_of(script)
    for name, comment in comments.items():
        kind = kind_of(name, constants[name])
        flag, text = "--" + name.lower().replace("_", "-"), f"{comment} [{shown(name, constants)}]".replace("%", "%%")
        shape = {"action": argparse.BooleanOptionalAction} if kind.read is truth else {"metavar": "VALUE"}
        if kind.several:
            shape = {"nargs": "*" if kind.optional else "+", "metavar": "VALUE"}
        parser.add_argument(flag, dest=name.lower(), default=argparse.SUPPRESS, help=text, **shape)
    return vars(parser.parse_args(arguments))
