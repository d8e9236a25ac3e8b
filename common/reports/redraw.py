"""Figures again from the tables that studies left, without training.

    python -m common.reports.redraw                                     all tables in plots/
    python -m common.reports.redraw plots/Resnet18/neuron-sparsity.csv --formats pdf

Draws what follows from the tables alone: accuracy against sparsity and FLOPs, the sweeps, accumulation by epoch, and,
with the table of Resnet18.py or SGD.py, what compares several scripts. What needs the runs themselves (the course of
DS-Pruning, layers and fire rates of one script) is drawn by the study's own command, which passes over finished runs.
"""

from pathlib import Path
from types import SimpleNamespace

from common import names, settings
from common.errors import UserError, told
from common.files import origin
from common.machine import process

ROOT = Path(__file__).parents[2]


def settings_of(table: Path) -> SimpleNamespace:
    """What the rows of a table have in common, as its .json has it."""
    made = origin(table)["settings"]
    network = made.pop("network")
    own = {"network": network["name"], "width": network.get("width"), "activation": network.get("activation")}
    places = {"output_dir": table.parents[1], "base_dir": table.parents[1]}
    return SimpleNamespace(**{**made, **own, **places}, script=table.parent.name, study=table.stem)


def redraw(table: Path) -> list[Path]:
    """The figures of one table; their paths.

    Raises:
        UserError: for what is no table of a study.
    """
    from common.reports import accumulation, sparsity, sweeps, tables

    if not table.exists():
        raise UserError(f"{table}: no such table")
    known = settings_of(table)
    if known.study in names.SPARSITY:
        rows = tables.read(table)
        if "strength" not in rows:  # a table of an earlier version
            rows["strength"] = float("nan")
        return sparsity.draw(known, rows, {}, table.parent)
    if known.study in names.SWEEPS:
        return sweeps.draw(known, table, [])
    if known.study == "accumulation":
        returns = table.with_name("accumulation-returns.csv")
        drawn = [accumulation.draw_epochs(known, tables.read(table), table.parent)]
        drawn += accumulation.draw_returns(known, returns) if returns.exists() else []
        first = known.script in {scripts[0] for _, scripts, _ in accumulation.COMPARISONS.values()}
        return drawn + (accumulation.compare(known) if first else [])
    raise UserError(f"{table}: the table of no study; takes {', '.join((*names.SPARSITY, *names.SWEEPS))}")


def main(arguments: list[str] | None = None) -> int:
    parser = settings.Parser(__doc__, "python -m common.reports.redraw")
    parser.add_argument("tables", type=Path, nargs="*", help="all in plots/ by default")
    parser.add_argument("--formats", nargs="+", type=settings.reader("FORMATS"), default=["png"], metavar="FORMAT")
    given = parser.parse_args(arguments)
    from common.reports import canvas

    canvas.formats = given.formats
    found = sorted(path.with_suffix(".csv") for path in (ROOT / "plots").glob("*/*.json"))
    for table in given.tables or found:
        try:
            canvas.tell(redraw(table))
        except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
            raise UserError(f"{table}: it or its .json is damaged or not ours ({told(error)})") from None
    return 0


if __name__ == "__main__":
    raise SystemExit(process.run(main))
