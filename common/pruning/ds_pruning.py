"""DS-Pruning: watch, choose, press, cut, settle, in one training run.

A plan says how sparse the network is to be at each moment. Where the network lags behind it, the least vital groups
are chosen, dead ones first; they are pressed until they no longer fire, and what does not fire is cut out.
"""

from dataclasses import asdict, dataclass, fields

import torch
from torch import Tensor, nn

from common.cutting import by_output
from common.errors import UserError
from common.groups import Groups
from common.models import activation_layers
from common.pruning.press import Press
from common.pruning.task import Task, within_floor
from common.training.loop import Callback, Training


@dataclass(frozen=True)
class Constants:
    """The constants of the method, tuned on held-out training images; moments are shares of all steps."""

    warmup: float = 0.2  # the plan begins
    settle: float = 0.75  # the plan ends: from here the network is at its target
    patience: int = 2  # epochs after which a unit that died by itself is cut out
    choose_steps: int = 30  # steps between two looks at the plan
    press_steps: int = 50  # steps from being chosen to silence
    sink: float = 3.0  # how far a press lowers the batch-norm shift, in standard deviations of its output
    memory: int = 100  # steps that the vitality is averaged over
    floor: float = 0.5  # what every layer keeps at least, as a share of what it would keep if all kept the same share
    plan_power: float = 1.5  # shape of the plan; 1: straight, above: fast first
    evenness: float = 1.0  # 0: the groups of all layers compete as they are; 1: relative to their layer's mean

    @classmethod
    def of(cls, settings, measure: str) -> "Constants":
        """Those that the script sets, the rest as above, or as BY_MEASURE has it."""
        own = {f.name: getattr(settings, f.name) for f in fields(cls) if hasattr(settings, f.name)}
        return cls(**{**BY_MEASURE[measure], **own})


def constants_of(_method, settings, measure: str) -> dict:
    return asdict(Constants.of(settings, measure))


# A group of a late layer holds many times the weights of an early one's, which does not count among costs relative to
# the layer's mean. Where weights are to go it must, and layers must be free to lose very different shares.
BY_MEASURE = {"neuron": {}, "weight": {"floor": 0.1, "evenness": 0.5}, "flops": {"floor": 0.25, "evenness": 0.5}}


def planned_sparsity(progress: float, warmup: float, settle: float, target: float, power: float = 3.0) -> float:
    """The sparsity due at `progress` in [0, 1]: 0 until `warmup`, `target` from `settle`; with a power above 1 fast
    first, then slower (cubic in Zhu & Gupta 2017, arXiv 1710.01878)."""
    share = min(max((progress - warmup) / (settle - warmup), 0.0), 1.0)
    return target * (1 - (1 - share) ** power)


def feeders_of(model: nn.Module, groups: Groups) -> dict[str, nn.Module]:
    """The batch-norms that feed the activation layers of couplings, and the layers that feed them without one; in the
    order of the network.

    Raises:
        UserError: for a coupling whose units could be neither judged nor pressed, as nothing that can be scaled feeds
            them (behind a batch-norm without a scale, for instance).
    """
    for coupling in groups.couplings:
        if coupling.gated and coupling.layers and not coupling.batch_norms and not coupling.bare:
            raise UserError(
                f"method: ds-pruning cannot judge the units of {coupling.layers[0]}, which neither a batch-norm with "
                "a scale nor a convolution or linear layer feeds; take another method"
            )
    fed = {name for coupling in groups.couplings for name in (*coupling.batch_norms, *coupling.bare)}
    return {name: module for name, module in model.named_modules() if name in fed}


class Vitality:
    """A running mean square of each group's first-order cost: float32 [G] on the device.

    Scaling what feeds a group's activations by a gate changes the loss by gamma dL/dgamma + beta dL/dbeta per unit of
    gate, summed over the batch-norms that feed it, and by w . dL/dw + b dL/db over the layers without one: exact for
    activations that are positively homogeneous (ReLU, Leaky ReLU). A dead group has exactly 0.
    """

    def __init__(self, groups: Groups, memory: int, device: torch.device):
        self.mean_square = torch.zeros(len(groups), device=device)
        self.keep = 1 - 1 / memory

    def observe(self, groups: Groups, feeders: dict[str, nn.Module]) -> None:
        """feeders: the batch-norms that feed activations, and the layers that do so without one."""
        feeders = {name: module for name, module in feeders.items() if module.weight.grad is not None}
        layers = list(feeders.values())
        if not layers:
            return
        slopes = torch._foreach_mul([m.weight.detach() for m in layers], [m.weight.grad for m in layers])
        slopes = [
            slope if slope.dim() == 1 else by_output(m, slope).flatten(1).sum(1)
            for slope, m in zip(slopes, layers, strict=True)
        ]
        biased = [
            (slope, m.bias)
            for slope, m in zip(slopes, layers, strict=True)
            if m.bias is not None and m.bias.grad is not None
        ]
        if biased:
            shifts = torch._foreach_mul([bias.detach() for _, bias in biased], [bias.grad for _, bias in biased])
            torch._foreach_add_([slope for slope, _ in biased], shifts)
        change = groups.total(dict(zip(feeders, slopes, strict=True)))
        self.mean_square.lerp_(change.square(), 1 - self.keep)


