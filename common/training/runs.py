"""Folders of runs: what was trained is kept, and what was interrupted goes on."""

import hashlib
import json
import os
import sys
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path

from filelock import FileLock, Timeout

from common.errors import Damaged, RunFailed, UserError
from common.files import FORMAT, load, remove_unfinished, write_csv, write_tensors, write_text
from common.machine import distributed

LAST, BEFORE = "checkpoint.pt", "checkpoint-before.pt"


class Busy(RunFailed):
    """Another process trains the same run."""


class Run:
    """The folder of one run, named after its constants; of several processes, only the first reads and writes it.

    config.json says what is trained, log.csv has a row for each finished epoch, checkpoint.pt is the last state kept,
    checkpoint-before.pt the one before, and final.pt, which only a finished run has, holds weights and measurements.
    """

    def __init__(self, parent: Path, label: str, config: dict):
        self.config = {"format": FORMAT, **config}
        text = json.dumps(self.apart(self.config), indent=1, sort_keys=True)
        self.label = label
        self.folder = parent / f"{label.replace(' ', '-')}-{hashlib.sha256(text.encode()).hexdigest()[:10]}"

    @staticmethod
    def apart(config: dict) -> dict:
        """What tells runs apart: all but where the images lie, whose fingerprint decides."""
        return {name: value for name, value in config.items() if name != "dataset"}

    def agree(self) -> None:
        """Raises UserError where the processes want different runs."""
        text = json.dumps(self.config, sort_keys=True)
        if distributed.differing(distributed.digest(text.encode())):
            raise UserError(f"{self.label}: the processes were started with different constants or images")

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
        self.folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.folder / "lock")  # the system's own: it ends with the process, however that ends
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise Busy(f"another process is training {self.folder}; wait for it or move RUN_DIR") from None
        except (OSError, NotImplementedError) as error:  # some network file systems
            raise RunFailed(f"{self.folder} cannot be locked ({error}); move RUN_DIR to a local disk") from None
        stack.callback(lock.release)
        for name in ("config.json", "checkpoint.pt", "final.pt", "log.csv"):  # which nobody writes without the lock
            remove_unfinished(self.folder / name)
        write_text(self.folder / "config.json", json.dumps(self.config, indent=1, sort_keys=True) + "\n")

    def final(self) -> dict | None:
        return self.read("final.pt")

    def finished(self) -> dict | None:
        """What final.pt holds, where it is there and whole, for this process alone."""
        try:
            state = load(self.folder / "final.pt") if (self.folder / "final.pt").exists() else None
        except RunFailed:
            return None
        return None if state is None or self.other_constants(state) else state

    def checkpoint(self) -> dict | None:
        """The last state kept; where that is damaged or missing, the one before."""
        try:
            state = self.read(LAST)
        except Damaged as error:
            state = self.read(BEFORE)
            if state is None:
                raise
            print(f"{error}; its run goes on from the checkpoint before", file=sys.stderr)
        return state or self.read(BEFORE)

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
        return self.differing(state.get("config", self.config), self.config)  # earlier checkpoints do not say

    @classmethod
    def differing(cls, theirs: dict, ours: dict) -> str:
        """The names of what two configurations, one of which may have been JSON, say of two runs."""
        dumped, theirs, ours = partial(json.dumps, sort_keys=True), cls.apart(theirs), cls.apart(ours)
        names = sorted(theirs.keys() | ours.keys())
        return ", ".join(n for n in names if dumped(theirs.get(n)) != dumped(ours.get(n)))

    def save_checkpoint(self, state: dict) -> None:
        distributed.by_first(lambda: self.keep(state))

    def keep(self, state: dict) -> None:
        """The checkpoint before stays until the next is whole."""
        if (self.folder / LAST).exists():
            os.replace(self.folder / LAST, self.folder / BEFORE)
        write_tensors(self.folder / LAST, state)

    def save_final(self, state: dict) -> None:
        distributed.by_first(lambda: self.finish(state))

    def finish(self, state: dict) -> None:
        write_tensors(self.folder / "final.pt", state)
        self.tidy()

    def tidy(self) -> None:
        """A finished run needs no checkpoint: one that is older than final.pt goes. (A newer one is of a training that
        AGAIN has begun.)"""
        ended = (self.folder / "final.pt").stat().st_mtime_ns
        for path in (self.folder / LAST, self.folder / BEFORE):
            with suppress(FileNotFoundError):
                if path.stat().st_mtime_ns <= ended:
                    path.unlink()

    def save_log(self, rows: list[dict]) -> None:
        if rows:
            distributed.by_first(lambda: write_csv(self.folder / "log.csv", list(rows[-1]), rows))
