"""Pruning by a score: magnitude, SNAP, CroPit-S, and the two of them early in training.

*What* to remove is a criterion: a function of network, groups and batches to a score for each unit, small where
removal costs little. `combined` makes one score a group of them; *where* is an order of all groups by that score, one
of RANKINGS; `prune` cuts the first of them, as many as the target asks for. *When* is one of MOMENTS. A method's record
names the three. What the papers and their authors' code leave open is a `Definition`.

SNAP and CroPit-S here are those of the papers and of the code that EarlyCroP's authors published, with three
differences. A gate is on a unit's output, after batch norm and shortcut, where theirs is on the convolution's (before
training, in evaluation mode, batch norm is the identity). Scores are taken over training images, where their code takes
test images. Pruning early leaves the rest of the epochs to train, where their code begins all epochs anew.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice

import torch
from torch import Tensor, nn
from torch.nn import functional

from common.cutting import WEIGHTED, bare_copy, by_output
from common.errors import RunFailed, UserError
from common.groups import Groups
from common.machine import distributed, seeds
from common.models import activation_layers, conv_and_linear
from common.pruning import Method, find
from common.pruning.ds_pruning import Constants, planned_sparsity
from common.pruning.task import Task, within_floor
from common.training.loop import Callback, Training

Batches = Iterable[tuple[Tensor, Tensor]]  # inputs [B, C, H, W] and labels [B]
Criterion = Callable[[nn.Module, Groups, Batches], dict[str, Tensor]]  # layer -> a score for each channel, [channels]
Order = Callable[[Groups, Tensor], Tensor]  # groups and their scores [G] -> the candidates, first to go first

SCORING_BATCHES = 8  # training batches behind a score; the authors' code takes 5
HALVINGS = 5  # of the distance to the target, in the rounds of CroPit-S
LOOKS = 20  # cuts of a gradual method from WARMUP to SETTLE


@dataclass(frozen=True)
class Definition:
    """How a score is taken and used, where papers and code leave a choice.

    The defaults are what the authors' code has, but for the way channels are combined, which a method's record says.
    On held-out images at 80 % neuron sparsity, one seed, SNAP and EarlySNAP are best with the mean, EarlyCroP-S with
    the maximum (`python benchmarks/ablation.py`, the rivals).
    """

    training: bool = False  # scored in training mode, where batch norm divides by what it sees; else in evaluation mode
    combine: str = "mean"  # what a group's score is of those of its channels: mean, sum or maximum
    floor: float = 0.0  # what every layer keeps, as a share of what it would keep if all kept the same share
    gradual: bool = False  # little by little, along the plan of DS-Pruning, whatever the method's own moment


def definition_of(method: Method, settings) -> Definition:
    """A method's own, with the choices that `settings.definition` makes otherwise, where it has any."""
    return replace(Definition(combine=method.combine), **getattr(settings, "definition", {}))


# What: criteria. They may change the network they get, a copy.


def magnitude(network: nn.Module, groups: Groups, batches: Batches) -> dict[str, Tensor]:
    """The L2 norm of each filter (Li et al. 2017, arXiv 1608.08710) over the mean norm of its layer.

    Layers that add into one stream differ in scale for no reason of importance, as batch norm undoes it; the division
    (of Fang et al. 2023) gives each the same say.
    """
    scores = {}
    for name, module in network.named_modules():
        if isinstance(module, WEIGHTED):
            norms = by_output(module, module.weight.detach()).flatten(1).norm(dim=1)
            alive = groups.alive_channels(name).to(norms.device)
            scores[name] = norms * alive.sum() / norms.sum().clamp(min=torch.finfo(norms.dtype).tiny)
    return scores


