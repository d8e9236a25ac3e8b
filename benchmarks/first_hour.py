"""The first hour on a GPU: what to run where one can be had, in order of worth, each step with a time limit.

    python benchmarks/first_hour.py                        an hour on the machine's accelerator
    python benchmarks/first_hour.py --list                 the steps and their limits
    python benchmarks/first_hour.py --steps tests speed    only these
    python benchmarks/first_hour.py --minutes 10 --device cpu -- --dataset digits --protocol quick --sparsities 0.5 0.8
                                                           a rehearsal; what follows -- goes to every script that has it

The same command again goes on where it stopped: a step that is done is not repeated, and a training goes on from its
last checkpoint. Tables and figures go to OUTPUT_DIR, runs and the output of every command to RUN_DIR.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))
from benchmarks.steps import Command, Failed, OutOfTime, last_line, run_all
from common import settings
from common.errors import UserError
from common.machine import process
from common.pruning import METHODS
from common.settings import identity

ROOT = Path(__file__).parent.parent
SPEED = "benchmarks/training_speed.py"
SPEED_FLAGS = {"--dataset", "--data-dir", "--width", "--batch-size", "--steps", "--rounds", "--kinds", "--no-memory"}
STUDIES = ("Resnet18", "LeakyReLU", "Swish", "SGD", "SGD_noise")  # whose accumulation study is run
TARGETS = {
    "neuron-sparsity": ("0.8", "0.5", "0.9", "0.7", "0.6", "0.75", "0.85"),
    "weight-sparsity": ("0.9", "0.75", "0.97", "0.8", "0.95", "0.85", "0.98"),
}
TABLE = 0.1  # the share of a study's time that its table and figures are left
AT_ONCE = (1, 2, 4, 8)  # trainings at a time that are tried
GAIN = 1.05  # in images/s, for which more of them are taken


@dataclass
class Hour:
    """What was asked for, and what is known so far. `python` begins the command line of every script."""

    options: argparse.Namespace
    device: str
    python: tuple[str, ...]
    state: dict = field(default_factory=dict)

    @property
    def folder(self) -> Path:
        return Path(self.options.run_dir) / "first-hour"

    def script(self, path: str, log: str, *flags: str, threads: int = 0) -> Command:
        """The command that runs a script with these flags, and with those after -- that it has."""
        study = flags[flags.index("--study") + 1] if "--study" in flags else "accumulation"
        rest = for_script(path, self.options.rest, study)
        words = [*self.python, str(ROOT / path), "--device", self.device, *flags, *rest]
        return Command(tuple(words), self.folder / f"{log}.log", threads)

    def places(self, output: Path) -> list[str]:
        return ["--output-dir", str(output), "--run-dir", self.options.run_dir]

    def save(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "state.json").write_text(json.dumps(self.state, indent=1), encoding="utf-8")


def groups_of(flags: list[str]) -> Iterator[list[str]]:
    """Each flag with its values."""
    group: list[str] = []
    for word in flags:
        if word.startswith("--") and group:
            yield group
            group = []
        group.append(word)
    if group:
        yield group


def flags_of(path: str, study: str) -> set[str]:
    """The flags that a script's study reads, or that the benchmark may be given."""
    if path == SPEED:
        return SPEED_FLAGS
    names = [name.lower() for name in settings.constants_of(ROOT / path)]
    return {"--" + name.replace("_", "-") for name in names if identity.is_read(name, study)}


def for_script(path: str, flags: list[str], study: str = "accumulation") -> list[str]:
    known = flags_of(path, study)
    return [word for group in groups_of(flags) if {group[0], group[0].replace("--no-", "--")} & known for word in group]


# Steps -----------------------------------------------------------------------------------------------------------


def tests(hour: Hour, deadline: float) -> str:
    words = (
        sys.executable,
        "-m",
        "pytest",
        "-n",
        "0",
        "-p",
        "no:cacheprovider",
        str(ROOT / "tests/test_accelerator.py"),
    )
    for command in run_all([Command(words, hour.folder / "tests.log")], 1, deadline):
        return last_line(command.log)
    return ""


def speed(hour: Hour, deadline: float) -> str:
    found = []
    for size in ("128", "512"):
        command = hour.script(SPEED, f"speed-{size}", "--width", "64", "--batch-size", size)
        for done in run_all([command], 1, deadline):
            line = json.loads(last_line(done.log))
            path = Path(hour.options.output_dir) / f"training-speed-{size}.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(line, indent=1) + "\n", encoding="utf-8")
            rates = ", ".join(f"{name} {rate:,}" for name, rate in line["images_per_second"].items())
            found.append(f"batch {line['batch_size']}: {rates} images/s ({path})")
    return "; ".join(found)


