"""Demon Pruning: a pull on the batch-norm scales that comes and goes, noise on live weights, and what dies is cut out.

Dufort-Labbé et al. 2024, arXiv 2403.07688, and the settings of their code for SGD. It has no target: how much dies
follows from the strength of the pull.
"""

import math
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from common import units
from common.errors import UserError
from common.machine import environment, seeds
from common.models import batch_norms
from common.pruning.task import Task, within_floor
from common.training.gradients import parts_of
from common.training.loop import Callback, Training


@dataclass(frozen=True)
class Constants:
    """As the authors' code has them for SGD with momentum."""

    penalty: str = "l1"  # on the scales: l1, or l2
    height: float = 0.3  # moment of the greatest pull, as a share of the time that it lasts
    end: float = 0.87  # share of training after which there is no pull
    noise: float = 5e-5  # standard deviation of what is added to every live weight at every step


def constants_of(_method, settings, measure: str) -> dict:
    return asdict(Constants())


def one_cycle(progress: float, height: float, end: float) -> float:
    """The share of the full strength at `progress` in [0, 1]: from 0 to 1 and back to 0 by two half cosines, the
    first until `height` * `end`, the second until `end`."""
    moment = progress / end
    if moment >= 1:
        return 0.0
    way = moment / height if moment < height else (1 - moment) / (1 - height)
    return (1 - math.cos(math.pi * way)) / 2


class DemonPruning(Callback):
    """A group is cut out at the end of the first epoch in which none of its units fired.

    Noise is added to every weight whose gradient is not 0, as the authors do: the weights of a unit that does not fire
    have none, so nothing shakes it awake. Every layer keeps a channel; where all of one are dead, the run says so once
    and goes on with what is left.
    """

    STILL = 1e-8  # gradients of at most this size are none

    def __init__(self, task: Task, constants: Constants | None = None):
        self.task, self.constants = task, constants or Constants()
        self.emptied: list[str] = []  # couplings all of whose units are dead

    def prepare(self, training: Training):
        if not batch_norms(training.model):
            raise UserError("method: demp pulls on the scales of batch-norms, and this network has none")
        self.generator = torch.Generator(training.device)

    def on_epoch_start(self, training: Training):
        self.generator.manual_seed(seeds.stream(self.task.seed, "noise on live weights", training.epoch))

    def on_gradients(self, training: Training):
        self.shake(training)
        self.pull(training)

    @torch.no_grad()
    def shake(self, training: Training) -> None:
        """Before the step: only weight decay sees the difference to adding it to the step, and hardly."""
        parameters = list(training.model.parameters())
        noise = torch.empty(sum(parameter.numel() for parameter in parameters), device=training.device)
        noise.normal_(0, self.constants.noise, generator=self.generator)
        live = torch.cat([parameter.grad.flatten() for parameter in parameters]).abs_() > self.STILL
        torch._foreach_add_(parameters, parts_of(noise * live, parameters))

    def pull(self, training: Training) -> None:
        now = self.task.strength * one_cycle(training.progress, self.constants.height, self.constants.end)
        scales = [norm.weight for norm in batch_norms(training.model)]
        values = [scale.detach() for scale in scales]
        slopes = torch._foreach_sign(values) if self.constants.penalty == "l1" else torch._foreach_mul(values, 2.0)
        torch._foreach_add_([scale.grad for scale in scales], slopes, alpha=now)

    def on_step(self, training: Training):
        if training.step == training.steps_per_epoch:
            watch = training.watch
            self.cut(training, units.is_dead(watch.fired_units().cpu(), watch.pairs_of_units()))

    def cut(self, training: Training, silent: Tensor) -> None:
        """silent: bool [U], the units of the dense network that did not fire in this epoch."""
        groups = training.groups
        dead = groups.all_dead(silent, list(training.watch.layers))
        going = within_floor(groups, dead.nonzero().flatten(), 0.0)
        for coupling in groups.couplings:
            mine = groups.alive[coupling.slice]
            if coupling.name not in self.emptied and dead[coupling.slice][mine].all():
                self.emptied.append(coupling.name)
                if environment.rank() == 0:
                    print(
                        f"demp at strength {self.task.strength:g}: all units of {coupling.name} are dead in "
                        f"epoch {training.epoch + 1}; one stays; a lower strength (DEMP_STRENGTHS) keeps more"
                    )
        groups.cut(training.model, training.optimizer, going, self.task.multiple)

    def state(self) -> dict:
        return {"generator": self.generator.get_state(), "emptied": self.emptied}

    def restore(self, training: Training, state: dict):
        self.generator.set_state(state["generator"].cpu())
        self.emptied = state["emptied"]
