"""A whole run, from first weights to final.pt: what is measured, kept and shown at the points of the loop."""

import math
import sys
import time
from collections.abc import Iterator
from datetime import timedelta
from itertools import islice
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional
from tqdm import tqdm

from common import data, devices, distributed, environment, units
from common.errors import UserError
from common.groups import find_groups
from common.loop import Callback, Diverged, Training, memory_watched, sgd, train
from common.models import build
from common.runs import Run


class Scores(NamedTuple):
    """Over the test split: mean cross-entropy, and the shares of examples in [0, 1] whose class is the network's first
    choice, or among its first five."""

    loss: float
    top1: float
    top5: float


@torch.no_grad()
def evaluate(training: Training, dataset: data.Dataset) -> Scores:
    """Each process takes its share of the examples; all get the result of the whole."""
    distributed.average_statistics(training.model)
    training.model.eval()
    parts, sizes = [], []  # of each batch, float32 [loss, correct, among the first five]; examples

    def own_share():
        for inputs, labels in dataset.evaluation_batches(environment.rank(), environment.ranks()):
            with training.autocast():
                logits = training.model(inputs)
            hits = logits.topk(min(5, logits.shape[1])).indices == labels[:, None]
            loss = functional.cross_entropy(logits.float(), labels, reduction="sum")
            parts.append(torch.stack([loss, (logits.argmax(1) == labels).sum().float(), hits.sum().float()]))
            sizes.append(len(labels))

    distributed.everywhere(own_share)
    sums = in_order(torch.stack(parts).cpu()).tolist() if parts else [0.0] * 3
    loss, top1, top5, count = distributed.total(torch.tensor([*sums, sum(sizes)], dtype=torch.float64)).tolist()
    return Scores(loss / count, top1 / count, top5 / count)


def in_order(values: Tensor) -> Tensor:
    """The sum over the first dimension of [N, ...], on the host, in float64 and in the order of N."""
    return values.double().cumsum(0)[-1]


# Measuring -------------------------------------------------------------------------------------------------------


class Meters(Callback):
    """Training loss and accuracy of the epoch; stops the run when the loss is not finite.

    What a pass leaves (its loss, logits and labels) waits for some others before it is reduced, so that a pass costs no
    launch. The host looks at what has arrived and never waits for the device within an epoch: it may see the loss of a
    moment ago. All is that of this process until the epoch ends.
    """

    PASSES = 32  # that wait

    def __init__(self, device: torch.device):
        self.device = device
        self.begin([0.0] * 5)

    def begin(self, before: list[float]) -> None:
        """From what an interrupted epoch had: loss and correct, both summed over examples, examples, passes, and those
        of them whose loss was finite, as was that of all before."""
        self.before = before
        self.waiting: list[tuple[Tensor, Tensor, Tensor]] = []  # loss, logits, labels
        self.sizes: list[int] = []  # examples of each pass
        self.losses: list[Tensor] = []  # each float32 [passes], on the device
        self.correct: list[Tensor] = []  # each float32 [1], on the device
        self.underway: devices.HostCopy | None = None

    def on_epoch_start(self, training: Training):
        self.begin([0.0] * 5)
        self.started = time.perf_counter()

    def on_pass(self, training: Training):
        self.waiting.append((training.loss.detach(), training.logits.detach(), training.labels))
        self.sizes.append(len(training.labels))
        if len(self.waiting) == self.PASSES:
            self.reduce()

    @torch.no_grad()
    def reduce(self) -> None:
        if not self.waiting:
            return
        losses, logits, labels = zip(*self.waiting, strict=True)
        self.losses.append(torch.stack(losses).float())
        self.correct.append((torch.cat(logits).argmax(1) == torch.cat(labels)).sum(0, keepdim=True).float())
        self.waiting = []

    def sums(self, losses: Tensor, correct: Tensor) -> list[float]:
        """The five numbers of `begin`, from the losses of the first passes and what was correct in them."""
        sizes = torch.tensor(self.sizes[: len(losses)], dtype=torch.float32)
        whole = losses.isfinite().long().cumprod(0).sum()
        own = [in_order(losses * sizes), correct.double().sum(), sizes.double().sum(), len(losses), whole]
        return [before + float(value) for before, value in zip(self.before, own, strict=True)]

    def whole(self) -> list[float]:
        """The five numbers of all passes and processes. Waits for the device."""
        self.reduce()
        if not self.losses:
            return self.before
        sums = self.sums(torch.cat(self.losses).cpu(), torch.cat(self.correct).cpu())
        return distributed.total(torch.tensor(sums, dtype=torch.float64)).tolist()

    def glance(self, training: Training) -> tuple[float, float] | None:
        """Mean loss and accuracy so far, or None while they are on their way."""
        self.reduce()
        if self.underway is None and self.losses:
            self.underway = devices.HostCopy(torch.cat([*self.losses, sum(self.correct)]))
        if self.underway is None or not self.underway.ready:
            return None
        arrived, self.underway = self.underway.values, None
        seen = self.sums(arrived[:-1], arrived[-1])
        if environment.ranks() == 1:  # of several processes, none may stop alone
            self.check(seen, training)
        return seen[0] / seen[2], seen[1] / seen[2]

    @staticmethod
    def check(sums: list[float], training: Training, epochs_done: int = 0) -> None:
        *_, passes, finite = sums
        if finite < passes:
            step = int(finite / (training.passes * environment.ranks())) + 1
            raise Diverged(
                f"the loss is not finite in epoch {training.epoch + 1 - epochs_done}, step {step}; lower the learning "
                "rate, the noise or the regularization (the last checkpoint is kept)"
            )

    def stop_if_not_finite(self, training: Training) -> None:
        """In all processes, when it is so in any."""
        self.check(self.whole(), training)

    def on_epoch_end(self, training: Training):
        sums = self.whole()
        self.check(sums, training, epochs_done=1)
        loss, correct, examples, *_ = sums
        training.row |= {
            "train_loss": loss / examples,
            "train_accuracy": correct / examples,
            "seconds": time.perf_counter() - self.started,
        }

    def state(self) -> dict:
        return {
            "sums": torch.tensor(self.whole(), dtype=torch.float64),
            "seconds": time.perf_counter() - self.started,
        }

    def restore(self, training: Training, state: dict):
        self.started = time.perf_counter() - state["seconds"]
        if environment.rank() == 0:
            self.begin(state["sums"].tolist())


