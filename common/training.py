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

from common import data, distributed, environment, units
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
    sums = torch.zeros(4, dtype=torch.float64, device=training.device)

    def own_share():
        for inputs, labels in dataset.evaluation_batches(environment.rank(), environment.ranks()):
            with training.autocast():
                logits = training.model(inputs)
            best = logits.topk(min(5, logits.shape[1])).indices
            sums[0] += functional.cross_entropy(logits.float(), labels, reduction="sum")
            sums[1] += (logits.argmax(1) == labels).sum()
            sums[2] += (best == labels[:, None]).sum()
            sums[3] += len(labels)

    distributed.everywhere(own_share)
    loss, top1, top5, count = distributed.total(sums).tolist()
    return Scores(loss / count, top1 / count, top5 / count)


# Measuring -------------------------------------------------------------------------------------------------------


class Meters(Callback):
    """Training loss and accuracy of the epoch, summed on the device; stops the run when the loss is not finite.

    The host reads the sums without waiting for the device: in mid-epoch it may see those of a moment ago. They are
    those of this process until the epoch ends.
    """

    def __init__(self, device: torch.device):
        self.sums = torch.zeros(5, dtype=torch.float64, device=device)  # loss, correct, examples, passes, finite passes
        self.copy = torch.zeros(5, dtype=torch.float64, pin_memory=device.type == "cuda")
        self.copied = torch.cuda.Event() if device.type == "cuda" else None
        self.finite = torch.ones((), dtype=torch.bool, device=device)

    def on_epoch_start(self, training: Training):
        self.sums.zero_()
        self.finite.fill_(True)
        self.started = time.perf_counter()

    @torch.no_grad()
    def on_pass(self, training: Training):
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
        seen = self.copy.tolist()
        if seen[2] and environment.ranks() == 1:  # of several processes, none may stop alone
            self.check(seen, training)
        if self.copied is not None:
            self.copy.copy_(self.sums, non_blocking=True)
            self.copied.record()
        return (seen[0] / seen[2], seen[1] / seen[2]) if seen[2] else None

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
        self.check(distributed.total(self.sums).tolist(), training)

    def on_epoch_end(self, training: Training):
        sums = distributed.total(self.sums).tolist()
        self.check(sums, training, epochs_done=1)
        loss, correct, examples, *_ = sums
        training.row |= {
            "train_loss": loss / examples,
            "train_accuracy": correct / examples,
            "seconds": time.perf_counter() - self.started,
        }

    def state(self) -> dict:
        return {"sums": distributed.total(self.sums), "seconds": time.perf_counter() - self.started}

    def restore(self, training: Training, state: dict):
        self.started = time.perf_counter() - state["seconds"]
        if environment.rank() == 0:
            self.sums.copy_(state["sums"])


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
        training.row["units"] = len(self.watch.batch)
        training.row |= units.totals(units.measures(self.history[-1], before))

    def counts(self) -> dict:
        """Of every unit and finished epoch."""
        columns = {name: [getattr(counts, name) for counts in self.history] for name in units.SAVED}
        nothing = torch.empty(0, len(self.watch.batch), dtype=torch.int64)
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
    )
    training = Training(model, optimizer, scheduler, settings.epochs, steps, settings.precision, settings.device)
    training.passes, training.label_smoothing = settings.passes, settings.label_smoothing
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
        RunFailed: when the loss is not finite, memory runs out, another process trains this run, or what it left is
            damaged.
    """
    finished = run.final()
    if finished is not None:
        print(f"{run.label}: finished before, in {run.folder}")
        return finished
    with run.locked(), memory_watched():
        training = start(settings, dataset, network, learning_rate, seed, cuts)
        example = dataset.example.to(settings.device)
        meters, watching = Meters(settings.device), Watching(training.model, example, training.passes)
        training.watch = watching.watch
        keeping = Keeping(run, [*extra, watching], meters, settings.checkpoint_steps)
        for callback in extra:
            callback.prepare(training)
        keeping.resume(training)
        examples = min(len(dataset.train), training.steps_per_epoch * settings.batch_size)
        progress = Progress(run.label, training, meters, examples)
        callbacks = [meters, *extra, watching, Agreement(), Testing(dataset), keeping, progress]
        process = environment.rank(), environment.ranks()

        def batches(epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
            done, whole = (steps * training.passes for steps in (training.step, training.steps_per_epoch))
            rest = dataset.batches(settings.per_pass, seed, epoch, settings.augmentation, done, *process)
            return distributed.together(islice(rest, whole - done))

        try:
            train(training, batches, callbacks)
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
            "counts": watching.counts(),
            **{type(callback).__name__: callback.state() for callback in extra},
        }
        run.save_final(state)
    return state
