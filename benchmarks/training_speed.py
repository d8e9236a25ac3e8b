"""Images a second of the whole training, beside a bare training step and the loop that most repositories have.

    python benchmarks/training_speed.py --width 16                 CIFAR-10 in data/; 6 minutes on two cores
    python benchmarks/training_speed.py --width 64 --batch-size 512 --device cuda
    python benchmarks/training_speed.py --dataset digits --width 8 --steps 10 --rounds 2      seconds, for a look

Four kinds of training take turns of STEPS steps in one process, another one first in each round, so that a machine that
slows down slows all of them:

    bare          forward, backward and SGD, on one batch again and again
    whole         a run of this repository: data, augmentation, counting of units, meters, a checkpoint every turn
    ds-pruning    the same while DS-Pruning takes 80 % of the units
    plain         torchvision's transforms of PIL images, one loader process, fp32, .item() at every step

A turn of the middle two is an epoch; testing after it is timed apart. Prints one JSON line; each `over` is the median
of the turns' ratios. Where the device counts them, launches a step and waits of the host a turn are in it too.
"""

import argparse
import json
import statistics
import sys
import time
from contextlib import nullcontext, redirect_stdout
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace

sys.path.insert(0, str(Path(__file__).parent.parent))
from common import settings
from common.machine import process

# The functions import what they use: --help and wrong values need no torch.

PRUNED = 0.8  # neuron sparsity
WARM_UP = 1  # turns that are not counted


class Bare:
    def __init__(self, constants, dataset, network, _folder):
        from common.training import fit

        self.constants = constants
        self.run = fit.start(constants, dataset, network, 0.05, 0, cuts=False)
        self.inputs, self.labels = next(dataset.batches(constants.batch_size, 0, 0, ()))

    def turn(self) -> None:
        from torch.nn import functional

        run = self.run
        for _ in range(self.constants.steps):
            with run.autocast():
                loss = functional.cross_entropy(run.model(self.inputs), self.labels)
            loss.backward()
            run.optimizer.step()
            run.optimizer.zero_grad()
            run.scheduler.step()


class Whole:
    target = 0.0

    def __init__(self, constants, dataset, network, folder):
        from common import pruning
        from common.machine import devices
        from common.pruning.task import Task
        from common.training import callbacks, fit, runs

        method = "ds-pruning" if self.target else "dense"
        task = Task(self.target, "neuron", 0, devices.width_multiple(constants.device), constants, None, dataset)
        extra, run = pruning.METHODS[method].callbacks(task), runs.Run(Path(folder), method, {})
        run.folder.mkdir(parents=True, exist_ok=True)
        self.fitting = fit.Fitting(constants, dataset, run, network, 0.05, 0, extra, cuts=bool(self.target))
        self.testing_seconds = 0.0

        class Timed(callbacks.Evaluation):
            def on_epoch_end(timed, run):
                devices.synchronize(run.device)
                start = time.perf_counter()
                super().on_epoch_end(run)
                self.testing_seconds += time.perf_counter() - start

        timed = Timed(dataset)
        self.callbacks = [timed if isinstance(one, callbacks.Evaluation) else one for one in self.fitting.callbacks]

    def turn(self) -> None:
        from common.training import loop

        run = self.fitting.training
        every, run.epochs = run.epochs, run.epoch + 1
        with redirect_stdout(StringIO()):
            loop.train(run, self.fitting.batches, self.callbacks)
        run.epochs = every


class Pruned(Whole):
    target = PRUNED


