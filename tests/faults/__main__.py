"""What is lost when a process is killed or stopped, or cannot write? A try is a command with a fault, and then the same
command untouched: it has to leave what a command leaves that nobody touched, bit for bit, but for measured times.

    python -m tests.faults                    a few tries of each fault in each case
    python -m tests.faults --full             many, and their rows in docs/faults.md
    python -m tests.faults --only "a training" "disk full" --every      at each of its writes, in turn
    python -m tests.faults --only "a sweep" "killed in a write" --seed 7 --tries 1     one again, as a lost one says

Commands run in forked children, which need not import anything, on a few small images. Linux only.
"""

import argparse
import os
import random
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from tests.faults.cases import CASES, FAULTS, Case, Fault, Moments, is_tried
from tests.faults.commands import HANGS, ROOT, begin_all, ends, prepare
from tests.faults.left import different, left, make_images

PAGE = ROOT / "docs" / "faults.md"
INTRODUCTION = """# Faults

A command is killed or stopped, or cannot write. The same command again has to leave what a command leaves that nobody
touched: tables, weights and figures' data, but for measured times. Lost: a try in which it did not, or in which a
process hung, gave a traceback or another exit status than it should, or did not say in a line how to go on.

`python -m tests.faults --full` makes this table; with `--tries 2`, what does not kill is tried once; with `--every`, a
full disk is met at each write in turn. Killed is SIGKILL to one process at a random moment; in a write: half written,
or just before or after a file takes its place or is deleted.

Lost in earlier rounds, and mended since: checkpoints that stayed beside a final.pt (9 of 80 tries), and a traceback of
a signal that came while Python finalised an object (3 of 840).
"""


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


def attempt(
    case: Case, fault: Fault, untouched: Untouched, place: Path, chance: random.Random, at: int = 0
) -> list[str]:
    """One try, at a random moment or at number `at` of the first kind; what went wrong in it."""
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(untouched.template, place)
    spoiled, moments = chance.randrange(max(case.processes, case.ranks)), None
    if fault.moments:
        kind = chance.choice([kind for kind in fault.moments[: 1 if at else None] if untouched.moments.get(kind)])
        spoiled = spoiled if case.ranks == 1 else 0  # which alone writes
        moments = Moments(kind, at or chance.randint(1, untouched.moments[kind]), fault.action, fault.lasts)
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
        wrong.append(f"a traceback: {log[max(0, log.index('Traceback') - 200) :][:1200]}")
    if statuses[spoiled] and fault.says not in log:
        wrong.append(f"did not say {fault.says!r}: {log[-300:]}")
    again = ends(begin_all(case._replace(processes=1), case.flags, place, "again"))
    if any(again):
        return [*wrong, f"the same command again ended with {again}: {(place / 'again-0.log').read_text()[-900:]}"]
    found = left(place)
    return wrong + [f"{name} is another" for name in different(found, untouched.left)]


def try_all(
    cases: list[str], faults: list[str], tries: int, first_seed: int, folder: Path, every: bool = False
) -> Iterator[list]:
    """Rows of case, fault, tries, lost; says how to try a lost one again. What does not kill is tried a quarter as
    often; with `every`, what comes at a moment is tried at each in turn, and a seed is its number."""
    for name in cases:
        case, own = CASES[name], folder / name.replace(" ", "-")
        untouched = Untouched(case, own)
        for fault in (fault for fault in faults if is_tried(name, case, fault)):
            moments, lost = FAULTS[fault].moments if every else (), 0
            count, begin = tries if "killed" in fault else max(1, tries // 4), first_seed
            if moments:
                count, begin = tries or untouched.moments[moments[0]], first_seed or 1
            for seed in range(begin, begin + count):
                chance = random.Random(f"{name}/{fault}/{seed}")
                wrong = attempt(case, FAULTS[fault], untouched, own / "try", chance, seed if moments else 0)
                lost += bool(wrong)
                if wrong:
                    again = f'--only "{name}" "{fault}" --seed {seed} --tries 1{" --every" * every}'
                    print(f"lost: {again}", *wrong, sep="\n    ", flush=True)
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


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="many tries, and their rows in docs/faults.md")
    parser.add_argument("--tries", type=int, help="of what kills; of all else a quarter, and one at least")
    parser.add_argument("--only", nargs="+", default=[], help="cases and faults, by name")
    parser.add_argument("--every", action="store_true", help="what comes at a moment, at each in turn")
    parser.add_argument("--seed", type=int, default=0, help="of the first try; the next ones follow it")
    given = parser.parse_args()
    prepare()
    cases = [name for name in CASES if name in given.only] or list(CASES)
    faults = [name for name in FAULTS if name in given.only] or list(FAULTS)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        tries = given.tries or (0 if given.every else 20 if given.full else 2)
        for row in try_all(cases, faults, tries, given.seed, Path(folder), given.every):
            rows.append(row)
            print(*row, sep=", ", flush=True)
            if given.full:
                write_page(rows)
    return 1 if any(row[-1] for row in rows) else 0


if __name__ == "__main__":
    raise SystemExit(main())
