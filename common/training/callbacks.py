"""What is measured and compared at the points of the loop: loss and accuracy, units, the test split, decisions."""

import math
import time
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from common import data, units
from common.machine import devices, distributed, environment
from common.training.loop import Callback, Diverged, Training


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


class UnitCounts(Callback):
    """Counts every unit's firing over the epoch; `history` holds the counts of all epochs.

    Units are numbered as in the dense network; those cut out are neither dead nor anything else.
    """

    def __init__(self, model: nn.Module, example: Tensor, passes: int = 1):
        self.watch = units.UnitWatch(model, example, passes)
        self.history: list[units.Counts] = []

    def follow(self, training: Training):
        if training.groups is not None:
            self.watch.follow(training.groups)

    on_start = on_step = follow

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


class Evaluation(Callback):
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


CLOSING = 0.1  # the share of all steps that DeadAtEnd looks at


class DeadAtEnd(Callback):
    """How often each unit fired in the last tenth of all steps, or in the last epoch where it is shorter.

    A run of few long epochs would otherwise hide what died in its last one: a unit that fired in the first step of an
    epoch is not dead in that epoch.
    """

    def __init__(self):
        self.before: tuple[Tensor, Tensor] | None = None  # the epoch's counts when the window opened
        self.counts: dict[str, Tensor] = {}  # those of the window: fired and pairs, int64 [U]

    @staticmethod
    def opens(training: Training) -> int:
        """The finished steps of the last epoch at which the window opens."""
        return training.steps_per_epoch - min(training.steps_per_epoch, max(1, int(CLOSING * training.total_steps)))

    @staticmethod
    def so_far(training: Training) -> tuple[Tensor, Tensor]:
        return training.watch.fired_units(), training.watch.pairs_of_units()

    def on_epoch_start(self, training: Training):
        if training.epoch == training.epochs - 1 and self.opens(training) == 0:
            self.before = tuple(torch.zeros_like(values) for values in self.so_far(training))

    def on_step(self, training: Training):
        if training.epoch == training.epochs - 1 and training.step == self.opens(training):
            self.before = self.so_far(training)

    def on_epoch_end(self, training: Training):
        if training.epoch == training.epochs:
            pairs = zip(self.so_far(training), self.before, strict=True)
            fired, seen = (now.cpu() - before.cpu() for now, before in pairs)
            self.counts, self.before = {"fired": fired, "pairs": seen}, None

    def state(self) -> dict:
        return {**self.counts, "before": self.before}

    def restore(self, training: Training, state: dict):
        before = state.pop("before")
        self.counts = state
        self.before = before and (before[0].to(training.device), before[1])