class Watching(Callback):
    """Counts every unit's firing over the epoch; `history` holds the counts of all epochs.

    Units are numbered as in the dense network; those cut out are neither dead nor anything else.
    """

    def __init__(self, model: nn.Module, example: Tensor, passes: int = 1):
        self.watch = units.UnitWatch(model, example, passes)
        self.history: list[units.Counts] = []

    def on_start(self, training: Training):
        self.follow(training)

    def on_step(self, training: Training):
        self.follow(training)

    def follow(self, training: Training):
        if training.groups is not None:
            self.watch.follow(training.groups)

    def on_epoch_end(self, training: Training):
        before = self.history[-1] if self.history else None
        self.history.append(self.watch.end_epoch())
        training.counts = self.history[-1]
        training.row["units"] = len(self.watch.alive)
        training.row |= units.totals(units.measures(self.history[-1], before))

    def counts(self) -> dict:
        """Of every unit and finished epoch."""
        columns = {name: [getattr(counts, name) for counts in self.history] for name in units.SAVED}
        nothing = torch.empty(0, len(self.watch.alive), dtype=torch.int64)
        return {
            "layers": self.watch.layers,
            **{name: torch.stack(column) if column else nothing for name, column in columns.items()},
            "batches": [counts.batches for counts in self.history],
        }

    def state(self) -> dict:
        return {**self.counts(), "part": self.watch.part()}

    def restore(self, training: Training, state: dict):
        self.history = units.history(state)
        training.counts = self.history[-1] if self.history else None
        self.follow(training)
        if training.step:
            self.watch.go_on(state["part"])


class Testing(Callback):
    """Loss and accuracy on the test split after every epoch."""

    def __init__(self, dataset: data.Dataset):
        self.dataset = dataset

    def on_epoch_end(self, training: Training):
        scores = evaluate(training, self.dataset)
        if not math.isfinite(scores.loss):
            raise Diverged(
                f"the test loss is not finite after epoch {training.epoch}, step {training.step}; lower the learning "
                "rate, the noise or the regularization (the last checkpoint is kept)"
            )
        training.row |= {
            "test_loss": scores.loss,
            "test_accuracy": scores.top1,
            "test_top5_accuracy": scores.top5,
        }


