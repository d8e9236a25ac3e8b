"""What all studies are: a plan of runs, and what follows from those that are finished."""

import json
import platform
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import torch
from filelock import FileLock, Timeout

from common import data, models, names, units
from common.errors import RunFailed, UserError, told
from common.files import UNFINISHED, read_csv, write_csv, write_text
from common.machine import distributed, workers
from common.reports import canvas
from common.settings import identity
from common.studies.extending import away, before_it, changed_methods, place_of, rows_of, rows_to_extend
from common.tracing import find_groups
from common.training import code
from common.training.callbacks import DeadAtEnd
from common.training.fit import finished, fit
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
        found["code"] = code.digest_of_module(models.NETWORKS[network], network.partition(":")[0])
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
        model, example = models.build(network).to(memory_format=torch.channels_last), dataset.example.cpu()
        units.UnitWatch(model, example).close()
        with torch.no_grad():
            shape = tuple(model.eval()(example).shape)
        if settings.study in names.MEASURES:
            find_groups(model, example)
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


class Study:
    """A plan of runs. Each is made by the first process that comes to it, and the tables follow from all that are
    finished, whoever made them: so several processes that share RUN_DIR share the work. They are written anew after
    every run: an interrupted study leaves what it has, and EXTEND goes on from there, on another machine as well.

    A run that fails is told at once and again at the end; the others go on.

    A study says what its `columns` are, and has `key` (of a row: what tells its run from others; the run itself unless
    `key_of` says otherwise), `make` (a run), `run_of` (its folder), `adds` (its rows), `order` (of rows) and `present`.

    Args:
        settings: as `settings.read` gives them.
        network: its name in `models.NETWORKS`; by default what NETWORK says.
    """

    columns: list[str]
    later: Sequence[str] = ("code",)  # columns that tables of earlier versions lack
    endings: Sequence[str] = ("",)  # of the names of its tables
    PATIENCE = 10  # seconds that another process may write the tables before a line says what is waited for

    def __init__(self, settings: SimpleNamespace, dataset: data.Dataset, network: str | None = None):
        self.settings, self.dataset = SimpleNamespace(**vars(settings)), dataset
        self.network = self.settings.network = network or settings.network
        self.shared = conditions(settings, dataset, self.network)
        check_network(self.settings, self.shared["network"], dataset)
        canvas.formats = list(settings.formats)
        self.failures: list[str] = []
        self.others: dict[str, Callable] = {}  # runs that other processes were training: name -> what makes it here
        self.made: dict = {}  # what finished runs add to the tables, by their keys

    def begin(self, runs: list) -> None:
        """The plan, and where the tables go: OUTPUT_DIR, or a folder in it where OUTPUT_DIR has one that was made
        otherwise."""
        self.runs = runs
        self.settings.base_dir = self.settings.output_dir
        self.go_to(*distributed.by_first(lambda: place_of(self.settings, self.conditions())))
        self.kept = distributed.by_first(self.rows_there)
        self.before = distributed.by_first(lambda: {*map(self.key, self.rows_before(self.conditions())[""])})

    def rows_there(self) -> dict:
        """What a table that is there has of runs that this command makes: key -> its rows in each table. They stay
        until those runs are finished (again). Without EXTEND, the others are `set_aside` before it is written."""
        self.aside: Callable[[], str] | None = None
        if not self.table.exists() or getattr(self.settings, "extend", False):
            return {}
        made, mine = self.conditions(), {*map(self.key_of, self.runs)}
        try:
            changed = changed_methods(self.table, made)
            rows = rows_of(self.table, self.columns, self.order, self.later)
            more = {end: self.rows_beside(end) for end in self.endings[1:]}
        except (UserError, OSError, ValueError) as error:
            self.aside = partial(away, self.table, error)
            return {}
        stay = [row for row in rows if self.key(row) in mine and row.get("method") not in changed]
        if others := [row for row in rows if row not in stay]:
            self.aside = partial(before_it, self.table, self.columns, others)
        found: dict = {self.key(row): tuple([] for _ in self.endings) for row in stay}
        for number, own in enumerate([stay, *more.values()]):
            for row in own:
                if self.key(row) in found:
                    found[self.key(row)][number].append(row)
        return found

    def set_aside(self) -> None:
        """What the table has that will not be in it any more, once; looked up again, as another process may have set it
        aside and written the table since."""
        if self.aside:
            self.rows_there()
        if self.aside:
            print(self.aside())
        self.aside = None

    def rows_beside(self, ending: str) -> list[dict]:
        """Those of a table beside the main one; none where there is none. Raises OSError, ValueError."""
        return read_csv(self.paths[ending]) if self.paths[ending].exists() else []

    def go_to(self, place: Path, note: str) -> None:
        if note and place != self.settings.output_dir:
            print(note)
        self.settings.output_dir, self.folder = place, place / self.settings.script
        self.paths = {ending: self.folder / f"{self.settings.study}{ending}.csv" for ending in self.endings}
        self.table = self.paths[""]

    def conditions(self, **own) -> dict:
        """All that the rows of the table have in common, as JSON gives it back."""
        return json.loads(json.dumps({**self.shared, **own}))

    def rows_before(self, made: dict) -> dict[str, list[dict]]:
        """Ending -> the rows that its table has (EXTEND). made: `conditions`, completed by those of the table."""
        if not getattr(self.settings, "extend", False):
            return {ending: [] for ending in self.endings}
        found = {"": rows_to_extend(self.table, made, self.columns, self.order, self.later)}
        known = {self.key(row) for row in found[""]}
        try:
            beside = {ending: self.rows_beside(ending) for ending in self.endings[1:]}
        except (OSError, ValueError) as error:
            raise UserError(f"EXTEND: {error}; use --no-extend") from None
        return found | {ending: [row for row in rows if self.key(row) in known] for ending, rows in beside.items()}

    def plan(self) -> Iterator:
        """The runs, one after another; with JOBS, other processes have been through them before."""
        print(headline(self.settings, self.shared["network"]))
        workers.go_through(self.settings)
        begun = time.monotonic()
        for number, run in enumerate(self.runs):
            if number:
                left = (time.monotonic() - begun) / number * (len(self.runs) - number)
                about = f", about {timedelta(seconds=round(left))} left" if left >= 60 else ""
                print(f"run {number + 1} of {len(self.runs)}{about}")
            yield run

    def train(self, run, changes: Sequence[Callback] = ()) -> None:
        """changes: what is done to the gradients, in their order. A run that the table has is passed over."""
        key, name = self.key_of(run), self.name_of(run)
        if key in self.before:
            return
        try:
            final = self.make(run, changes)
        except Busy:
            self.others[name] = lambda: self.train(run, changes)
            print(f"{name}: another process is training it")
        except RunFailed as error:
            self.failures.append(f"{name}: {error}")
            print(f"error: {self.failures[-1]}", file=sys.stderr)
        else:
            distributed.by_first(lambda: self.collect(run, final))

    def key_of(self, run):
        return run

    def name_of(self, run) -> str:
        return str(run)

    def collect(self, run=None, final: dict | None = None) -> bool:
        """The tables: the rows that they have (EXTEND), those of all finished runs of the plan, and of its other runs,
        those that were there before. Returns whether there are any.

        run, final: one that was just made or read.
        """
        with self.table_lock():
            if final:
                self.made[self.key_of(run)] = self.adds(run, final, self.run_of(run).folder)
            made = self.conditions()
            tables = self.rows_before(made)
            known = {self.key(row) for row in tables[""]}
            for run in self.runs:
                if self.key_of(run) not in known:
                    rows_of_run = self.rows_of(run) or self.kept.get(self.key_of(run), ())
                    for ending, rows in zip(self.endings, rows_of_run, strict=False):
                        tables[ending] += map(dict, rows)
            for rows in tables.values():
                rows.sort(key=self.order)
            if tables[""]:
                self.set_aside()
                self.write(tables, made)
        return bool(tables[""])

    def rows_of(self, run) -> Sequence[list[dict]]:
        """What a finished run adds to each table; () of any other."""
        key, place = self.key_of(run), self.run_of(run)
        if key not in self.made:
            final = finished(place)
            if final is None:
                return ()
            self.made[key] = self.adds(run, final, place.folder)
        return self.made[key]

    def write(self, tables: dict[str, list[dict]], made: dict) -> None:
        """The main table last: a run is in it when all that it left is written. A table without a .json could not be
        extended; nor must rows of earlier conditions stand beside new ones: so a new table comes after its .json, and
        the .json of a table that is there after it."""
        for ending in self.endings[1:]:
            if tables[ending]:
                write_csv(self.paths[ending], list(tables[ending][0]), tables[ending])
            else:
                self.paths[ending].unlink(missing_ok=True)
        if not self.table.exists():
            self.write_origin(made)
        write_csv(self.table, self.columns, tables[""])
        self.write_origin(made)

    def write_origin(self, made: dict) -> None:
        """Beside the table, a .json: the command that made it, the versions, and what its rows have in common."""
        versions = {"python": platform.python_version(), "torch": torch.__version__}
        origin = {
            "command": shlex.join([f"{self.settings.script}.py", *sys.argv[1:]]),
            "versions": {**versions, "torchvision": version("torchvision")},
            "settings": made,
        }
        write_text(self.table.with_suffix(".json"), json.dumps(origin, indent=1) + "\n")

    @contextmanager
    def table_lock(self) -> Iterator[None]:
        """Held while a table is read and written, by one process. What one that was killed left half-written goes; and
        where another command has put its table in this place since, that stays, and this one goes elsewhere."""
        lock = FileLock(self.settings.run_dir / f".{self.settings.script}-{self.settings.study}.lock")
        try:
            lock.acquire(timeout=self.PATIENCE)
        except Timeout:
            print(f"waiting for another process, which writes the tables (it holds {lock.lock_file})")
            lock.acquire()
        try:
            self.go_to(*place_of(self.settings, self.conditions()))
            self.folder.mkdir(parents=True, exist_ok=True)
            for left in self.folder.glob(f".{self.settings.study}*{UNFINISHED}"):
                left.unlink(missing_ok=True)
            yield
        finally:
            lock.release()

    def finish(self) -> None:
        """Comes back to the runs that other processes were training, should one of these have ended before its run."""
        others, self.others = self.others, {}
        for again in others.values():
            again()

    def save(self) -> int:
        """The tables and what follows from them, drawn and printed. Returns the exit status: 2 where runs failed; below
        the results of the others they are listed again."""
        self.finish()
        rows = distributed.by_first(self.collect)
        if not workers.is_worker():  # else the process that started it goes through the plan once more
            if rows:
                distributed.by_first(self.present_locked)
            if self.others:
                print(f"left to the processes that train them: {', '.join(self.others)}")
            for failure in self.failures if rows else ():
                print(f"error: not finished: {failure}", file=sys.stderr)
        return 2 if self.failures else 0

    def present_locked(self) -> None:
        with self.table_lock():
            self.present()
