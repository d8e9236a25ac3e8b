"""Tables that grow over several commands."""

import csv
import json
from collections.abc import Sequence
from pathlib import Path

from common.errors import UserError
from common.files import read_csv


def markdown(header: list[str], rows: list[list]) -> str:
    """A Markdown table; every cell as `str` gives it."""
    lines = [header, ["---"] * len(header), *rows]
    return "".join(f"| {' | '.join(map(str, line))} |\n" for line in lines)


def rows_to_extend(table: Path, made: dict, columns: list[str], later: Sequence[str] = ()) -> list[dict]:
    """The rows of an earlier command's table; none where there is no table.

    Args:
        table: the CSV; the `settings` behind it are in the .json of the same name.
        made: the settings of this command, as JSON gives them back. Those of `methods` are compared for the methods
            that the table has, and completed, in place, with those of the others.
        columns: the columns that the table must have.
        later: those of them that a table of an earlier version lacks; they are empty in its rows.

    Raises:
        UserError: when they were made under other conditions, or cannot be read.
    """
    if not table.exists():
        return []
    try:
        before = json.loads(table.with_suffix(".json").read_text(encoding="utf-8"))["settings"]
        rows = read_csv(table)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, csv.Error) as error:
        raise UserError(f"EXTEND: {table} and its .json cannot be read ({error}); use --no-extend") from None
    methods, own = before.pop("methods", {}), made.get("methods", {})
    odd = sorted(name for name in {*before, *made} - {"methods"} if before.get(name) != made.get(name))
    there = {row.get("method") for row in rows}
    odd += [f"set of constants of {name}" for name in own if name in there and methods.get(name) != own[name]]
    rows = [dict.fromkeys(later) | row for row in rows]
    if odd or any(set(row) != set(columns) for row in rows):
        raise UserError(
            f"EXTEND: {table} was made with another {', '.join(odd) or 'set of columns'}; use --no-extend or another "
            "OUTPUT_DIR"
        )
    if own:
        made["methods"] = {**methods, **own}
    return rows