def evened(groups: Groups, cost: Tensor, evenness: float) -> Tensor:
    """Each group's cost over its coupling's mean to the power `evenness`: float [G].

    Costs of different layers are no equals: that of a layer of many channels is spread over them, and shrinks once
    more as the others learn to do without it.
    """
    alive = groups.alive
    sums, counts = (torch.zeros(len(groups.couplings), dtype=cost.dtype) for _ in range(2))
    sums.index_add_(0, groups.coupling[alive], cost[alive])
    counts.index_add_(0, groups.coupling[alive], torch.ones_like(cost[alive]))
    mean = (sums / counts)[groups.coupling]
    return torch.where(mean > 0, cost / mean**evenness, cost)


def choose(groups: Groups, cost: Tensor, taken: Tensor, task: Task, due: float, floor: float) -> Tensor:
    """The groups to remove so that, with those in `taken`, the network is as sparse as is due.

    Args:
        cost: float [G], what removing a group costs per unit (or weight) removed; 0 for dead ones.
        taken: bool [G], groups that are on their way out already.
        due: sparsity in [0, 1).
        floor: share of each coupling that must stay.

    Returns:
        group numbers, least vital first; empty where the network is not behind.
    """
    leaving = taken.nonzero().flatten()
    others = (groups.candidates & ~taken).nonzero().flatten()
    order = torch.cat([leaving, others[torch.argsort(cost[others], stable=True)]])
    first = task.first(groups, within_floor(groups, order, floor), due)
    return first[~taken[first]]


