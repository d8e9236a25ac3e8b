"""What is lost when a process is killed or stopped, or cannot write? A try is a command with a fault, and then the same
command untouched: it has to leave what a command leaves that nobody touched, bit for bit, but for measured times.

    python -m tests.faults                    a few tries of each fault in each case
    python -m tests.faults --full             many, and their rows in docs/faults.md
    python -m tests.faults --only "a sweep" "killed in a write" --seed 7 --tries 1     one again, as a lost one says

Commands run in forked children, which need not import anything, on a few small images. Linux only.
"""

import argparse
import ctypes
import errno
import importlib
import os
import random
import shutil
import signal
import socket
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import matplotlib.font_manager  # noqa: F401  (as all that is not used here: what a training would import)
import torch
import torch._dynamo  # noqa: F401
import torch_pruning  # noqa: F401
import torchvision.transforms.v2  # noqa: F401
from matplotlib.figure import Figure
from PIL import Image

from common import files
from common.groups import Groups
from common.machine import process, workers
from common.pruning import ds_pruning, scores, shapes, sparse  # noqa: F401
from common.studies import accumulation, imagenet, sparsity, sweeps  # noqa: F401

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "faults.md"
SMALL = (
    "--dataset images --protocol quick --image-size 16 --width 4 --batch-size 12 --precision fp32 --device cpu "
    "--workers 1 --output-dir out --run-dir runs"
)
PRUNING = f"{SMALL} --study neuron-sparsity --sparsities 0.6"
STUDY = f"{PRUNING} --methods dense random ds-pruning --epochs 2"
RATES = f"{SMALL} --study learning-rate --regularization 0 --epochs 2 --learning-rates"
RANKS = (
    "--data-dir images --no-pretrained --image-size 16 --width 4 --epochs 1 --batch-size 4 --workers 0 --device cpu "
    "--precision fp32 --checkpoint-steps 2 --sparsities 0.8 --silence 4 --output-dir out --run-dir runs"
)
INTRODUCTION = """# Faults

A command is killed or stopped, or cannot write. The same command again has to leave what a command leaves that nobody
touched: tables, weights and figures' data, but for measured times. Lost: a try in which it did not, or in which a
process hung, gave a traceback or another exit status than it should, or did not say in a line how to go on.

`python -m tests.faults --full` makes this table; with `--tries 2`, what does not kill is tried once. Killed is
SIGKILL to one process at a random moment; in a write: half written, or just before or after a file takes its place or
is deleted.
"""
MEASURED = ("seconds", "training_speedup", "inference_speedup")  # another number each time
HANGS = 120  # seconds after which a command is taken to wait for ever


class Case(NamedTuple):
    """script and flags: the command. first: flags of one that was finished before, whose runs are gone. processes: that
    are started with it together; ranks: of one training."""

    script: str
    flags: str
    first: str = ""
    processes: int = 1
    ranks: int = 1


CASES = {
    "a training": Case("SGD", f"{SMALL} --epochs 4 --learning-rates 0.05"),
    "DS-Pruning": Case("Resnet18", f"{PRUNING} --methods ds-pruning --epochs 4"),
    "RigL": Case("Resnet18", f"{SMALL} --study weight-sparsity --sparsities 0.8 --methods rigl --epochs 3"),
    "a sweep": Case("Resnet18", f"{RATES} 0.05 0.1"),
    "a study": Case("Resnet18", STUDY),
    "a sweep with --extend": Case("Resnet18", f"{RATES} 0.05 0.1 --extend", f"{RATES} 0.05"),
    "a study with --extend": Case(
        "Resnet18", f"{STUDY} --extend", STUDY.replace("dense random ds-pruning", "dense magnitude")
    ),
    "a study with --jobs 2": Case("Resnet18", f"{STUDY} --jobs 2"),
    "a study by five processes": Case("Resnet18", STUDY, processes=5),
    "two ranks": Case("Imagenet", f"{RANKS} --methods ds-pruning", ranks=2),
}


# Faults ----------------------------------------------------------------------------------------------------------


class Moments:
    """Counts the moments of a command at which a fault may come: in the midst of a write, before and after a file takes
    its place or is deleted, before and after a cut. At the chosen one `fault` is called, with `lasts` at all later ones
    too.

    kind: of the moments; at: which one.
    """

    def __init__(self, kind: str = "", at: int = 0, fault=None, lasts: bool = False):
        self.kind, self.at, self.fault, self.lasts, self.passed = kind, at, fault, lasts, Counter()

    def come(self, kind: str) -> None:
        self.passed[kind] += 1
        number = self.passed[kind]
        if kind == self.kind and (number == self.at or self.lasts and number > self.at):
            self.fault()

    def watch(self) -> None:
        """From now on, in this process."""
        moments, honest = self, files.Noted.write

        def around(owner, name: str, kind: str) -> None:
            inner = getattr(owner, name)

            def watched(*arguments, **options):
                moments.come(kind)
                result = inner(*arguments, **options)
                moments.come(kind)
                return result

            setattr(owner, name, watched)

        def write(self, data) -> int:
            half = len(data) // 2
            done = honest(self, data[:half]) if half else 0
            try:
                moments.come("write")
            except OSError as error:
                self.error = error
                raise
            return done + (honest(self, data[half:]) if done == half else 0)

        files.Noted.write = write
        around(os, "replace", "replace")
        around(Path, "unlink", "delete")
        around(Groups, "cut", "cut")


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def refuse(number: int) -> None:
    raise OSError(number, os.strerror(number))