class Agreement(Callback):
    """Stops all processes when their decisions differ: after every step they compare a digest of masks and shapes."""

    def __init__(self):
        self.known: tuple | None = None
        self.digest = distributed.digest()

    def on_start(self, training: Training):
        self.compare(training)

    def on_epoch_start(self, training: Training):
        self.compare(training)

    def on_step(self, training: Training):
        self.compare(training)

    def compare(self, training: Training):
        if environment.ranks() == 1:
            return
        known = training.groups.version if training.groups else 0, training.masks
        if self.known is None or known[0] != self.known[0] or known[1] is not self.known[1]:
            self.known, self.digest = known, self.of(training)
        found = distributed.differing(self.digest)
        if found:
            raise UserError(
                f"the processes decided differently in epoch {training.epoch + 1}, step {training.step}: their masks "
                f"and shapes are {', '.join(found)}; the last checkpoint, from before, is kept"
            )

    @staticmethod
    def of(training: Training) -> str:
        shapes = str([list(p.shape) for p in training.model.parameters()])
        groups = training.groups.state_dict()["state"].numpy().tobytes() if training.groups else b""
        masks = (mask.cpu().numpy().tobytes() for mask in training.masks)
        return distributed.digest(shapes.encode(), groups, *masks)


class Keeping(Callback):
    """A row in the log and a checkpoint after every epoch. Comes after all that fill the row.

    Args:
        others: the callbacks that have a state of their own.
        meters: whose sums, too, a checkpoint within an epoch keeps.
        steps: from one checkpoint within an epoch to the next; 0: none.
    """

    def __init__(self, run: Run, others: list[Callback], meters: Meters, steps: int = 0):
        self.run, self.others, self.meters, self.steps = run, others, meters, steps
        self.rows: list[dict] = []

    def on_step(self, training: Training):
        if self.steps and training.step % self.steps == 0 and training.step < training.steps_per_epoch:
            self.meters.stop_if_not_finite(training)
            self.save(training, training.step)

    def on_epoch_end(self, training: Training):
        self.rows.append({"epoch": training.epoch, **training.row})
        self.save(training, 0)
        self.run.save_log(self.rows)

    def save(self, training: Training, step: int):
        distributed.average_statistics(training.model)
        training.parallel.forget()
        self.run.save_checkpoint(
            {
                "config": self.run.config,
                "epoch": training.epoch,
                "step": step,
                "groups": training.groups.state_dict() if training.groups else None,
                "model": training.model.state_dict(),
                "optimizer": training.optimizer.state_dict(),
                "scheduler": training.scheduler.state_dict(),
                "rows": self.rows,
                "callbacks": {type(callback).__name__: callback.state() for callback in self.others},
                "meters": self.meters.state() if step else None,
            }
        )

    def resume(self, training: Training):
        """Brings a fresh `training` to where the run stopped, if it was ever begun."""
        state = self.run.checkpoint()
        if state is None:
            return
        training.epoch, training.step, self.rows = state["epoch"], state.get("step", 0), state["rows"]
        if training.groups:
            training.groups.restore(training.model, state["groups"])
        training.model.load_state_dict(state["model"])
        training.optimizer.load_state_dict(state["optimizer"])
        training.scheduler.load_state_dict(state["scheduler"])
        for callback in self.others:
            callback.restore(training, state["callbacks"][type(callback).__name__])
        if training.step:
            self.meters.restore(training, state["meters"])


class Progress(Callback):
    """On a terminal a bar with loss, accuracy, dead units, images/s and the time left; everywhere a line an epoch."""

    SECONDS = 0.5  # between two looks at the meters

    def __init__(self, label: str, training: Training, meters: Meters, examples: int):
        self.label, self.meters = label, meters
        self.bar = tqdm(
            total=training.epochs * examples,
            initial=round(training.progress * training.epochs * examples),
            unit=" images",
            unit_scale=True,
            leave=False,
            dynamic_ncols=True,
            disable=not sys.stderr.isatty() or environment.rank() > 0,
        )
        self.dead, self.looked = "?", 0.0

    def on_step(self, training: Training):
        self.bar.update(training.examples)
        now = time.perf_counter()
        if now - self.looked < self.SECONDS:
            return
        self.looked = now
        seen = self.meters.glance(training)
        if seen is not None:
            self.bar.set_description(f"{self.label}, epoch {training.epoch + 1}/{training.epochs}", refresh=False)
            self.bar.set_postfix(loss=f"{seen[0]:.3f}", accuracy=f"{seen[1]:.1%}", dead=self.dead, refresh=False)

    def on_epoch_end(self, training: Training):
        row = training.row
        self.dead = row["dead_units"]
        dying = "" if row["dying_units"] is None else f", {row['dying_units']} dying"
        self.bar.write(
            f"{self.label}, epoch {training.epoch}/{training.epochs}: loss {row['train_loss']:.3f}, "
            f"train {row['train_accuracy']:.1%}, test {row['test_accuracy']:.1%}, {row['dead_units']} of "
            f"{row['units']} units dead{dying}, {row['seconds']:.1f} s{self.time_left(training)}",
            file=sys.stdout,
        )
        sys.stdout.flush()

    def time_left(self, training: Training) -> str:
        """Of a run that still takes a minute or more, at the speed of this epoch."""
        seconds = training.row["seconds"] * (training.epochs - training.epoch)
        return f", about {timedelta(seconds=round(seconds))} left" if seconds >= 60 else ""


