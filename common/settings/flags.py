"""A script's constants as flags: NAME is --name, the comment behind it is the help."""

import argparse
import ast
from pathlib import Path

from common.errors import UserError
from common.settings.kinds import KINDS, truth


def constants_of(script: Path) -> dict[str, str]:
    """NAME -> the comment behind it, for every constant at the top level of a script, in order."""
    lines = script.read_text(encoding="utf-8").splitlines()
    found = {}
    for node in ast.parse("\n".join(lines)).body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and node.targets[0].id in KINDS:
            found[node.targets[0].id] = lines[node.end_lineno - 1][node.end_col_offset :].lstrip(" #")
    return found


class Parser(argparse.ArgumentParser):
    """Flags without abbreviations, whose mistakes are a UserError."""

    def __init__(self, doc: str, name: str | None = None):
        form = argparse.RawDescriptionHelpFormatter
        super().__init__(prog=name, description=doc, allow_abbrev=False, formatter_class=form)

    def error(self, message: str):
        raise UserError(f"{message}; --help lists all flags")


def shown(value, settled_by: str) -> str:
    if value is None:
        return f"the {settled_by}'s"
    return " ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


def parse(script: Path, doc: str, constants: dict, arguments: list[str] | None) -> dict:
    """Lower-case name -> value: the script's constants with the flags' values in their place."""
    parser = Parser(doc, script.name)
    comments = constants_of(script)
    by_study = {name for values in constants.get("BY_STUDY", {}).values() for name in values}
    for name, comment in comments.items():
        kind = KINDS[name]
        default = shown(constants[name], "study" if name in by_study else "protocol")
        flag, text = "--" + name.lower().replace("_", "-"), f"{comment} [{default}]".replace("%", "%%")
        shape = {"action": argparse.BooleanOptionalAction} if kind.read is truth else {"metavar": "VALUE"}
        if kind.several:
            shape = {"nargs": "*" if kind.optional else "+", "metavar": "VALUE"}
        parser.add_argument(flag, dest=name, default=constants[name], help=text, **shape)
    return {name.lower(): value for name, value in vars(parser.parse_args(arguments)).items()}