def trainings_at_a_time(hour: Hour, deadline: float) -> int:
    """How many trainings at a time make the most images/s of all together on this device: tried, or --jobs."""
    if hour.options.jobs:
        return hour.options.jobs
    if "jobs" not in hour.state:
        best, rates = 1, {}
        for count in [count for count in AT_ONCE if count <= (os.cpu_count() or 1)]:
            flags = ("--width", "64", "--kinds", "whole", "--rounds", "3", "--no-memory")
            share = threads(count)
            trial = [hour.script(SPEED, f"trial-{count}-{number}", *flags, threads=share) for number in range(count)]
            try:
                done = [json.loads(last_line(one.log)) for one in run_all(trial, count, deadline)]
            except Failed:  # the device's memory is full, say
                break
            rates[count] = sum(line["images_per_second"]["whole"] for line in done)
            if count > 1 and rates[count] < GAIN * rates[best]:
                break
            best = count
        print("  trainings at a time: " + ", ".join(f"{n}: {rate:,} images/s" for n, rate in rates.items()), flush=True)
        hour.state["jobs"] = best
        hour.save()
    return hour.state["jobs"]


def threads(count: int) -> int:
    """Of each of `count` processes."""
    return max(1, (os.cpu_count() or 1) // count)


def study(hour: Hour, name: str, deadline: float) -> str:
    """A sparsity study of Resnet18.py: first its trainings, each target and each strength of Demon Pruning a command of
    its own, then one command that finds them finished and makes the table and the figures of what is complete."""
    jobs = trainings_at_a_time(hour, deadline)
    fixed = ["--study", name, "--protocol", "gpu", "--sparsities", *TARGETS[name]]
    asked = given("Resnet18.py", [*fixed, *for_script("Resnet18.py", hour.options.rest, name)])
    others = [method for method in asked["methods"] if method != "dense" and METHODS[method].targeted]
    targets = [f"{target:g}" for target in asked["sparsities"]] if others else []
    strengths = [f"{strength:g}" for strength in asked["demp_strengths"]] if "demp" in asked["methods"] else []
    parts = {"dense": ["--methods", "dense"]} if "dense" in asked["methods"] else {}
    parts |= {target: ["--sparsities", target, "--methods", *others] for target in targets}
    parts |= {f"demp-{strength}": ["--methods", "demp", "--demp-strengths", strength] for strength in strengths}
    commands = {}
    for part, flags in parts.items():
        apart = hour.places(hour.folder / "parts" / name / part)  # tables of no use: all processes have one each
        command = hour.script("Resnet18.py", f"{name}-{part}", *fixed, *apart, threads=threads(jobs))
        commands[Command((*command.words, *flags), command.log, command.threads)] = part
    done, trouble = [], None
    try:
        for command in run_all(list(commands), jobs, deadline - TABLE * (deadline - time.monotonic())):
            done.append(commands[command])
    except (Failed, OutOfTime) as error:
        trouble = error
    targets_done = [target for target in targets if target in done]
    strengths_done = [strength for strength in strengths if f"demp-{strength}" in done]
    shutil.rmtree(hour.folder / "parts" / name, ignore_errors=True)
    where = ""
    if targets_done or strengths_done:
        methods = [*(["dense"] if "dense" in done else []), *(others if targets_done else [])]
        made = ["--sparsities", *targets_done] if targets_done else []
        if strengths_done:
            made, methods = [*made, "--demp-strengths", *strengths_done], [*methods, "demp"]
        last = hour.script("Resnet18.py", f"{name}-table", *fixed, *hour.places(Path(hour.options.output_dir)))
        whole = Command((*last.words, *made, "--methods", *methods), last.log)
        for command in run_all([whole], 1, deadline + PATIENCE_FOR_TABLES):
            where = left_by(command.log)
    if trouble:
        text = f"{len(targets_done)} of {len(targets)} targets complete"
        text += f", {len(strengths_done)} of {len(strengths)} strengths; {where}" if strengths else f"; {where}"
        raise type(trouble)(f"{text}{trouble}")
    return where


PATIENCE_FOR_TABLES = 120.0  # seconds past its time in which a study may still write what it has


def left_by(log: Path) -> str:
    """What a script says that it left."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    return ", ".join(line.split(": ", 1)[1] for line in lines if line.startswith(("table: ", "summary: ", "figure: ")))


def accumulation(hour: Hour, deadline: float) -> str:
    """The trainings side by side, with figures of no use; then, one after another, the figures, which scripts share."""
    jobs, parts = trainings_at_a_time(hour, deadline), hour.folder / "parts" / "accumulation"
    commands = {
        name: hour.script(
            f"{name}.py", f"accumulation-{name}", "--protocol", "gpu", *hour.places(parts / name), threads=threads(jobs)
        )
        for name in STUDIES
    }
    training_ends = deadline - TABLE * (deadline - time.monotonic())
    done = [command.log for command in run_all(list(commands.values()), jobs, training_ends)]
    shutil.rmtree(parts, ignore_errors=True)
    tables = [
        hour.script(
            f"{name}.py", f"accumulation-{name}", "--protocol", "gpu", *hour.places(Path(hour.options.output_dir))
        )
        for name, command in commands.items()
        if command.log in done
    ]
    return ", ".join(left_by(command.log) for command in run_all(tables, 1, deadline + PATIENCE_FOR_TABLES))


def given(path: str, flags: list[str]) -> dict:
    """The constants of a script with these flags."""
    import importlib

    script = importlib.import_module(Path(path).stem)
    return settings.given(vars(script), getattr(script, "STUDIES", ("accumulation",)), flags)


@dataclass(frozen=True)
class Step:
    share: float  # of all minutes
    what: str
    run: Callable[[Hour, float], str]


STEPS = {
    "tests": Step(0.12, "the tests that need an accelerator", tests),
    "speed": Step(0.08, "training speed at width 64, batch sizes 128 and 512", speed),
    "neuron-sparsity": Step(
        0.35, "Resnet18.py, all methods at seven targets", lambda hour, end: study(hour, "neuron-sparsity", end)
    ),
    "weight-sparsity": Step(0.25, "the same by weight sparsity", lambda hour, end: study(hour, "weight-sparsity", end)),
    "accumulation": Step(0.2, f"which units die: {', '.join(STUDIES)}", accumulation),
}


# The hour --------------------------------------------------------------------------------------------------------


def commit() -> str:
    try:
        done = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    except OSError:
        return ""
    return done.stdout.strip()


def do(hour: Hour, name: str) -> str:
    """Runs one step, or finds it done: the words for how it ended, the first of them done, failed or out of time."""
    step, key = STEPS[name], {"commit": commit(), "device": hour.device, "flags": hour.options.rest}
    before = hour.state.get(name)
    if before and before["key"] == key:
        print(f"{name}: done before", flush=True)
        return before["result"]
    minutes = step.share * hour.options.minutes
    print(f"{name}: begins, {step.what}; {minutes:.1f} minutes at most", flush=True)
    begun = time.monotonic()
    try:
        result = f"done: {step.run(hour, begun + 60 * minutes)}"
        hour.state[name] = {"key": key, "result": result}
        hour.save()
    except OutOfTime as error:
        result = f"out of time: {str(error) or 'the same command goes on'}"
    except Failed as error:
        result = f"failed: {error}"
    print(f"{name}: {result.split(':')[0]} after {(time.monotonic() - begun) / 60:.1f} minutes", flush=True)
    return result


def parsed(arguments: list[str]) -> argparse.Namespace:
    rest: list[str] = []
    if "--" in arguments:
        at = arguments.index("--")
        arguments, rest = arguments[:at], arguments[at + 1 :]
    parser = settings.Parser(__doc__)
    parser.add_argument("--list", action="store_true", help="the steps and their limits, and nothing else")
    parser.add_argument("--steps", nargs="+", choices=STEPS, default=list(STEPS), help="only these")
    parser.add_argument(
        "--minutes", type=settings.reader("MINUTES", settings.POSITIVE), default=60.0, help="of all steps"
    )
    parser.add_argument("--jobs", type=settings.reader("JOBS", settings.COUNT), help="trainings at a time; else tried")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--output-dir", default="plots/gpu")
    parser.add_argument("--run-dir", default="runs")
    options = parser.parse_args(arguments)
    options.rest = rest
    paths = [f"{name}.py" for name in STUDIES]
    for group in groups_of(rest):
        if not any(for_script(path, group, study) for path in [*paths, SPEED] for study in ("accumulation", *TARGETS)):
            raise UserError(f"{group[0]}: no script has that flag")
    for path in paths:
        given(path, for_script(path, rest))
    for study in TARGETS:
        given("Resnet18.py", ["--study", study, *for_script("Resnet18.py", rest, study)])
    return options


def main(arguments: list[str] | None = None, python: tuple[str, ...] = (sys.executable,)) -> int:
    """The exit status: 0 where every step is done.

    Args:
        python: what begins the command line of every script.
    """
    options = parsed(sys.argv[1:] if arguments is None else arguments)
    if options.list:
        for name in options.steps:
            print(f"{name:16} {STEPS[name].share * options.minutes:5.1f} minutes  {STEPS[name].what}")
        return 0
    from common.machine import devices

    device = devices.pick(options.device)
    if device.type == "cpu" and options.device == "auto":
        raise UserError("DEVICE: torch finds no accelerator here; --device cpu rehearses on the CPU")
    hour = Hour(options, str(device), python)
    if (hour.folder / "state.json").exists():
        hour.state = json.loads((hour.folder / "state.json").read_text(encoding="utf-8"))
    results = {name: do(hour, name) for name in options.steps}
    print()
    for name, result in results.items():
        print(f"{name}: {result}")
    print(f"tables and figures: {options.output_dir}; what every command printed: {hour.folder}")
    return 0 if all(result.startswith("done") for result in results.values()) else 1


if __name__ == "__main__":
    raise SystemExit(process.run(main))