class Images:
    """What torchvision's CIFAR10 is: a PIL image, transformed, and its label."""

    def __init__(self, dataset):
        from torchvision import transforms

        self.images, self.labels = dataset.train.images.cpu().numpy(), dataset.train.labels.tolist()
        side = self.images.shape[1]
        steps = [transforms.RandomCrop(side, padding=side // 8), transforms.RandomHorizontalFlip()]
        steps += [transforms.ToTensor(), transforms.Normalize(dataset.mean.tolist(), dataset.deviation.tolist())]
        self.transform = transforms.Compose(steps)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple:
        from PIL import Image

        return self.transform(Image.fromarray(self.images[index].squeeze())), self.labels[index]


class Plain:
    def __init__(self, constants, dataset, network, _folder):
        import torch

        from common import models
        from common.machine import devices

        torch.manual_seed(0)
        self.constants, self.device = constants, constants.device
        self.model = models.build(network).to(self.device)
        self.optimizer = torch.optim.SGD(self.model.parameters(), 0.05, 0.9, weight_decay=5e-4)
        pinned = devices.pins(self.device)
        options = {"shuffle": True, "num_workers": 1, "persistent_workers": True, "pin_memory": pinned}
        self.loader = torch.utils.data.DataLoader(Images(dataset), constants.batch_size, **options)

    def turn(self) -> None:
        from itertools import islice

        from torch.nn import functional

        loss_sum, correct = 0.0, 0
        self.model.train()
        for inputs, labels in islice(self.loader, self.constants.steps):
            inputs, labels = inputs.to(self.device), labels.to(self.device)
            self.optimizer.zero_grad()
            logits = self.model(inputs)
            loss = functional.cross_entropy(logits, labels)
            loss.backward()
            self.optimizer.step()
            loss_sum += loss.item() * len(labels)
            correct += (logits.argmax(1) == labels).sum().item()


KINDS = {"bare": Bare, "whole": Whole, "ds-pruning": Pruned, "plain": Plain}


def seconds_of(trained, device) -> tuple[float, float]:
    """Of a turn without testing, and of the testing."""
    from common.machine import devices

    tested = getattr(trained, "testing_seconds", 0.0)
    devices.synchronize(device)
    start = time.perf_counter()
    trained.turn()
    devices.synchronize(device)
    whole, tested = time.perf_counter() - start, getattr(trained, "testing_seconds", 0.0) - tested
    return whole - tested, tested


def constants_of(options) -> SimpleNamespace:
    from common.machine import devices

    device = devices.pick(options.device)
    recipe = settings.PROTOCOLS["quick" if options.dataset == "digits" else "cpu" if device.type == "cpu" else "gpu"]
    own = {"dataset": options.dataset, "data_dir": options.data_dir, "device": device, "steps": options.steps}
    own |= {"precision": devices.pick_precision("auto", device), "activation": "relu", "momentum": 0.9, "passes": 1}
    own |= {"batch_size": options.batch_size, "per_pass": options.batch_size, "width": options.width}
    own |= {"epochs": options.rounds + WARM_UP, "rounds": options.rounds, "kinds": options.kinds}
    own |= {"warmup": 0.2, "settle": 0.75, "patience": 2, "regularization": [0.0], "study": "neuron-sparsity"}
    own |= {"image_size": 32, "workers": 2}
    return SimpleNamespace(**settings.ABSENT | recipe | own)


def prepared(constants) -> tuple:
    """The images, a turn's of them for training, and the arguments of `models.build`."""
    from common import data
    from common.errors import UserError

    dataset = data.load(constants)
    needed = constants.steps * constants.batch_size
    if needed > len(dataset.train):
        most = len(dataset.train) // constants.batch_size
        raise UserError(f"STEPS: got {constants.steps}, takes at most {most} with the images and the batches that are")
    dataset.train = data.Split(dataset.train.images[:needed], dataset.train.labels[:needed])
    network = {"name": "resnet18", "classes": len(dataset.classes), "channels": dataset.example.shape[1]}
    return dataset, network | {"width": constants.width, "stem": constants.stem, "activation": constants.activation}


def take_turns(constants) -> tuple[dict, dict, dict]:
    """Kind -> the seconds of its turns; of its testing; and what the device counted in its last turn, if it does."""
    import torch

    dataset, network = prepared(constants)
    device, seconds, testing = constants.device, *({name: [] for name in constants.kinds} for _ in range(2))
    counting = getattr(torch.get_device_module(device), "counting", nullcontext)
    seen = {}
    with TemporaryDirectory() as folder:
        trained = {name: KINDS[name](constants, dataset, network, folder) for name in constants.kinds}
        for number in range(WARM_UP + constants.rounds):
            first = number % len(trained)  # each comes after each other one, as what went before leaves its traces
            for name in [*trained, *trained][first : first + len(trained)]:
                with counting() as counts:
                    took, tested = seconds_of(trained[name], device)
                seen[name] = counts
                if number >= WARM_UP:
                    seconds[name].append(took)
                    testing[name].append(tested)
    return seconds, testing, seen


# Memory ----------------------------------------------------------------------------------------------------------


def peak_on_device(constants, kind: str) -> int:
    import torch

    dataset, network = prepared(constants)
    torch.accelerator.reset_peak_memory_stats(constants.device)
    with TemporaryDirectory() as folder:
        KINDS[kind](constants, dataset, network, folder).turn()
    return torch.accelerator.max_memory_allocated(constants.device)


def peak_on_host(options, kind: str, answers) -> None:
    """In a process of its own: the most memory that it had in a turn, in bytes. A loader's process is left out."""
    import threading

    import psutil

    peak, over, own = 0, threading.Event(), psutil.Process()

    def watch():
        nonlocal peak
        while not over.wait(0.01):
            peak = max(peak, own.memory_info().rss)

    constants = constants_of(options)
    dataset, network = prepared(constants)
    process.keep_freed_memory()  # from here on: what reading the images took is given back
    watcher = threading.Thread(target=watch)
    with TemporaryDirectory() as folder:
        trained = KINDS[kind](constants, dataset, network, folder)
        watcher.start()
        try:
            trained.turn()
        finally:
            over.set()
            watcher.join()
    answers.put(peak)


def peak_memory(constants, options, kind: str) -> int:
    """Bytes: of the device's memory; on a CPU of the whole process, torch and the images included."""
    if constants.device.type != "cpu":
        return peak_on_device(constants, kind)
    import multiprocessing

    context = multiprocessing.get_context("spawn")
    answers = context.SimpleQueue()
    child = context.Process(target=peak_on_host, args=(options, kind, answers))
    child.start()
    child.join()
    if child.exitcode:
        raise RuntimeError(f"the process that measured the memory of {kind} ended with {child.exitcode}")
    return answers.get()


# Printing --------------------------------------------------------------------------------------------------------


def measured(options) -> dict:
    """What is printed."""
    import torch

    constants = constants_of(options)
    seconds, testing, seen = take_turns(constants)
    images = constants.steps * constants.batch_size
    found = {
        "device": constants.device.type,
        "precision": constants.precision,
        "threads": torch.get_num_threads(),
        "width": constants.width,
        "batch_size": constants.batch_size,
        "steps": constants.steps,
        "rounds": constants.rounds,
        "images_per_second": {name: round(images / statistics.median(took)) for name, took in seconds.items()},
        "over_bare": {name: over(seconds["bare"], seconds[name]) for name in seconds if "bare" in seconds},
        "over_plain": {name: over(seconds["plain"], seconds[name]) for name in seconds if "plain" in seconds},
        "testing_seconds": {name: round(statistics.median(took), 2) for name, took in testing.items() if any(took)},
    }
    if options.memory:
        found["peak_memory_mib"] = {name: round(peak_memory(constants, options, name) / 2**20) for name in seconds}
    if any(seen.values()):
        steps = constants.steps
        found["launches_per_step"] = {name: round(each.launches.total() / steps, 1) for name, each in seen.items()}
        found["waits_per_turn"] = {name: each.syncs.total() for name, each in seen.items()}
    return found


def over(theirs: list[float], ours: list[float]) -> float:
    """How many times as fast as theirs."""
    return round(statistics.median(a / b for a, b in zip(theirs, ours, strict=True)), 3)


def main():
    parser = settings.Parser(__doc__)
    parser.add_argument("--dataset", default="cifar10")
    parser.add_argument("--data-dir", default="data")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--width", type=settings.reader("WIDTH"), default=16)
    parser.add_argument("--batch-size", type=settings.reader("BATCH_SIZE"), default=128)
    parser.add_argument("--steps", type=settings.reader("STEPS", settings.COUNT), default=90, help="of a turn")
    parser.add_argument("--rounds", type=settings.reader("ROUNDS", settings.COUNT), default=5, help="turns of each")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS), help="of training, in this order")
    parser.add_argument(
        "--memory", action=argparse.BooleanOptionalAction, default=True, help="a turn more of each kind"
    )
    print(json.dumps(measured(parser.parse_args())))


if __name__ == "__main__":
    raise SystemExit(process.run(main))