def gate(network: nn.Module, groups: Groups) -> dict[str, Tensor]:
    """Multiplies what each activation layer puts out by a gate of 1 a channel, for good: layer -> gates [channels]."""
    weight = next(network.parameters())
    gates, modules = {}, activation_layers(network)
    for name in groups.layer_units:
        gates[name] = weight.new_ones(len(groups.channels(name)), requires_grad=True)

        def multiply(_module: nn.Module, _inputs: tuple, output: Tensor, gate: Tensor = gates[name]) -> Tensor:
            return output * gate.view(1, -1, *[1] * (output.dim() - 2))

        modules[name].register_forward_hook(multiply)
    return gates


def snap(network: nn.Module, groups: Groups, batches: Batches) -> dict[str, Tensor]:
    """SNAP (Verdenius et al. 2020, arXiv 2006.00896): |sum over batches of dL/dgate|, with L a batch's mean loss and a
    gate of 1 on every unit. (The authors' code sums the derivatives first and then takes their size.)"""
    gates = gate(network, groups)
    sums = [torch.zeros_like(values) for values in gates.values()]
    for inputs, labels in batches:
        loss = functional.cross_entropy(network(inputs), labels)
        torch._foreach_add_(sums, torch.autograd.grad(loss, list(gates.values())))
    return {name: slope.abs() for name, slope in zip(gates, sums, strict=True)}


def cropit(network: nn.Module, groups: Groups, batches: Batches) -> dict[str, Tensor]:
    """CroPit-S (Rachwan et al. 2022, arXiv 2206.10451): |d(g . grad L)/dgate|, the effect of a unit on gradient flow.

    L is the mean loss over the batches, grad its gradient in the weights of convolutions and linear layers, g that
    gradient held constant. Exact, by a second backward pass through the first.
    """
    gates, batches = gate(network, groups), list(batches)
    weights = [module.weight for module in conv_and_linear(network)]

    def slopes(inputs: Tensor, labels: Tensor, again: bool) -> tuple[Tensor, ...]:
        loss = functional.cross_entropy(network(inputs), labels) / len(batches)
        return torch.autograd.grad(loss, weights, create_graph=again)

    held = [torch.zeros_like(weight) for weight in weights]
    for inputs, labels in batches:
        torch._foreach_add_(held, slopes(inputs, labels, again=False))
    changes = [torch.zeros_like(values) for values in gates.values()]
    for inputs, labels in batches:
        flow = sum((g * slope).sum() for g, slope in zip(held, slopes(inputs, labels, again=True), strict=True))
        torch._foreach_add_(changes, torch.autograd.grad(flow, list(gates.values())))
    return {name: change.abs() for name, change in zip(gates, changes, strict=True)}


# From units to groups, from groups to a cut.


def combined(groups: Groups, scores: dict[str, Tensor], how: str = "mean") -> Tensor:
    """Layer -> [channels] to [G], on the CPU: the mean, sum or maximum over a group's channels.

    The mean, as removing a group of five units brings five times as much sparsity as removing one: by their sum, the
    residual stream would never be touched.
    """
    scores = {name: values.detach().double().cpu() for name, values in scores.items() if name in groups.outputs}
    if how == "maximum":
        return groups.largest(scores)
    total = groups.total(scores)
    if how == "sum":
        return total
    count = groups.total({name: torch.ones_like(values) for name, values in scores.items()})
    return total / count.clamp(min=1)


def lowest_first(groups: Groups, score: Tensor) -> Tensor:
    """All candidates, those with the lowest score [G] in the whole network first."""
    order = torch.argsort(score, stable=True)
    return order[groups.candidates[order]]


def lowest_of_each_first(groups: Groups, score: Tensor) -> Tensor:
    """All candidates, the lowest of each coupling first, so that every coupling loses the same share at any time."""
    place = torch.empty_like(score)
    for coupling in groups.couplings:
        part = score[coupling.slice].where(groups.alive[coupling.slice], -torch.inf)  # what is gone counts as lost
        place[coupling.slice] = (part.argsort(stable=True).argsort() + 0.5) / coupling.size
    return lowest_first(groups, place)