def start(settings, dataset: data.Dataset, network: dict, learning_rate: float, seed: int, cuts: bool) -> Training:
    """A network with fresh or pretrained weights and its optimiser; with `cuts`, its groups too."""
    torch.manual_seed(seed)
    model = build(network)
    if settings.pretrained:
        from common.pretrained import load_weights  # which imports torchvision

        distributed.by_first(lambda: load_weights(model))
    model.to(settings.device, memory_format=torch.channels_last)
    distributed.share_state(model)
    steps = dataset.steps_per_epoch(settings.batch_size)
    optimizer, scheduler = sgd(
        model,
        learning_rate,
        settings.momentum,
        settings.weight_decay,
        settings.schedule,
        settings.epochs * steps,
        round(settings.learning_rate_warmup * steps),
        devices.fuses(settings.device),
    )
    training = Training(model, optimizer, scheduler, settings.epochs, steps, settings.precision, settings.device)
    training.passes, training.label_smoothing = settings.passes, settings.label_smoothing
    training.groups = find_groups(model, dataset.example) if cuts else None
    return training


class Fitting:
    """One network that is ready to train, or to go on where its run stopped.

    Args:
        settings: what all runs of the script have in common.
        network: the arguments of `models.build`.
        extra: callbacks that act on the gradients or prune, in their order.
        cuts: whether channels may be cut out.
    """

    def __init__(
        self,
        settings,
        dataset: data.Dataset,
        run: Run,
        network: dict,
        learning_rate: float,
        seed: int,
        extra: list[Callback],
        cuts: bool = False,
    ):
        self.settings, self.dataset, self.run, self.network = settings, dataset, run, network
        self.seed, self.extra = seed, extra
        self.training = start(settings, dataset, network, learning_rate, seed, cuts)
        self.meters = Meters(settings.device)
        self.watching = Watching(self.training.model, dataset.example.to(settings.device), self.training.passes)
        self.training.watch = self.watching.watch
        self.keeping = Keeping(run, [*extra, self.watching], self.meters, settings.checkpoint_steps)
        for callback in extra:
            callback.prepare(self.training)
        self.keeping.resume(self.training)
        examples = min(len(dataset.train), self.training.steps_per_epoch * settings.batch_size)
        self.progress = Progress(run.label, self.training, self.meters, examples)

    @property
    def callbacks(self) -> list[Callback]:
        last = [self.watching, Agreement(), Testing(self.dataset), self.keeping, self.progress]
        return [self.meters, *self.extra, *last]

    def batches(self, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        settings, training = self.settings, self.training
        done, whole = (steps * training.passes for steps in (training.step, training.steps_per_epoch))
        process = environment.rank(), environment.ranks()
        rest = self.dataset.batches(settings.per_pass, self.seed, epoch, settings.augmentation, done, *process)
        return distributed.together(islice(rest, whole - done))

    def train(self) -> None:
        try:
            train(self.training, self.batches, self.callbacks)
        finally:
            self.progress.bar.close()
            self.watching.watch.close()

    def result(self) -> dict:
        """What final.pt holds; see `fit`."""
        training = self.training
        model = training.groups.compact(training.model) if training.groups else training.model
        return {
            "config": self.run.config,
            "network": self.network,
            "image": list(self.dataset.example.shape[1:]),
            "model": model.state_dict(),
            "rows": self.keeping.rows,
            "counts": self.watching.counts(),
            **{type(callback).__name__: callback.state() for callback in self.extra},
        }


def fit(settings, dataset: data.Dataset, run: Run, *arguments, **options) -> dict:
    """Trains one network, or goes on where it stopped, or reads what it left: the content of the run's final.pt.

    The arguments are those of `Fitting`.

    Returns:
        config; network; image [C, H, W]; model (the state dict, without padding); rows (a dict an epoch); counts (of
        every unit and epoch); and the state of every callback in `extra` under its class's name.

    Raises:
        RunFailed: when the loss is not finite, memory runs out, another process trains this run, or what it left is
            damaged.
    """
    finished = run.final()
    if finished is not None:
        print(f"{run.label}: finished before, in {run.folder}")
        return finished
    with run.locked(), memory_watched():
        fitting = Fitting(settings, dataset, run, *arguments, **options)
        fitting.train()
        run.save_final(fitting.result())
    # Not what was just saved: what a caller gets is the same, on the host, whether the run was trained now or before.
    return run.final()
