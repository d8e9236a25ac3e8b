"""What all studies are: a plan of runs, and what follows from those that are finished."""

import csv
import json
import platform
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from importlib.metadata import version
from inspect import getsourcefile
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import torch
from filelock import FileLock

from common import data, models, names, units
from common.errors import RunFailed, UserError, told
from common.files import UNFINISHED, origin, read_csv, write_csv, write_text
from common.machine import distributed, workers
from common.reports import canvas
from common.settings import identity
from common.training import code
from common.training.callbacks import DeadAtEnd
from common.training.fit import fit
from common.training.loop import Callback
from common.training.runs import Busy, Run


class Trial(NamedTuple):
    """A run that is no pruning run."""

    learning_rate: float
    regularization: float
    seed: int

    def __str__(self) -> str:
        return f"{names.condition(self.learning_rate, self.regularization)} seed {self.seed}"


def conditions(settings: SimpleNamespace, dataset: data.Dataset, network: str) -> dict:
    """What all runs of one command have in common and their results depend on."""
    models.include(network)
    options = {"channels": dataset.example.shape[1], "width": settings.width, "stem": settings.stem}
    options["activation"] = settings.activation
    known = {name: value for name, value in options.items() if name in models.options_of(network)}
    found = {"name": network, "classes": len(dataset.classes), **known}
    if ":" in network:
        found["code"] = code.digest_of(getsourcefile(models.NETWORKS[network]))
    return {"network": found, "data": dataset.fingerprint, **identity.conditions(settings)}


def check_network(settings: SimpleNamespace, network: dict, dataset: data.Dataset) -> None:
    """Raises UserError for a flag that the network has no use for; and for a network of one's own that cannot be
    trained on these images, or not be watched."""
    name = network["name"]
    for option in {*models.OPTIONS} - network.keys():
        if option in getattr(settings, "given", ()):
            raise UserError(f"{option.upper()}: {name} has none; leave the flag out")
    if ":" not in name:
        return
    try:
        model = models.build(network)
        units.UnitWatch(model, dataset.example.cpu()).close()
        with torch.no_grad():
            shape = tuple(model.eval()(dataset.example.cpu()).shape)
    except Exception as error:  # whatever code of one's own may raise
        raise UserError(f"NETWORK: {name} cannot be used: {told(error)}") from error
    if shape != (1, network["classes"]):
        raise UserError(f"NETWORK: {name} gives {list(shape)} for one image and {network['classes']} classes")


def run_of(settings: SimpleNamespace, shared: dict, trial: Trial) -> Run:
    """The folder of a run; studies share the runs that are the same in both."""
    config = {**shared, **trial._asdict()}
    return Run(settings.run_dir / settings.script / "accumulation", f"batch {settings.batch_size} {trial}", config)


def train(settings, dataset: data.Dataset, shared: dict, trial: Trial, changes: list[Callback]) -> dict:
    """One network, watched while it trains.

    shared: what `conditions` gives for these settings. changes: what is done to the gradients.
    """
    rate, seed, run = trial.learning_rate, trial.seed, run_of(settings, shared, trial)
    return fit(settings, dataset, run, shared["network"], rate, seed, [*changes, DeadAtEnd()])


def headline(settings: SimpleNamespace, network: dict) -> str:
    """What is about to be trained, in a line."""
    width = f" of width {network['width']}" if "width" in network else ""
    activation = f" with {network['activation']}" if "activation" in network else ""
    parts = [
        f"{settings.study}: {names.NETWORKS.get(network['name'], network['name'])}{width}{activation}",
        f"{settings.dataset}",
        *([f"protocol {settings.protocol}"] if hasattr(settings, "protocol") else []),
        f"{settings.epochs} epoch{'s' * (settings.epochs != 1)}",
        f"batch size {settings.batch_size}",
        f"{settings.precision} on {settings.device}",
    ]
    return ", ".join(parts)


def place_of(settings: SimpleNamespace, shared: dict) -> tuple[Path, str]:
    """The folder that takes the place of OUTPUT_DIR, and where it is another one, why.

    A table that was made under other conditions is never replaced. With EXTEND it is found where it is, or refused.
    """
    base = settings.output_dir
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
        before, rows = origin(table)["settings"], read_csv(table)
    except (UserError, OSError, ValueError, csv.Error) as error:
        raise UserError(f"EXTEND: {table} and its .json cannot be read ({error}); use --no-extend") from None
    methods, own = before.pop("methods", {}), made.get("methods", {})
    there = {row.get("method") for row in rows}
    odd = odd_names(before, made)
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


