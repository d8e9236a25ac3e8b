"""Sparse training: masks over single weights, fixed (SNIP), growing (gradual magnitude) or moving (SET, RigL).

A method is a first mask and, where it moves, an update; `Masked` holds the masks while the network trains. Masks cover
every convolution and linear layer: bool, in the shape of its weight, True where the weight is in use.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from common.cutting import WEIGHTED, bare_copy
from common.errors import UserError
from common.machine import distributed, seeds
from common.models import conv_and_linear
from common.pruning.ds_pruning import planned_sparsity
from common.pruning.scores import check_scoring, scoring_batches
from common.pruning.task import Task, Unreachable
from common.training.gradients import parts_of
from common.training.loop import Callback, Training

UPDATE_STEPS = 100  # between two updates of the masks (Evci et al. 2020)
UPDATE_UNTIL = 0.75  # share of training after which the masks stay (Evci et al. 2020)
DROP = 0.3  # share of a layer's weights that SET and RigL exchange at first; falls to 0 along a cosine
BEGIN = 0.05  # share of training after which gradual magnitude pruning begins


def kept(target: float, total: int) -> int:
    """How many of `total` weights are in use at the sparsity `target`: exact, and never more than it allows."""
    return total - math.ceil(target * total - 1e-9)


# Which weights.


def largest(scores: list[Tensor], count: int) -> list[Tensor]:
    """Masks of the `count` highest of all scores, ranked over all layers; every layer keeps its highest one.

    Without that one a layer could be emptied: the counterpart of a structured method's last channel. So `count` is at
    least the number of layers.
    """
    flat = torch.cat([score.flatten() for score in scores])
    start = 0
    for score in scores:
        flat[start + score.argmax()] = torch.inf
        start += score.numel()
    mask = torch.zeros(len(flat), dtype=torch.bool, device=flat.device)
    mask[flat.topk(count).indices] = True
    return parts_of(mask, scores)


def erdos_renyi_kernel(shapes: list[torch.Size], count: int) -> list[int]:
    """How many weights each layer keeps, `count` in all (ERK, Evci et al. 2020, after Mocanu et al. 2018).

    The density of a layer is proportional to the sum of its weight's dimensions over their product, (n_in + n_out + kh
    + kw) / (n_in n_out kh kw), and at most 1. Raises Unreachable when a layer would be left without a weight.
    """
    sizes, sums = [math.prod(shape) for shape in shapes], [sum(shape) for shape in shapes]
    dense = [False] * len(shapes)
    while not all(dense):
        left = count - sum(size for size, full in zip(sizes, dense, strict=True) if full)
        factor = left / sum(total for total, full in zip(sums, dense, strict=True) if not full)
        over = [not full and factor * sums[i] > sizes[i] for i, full in enumerate(dense)]
        if not any(over):
            break
        dense = [full or more for full, more in zip(dense, over, strict=True)]
    exact = [size if full else factor * total for size, total, full in zip(sizes, sums, dense, strict=True)]
    counts = [math.floor(value + 1e-9) for value in exact]
    by_rest = sorted(range(len(counts)), key=lambda i: counts[i] - exact[i])  # the largest remainders first
    for i in by_rest[: count - sum(counts)]:
        counts[i] += 1
    if min(counts) == 0:
        raise Unreachable(f"target: it leaves {count} weights, too few for {len(shapes)} layers")
    return counts


def exchange(mask: Tensor, weight: Tensor, growth: Tensor, count: int) -> Tensor:
    """A layer's mask without the `count` smallest of its weights and with as many others, those of the highest growth.

    A weight just dropped may be taken back at once, and then keeps its value, as in RigL.

    Args:
        mask, weight, growth: of one shape; growth >= 0.
        count: at most the weights in use.
    """
    dropped = weight.abs().where(mask, torch.inf).flatten().topk(count, largest=False).indices
    new = mask.flatten().clone()
    new[dropped] = False
    new[growth.flatten().where(~new, -1.0).topk(count).indices] = True
    return new.view(mask.shape)


# First masks: a function of training and task.


def everything(training: Training, task: Task) -> list[Tensor]:
    return [torch.ones_like(module.weight, dtype=torch.bool) for module in conv_and_linear(training.model)]


def most_salient(training: Training, task: Task) -> list[Tensor]:
    """SNIP (Lee et al. 2019, arXiv 1810.02340): the highest |weight x gradient| of the mean loss over the batches."""
    network = bare_copy(training.model).train()
    weights = [module.weight for module in conv_and_linear(network)]
    total = [torch.zeros_like(weight) for weight in weights]
    for inputs, labels in scoring_batches(task, 0):
        loss = functional.cross_entropy(network(inputs), labels)
        torch._foreach_add_(total, torch.autograd.grad(loss, weights))
    total = [distributed.of_first(gradient) for gradient in total]
    scores = [(weight.detach() * gradient).abs() for weight, gradient in zip(weights, total, strict=True)]
    return largest(scores, kept(task.target, sum(score.numel() for score in scores)))


def random_by_layer(training: Training, task: Task) -> list[Tensor]:
    """At random, each layer with its ERK share."""
    weights = [module.weight for module in conv_and_linear(training.model)]
    counts = erdos_renyi_kernel([w.shape for w in weights], kept(task.target, sum(w.numel() for w in weights)))
    generator = torch.Generator().manual_seed(seeds.stream(task.seed, "first mask", 0))
    masks = []
    for weight, count in zip(weights, counts, strict=True):
        mask = torch.zeros(weight.numel(), dtype=torch.bool)
        mask[torch.randperm(len(mask), generator=generator)[:count]] = True
        masks.append(mask.view(weight.shape).to(weight.device))
    return masks


# Updates: a function of task, weights, their gradients (those of unused weights too), masks, step and last step.


def shrink(task: Task, weights: list, gradients: list, masks: list, step: int, last: int) -> list[Tensor]:
    """Gradual magnitude pruning (Zhu & Gupta 2017, arXiv 1710.01878): the largest weights of all, ever fewer."""
    begin = min(round(BEGIN * last / UPDATE_UNTIL), last - 1)
    due = planned_sparsity(step, begin, last, task.target)
    # What is out stays out: it is 0, and could only come back among equals.
    scores = [weight.detach().abs().where(mask, -1.0) for weight, mask in zip(weights, masks, strict=True)]
    return largest(scores, kept(due, sum(score.numel() for score in scores)))


def moved(masks: list[Tensor], weights: list[Tensor], growths: list[Tensor], step: int, last: int) -> list[Tensor]:
    """Every layer's mask with a share of its weights exchanged: DROP at first, 0 at the last step."""
    share = DROP / 2 * (1 + math.cos(math.pi * step / last))
    used = torch.stack([mask.sum() for mask in masks]).tolist()
    layers = zip(masks, weights, growths, used, strict=True)
    return [exchange(mask, weight.detach(), growth, int(share * count)) for mask, weight, growth, count in layers]


