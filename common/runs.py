"""Folders of runs: what was trained is kept, what was interrupted goes on, and no file is ever half written."""

import csv
import hashlib
import json
import os
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from uuid import uuid4

import torch
from filelock import FileLock, Timeout

from common import distributed
from common.errors import RunFailed, UserError

UNFINISHED = ".new"  # ending of a file that is being written
FORMAT = 1  # raised when the same constants come to mean another training


def write(path: Path, save) -> None:
    """Calls `save` with a binary file and puts it in the place of `path` at once, when it is wholly on the disk.

    Several processes may write the same path: the last one's stays.

    Raises:
        UserError: when it cannot be written (a full disk, say); what `path` held before is still there.
    """
    temporary = path.with_name(f".{path.name}.{uuid4().hex[:8]}{UNFINISHED}")
    try:
        with open(temporary, "wb") as file:
            save(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:  # torch.save wraps a full disk in a RuntimeError
        temporary.unlink(missing_ok=True)
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise UserError(f"could not write {path} ({reason}); make room and run the same command again") from None


def write_text(path: Path, text: str) -> None:
    write(path, lambda file: file.write(text.encode()))


def write_csv(path: Path, columns: list[str], rows: list[dict]) -> None:
    """Rows as CSV; a missing value is an empty field."""

    class Lines(list):
        def write(self, line: str):
            self.append(line)

    lines = Lines()
    writer = csv.DictWriter(lines, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, "".join(lines))


def read_csv(path: Path) -> list[dict]:
    """The rows of a CSV file, numbers as numbers and empty fields as None."""

    def value(text: str):
        for kind in (int, float):
            try:
                return kind(text)
            except ValueError:
                pass
        return text or None

    with open(path, newline="", encoding="utf-8") as file:
        return [{name: value(text) for name, text in row.items()} for row in csv.DictReader(file)]


def load(path: Path) -> dict:
    """A file that `torch.save` wrote, as tensors and plain values only.

    Raises:
        RunFailed: when it cannot be read, is damaged or not ours.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise RunFailed(f"could not read {path} ({error.strerror})") from None
    except Exception as error:  # a truncated or foreign file fails in many ways
        reason = str(error).split("\n")[0].split(". ")[0]
        raise RunFailed(f"{path} is damaged or not ours ({reason}); delete it to begin that run again") from None


class Busy(RunFailed):
    """Another process trains the same run."""


class Run:
    """The folder of one run, named after its constants; of several processes, only the first reads and writes it.

    config.json says what is trained, log.csv has a row for each finished epoch, checkpoint.pt is the last state kept,
    and final.pt, which only a finished run has, holds weights and measurements.

    Raises:
        UserError: when the folder cannot be made, or the processes want different runs.
    """

    def __init__(self, parent: Path, label: str, config: dict):
        self.config = {"format": FORMAT, **config}
        text = json.dumps(self.config, indent=1, sort_keys=True)
        self.label = label
        self.folder = parent / f"{label.replace(' ', '-')}-{hashlib.sha256(text.encode()).hexdigest()[:10]}"
        if distributed.differing(distributed.digest(text.encode())):
            raise UserError(f"{label}: the processes were started with different constants or images")
        distributed.by_first(lambda: self.make_folder(text))

    def make_folder(self, text: str) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        write_text(self.folder / "config.json", text + "\n")

    @contextmanager
    def locked(self):
        """Keeps a second command from training the same run.

        Raises:
            Busy: when another one is doing it.
        """
        with ExitStack() as stack:
            distributed.by_first(lambda: self.lock(stack))
            yield

    def lock(self, stack: ExitStack) -> None:
        lock = FileLock(self.folder / "lock")  # the system's own: it ends with the process, however that ends
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise Busy(f"another process is training {self.folder}; wait for it or move RUN_DIR") from None
        except (OSError, NotImplementedError) as error:  # some network file systems
            raise RunFailed(f"{self.folder} cannot be locked ({error}); move RUN_DIR to a local disk") from None
        stack.callback(lock.release)
        for name in ("checkpoint.pt", "final.pt", "log.csv"):  # which nobody writes without the lock
            for left in self.folder.glob(f".{name}.*{UNFINISHED}"):  # by a process that was killed
                left.unlink(missing_ok=True)

    def final(self) -> dict | None:
        return self.read("final.pt")

    def checkpoint(self) -> dict | None:
        return self.read("checkpoint.pt")

    def read(self, name: str) -> dict | None:
        """A file of this folder, where it has it.

        Raises:
            RunFailed: when it is damaged, or of a run with other constants.
        """
        path = self.folder / name
        state = distributed.by_first(lambda: load(path) if path.exists() else None)
        if state is not None and (different := self.other_constants(state)):
            raise RunFailed(f"{path} is of another configuration ({different}); delete it or move RUN_DIR")
        return state

    def other_constants(self, state: dict) -> str:
        """The names of the constants that a file's run had otherwise."""
        dumped = partial(json.dumps, sort_keys=True)
        theirs = state.get("config", self.config)  # checkpoints of earlier versions do not say
        names = sorted(theirs.keys() | self.config.keys())
        return ", ".join(n for n in names if dumped(theirs.get(n)) != dumped(self.config.get(n)))

    def save_checkpoint(self, state: dict) -> None:
        distributed.by_first(lambda: write(self.folder / "checkpoint.pt", lambda file: torch.save(state, file)))

    def save_final(self, state: dict) -> None:
        distributed.by_first(lambda: self.finish(state))

    def finish(self, state: dict) -> None:
        write(self.folder / "final.pt", lambda file: torch.save(state, file))
        (self.folder / "checkpoint.pt").unlink(missing_ok=True)

    def save_log(self, rows: list[dict]) -> None:
        if rows:
            distributed.by_first(lambda: write_csv(self.folder / "log.csv", list(rows[-1]), rows))
