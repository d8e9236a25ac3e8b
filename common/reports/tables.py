"""What a study leaves: tables that grow over several commands, and an exit status."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from common.errors import UserError
from common.files import read_csv


def rows_to_extend(table: Path, made: dict, columns: list[str], later: Sequence[str] = ()) -> list[dict]:
    """The rows of an earlier command's table; none where there is no table.

    Args:
        table: the CSV; the `settings` behind it are in the .json of the same name.
        made: the settings of this command, as JSON gives them back.
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
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"EXTEND: {table} and its .json cannot be read ({error}); use --no-extend") from None
    odd = sorted(name for name in {*before, *made} if before.get(name) != made.get(name))
    rows = [dict.fromkeys(later) | row for row in rows]
    if odd or any(set(row) != set(columns) for row in rows):
        raise UserError(
            f"EXTEND: {table} was made with another {', '.join(odd) or 'set of columns'}; use --no-extend or another "
            "OUTPUT_DIR"
        )
    return rows


def exit_status(failures: list[str], results: list) -> int:
    """2 where runs failed. They were told when it happened; below the results of the others they are listed again."""
    for failure in failures if results else ():
        print(f"error: not finished: {failure}", file=sys.stderr)
    return 2 if failures else 0
