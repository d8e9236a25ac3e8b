"""Tables of earlier commands: never replaced by others, and extended (EXTEND) by what they lack."""

import json
import os
from collections.abc import Callable, Sequence
from itertools import count
from pathlib import Path
from types import SimpleNamespace

from common.errors import UserError, told
from common.files import origin, read_csv, write_csv


def place_of(settings: SimpleNamespace, shared: dict) -> tuple[Path, str]:
    """The folder that takes the place of OUTPUT_DIR, and where it is another one, why.

    A table that was made under other conditions is never replaced. With EXTEND it is found where it is, or refused.
    """
    base = settings.base_dir
    kind = "-".join([Path(settings.dataset).name, *([settings.protocol] if hasattr(settings, "protocol") else [])])
    others = (base / kind if number == 1 else base / f"{kind}-{number}" for number in count(1))
    table = Path(settings.script) / f"{settings.study}.csv"
    odd = differing(base / table, shared)
    if not odd:
        return base, ""
    for folder in others:
        there = (folder / table).exists()
        if getattr(settings, "extend", False) and not there:
            return base, ""
        if not differing(folder / table, shared):
            return folder, f"{base / table} was made with another {', '.join(odd)} and stays; this goes to {folder}"
    raise AssertionError


def differing(table: Path, shared: dict) -> list[str]:
    """The names of what a table's rows have in common otherwise; none where there is no table."""
    if not table.exists():
        return []
    try:
        before = origin(table)["settings"]
    except UserError:
        return ["set of conditions, which cannot be read,"]
    return odd_names(before, json.loads(json.dumps(shared)))


def odd_names(before: dict, now: dict) -> list[str]:
    return sorted(name for name in {*before, *now} - {"methods"} if before.get(name) != now.get(name))


def changed_methods(table: Path, made: dict) -> set[str]:
    """The methods that a table's rows were made of with other constants than these conditions have."""
    before = origin(table)["settings"].get("methods", {})
    return {name for name, own in made.get("methods", {}).items() if name in before and before[name] != own}


def check_rows(rows: list[dict], order: Callable[[dict], tuple]) -> None:
    """Raises ValueError for rows that no study wrote. order: what a study sorts its rows by."""
    try:
        sorted(map(order, rows))
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"a row is not understood, {told(error)}") from None
    for row in rows:
        accuracy = row.get("test_accuracy")
        if accuracy is not None and not (isinstance(accuracy, (int, float)) and 0 <= accuracy <= 1):
            raise ValueError(f"a test accuracy of {accuracy}")
    if len({tuple(row.items()) for row in rows}) < len(rows):
        raise ValueError("the same row twice")


def rows_of(table: Path, columns: list[str], order: Callable[[dict], tuple], later: Sequence[str]) -> list[dict]:
    """The rows of an earlier command's table; the arguments are those of `rows_to_extend`.

    Raises:
        OSError, ValueError: when it cannot be read or is damaged.
    """
    rows = [dict.fromkeys(later) | row for row in read_csv(table)]
    if any(set(row) != set(columns) for row in rows):
        raise ValueError("it has another set of columns")
    check_rows(rows, order)
    return rows


def rows_to_extend(
    table: Path, made: dict, columns: list[str], order: Callable[[dict], tuple], later: Sequence[str] = ()
) -> list[dict]:
    """The rows of an earlier command's table; none where there is no table.

    Args:
        table: the CSV; the `settings` behind it are in the .json of the same name.
        made: the settings of this command, as JSON gives them back. Those of `methods` are compared for the methods
            that the table has, and completed, in place, with those of the others.
        columns: the columns that the table must have.
        order: what its rows are sorted by.
        later: those of them that a table of an earlier version lacks; they are empty in its rows.

    Raises:
        UserError: when they were made under other conditions, or cannot be read.
    """
    if not table.exists():
        return []
    try:
        before, rows = origin(table)["settings"], rows_of(table, columns, order, later)
    except (UserError, OSError, ValueError) as error:
        raise UserError(f"EXTEND: {table} and its .json cannot be read ({error}); use --no-extend") from None
    methods, own = before.pop("methods", {}), made.get("methods", {})
    there = {row.get("method") for row in rows}
    odd = odd_names(before, made)
    odd += [f"set of constants of {name}" for name in own if name in there and methods.get(name) != own[name]]
    if odd:
        raise UserError(
            f"EXTEND: {table} was made with another {', '.join(odd)}; use --no-extend or another OUTPUT_DIR"
        )
    if own:
        made["methods"] = {**methods, **own}
    return rows


def away(table: Path, why: Exception) -> str:
    """A damaged table gets another name; the words for it."""
    place = table.with_name(f"{table.stem}-damaged.csv")
    os.replace(table, place)
    return f"{table} cannot be read ({why}); it is now {place}"


def before_it(table: Path, columns: list[str], others: list[dict]) -> str:
    """Rows of other runs go to a table that keeps all of them; the words for it."""
    place = table.with_name(f"{table.stem}-before.csv")
    earlier = read_csv(place) if place.exists() else []
    write_csv(place, columns, [*(row for row in earlier if row not in others), *others])
    what = f"{len(others)} row{'s' * (len(others) > 1)} of {table}, of other runs,"
    return f"{what} {'go' if len(others) > 1 else 'goes'} to {place}; --extend keeps them"
