"""Commands as forked children, which need not import anything."""

import ctypes
import importlib
import os
import signal
import socket
import sys
import time
import traceback
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import matplotlib.font_manager  # noqa: F401  (as all that is not used here: what a training would import)
import torch
import torch._dynamo  # noqa: F401
import torch_pruning  # noqa: F401
import torchvision.transforms.v2  # noqa: F401
from matplotlib.figure import Figure

from common.machine import process, workers
from common.pruning import ds_pruning, scores, shapes, sparse  # noqa: F401
from common.studies import accumulation, imagenet, sparsity, sweeps  # noqa: F401
from tests.faults.cases import Case, Moments
from tests.faults.left import save_data

ROOT = Path(__file__).parents[2]
HANGS = 120  # seconds after which a command is taken to wait for ever


class Worker:
    """What `subprocess.Popen` is to workers: a forked child, which need not import anything."""

    def __init__(self, command: list[str], env: dict):
        self.child = os.fork()
        self.returncode = None
        if not self.child:
            os.environ.update(env)
            act(Path(command[1]).stem, command[2:])

    def poll(self, wait: int = os.WNOHANG):
        if self.returncode is None:
            done, status = os.waitpid(self.child, wait)
            self.returncode = os.waitstatus_to_exitcode(status) if done else None
        return self.returncode

    def wait(self):
        return self.poll(0)

    def send_signal(self, number: int) -> None:
        os.kill(self.child, number)


SIGNALS = {signal.SIGTERM, signal.SIGINT}


def act(script: str, words: list[str]) -> None:
    """The script's command, in this process, which ends. Signals are held back while no script would note them."""
    status = 1
    try:
        sys.argv = [f"{script}.py", *words]
        main = importlib.import_module(script).main

        def noting() -> int:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
            try:
                return main()
            finally:
                signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)

        status = process.run(noting)
    except BaseException:
        traceback.print_exc()
    finally:
        with suppress(OSError):
            sys.stdout.flush()
        os._exit(status)


def begin(case: Case, flags: str, place: Path, log: str, moments: Moments, rank: int, port: int) -> int:
    """Forks a child that runs the command in `place`; what it prints goes to a file named `log`. Returns its number."""
    child = os.fork()
    if child:
        return child
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    os.setpgid(0, 0)
    os.chdir(place)
    to = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(to, 1), os.dup2(to, 2)
    if case.ranks > 1:
        own = {"WORLD_SIZE": case.ranks, "RANK": rank, "LOCAL_RANK": rank, "MASTER_PORT": port}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", **{name: str(value) for name, value in own.items()}}
    moments.watch()
    if log == "untouched-0.log":
        inner = os._exit
        os._exit = lambda status: (Path("moments").write_text(repr(dict(moments.passed))), inner(status))
    act(case.script, flags.split())
    raise AssertionError


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def begin_all(case: Case, flags: str, place: Path, name: str, spoiled: int = -1, moments: Moments | None = None):
    """All processes of a case; `moments` is for number `spoiled`."""
    port = free_port() if case.ranks > 1 else 0
    own = [moments if number == spoiled else None for number in range(max(case.processes, case.ranks))]
    return [begin(case, flags, place, f"{name}-{n}.log", m or Moments(), n, port) for n, m in enumerate(own)]


def ends(children: list[int], stopped: int = 0) -> list[int]:
    """Waits until they and all that they started have ended; their exit statuses, minus the number of the signal that
    ended one. One that does not end is killed, and so is the one that was stopped, when it is the last."""
    found, begun = {}, time.monotonic()
    while True:
        try:
            done, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return [found[child] for child in children]
        if done:
            found[done] = os.waitstatus_to_exitcode(status)
            continue
        late = time.monotonic() - begun > HANGS
        for child in set(children) - set(found):
            if late or (child == stopped and len(found) == len(children) - 1):
                os.killpg(child, signal.SIGKILL)
                found[child] = HANGS if late else -signal.SIGKILL
        time.sleep(0.005)


def prepare() -> None:
    """Makes this process one that can be forked: nothing is computed in it, and nothing is imported in its children."""
    torch.set_num_threads(1)
    ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER: what a killed child started is waited for, too
    process.keep_freed_memory = lambda: None
    workers.subprocess = SimpleNamespace(Popen=Worker)
    sparsity.inference_speedup = lambda *_: 1.5
    Figure.savefig = save_data
    sys.path.insert(0, str(ROOT))