def delete() -> None:
    for name in ("runs", "out"):
        shutil.rmtree(name, ignore_errors=True)


class Fault(NamedTuple):
    """number: of a signal that is sent at a random time; or moments: their kinds, at one of which `action` is called,
    and where it lasts, at all that follow. says: what an error line has then; ends: the exit status. together: all
    processes get the signal."""

    number: int = 0
    moments: tuple[str, ...] = ()
    action: object = None
    lasts: bool = False
    says: str = ""
    ends: int = -signal.SIGKILL
    together: bool = False


STOPPED = "stopped; the same command goes on from the last checkpoint"
FAULTS = {
    "killed": Fault(signal.SIGKILL),
    "all killed": Fault(signal.SIGKILL, together=True),
    "killed in a write": Fault(0, ("write", "replace", "delete"), kill),
    "killed around a cut": Fault(0, ("cut",), kill),
    "stopped for ever": Fault(signal.SIGSTOP, says="gave no sign of life"),
    "SIGTERM": Fault(signal.SIGTERM, says=STOPPED, ends=143),
    "Ctrl-C": Fault(signal.SIGINT, says=STOPPED, ends=130),
    "disk full": Fault(0, ("write",), partial(refuse, errno.ENOSPC), True, "the disk is full", 2),
    "disk read-only": Fault(0, ("write",), partial(refuse, errno.EROFS), True, "the disk can only be read", 2),
    "folders deleted": Fault(0, ("write",), delete, False, "its folder is gone", 2),
}


def is_tried(name: str, case: Case, fault: str) -> bool:
    if fault == "killed around a cut":
        return name == "DS-Pruning"
    if fault == "stopped for ever":
        return case.ranks > 1
    if fault == "all killed":
        return case.processes > 1 or case.ranks > 1 or "--jobs" in case.flags
    if case.processes > 1 or case.ranks > 1:
        return fault.startswith("killed")
    return not (case.first and fault == "folders deleted")  # the table that is extended would be gone


# Commands --------------------------------------------------------------------------------------------------------


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


# What it left ----------------------------------------------------------------------------------------------------


def plain(value):
    """Nested values with every tensor as its bytes, without what is measured."""
    if isinstance(value, torch.Tensor):
        return str(value.dtype), tuple(value.shape), value.contiguous().view(-1).view(torch.uint8).numpy().tobytes()
    if isinstance(value, dict):
        return {name: plain(inner) for name, inner in value.items() if name not in MEASURED}
    return [plain(inner) for inner in value] if isinstance(value, (list, tuple)) else value


def content(path: Path):
    if path.suffix == ".csv":
        return plain(files.read_csv(path))
    return plain(files.load(path)) if path.suffix == ".pt" else path.read_bytes()


def left(place: Path) -> dict[str, object]:
    """What is in the folders of results and of runs: path -> content, to be compared."""
    found = (path for name in ("out", "runs") for path in (place / name).rglob("*") if path.is_file())
    return {str(path.relative_to(place)): content(path) for path in found if "lock" not in path.name}


def save_data(figure: Figure, file, **_) -> None:
    """In the place of drawing a figure, which takes longer than its runs: what it shows."""
    for axes in figure.axes:
        shown = [axes.get_title(), axes.get_xlabel(), axes.get_ylabel(), *(text.get_text() for text in axes.texts)]
        shown += [line.get_xydata().tolist() for line in axes.lines]
        shown += [[part.get_offsets().tolist(), part.get_array()] for part in axes.collections]
        shown += [patch.get_path().vertices.tolist() for patch in axes.patches]
        shown += [image.get_array().tolist() for image in axes.images]
        file.write(f"{shown}\n".encode())


def make_images(folder: Path) -> None:
    chance = random.Random(0)
    for part, count in (("train", 12), ("val", 4)):
        for name in ("ant", "bee", "cat"):
            (folder / part / name).mkdir(parents=True)
            for number in range(count):
                Image.frombytes("RGB", (20, 20), chance.randbytes(1200)).save(folder / part / name / f"{number}.png")


class Untouched:
    """What a case leaves where nothing happens, and in `template`, what it begins with."""

    def __init__(self, case: Case, folder: Path):
        self.template, place = folder / "template", folder / "untouched"
        self.template.mkdir(parents=True)
        make_images(self.template / "images")
        if case.first:
            self.call(case, case.first, self.template, "first")
            shutil.rmtree(self.template / "runs")
        shutil.copytree(self.template, place)
        begun = time.monotonic()
        self.call(case._replace(processes=1), case.flags, place, "untouched")
        self.seconds = time.monotonic() - begun
        self.left, self.moments = left(place), eval((place / "moments").read_text())

    @staticmethod
    def call(case: Case, flags: str, place: Path, name: str) -> None:
        moments = Moments()
        statuses = ends(begin_all(case, flags, place, name, 0, moments))
        assert not any(statuses), (place / f"{name}-0.log").read_text()