def grow_at_random(task: Task, weights: list, gradients: list, masks: list, step: int, last: int) -> list[Tensor]:
    """SET (Mocanu et al. 2018, arXiv 1707.04780), at the moments and with the shares of RigL, as Evci et al. run it."""
    generator = torch.Generator().manual_seed(seeds.stream(task.seed, "grown weights", step))
    draws = torch.rand(sum(weight.numel() for weight in weights), generator=generator).to(weights[0].device)
    return moved(masks, weights, parts_of(draws, weights), step, last)


def grow_by_gradient(task: Task, weights: list, gradients: list, masks: list, step: int, last: int) -> list[Tensor]:
    """RigL (Evci et al. 2020, arXiv 1911.11134)."""
    return moved(masks, weights, [gradient.abs() for gradient in gradients], step, last)


class Masked(Callback):
    """Masks the weights, their gradients and their momentum, so that a weight out of use is exactly 0 at every step.

    Weights are set to 0 and momentum is cleared when a mask changes; since their gradients are masked at every step,
    nothing can bring them back: weight decay and momentum of 0 are 0. A new weight starts at 0 with no momentum and
    sees its first gradient in the step after.
    """

    def __init__(self, task: Task, first: Callable, update: Callable | None = None):
        self.task, self.first, self.update = task, first, update
        self.masks: list[Tensor] = []

    def prepare(self, training: Training):
        layers = {name: m.weight for name, m in training.model.named_modules() if isinstance(m, WEIGHTED)}
        self.names, self.weights = list(layers), list(layers.values())
        count = kept(self.task.target, sum(weight.numel() for weight in self.weights))
        if count < len(self.weights):
            raise Unreachable(
                f"target: got {self.task.target:g}, which leaves {count} weights for {len(self.weights)} layers"
            )
        if self.first is most_salient:
            check_scoring(self.task)
        if self.update and training.total_steps < 2:
            raise UserError("epochs: one step is too short for masks that change; raise epochs or lower the batch size")
        self.last = min(max(1, round(UPDATE_UNTIL * training.total_steps)), training.total_steps - 1)
        self.interval = max(1, min(UPDATE_STEPS, self.last // 10))  # a short run has ten updates

    def on_start(self, training: Training):
        self.hold(training, self.first(training, self.task))
        torch._foreach_mul_([weight.detach() for weight in self.weights], self.factors)

    def hold(self, training: Training, masks: list[Tensor]):
        """From here on these masks, and as densities those of them."""
        self.masks = training.masks = masks
        self.factors = [torch.empty_like(w).copy_(mask) for mask, w in zip(masks, self.weights, strict=True)]
        used = torch.stack([mask.sum() for mask in masks]).tolist()
        training.densities = {n: u / w.numel() for n, u, w in zip(self.names, used, self.weights, strict=True)}
        self.densities = training.densities

    def on_gradients(self, training: Training):
        gradients = [weight.grad for weight in self.weights]
        step, before = training.done, self.factors
        if self.update and 0 < step <= self.last and (self.last - step) % self.interval == 0:
            self.hold(training, self.update(self.task, self.weights, gradients, self.masks, step, self.last))
            momentum = [training.optimizer.state[weight].get("momentum_buffer") for weight in self.weights]
            for tensors in ([weight.detach() for weight in self.weights], [m for m in momentum if m is not None]):
                if tensors:
                    torch._foreach_mul_(tensors, self.factors)
            torch._foreach_mul_(gradients, before)
        torch._foreach_mul_(gradients, self.factors)

    def state(self) -> dict:
        return {"masks": dict(zip(self.names, self.masks, strict=True)), "densities": self.densities}

    def restore(self, training: Training, state: dict):
        self.hold(training, [state["masks"][n].to(w.device) for n, w in zip(self.names, self.weights, strict=True)])
