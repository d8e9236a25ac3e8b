"""Commands in processes of their own: several at a time, with a deadline, and none left behind."""

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

PATIENCE = 30.0  # seconds that a command has to save what it has, when it is told to stop
GLANCE = 0.2  # seconds between two looks at what runs


@dataclass(frozen=True)
class Command:
    """What is run, the file that its output goes to, and how many threads it may use (0: as many as it likes)."""

    words: tuple[str, ...]
    log: Path
    threads: int = 0


class Failed(Exception):
    """A command ended with another status than 0; its last line says why."""


class OutOfTime(Exception):
    """The deadline came first; what ran was told to stop, and has."""


def begin(command: Command) -> subprocess.Popen:
    command.log.parent.mkdir(parents=True, exist_ok=True)
    alone = {"creationflags": getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0)} if os.name == "nt" else {}
    environment = {**os.environ, **({"OMP_NUM_THREADS": str(command.threads)} if command.threads else {})}
    with open(command.log, "w", encoding="utf-8") as log:
        return subprocess.Popen(command.words, stdout=log, stderr=log, env=environment, **alone)


def stop(started: list[subprocess.Popen]) -> None:
    """Ends processes and all that they started: as Ctrl-C does, and after PATIENCE seconds without asking."""
    trees = []
    for process in started:
        with suppress(psutil.NoSuchProcess):
            whole = psutil.Process(process.pid)
            trees += [whole, *whole.children(recursive=True)]
    for process in trees:
        with suppress(psutil.NoSuchProcess, OSError):
            process.send_signal(signal.CTRL_BREAK_EVENT if os.name == "nt" else signal.SIGINT)
    _, left = psutil.wait_procs(trees, PATIENCE)
    for process in left:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(left, 5)
    for process in started:
        process.wait()


@contextmanager
def stopped_at_the_end(started: list[subprocess.Popen]) -> Iterator[None]:
    try:
        yield
    finally:
        stop([process for process in started if process.poll() is None])


def last_line(log: Path) -> str:
    lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return lines[-1].strip() if lines else "no word"


def run_all(commands: list[Command], at_a_time: int, deadline: float) -> Iterator[Command]:
    """Runs commands in their order, `at_a_time` of them together; yields each that has ended well, as it ends.

    Args:
        deadline: when all is stopped, by `time.monotonic()`.

    Raises:
        Failed: at the end, when all others have run.
        OutOfTime: what has not ended by then has been stopped.
    """
    waiting, running, failures = list(commands), [], []
    started: list[subprocess.Popen] = []
    with stopped_at_the_end(started):
        while waiting or running:
            if time.monotonic() > deadline:
                raise OutOfTime
            while waiting and len(running) < at_a_time:
                command = waiting.pop(0)
                started.append(begin(command))
                running.append((command, started[-1]))
            for command, process in [pair for pair in running if pair[1].poll() is not None]:
                running.remove((command, process))
                if process.returncode:
                    failures.append(f"{command.log}: {last_line(command.log)}")
                else:
                    yield command
            time.sleep(GLANCE)
    if failures:
        raise Failed("; ".join(failures))