class DSPruning(Callback):
    """The controller: what it decides on is in `log`, one entry a look, and in the rows of the run."""

    def __init__(self, task: Task, constants: Constants | None = None):
        """constants: by default those of the task's settings."""
        self.task, self.constants = task, constants or Constants.of(task.settings, task.measure)
        self.log: list[dict] = []

    def prepare(self, training: Training):
        groups, constants = training.groups, self.constants
        self.groups = groups
        self.task.check(groups)
        self.feeders = feeders_of(training.model, groups)
        # What is frozen gets gradients, as they are the vitality, and no step.
        self.frozen = [p for m in self.feeders.values() for p in m.parameters(recurse=False) if not p.requires_grad]
        self.freeze(False)
        steps = training.total_steps
        self.first_step, self.last_step = (
            max(1, round(share * steps)) for share in (constants.warmup, constants.settle)
        )
        # Short runs have no room for the full press: it takes a third of the way from warm-up to settling at most.
        press_steps = max(1, min(constants.press_steps, (self.last_step - self.first_step) // 3))
        self.choose_steps = max(1, min(constants.choose_steps, press_steps // 4))
        self.last_choice = self.last_step - press_steps - self.choose_steps
        if self.last_choice <= self.first_step:
            raise UserError(
                f"epochs: {steps} steps leave {self.last_step - self.first_step} from warmup to settle, too few to "
                "choose, press and cut in; raise epochs or settle, or lower warmup or the batch size"
            )
        kinds = {type(module) for module in activation_layers(training.model).values()}
        self.lets_through = not kinds <= {nn.ReLU, nn.ReLU6}  # what is below 0, so that a dead unit may have an output
        depths = {
            name: 1.0 if m.weight.dim() == 1 else by_output(m, m.weight.detach()).flatten(1).norm(dim=1).mean().item()
            for name, m in self.feeders.items()
        }
        self.press = Press(groups, press_steps, constants.sink, self.lets_through, depths)
        self.vitality = Vitality(groups, constants.memory, training.device)
        self.dead_epochs = torch.zeros(len(groups), dtype=torch.int64)
        self.died = torch.zeros(len(groups), dtype=torch.bool)  # by themselves, and pressed for it
        self.floor = self.task.floor(groups, constants.floor)

    def on_epoch_start(self, training: Training):
        if training.counts is None:
            return
        dead = training.groups.all_dead(training.counts.dead, list(training.watch.layers)) & ~self.press.chosen
        self.dead_epochs = torch.where(dead, self.dead_epochs + 1, 0)

    def on_gradients(self, training: Training):
        if training.done < self.last_step:
            self.vitality.observe(training.groups, self.feeders)
        for parameter in self.frozen:
            parameter.grad = None

    def freeze(self, frozen: bool):
        for parameter in self.frozen:
            parameter.requires_grad_(not frozen)

    def on_step(self, training: Training):
        step = training.done
        if step > self.last_step:
            return
        self.press.apply(training.groups, self.feeders)
        if step == self.last_step or (step >= self.first_step and step % self.choose_steps == 0):
            self.look(training, step)

    def cost(self, groups: Groups) -> Tensor:
        """What removing each group costs, comparable between layers: float64 [G], 0 for dead ones."""
        cost = self.vitality.mean_square.cpu().double() / self.task.price(groups).clamp(min=1)
        cost = evened(groups, cost, self.constants.evenness)
        cost[self.dead_epochs > 0] = 0
        return cost

    def look(self, training: Training, step: int):
        """Cuts what is silent and presses what the plan asks for; at the last step, cuts down to the target."""
        groups, settled = training.groups, step == self.last_step
        constants, due = self.constants, self.task.target
        if not settled:
            due = planned_sparsity(step, self.first_step, self.last_choice, due, constants.plan_power)
        cost = self.cost(groups)
        died = (self.dead_epochs >= constants.patience) & groups.candidates
        if self.lets_through:  # what has died still has an output, which a press brings to 0
            self.died |= died
            self.press.add(within_floor(groups, (died & ~self.press.chosen).nonzero().flatten(), self.floor))
            died = torch.zeros_like(died)
        chosen = choose(groups, cost, self.press.chosen | died, self.task, due, self.floor)
        self.press.add(chosen)
        silent = groups.all_dead(training.watch.silent_units(), list(training.watch.layers))
        leaving = self.press.chosen if settled else (self.press.over & silent) | (died & silent)
        if settled and died.any():
            leaving = leaving | died
        order = leaving.nonzero().flatten()
        order = within_floor(groups, order[torch.argsort(cost[order], stable=True)], self.floor)
        removed = self.task.first(groups, order, self.task.target)
        by_death = int(((died & ~self.press.chosen) | self.died)[removed].sum())
        groups.cut(training.model, training.optimizer, removed, self.task.multiple)
        self.press.remove(removed)
        self.dead_epochs[removed] = 0
        if settled:
            self.press.remove(self.press.chosen.nonzero().flatten())
            self.freeze(True)
        self.log.append(
            {
                "step": step,
                "planned": due,
                "measured": self.task.curve(groups, torch.empty(0, dtype=torch.int64))[0].item(),
                "chosen": len(chosen),
                "cut": len(removed),
                "cut_dead_by_themselves": by_death,
                "cut_still_firing": int((~silent[removed]).sum()),
            }
        )

    def on_epoch_end(self, training: Training):
        last = self.log[-1] if self.log else {"planned": 0.0, "measured": 0.0}
        training.row |= {
            "planned_sparsity": last["planned"],
            "sparsity": last["measured"],
            "groups_chosen": sum(entry["chosen"] for entry in self.log),
            "groups_cut": sum(entry["cut"] for entry in self.log),
            "groups_dead_by_themselves": int((self.dead_epochs > 0).sum()),
        }

    def state(self) -> dict:
        return {
            "vitality": self.vitality.mean_square,
            "press": self.press.left,
            "dead_epochs": self.dead_epochs,
            "died": self.died,
            "depths": self.press.depths,
            "log": self.log,
            "couplings": [coupling.name for coupling in self.groups.couplings],
            "widths": self.groups.widths.tolist(),
            "dense_widths": [coupling.size for coupling in self.groups.couplings],
        }

    def restore(self, training: Training, state: dict):
        self.vitality.mean_square = state["vitality"].to(training.device)
        self.press.left, self.dead_epochs, self.log = state["press"], state["dead_epochs"], state["log"]
        self.died = state["died"]
        self.press.depths = state.get("depths", self.press.depths)  # those of the first weights
        self.freeze(bool(self.log) and self.log[-1]["step"] == self.last_step)
