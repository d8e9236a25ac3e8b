"""Several processes on this machine that go through one study: JOBS of them."""

import os
import signal
import subprocess
import sys
from types import SimpleNamespace

import torch

from common.errors import UserError
from common.machine import environment

WORKER = "DS_PRUNING_WORKER"  # in the environment of one: its number


def is_worker() -> bool:
    """Whether this process was started by another one that makes the figures."""
    return WORKER in os.environ


def without_jobs(words: list[str]) -> list[str]:
    """The command line without --jobs and --device, and their values."""
    kept, skip = [], False
    for word in words:
        if not skip and word.split("=")[0] not in ("--jobs", "--device"):
            kept.append(word)
        skip = word in ("--jobs", "--device")
    return kept


def device_of(device: torch.device, number: int) -> str:
    """Of several accelerators each worker gets one, in turn."""
    if device.type == "cpu" or device.index is not None or torch.accelerator.device_count() == 1:
        return str(device)
    return f"{device.type}:{number % torch.accelerator.device_count()}"


def go_through(settings: SimpleNamespace) -> None:
    """Starts JOBS processes with this one's command line, which take the runs that nobody has taken, and waits until
    all have ended. What one of them did not finish is left to this process."""
    if settings.jobs == 1 or is_worker():
        return
    if environment.ranks() > 1:
        raise UserError("JOBS: takes 1 under torchrun, which starts its processes itself")
    threads = max(1, (os.cpu_count() or 1) // settings.jobs)
    started = []
    for number in range(settings.jobs):
        words = [*without_jobs(sys.argv[1:]), "--device", device_of(settings.device, number)]
        own = {WORKER: str(number), "OMP_NUM_THREADS": str(threads)}
        started.append(subprocess.Popen([sys.executable, sys.argv[0], *words], env={**os.environ, **own}))
    try:
        for process in started:
            process.wait()
    except KeyboardInterrupt:
        for process in started:  # on a terminal they have had it, too
            if process.poll() is None:
                process.send_signal(signal.SIGINT)
        for process in started:
            process.wait()
        raise
