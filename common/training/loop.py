"""The training loop, which knows nothing of pruning, logging or checkpoints: they are callbacks at named points."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional

from common import units
from common.errors import RunFailed
from common.groups import Groups
from common.machine import distributed, environment
from common.machine.process import Interrupts, is_out_of_memory, out_of_memory


class Diverged(RunFailed):
    """The loss stopped being finite."""


@contextmanager
def memory_watched() -> Iterator[None]:
    """Turns running out of memory into RunFailed. Of several processes, the others would go on: there it ends all."""
    try:
        yield
    except RuntimeError as error:
        if environment.ranks() > 1 or not is_out_of_memory(error):
            raise
        raise RunFailed(out_of_memory(error)) from None


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
    passes: int = 1  # forward passes of a process in a step, whose gradients are averaged
    label_smoothing: float = 0.0
    epoch: int = 0  # finished epochs
    step: int = 0  # finished steps of this epoch
    examples: int = 0  # of the present step, in all processes
    loss: Tensor | None = None  # of the present pass, on the device
    logits: Tensor | None = None
    labels: Tensor | None = None
    groups: Groups | None = None  # where channels may be cut out
    masks: list[Tensor] = field(default_factory=list)  # over single weights
    densities: dict[str, float] = field(default_factory=dict)  # layer -> share of its weights that masks keep
    watch: units.UnitWatch | None = None
    counts: units.Counts | None = None  # of the epoch before
    row: dict = field(default_factory=dict)  # what is measured of the epoch that ends

    def __post_init__(self):
        self.parallel = distributed.Parallel(self.model)

    def network(self, last: bool) -> nn.Module:
        """What to call in a step's last pass, and in those before."""
        return self.parallel.network(self.groups.version if self.groups else 0, last)

    @property
    def total_steps(self) -> int:
        return self.epochs * self.steps_per_epoch

    @property
    def done(self) -> int:
        """Finished steps of all epochs."""
        return self.epoch * self.steps_per_epoch + self.step

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

    def on_pass(self, training: Training): ...  # one backward pass is over; a step has one or several

    def on_gradients(self, training: Training): ...  # those of the step, the same in all processes

    def on_step(self, training: Training): ...

    def on_epoch_end(self, training: Training): ...

    def state(self) -> dict:
        return {}

    def restore(self, training: Training, state: dict): ...


def train(training: Training, batches: Callable[[int], Iterable[tuple[Tensor, Tensor]]], callbacks: list[Callback]):
    """Minimises the cross-entropy, from the epoch and step that `training` is in to its last.

    Args:
        batches: epoch -> this process's batches from the present step on, inputs [B, C, H, W] and labels [B]; each is
            one pass.
    """

    def call(point: str):
        for callback in callbacks:
            getattr(callback, point)(training)

    if training.epoch == training.step == 0:
        call("on_start")
    while training.epoch < training.epochs:
        training.model.train()
        if training.step == 0:
            training.row = {}
            call("on_epoch_start")
        for number, (inputs, labels) in enumerate(batches(training.epoch)):
            first, last = number % training.passes == 0, (number + 1) % training.passes == 0
            training.labels = labels
            training.examples = (0 if first else training.examples) + len(labels) * environment.ranks()
            network = training.network(last)
            with training.autocast():
                training.logits = network(inputs)
                training.loss = functional.cross_entropy(
                    training.logits, labels, label_smoothing=training.label_smoothing
                )
            (training.loss / training.passes if training.passes > 1 else training.loss).backward()
            call("on_pass")
            if not last:
                continue
            call("on_gradients")
            training.optimizer.step()
            training.optimizer.zero_grad()
            training.scheduler.step()
            training.step += 1
            call("on_step")
            Interrupts.check()
        training.epoch += 1
        call("on_epoch_end")
        training.step = 0


def sgd(
    model: nn.Module,
    learning_rate: float,
    momentum: float,
    weight_decay: float,
    schedule: str,
    steps: int,
    warmup: int = 0,
    fused: bool = False,
):
    """SGD and its schedule: `constant`, or `one-cycle` up to `learning_rate` and down to 0 (Smith & Topin 2018).

    warmup: steps in which the learning rate rises, linearly where it is constant afterwards; 0: none, or the three
    tenths of the one-cycle.
    fused: whether a step is one launch for all parameters, which not every device has (`devices.fuses`).
    """
    parameters, fused = model.parameters(), fused or None
    optimizer = torch.optim.SGD(parameters, learning_rate, momentum, weight_decay=weight_decay, fused=fused)
    if schedule == "constant" and warmup:
        return optimizer, torch.optim.lr_scheduler.LinearLR(optimizer, 1 / (warmup + 1), total_iters=warmup)
    if schedule == "constant":
        return optimizer, torch.optim.lr_scheduler.ConstantLR(optimizer, 1.0, 1)
    one_cycle = torch.optim.lr_scheduler.OneCycleLR
    rising = min((warmup + 1) / (steps + 1), 0.99) if warmup else 0.3
    return optimizer, one_cycle(optimizer, learning_rate, total_steps=steps + 1, pct_start=rising, cycle_momentum=False)