class Study:
    """A plan of runs. Each is made by the first process that comes to it, and a table follows from all that are
    finished, whoever made them: so several processes that share RUN_DIR share the work.

    A run that fails is told at once and again at the end; the others go on.

    Args:
        settings: as `settings.read` gives them.
        network: its name in `models.NETWORKS`; by default what NETWORK says.
    """

    def __init__(self, settings: SimpleNamespace, dataset: data.Dataset, network: str | None = None):
        self.settings, self.dataset = SimpleNamespace(**vars(settings)), dataset
        self.network = self.settings.network = network or settings.network
        self.shared = conditions(settings, dataset, self.network)
        check_network(self.settings, self.shared["network"], dataset)
        canvas.formats = list(settings.formats)
        self.failures: list[str] = []
        self.others: dict[str, Callable] = {}  # runs that other processes were training: name -> what makes it here

    def take_place(self, shared: dict) -> None:
        """Where the table goes: OUTPUT_DIR, or a folder in it where OUTPUT_DIR has one that was made otherwise.

        shared: what the rows of the table have in common.
        """
        place, note = distributed.by_first(lambda: place_of(self.settings, shared))
        if note:
            print(note)
        self.settings.base_dir, self.settings.output_dir = self.settings.output_dir, place
        self.folder = place / self.settings.script
        distributed.by_first(lambda: self.folder.mkdir(parents=True, exist_ok=True))

    def shared_out(self, runs: list) -> Iterator:
        """The runs of a plan; with JOBS, other processes have been through it before."""
        print(headline(self.settings, self.shared["network"]))
        workers.go_through(self.settings)
        begun = time.monotonic()
        for number, run in enumerate(runs):
            if number:
                left = (time.monotonic() - begun) / number * (len(runs) - number)
                about = f", about {timedelta(seconds=round(left))} left" if left >= 60 else ""
                print(f"run {number + 1} of {len(runs)}{about}")
            yield run

    def attempt(self, name: str, make: Callable[[], dict], again: Callable[[], None]) -> dict | None:
        """What `make` gives; None where it fails, or another process is at it. `again` tries once more."""
        try:
            return make()
        except Busy:
            self.others[name] = again
            print(f"{name}: another process is training it")
        except RunFailed as error:
            self.failures.append(f"{name}: {error}")
            print(f"error: {self.failures[-1]}", file=sys.stderr)
        return None

    def finish(self) -> None:
        """Comes back to the runs that other processes were training, should one of these have ended before its run."""
        others, self.others = self.others, {}
        for again in others.values():
            again()

    @contextmanager
    def table_lock(self) -> Iterator[None]:
        """Held while a table is read and written; what a process that was killed left half-written goes."""
        with FileLock(self.settings.run_dir / f".{self.settings.script}-{self.settings.study}.lock"):
            for left in self.folder.glob(f".{self.settings.study}*{UNFINISHED}"):
                left.unlink(missing_ok=True)
            yield

    def write_origin(self, table: Path, shared: dict) -> None:
        """Beside a table, a .json: the command that made it, the versions, and what its rows have in common."""
        made = {
            "command": shlex.join([f"{self.settings.script}.py", *sys.argv[1:]]),
            "versions": {
                "python": platform.python_version(),
                "torch": torch.__version__,
                "torchvision": version("torchvision"),
            },
            "settings": shared,
        }
        write_text(table.with_suffix(".json"), json.dumps(made, indent=1) + "\n")

    def write_rows(self, table: Path, columns: list[str], rows: list[dict], shared: dict) -> None:
        """A table and its .json. A table without one could not be extended; nor must rows of earlier conditions stand
        beside new ones: so a new table comes after its .json, and the .json of a table that is there after it."""
        if not table.exists():
            self.write_origin(table, shared)
        write_csv(table, columns, rows)
        self.write_origin(table, shared)

    def exit_status(self, results: list) -> int:
        """2 where runs failed. Below the results of the others they are listed again."""
        if workers.is_worker():  # the process that started it goes through the plan once more
            return 2 if self.failures else 0
        if self.others:
            print(f"left to the processes that train them: {', '.join(self.others)}")
        for failure in self.failures if results else ():
            print(f"error: not finished: {failure}", file=sys.stderr)
        return 2 if self.failures else 0