def attempt(case: Case, fault: Fault, untouched: Untouched, place: Path, chance: random.Random) -> list[str]:
    """One try; what went wrong in it."""
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(untouched.template, place)
    spoiled, moments = chance.randrange(max(case.processes, case.ranks)), None
    if fault.moments:
        kind = chance.choice([kind for kind in fault.moments if untouched.moments.get(kind)])
        spoiled = spoiled if case.ranks == 1 else 0  # which alone writes
        moments = Moments(kind, chance.randint(1, untouched.moments[kind]), fault.action, fault.lasts)
    children = begin_all(case, case.flags, place, "touched", spoiled, moments)
    if fault.number:
        time.sleep(chance.uniform(0, untouched.seconds))
        for child in children if fault.together else children[spoiled : spoiled + 1]:
            with suppress(ProcessLookupError):
                os.killpg(child, fault.number) if fault.together else os.kill(child, fault.number)
    statuses = ends(children, children[spoiled] if fault.number == signal.SIGSTOP else 0)
    log = "".join(path.read_text() for path in sorted(place.glob("touched-*.log")))
    wrong = []
    if statuses[spoiled] not in (0, fault.ends):
        wrong.append(f"ended with status {statuses[spoiled]}")
    if HANGS in statuses:
        wrong.append("a process hung")
    if "Traceback" in log:
        wrong.append(f"a traceback: {log[log.index('Traceback') :][-900:]}")
    if statuses[spoiled] and fault.says not in log:
        wrong.append(f"did not say {fault.says!r}: {log[-300:]}")
    again = ends(begin_all(case._replace(processes=1), case.flags, place, "again"))
    if any(again):
        return [*wrong, f"the same command again ended with {again}: {(place / 'again-0.log').read_text()[-900:]}"]
    found = left(place)
    return wrong + [f"{name} is another" for name in different(found, untouched.left)]


def different(found: dict, expected: dict) -> list[str]:
    return sorted(name for name in {*found, *expected} if found.get(name, 0) != expected.get(name, 0))


def try_all(cases: list[str], faults: list[str], tries: int, first_seed: int, folder: Path) -> Iterator[list]:
    """Rows of case, fault, tries, lost; says how to try a lost one again. What does not kill is tried a quarter as
    often."""
    for name in cases:
        case, own = CASES[name], folder / name.replace(" ", "-")
        untouched = Untouched(case, own)
        for fault in (fault for fault in faults if is_tried(name, case, fault)):
            count, lost = tries if "killed" in fault else max(1, tries // 4), 0
            for seed in range(first_seed, first_seed + count):
                chance = random.Random(f"{name}/{fault}/{seed}")
                wrong = attempt(case, FAULTS[fault], untouched, own / "try", chance)
                lost += bool(wrong)
                if wrong:
                    print(f'lost: --only "{name}" "{fault}" --seed {seed} --tries 1', *wrong, sep="\n    ", flush=True)
            yield [name, fault, count, lost]
        shutil.rmtree(own)


def write_page(rows: list[list]) -> None:
    """These rows in the place of those that the page has of the same case and fault."""
    before = PAGE.read_text(encoding="utf-8").splitlines() if PAGE.exists() else []
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in before if line.startswith("| ")]
    known = {(row[0], row[1]): row for row in [*cells[2:], *rows]}
    found = [known[name, fault] for name in CASES for fault in FAULTS if (name, fault) in known]
    lines = [["case", "fault", "tries", "lost"], ["---"] * 4, *found]
    table = "".join(f"| {' | '.join(map(str, line))} |\n" for line in lines)
    PAGE.write_text(f"{INTRODUCTION}\n{table}", encoding="utf-8")


def prepare() -> None:
    """Makes this process one that can be forked: nothing is computed in it, and nothing is imported in its children."""
    torch.set_num_threads(1)
    ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER: what a killed child started is waited for, too
    process.keep_freed_memory = lambda: None
    workers.subprocess = SimpleNamespace(Popen=Worker)
    sparsity.inference_speedup = lambda *_: 1.5
    Figure.savefig = save_data
    sys.path.insert(0, str(ROOT))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="many tries, and their rows in docs/faults.md")
    parser.add_argument("--tries", type=int, help="of what kills; of all else a quarter, and one at least")
    parser.add_argument("--only", nargs="+", default=[], help="cases and faults, by name")
    parser.add_argument("--seed", type=int, default=0, help="of the first try; the next ones follow it")
    given = parser.parse_args()
    prepare()
    cases = [name for name in CASES if name in given.only] or list(CASES)
    faults = [name for name in FAULTS if name in given.only] or list(FAULTS)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for row in try_all(cases, faults, given.tries or (20 if given.full else 2), given.seed, Path(folder)):
            rows.append(row)
            print(*row, sep=", ", flush=True)
            if given.full:
                write_page(rows)
    return 1 if any(row[-1] for row in rows) else 0


if __name__ == "__main__":
    raise SystemExit(main())
