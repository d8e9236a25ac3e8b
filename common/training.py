"""The training loop, which knows nothing of pruning, logging or checkpoints: they are callbacks at named points."""

import math
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional
from tqdm import tqdm

from common import data, units
from common.groups import Groups, find_groups
from common.models import build
from common.runs import Run
from common.settings import Interrupts, UserError


class Diverged(UserError):
    """The loss stopped being finite."""


@dataclass
class Training:
    """The state of one training run; callbacks read it and change it."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    scheduler: torch.optim.lr_scheduler.LRScheduler
    epochs: int
    steps_per_epoch: int
    precision: str
    device: torch.device
    epoch: int = 0  # finished epochs
    step: int = 0  # finished steps of this epoch
    loss: Tensor | None = None  # of the present step, on the device
    logits: Tensor | None = None
    labels: Tensor | None = None
    groups: Groups | None = None  # where channels may be cut out
    densities: dict[str, float] = field(default_factory=dict)  # layer -> share of its weights that masks keep
    watch: units.UnitWatch | None = None
    counts: units.Counts | None = None  # of the epoch before
    row: dict = field(default_factory=dict)  # what is measured of the epoch that ends

    @property
    def total_steps(self) -> int:
        return self.epochs * self.steps_per_epoch

    @property
    def progress(self) -> float:
        """The share of all steps done, in [0, 1]."""
        return (self.epoch + self.step / self.steps_per_epoch) / self.epochs

    def autocast(self):
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16")


class Callback:
    """The named points of the loop, in their order; and what a checkpoint keeps of a callback."""

    def prepare(self, training: Training): ...  # the network is built; a checkpoint may still be loaded

    def on_start(self, training: Training): ...  # a run that was never begun

    def on_epoch_start(self, training: Training): ...

    def on_gradients(self, training: Training): ...

    def on_step(self, training: Training): ...

    def on_epoch_end(self, training: Training): ...

    def state(self) -> dict:
        return {}

    def restore(self, training: Training, state: dict): ...


def train(training: Training, batches: Callable[[int], Iterable[tuple[Tensor, Tensor]]], callbacks: list[Callback]):
    """Minimises the cross-entropy, from the epoch that `training` is in to its last.

    Args:
        batches: epoch -> its batches, inputs [B, C, H, W] and labels [B].
    """
    model, optimizer = training.model, training.optimizer
    if training.epoch == 0:
        for callback in callbacks:
            callback.on_start(training)
    while training.epoch < training.epochs:
        model.train()
        training.step, training.row = 0, {}
        for callback in callbacks:
            callback.on_epoch_start(training)
        for inputs, labels in batches(training.epoch):
            training.labels = labels
            with training.autocast():
                training.logits = model(inputs)
                training.loss = functional.cross_entropy(training.logits, training.labels)
            training.loss.backward()
            for callback in callbacks:
                callback.on_gradients(training)
            optimizer.step()
            optimizer.zero_grad()
            training.scheduler.step()
            training.step += 1
            for callback in callbacks:
                callback.on_step(training)
            Interrupts.check()
        training.epoch += 1
        for callback in callbacks:
            callback.on_epoch_end(training)


def sgd(model: nn.Module, learning_rate: float, momentum: float, weight_decay: float, schedule: str, steps: int):
    """SGD and its schedule: `constant`, or `one-cycle` up to `learning_rate` and down to 0 (Smith & Topin 2018)."""
    optimizer = torch.optim.SGD(model.parameters(), learning_rate, momentum, weight_decay=weight_decay)
    if schedule == "constant":
        return optimizer, torch.optim.lr_scheduler.ConstantLR(optimizer, 1.0, 1)
    one_cycle = torch.optim.lr_scheduler.OneCycleLR
    return optimizer, one_cycle(optimizer, learning_rate, total_steps=steps + 1, cycle_momentum=False)


@torch.no_grad()
def evaluate(training: Training, dataset: data.Dataset) -> tuple[float, float]:
    """Mean cross-entropy and accuracy in [0, 1] over the test split."""
    training.model.eval()
    sums = torch.zeros(2, dtype=torch.float64, device=training.device)
    for inputs, labels in data.evaluation_batches(dataset):
        with training.autocast():
            logits = training.model(inputs)
        sums[0] += functional.cross_entropy(logits.float(), labels, reduction="sum")
        sums[1] += (logits.argmax(1) == labels).sum()
    loss, correct = (sums / len(dataset.test)).tolist()
    return loss, correct


# Measuring -------------------------------------------------------------------------------------------------------


class Meters(Callback):
    """Training loss and accuracy of the epoch, summed on the device; stops the run when the loss is not finite.

    The host reads the sums without waiting for the device: in mid-epoch it may see those of a moment ago.
    """

    def __init__(self, device: torch.device):
        self.sums = torch.zeros(5, dtype=torch.float64, device=device)  # loss, correct, examples, steps, finite steps
        self.copy = torch.zeros(5, dtype=torch.float64, pin_memory=device.type == "cuda")
        self.copied = torch.cuda.Event() if device.type == "cuda" else None
        self.finite = torch.ones((), dtype=torch.bool, device=device)

    def on_epoch_start(self, training: Training):
        self.sums.zero_()
        self.finite.fill_(True)
        self.started = time.perf_counter()

    @torch.no_grad()
    def on_gradients(self, training: Training):
        count = len(training.labels)
        self.finite &= training.loss.isfinite()
        self.sums[0] += training.loss * count
        self.sums[1] += (training.logits.argmax(1) == training.labels).sum()
        self.sums[2] += count
        self.sums[3] += 1
        self.sums[4] += self.finite

    def glance(self, training: Training) -> tuple[float, float] | None:
        """Mean loss and accuracy so far, or None when they are still on their way."""
        if self.copied is None:
            self.copy.copy_(self.sums)
        elif not self.copied.query():
            return None
        means = self.means(self.copy.tolist(), training.epoch + 1) if self.copy[2] > 0 else None
        if self.copied is not None:
            self.copy.copy_(self.sums, non_blocking=True)
            self.copied.record()
        return means

    @staticmethod
    def means(sums: list[float], epoch: int) -> tuple[float, float]:
        loss, correct, examples, steps, finite_steps = sums
        if finite_steps < steps:
            raise Diverged(
                f"the loss is not finite in epoch {epoch}, step {int(finite_steps) + 1}; lower the learning rate, the "
                "noise or the regularization (the checkpoint of the epoch before is kept)"
            )
        return loss / examples, correct / examples

    def on_epoch_end(self, training: Training):
        loss, accuracy = self.means(self.sums.tolist(), training.epoch)
        training.row |= {"train_loss": loss, "train_accuracy": accuracy, "seconds": time.perf_counter() - self.started}


class Watching(Callback):
    """Counts every unit's firing over the epoch; `history` holds the counts of all epochs.

    Units are numbered as in the dense network; those cut out are neither dead nor anything else.
    """

    def __init__(self, model: nn.Module, example: Tensor):
        self.watch = units.UnitWatch(model, example)
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
        training.row["units"] = len(self.watch.batch)
        training.row |= units.totals(units.measures(self.history[-1], before))

    def state(self) -> dict:
        return {
            "layers": self.watch.layers,
            **{name: torch.stack([getattr(c, name) for c in self.history]) for name in units.SAVED},
            "batches": [counts.batches for counts in self.history],
        }

    def restore(self, training: Training, state: dict):
        self.history = units.history(state)
        training.counts = self.history[-1]
        self.follow(training)


class Testing(Callback):
    """Loss and accuracy on the test split after every epoch."""

    def __init__(self, dataset: data.Dataset):
        self.dataset = dataset

    def on_epoch_end(self, training: Training):
        loss, accuracy = evaluate(training, self.dataset)
        if not math.isfinite(loss):
            raise Diverged(
                f"the test loss is not finite after epoch {training.epoch}, step {training.step}; lower the learning "
                "rate, the noise or the regularization (the checkpoint of the epoch before is kept)"
            )
        training.row |= {"test_loss": loss, "test_accuracy": accuracy}


class Keeping(Callback):
    """A row in the log and a checkpoint after every epoch. Comes after all that fill the row.

    Args:
        others: the callbacks that have a state of their own.
    """

    def __init__(self, run: Run, others: list[Callback]):
        self.run, self.others = run, others
        self.rows: list[dict] = []

    def on_epoch_end(self, training: Training):
        self.rows.append({"epoch": training.epoch, **training.row})
        self.run.save_checkpoint(
            {
                "epoch": training.epoch,
                "groups": training.groups.state_dict() if training.groups else None,
                "model": training.model.state_dict(),
                "optimizer": training.optimizer.state_dict(),
                "scheduler": training.scheduler.state_dict(),
                "rows": self.rows,
                "callbacks": {type(callback).__name__: callback.state() for callback in self.others},
            }
        )
        self.run.save_log(self.rows)

    def resume(self, training: Training):
        """Brings a fresh `training` to where the run stopped, if it was ever begun."""
        state = self.run.checkpoint()
        if state is None:
            return
        training.epoch, self.rows = state["epoch"], state["rows"]
        if training.groups:
            training.groups.restore(training.model, state["groups"])
        training.model.load_state_dict(state["model"])
        training.optimizer.load_state_dict(state["optimizer"])
        training.scheduler.load_state_dict(state["scheduler"])
        for callback in self.others:
            callback.restore(training, state["callbacks"][type(callback).__name__])


class Progress(Callback):
    """A bar with loss, accuracy, images/s and dead units on a terminal, and a line for each epoch everywhere."""

    SECONDS = 0.5  # between two looks at the meters

    def __init__(self, label: str, training: Training, meters: Meters, examples: int):
        self.label, self.meters = label, meters
        self.bar = tqdm(
            total=training.epochs * examples,
            initial=training.epoch * examples,
            unit=" images",
            unit_scale=True,
            leave=False,
            dynamic_ncols=True,
            disable=not sys.stderr.isatty(),
        )
        self.dead, self.looked = "?", 0.0

    def on_step(self, training: Training):
        self.bar.update(len(training.labels))
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
            f"{row['units']} units dead{dying}, {row['seconds']:.1f} s",
            file=sys.stdout,
        )
        sys.stdout.flush()


def start(settings, dataset: data.Dataset, network: dict, learning_rate: float, seed: int, cuts: bool) -> Training:
    """A network with fresh weights and its optimiser; with `cuts`, its groups too."""
    torch.manual_seed(seed)
    model = build(network).to(settings.device, memory_format=torch.channels_last)
    steps = data.batches_per_epoch(len(dataset.train), settings.batch_size)
    optimizer, scheduler = sgd(
        model, learning_rate, settings.momentum, settings.weight_decay, settings.schedule, settings.epochs * steps
    )
    training = Training(model, optimizer, scheduler, settings.epochs, steps, settings.precision, settings.device)
    training.groups = find_groups(model, dataset.example) if cuts else None
    return training


def fit(
    settings,
    dataset: data.Dataset,
    run: Run,
    network: dict,
    learning_rate: float,
    seed: int,
    extra: list[Callback],
    cuts: bool = False,
) -> dict:
    """Trains one network, or goes on where it stopped, or reads what it left: the content of the run's final.pt.

    Args:
        settings: what all runs of the script have in common.
        network: the arguments of `models.build`.
        extra: callbacks that act on the gradients or prune, in their order.
        cuts: whether channels may be cut out.

    Returns:
        config; network; image [C, H, W]; model (the state dict, without padding); rows (a dict an epoch); counts (of
        every unit and epoch); and the state of every callback in `extra` under its class's name.

    Raises:
        Diverged: when the loss is not finite.
    """
    finished = run.final()
    if finished is not None:
        print(f"{run.label}: finished before, in {run.folder}")
        return finished
    with run.locked():
        training = start(settings, dataset, network, learning_rate, seed, cuts)
        meters, watching = Meters(settings.device), Watching(training.model, dataset.example.to(settings.device))
        training.watch = watching.watch
        keeping = Keeping(run, [*extra, watching])
        for callback in extra:
            callback.prepare(training)
        keeping.resume(training)
        progress = Progress(run.label, training, meters, len(dataset.train))
        callbacks = [meters, *extra, watching, Testing(dataset), keeping, progress]
        try:
            train(
                training,
                lambda epoch: data.batches(dataset, settings.batch_size, seed, epoch, settings.augmentation),
                callbacks,
            )
        finally:
            progress.bar.close()
            watching.watch.close()
        model = training.groups.compact(training.model) if training.groups else training.model
        state = {
            "config": run.config,
            "network": network,
            "image": list(dataset.example.shape[1:]),
            "model": model.state_dict(),
            "rows": keeping.rows,
            "counts": watching.state(),
            **{type(callback).__name__: callback.state() for callback in extra},
        }
        run.save_final(state)
    return state