def scoring_batches(task: Task, number: int) -> Iterator[tuple[Tensor, Tensor]]:
    """SCORING_BATCHES batches as in training, in passes of the same size, always the same for the same seed and number;
    made when asked for. A small training set is seen once, as far as it goes."""
    settings, seed = task.settings, seeds.stream(task.seed, "scoring batches", 0)
    batches = task.dataset.batches(settings.per_pass, seed, number, settings.augmentation)
    return distributed.together(islice(batches, SCORING_BATCHES * (settings.batch_size // settings.per_pass)))


def check_scoring(task: Task) -> None:
    """Raises UserError where the training images do not make two batches: a score of one is mostly noise."""
    size, images = task.settings.batch_size, len(task.dataset.train)
    if images < 2 * size:
        raise UserError(
            f"BATCH_SIZE: got {size}, but a score is taken over {SCORING_BATCHES} batches, 2 at least, and there are "
            f"{images} training images; takes at most {images // 2} here"
        )


RANKINGS: dict[str, Order] = {"network": lowest_first, "layer": lowest_of_each_first}

# In how many rounds.


def rounds(target: float) -> list[float]:
    """The targets of CroPit-S, as in the authors' code: 0.5, five that halve the distance to the goal, the goal itself.
    For 0.9: 0.5, 0.7, 0.8, 0.85, 0.875, 0.8875, 0.9. A goal of 0.5 or less begins at its half."""
    first = 0.5 if target > 0.5 else target / 2
    return [target - (target - first) * 0.5**number for number in range(HALVINGS + 1)] + [target]


# When.


class Scored(Callback):
    """What the moments below have in common: a task and a method's record, checked before anything is trained."""

    def __init__(self, task: Task, method: Method):
        self.task, self.method = task, method
        self.criterion: Criterion = find(method.criterion)
        self.definition = definition_of(method, task.settings)

    def prepare(self, training: Training):
        self.task.check(training.groups)
        if self.method.images:
            check_scoring(self.task)
        self.floor = self.task.floor(training.groups, self.definition.floor)

    def prune(self, training: Training, target: float, number: int):
        """Cuts the groups that come first until the network is as sparse as `target`; `number` picks the batches.

        The score is taken in fp32 on a copy, whose batch-norm statistics may be spoilt and whose passes no unit watch
        sees. A layer keeps one channel at least.
        """
        groups, task = training.groups, self.task
        copy = bare_copy(training.model).train(self.definition.training)
        scores = self.criterion(copy, groups, scoring_batches(task, number))
        if not isinstance(scores, dict) or not scores:
            kind = type(scores).__name__
            raise RunFailed(f"{self.method.label} gives {kind}, where layer -> scores of its channels is expected")
        score = combined(groups, scores, self.definition.combine)
        score = distributed.of_first(score)  # all have seen the same images; the last bit may differ on a GPU
        self.check_that_it_ranks(training, score)
        order = RANKINGS[self.method.ranking](groups, score)
        chosen = task.first(groups, within_floor(groups, order, self.floor), target)
        groups.cut(training.model, training.optimizer, chosen, task.multiple)

    def check_that_it_ranks(self, training: Training, score: Tensor) -> None:
        """Raises RunFailed where all groups that could go have the same score: as well could they be drawn by lot."""
        left = score[training.groups.candidates]
        if len(left) > 1 and (left == left[0]).all():
            raise RunFailed(
                f"{self.method.label} gives every unit the score {left[0].item():g} after {training.progress:.0%} of "
                "training, so there is nothing to choose by; let its record name a later moment"
            )


class AtStart(Scored):
    """Before the first step, a cut for each of the targets: here a single one."""

    def targets(self) -> list[float]:
        return [self.task.target]

    def on_start(self, training: Training):
        for number, target in enumerate(self.targets()):
            self.prune(training, target, number)


class InRounds(AtStart):
    """Before the first step, in the rounds of CroPit-S."""

    def targets(self) -> list[float]:
        return rounds(self.task.target)


class Gradually(Scored):
    """LOOKS cuts from WARMUP to SETTLE, along the plan of DS-Pruning.

    (Magnitude takes the same share of every coupling at each. A ranking of filter norms over all layers, raw, by the
    mean of a layer or by its size, leaves some layers a single channel: on the digits at 75 and 90 % neuron sparsity it
    costs 12 to 45 points of accuracy, three seeds each.)
    """

    def prepare(self, training: Training):
        super().prepare(training)
        self.constants, steps = Constants.of(self.task.settings, self.task.measure), training.total_steps
        self.last = max(1, round(self.constants.settle * steps))
        self.first = min(round(self.constants.warmup * steps), self.last - 1)
        self.interval = max(1, (self.last - self.first) // LOOKS)

    def on_step(self, training: Training):
        step = training.done
        if self.first < step <= self.last and (self.last - step) % self.interval == 0:
            due = planned_sparsity(step, self.first, self.last, self.task.target, self.constants.plan_power)
            self.prune(training, due, step)


def pruning_epoch(distances: Sequence[float], target: float, epochs: int) -> int | None:
    """The number of finished epochs after which to prune early (Rachwan et al. 2022), or None while it is too soon.

    The paper's rule, with the distance taken from epoch to epoch; the authors' code takes it from the first epoch's
    weights. The bound of a third is ours: later, no epochs would be left to recover in.

    Args:
        distances: d_1, d_2, ..., the relative change of the weights in each finished epoch.
        target: sparsity in [0, 1). From 0.9 on the threshold is not positive: then the latest moment it is.
        epochs: of the whole training, whose first third the moment lies in.
    """
    latest = epochs // 3
    for epoch in range(2, min(len(distances), latest) + 1):
        now, before = distances[epoch - 1], distances[epoch - 2]
        if abs(now - before) < distances[0] * min(0.9 - target, 0.99):
            return epoch
    return latest if len(distances) >= latest else None


class AtEarlyEpoch(Scored):
    """One cut, at the beginning of the first epoch by which the weights have settled."""

    def __init__(self, task: Task, method: Method):
        super().__init__(task, method)
        self.weights: list[Tensor] = []  # of the epoch before, while it is too soon
        self.distances: list[float] = []
        self.pruned_after: int | None = None  # epochs

    def on_epoch_start(self, training: Training):
        if self.pruned_after is not None:
            return
        weights = [module.weight.detach().clone() for module in conv_and_linear(training.model)]
        if self.weights:
            moved = torch._foreach_sub(weights, self.weights)
            change, whole = (torch.stack(torch._foreach_norm(parts)).norm() for parts in (moved, self.weights))
            self.distances.append((change / whole).item())
        self.weights = weights
        if pruning_epoch(self.distances, self.task.target, training.epochs) is not None:
            self.prune(training, self.task.target, training.epoch)
            training.watch.follow(training.groups)  # it counts before the first step ends
            self.weights, self.pruned_after = [], training.epoch

    def state(self) -> dict:
        return {"weights": self.weights, "distances": self.distances, "pruned_after": self.pruned_after}

    def restore(self, training: Training, state: dict):
        self.weights = [weight.to(training.device) for weight in state["weights"]]
        self.distances, self.pruned_after = state["distances"], state["pruned_after"]


MOMENTS = {"at start": AtStart, "in rounds": InRounds, "early": AtEarlyEpoch, "gradually": Gradually}


def scored(task: Task, method: Method) -> Scored:
    """A method at its own moment, or along the plan of DS-Pruning where the definition says so."""
    return MOMENTS["gradually" if definition_of(method, task.settings).gradual else method.when](task, method)


def constants_of(method: Method, settings, measure: str) -> dict:
    definition, plan = definition_of(method, settings), Constants.of(settings, measure)
    if not definition.gradual and method.when != "gradually":
        return asdict(definition)
    return asdict(definition) | {name: getattr(plan, name) for name in ("warmup", "settle", "plan_power")}
