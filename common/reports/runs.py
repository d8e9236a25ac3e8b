"""A line for each run in RUN_DIR: what tells it from the others, how far it is, and how it ended.

    python -m common.reports.runs                              all of runs/
    python -m common.reports.runs out/runs --where method=snap target=0.8
    python -m common.reports.runs --sort accuracy --csv runs.csv

`name` is the run's folder. Columns are the constants that are not the same in all runs shown; of a finished run follow
test accuracy, dead units or neuron sparsity in per cent, the day it ended and the code that made it.
"""

import json
import sys
from datetime import datetime
from pathlib import Path

import pandas as pd

from common import settings
from common.errors import UserError, told
from common.files import load, read_csv
from common.machine import process
from common.reports import tables
from common.training.runs import Run

# In a run's constants -> the column: a run has a name and code of its own.
OF_NETWORK = {"network.name": "network", "network.code": "network_code"}


def flat(config: dict) -> dict:
    """Nested constants under one name each: {"network": {"width": 8}} to {"width": 8}."""
    (found,) = pd.json_normalize(config).rename(columns=OF_NETWORK).to_dict("records")
    texts = {name: " ".join(map(str, value)) for name, value in found.items() if isinstance(value, list)}
    return {name.removeprefix("network.").removeprefix("constants."): v for name, v in {**found, **texts}.items()}


def line(folder: Path) -> dict:
    """What is known of one run: its constants, and `state` (finished, or the epochs so far)."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    final, log = folder / "final.pt", folder / "log.csv"
    state = load(final) if final.exists() else None
    rows = state["rows"] if state else read_csv(log) if log.exists() else []
    found = {"name": folder.name, "state": "finished" if state else f"{len(rows)} epochs"}
    if rows:
        found["accuracy"] = round(100 * rows[-1]["test_accuracy"], 2)
        found["dead"] = rows[-1]["dead_units"]
    if state:
        if Run.differing(state["config"], config):
            raise ValueError("its final.pt is of another run")
        gone = 1 - state["counts"]["alive"][-1].float().mean().item()
        found |= {"sparsity": round(100 * gone, 1), "code": state.get("code")}
        found["ended"] = datetime.fromtimestamp(final.stat().st_mtime).strftime("%Y-%m-%d %H:%M")
    return {**flat(config), **found}


LAST = ["state", "accuracy", "dead", "sparsity", "ended", "code", "name"]


def table_of(folders: list[Path], where: dict[str, str]) -> pd.DataFrame:
    """A row for each run that is as `where` asks; of the constants, those that are not the same in all of them."""
    lines = []
    for folder in folders:
        try:
            found = line(folder)
        except UserError as error:
            print(f"left out: {error}", file=sys.stderr)
            continue
        except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError) as error:
            print(f"left out: {folder} is damaged or not ours ({told(error)})", file=sys.stderr)
            continue
        if all(str(found.get(name)) == value for name, value in where.items()):
            lines.append(found)
    if not lines:
        return pd.DataFrame()
    table = pd.DataFrame(lines)
    constants = [name for name in table if name not in LAST and table[name].astype(str).nunique() > 1]
    return table[[*constants, *(name for name in LAST if name in table)]]


def condition(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not (name and equals):
        raise UserError(f"--where: got {text!r}, takes constant=value")
    return name, value


def main(arguments: list[str] | None = None) -> int:
    parser = settings.Parser(__doc__, "python -m common.reports.runs")
    parser.add_argument("folder", type=Path, nargs="?", default=Path("runs"), help="RUN_DIR [runs]")
    parser.add_argument("--where", nargs="+", type=condition, default=[], metavar="NAME=VALUE", help="only such runs")
    parser.add_argument("--sort", default="name", metavar="COLUMN", help="the order of the lines [name]")
    parser.add_argument("--csv", type=Path, metavar="FILE", help="write the table there")
    given = parser.parse_args(arguments)
    found = sorted(path.parent for path in given.folder.rglob("config.json"))
    if not found:
        raise UserError(f"{given.folder}: no runs there; takes the RUN_DIR of a script")
    table = table_of(found, dict(given.where))
    if table.empty:
        raise UserError("--where: no run is so; leave it out to see all" if given.where else "no run there can be read")
    if given.sort not in table:
        raise UserError(f"--sort: got {given.sort!r}, takes one of {', '.join(table)}")
    table = table.sort_values(given.sort, kind="stable")
    if given.csv:
        try:
            table.to_csv(given.csv, index=False)
        except OSError as error:
            raise UserError(f"--csv: {given.csv} cannot be written ({error.strerror or error})") from None
    print(tables.text(table))
    return 0


if __name__ == "__main__":
    raise SystemExit(process.run(main))
