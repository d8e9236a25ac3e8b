"""Pruning in a training loop of one's own.

    pruner = Pruner(model, optimizer, images[:1], target=0.8, epochs=10, steps_per_epoch=len(loader))
    ...  # the loop, unchanged
    network = pruner.network()

The optimiser's own hooks tell of every step, so the loop calls nothing; docs/your-own-network.md says more.
"""

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, fields
from itertools import islice
from types import SimpleNamespace

import torch
from torch import Tensor, nn

from common.errors import UserError
from common.machine import devices, environment
from common.models import Inputs, each
from common.pruning import METHODS, Method, ds_pruning, scores
from common.pruning.task import MEASURES, Task
from common.tracing import find_groups
from common.training.loop import Training
from common.units import Counts, UnitWatch

# Its step computes gradients itself, or is no step of the network's own parameters.
REFUSED = ("LBFGS", "ZeroRedundancyOptimizer")


class Seen:
    """Stands in for a dataset: the batches of the loop, for criteria that look at images."""

    train = range(2)  # as many as a score needs at least, in batches: `Pruner` has counted them

    def __init__(self, given: Iterable, device: torch.device):
        self.given, self.device = given, device

    def batches(self, *_) -> Iterator[tuple[Tensor, Tensor]]:
        with torch.random.fork_rng(devices=[]):  # a loader that shuffles draws from the loop's own numbers
            found = list(islice(self.given, scores.SCORING_BATCHES))
        return iter([(each(lambda x: x.to(self.device), inputs), labels.to(self.device)) for inputs, labels in found])


class Pruner:
    """Prunes a network while another's training loop trains it.

    From the step in which a method cuts, `model` is the smaller network; parameters stay the objects that they are,
    and what the optimiser keeps of them is cut with them. One call of `optimizer.step` is one step.

    Args:
        model: any network that `find_groups` can trace, without DataParallel, DistributedDataParallel or torch.compile
            around it.
        optimizer: of this network, any of torch.optim but LBFGS.
        example: one input [1, C, H, W], or a tuple of them, one of each.
        method: a key of METHODS, a record, or a criterion: a function of network, groups and batches to a score
            [channels] for each layer, low where removal costs little (`scores.Criterion`), applied along the plan.
        target: share of units to remove, in [0, 1); of weights or FLOPs, if `measure` says so. `demp` takes none.
        epochs, steps_per_epoch: how long training is to be, in steps of the optimiser; the plan is a share of that.
        batches: for criteria that look at images: pairs of inputs and labels that can be gone through again and again,
            as a DataLoader. The loss is then the cross-entropy of what the network returns.
        averages: networks of the same architecture that follow each cut, such as torch's AveragedModel.
        passes: forward passes that make a step.
        multiple: widths stay a multiple of this while training goes on, by channels that are 0; 1: none do. (8 or 16
            is faster; for optimisers that leave a weight of 0 with gradients of 0 alone.)
        strength: of a method without a target, as `demp`.
        state: what `state_dict` returned, to go on from there: before the network's own state is loaded.
        constants: others than the defaults, of DS-Pruning (`ds_pruning.Constants`), by name.

    Raises:
        UserError, GroupError, ValueError: in one line, for what cannot be watched, traced, reached or understood.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        example: Inputs,
        method: str | Method | Callable = "ds-pruning",
        *,
        target: float | None = None,
        epochs: int,
        steps_per_epoch: int,
        measure: str = "neuron",
        batches: Iterable | None = None,
        averages: Sequence[nn.Module] = (),
        passes: int = 1,
        multiple: int = 1,
        strength: float | None = None,
        state: dict | None = None,
        **constants,
    ):
        self.method = method_of(method, batches is not None)
        check(self.method, model, optimizer, target, strength, measure, constants)
        check_counts(epochs=epochs, steps_per_epoch=steps_per_epoch, passes=passes, multiple=multiple)
        check_networks(model, averages)
        devices.avoid_broken_kernel()
        device = next(model.parameters()).device
        self.training = run = Training(model, optimizer, None, epochs, steps_per_epoch, "fp32", device)
        run.groups, run.passes = find_groups(model, example), passes
        run.groups.followers = [getattr(average, "module", average) for average in averages]
        settings = SimpleNamespace(batch_size=1, per_pass=1, augmentation=(), **constants)
        seen = Seen(() if batches is None else batches, device)
        self.task = Task(target, measure, 0, multiple, settings, None, seen, strength)
        if self.method.criterion and self.method.images and len(list(seen.batches())) < 2:
            raise UserError(
                f"batches: {self.method.label} looks at images; give it your loader, of two batches or more"
            )
        self.callbacks = self.method.callbacks(self.task)
        self.prepare()
        run.watch = UnitWatch(model, each(lambda x: x.to(device), example), passes)
        self.begin(state)
        self.hooks = [
            optimizer.register_step_pre_hook(self.before_step),
            optimizer.register_step_post_hook(self.after_step),
        ]

    def prepare(self) -> None:
        try:
            self.call("prepare")
        except UserError as error:
            kept = ", ".join(self.kept)
            raise type(error)(f"{error}; whole stay {kept}" if kept else str(error)) from None

    def begin(self, state: dict | None) -> None:
        self.expected: list[float] | None = None  # what the weights sum up to, of a network that goes on
        if state is None:
            self.call("on_start")
            self.call("on_epoch_start")
        else:
            self.restore(state)
        self.training.watch.follow(self.training.groups)

    def call(self, point: str) -> None:
        for callback in self.callbacks:
            getattr(callback, point)(self.training)

    def before_step(self, optimizer: torch.optim.Optimizer, arguments: tuple, options: dict) -> None:
        if any(value is not None for value in (*arguments[1:], options.get("closure"))):
            raise UserError("optimizer.step was given a closure, which makes the gradients anew; call it without")
        if getattr(optimizer, "grad_scale", None) is not None:
            raise UserError("gradients are still scaled; call scaler.unscale_(optimizer) before scaler.step(optimizer)")
        if self.expected and not torch.allclose(torch.tensor(self.sums()), torch.tensor(self.expected), rtol=1e-4):
            raise UserError("Pruner(state=...) comes first; then load the network's and the optimizer's own states")
        self.expected = None
        if self.training.epoch < self.training.epochs:
            self.call("on_gradients")

    def sums(self) -> list[float]:
        parameters = [parameter.detach() for parameter in self.training.model.parameters()]
        return torch.stack(torch._foreach_norm(parameters)).tolist()

    def identity(self) -> dict:
        """What a state must be of."""
        run, task = self.training, self.task
        known = {"method": self.method.label, "target": task.target, "strength": task.strength, "measure": task.measure}
        return known | {"epochs": run.epochs, "steps_per_epoch": run.steps_per_epoch}

    def after_step(self, *_) -> None:
        run = self.training
        if run.epoch == run.epochs:
            return
        run.step += 1
        self.call("on_step")
        run.watch.follow(run.groups)
        if run.step < run.steps_per_epoch:
            return
        run.epoch, run.step, run.row = run.epoch + 1, run.steps_per_epoch, {}
        run.counts = run.watch.end_epoch()
        self.call("on_epoch_end")
        run.step = 0
        if run.epoch < run.epochs:
            self.call("on_epoch_start")
            run.watch.follow(run.groups)

    @property
    def sparsity(self) -> float:
        """The share of units (weights, FLOPs) that are gone, in [0, 1)."""
        return MEASURES[self.task.measure].sparsity(self.training.groups, torch.empty(0, dtype=torch.int64))[0].item()

    @property
    def counts(self) -> Counts | None:
        """Of every unit in the last finished epoch: `counts.dead` and others."""
        return self.training.counts

    @property
    def kept(self) -> dict[str, str]:
        """Layer -> why its channels stay, whatever is asked for."""
        return self.training.groups.kept

    def network(self) -> nn.Module:
        """What the network has become: a copy without padding, hooks and gradients. Warns where it was asked for before
        the end of training, or where the optimiser's steps were not those of this network."""
        run = self.training
        done = run.epoch * run.steps_per_epoch + run.step
        if done < run.total_steps:
            warnings.warn(
                f"the optimizer has made {done} of the {run.total_steps} steps that Pruner was told of; "
                f"the network is at a sparsity of {self.sparsity:.3f}",
                stacklevel=2,
            )
        return run.groups.compact(run.model)

    def close(self) -> None:
        """Takes the hooks away; the loop may go on without."""
        for hook in self.hooks:
            hook.remove()
        self.training.watch.close()

    def state_dict(self) -> dict:
        """What another process needs to go on, beside the states of network and optimiser: tensors and plain values."""
        run, counts = self.training, self.training.counts
        return {
            "groups": run.groups.state_dict(),
            "callbacks": [callback.state() for callback in self.callbacks],
            "watch": run.watch.part(),
            "counts": None if counts is None else {f.name: getattr(counts, f.name) for f in fields(counts)},
            "epoch": run.epoch,
            "step": run.step,
            "made": self.identity(),
            "sums": self.sums(),
        }

    def restore(self, state: dict) -> None:
        run, made = self.training, state.get("made")
        if made is None:
            raise UserError("state: takes what state_dict of a Pruner returned")
        if odd := [f"{name} {made[name]}" for name, value in self.identity().items() if made[name] != value]:
            raise UserError(f"state: was made with {', '.join(odd)}; take the same here")
        self.expected = state["sums"]
        run.groups.restore(run.model, state["groups"])
        run.epoch, run.step = state["epoch"], state["step"]
        run.counts = None if state["counts"] is None else Counts(**state["counts"])
        for callback, own in zip(self.callbacks, state["callbacks"], strict=True):
            callback.restore(run, own)
        run.watch.follow(run.groups)
        run.watch.go_on(state["watch"])


def method_of(given: str | Method | Callable, batches: bool) -> Method:
    """The record of a method: its own, that of a name, or that of a criterion along the plan."""
    if isinstance(given, Method):
        return given
    if callable(given):
        return Method(getattr(given, "__name__", "criterion"), criterion=given, when="gradually", images=batches)
    if given not in METHODS:
        raise UserError(f"method: got {given!r}, takes {', '.join(usable())}, a record or a criterion")
    return METHODS[given]


def usable() -> list[str]:
    """The methods that take channels out of a network that is being trained."""
    return [name for name, m in METHODS.items() if m.structured and not m.needs and (m.criterion or m.callback)]


def check_counts(**counts) -> None:
    for name, value in counts.items():
        if not (isinstance(value, int) and value >= 1):
            raise UserError(f"{name}: got {value!r}, takes a whole number from 1 on")


def check_networks(model: nn.Module, averages: Sequence[nn.Module]) -> None:
    watches = [hook.watch for hook in model._forward_pre_hooks.values() if hasattr(hook, "watch")]
    if any(watch.model() is model for watch in watches):  # a copy has its original's
        raise UserError("the network is watched already, and that watch would not follow a cut: call its close() first")
    if not isinstance(averages, Sequence) or not all(isinstance(average, nn.Module) for average in averages):
        raise UserError("averages: takes a list of networks, such as [AveragedModel(model)]")


def check(method, model, optimizer, target, strength, measure, constants) -> None:
    """Raises UserError for what `Pruner` cannot take."""
    if method.needs or not method.structured or not (method.criterion or method.callback):
        raise UserError(
            f"method: {method.label} removes no channels of a network in training; takes {', '.join(usable())}"
        )
    if method.targeted and not (isinstance(target, (int, float)) and 0 <= target < 1):
        raise UserError(f"target: got {target!r}, {method.label} takes a share from 0 to below 1")
    if not method.targeted and not (isinstance(strength, (int, float)) and strength > 0):
        raise UserError(f"strength: got {strength!r}, {method.label} takes one above 0, and no target")
    if measure not in MEASURES:
        raise UserError(f"measure: got {measure!r}, takes {', '.join(MEASURES)}")
    if type(optimizer).__name__ in REFUSED or not isinstance(optimizer, torch.optim.Optimizer):
        raise UserError(f"optimizer: got a {type(optimizer).__name__}, takes those of torch.optim but LBFGS")
    trained = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    own = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    missing = [name for name, parameter in own.items() if id(parameter) not in trained]
    if own and len(missing) == len(own):
        raise UserError("optimizer: holds no parameter of this network; make it of model.parameters()")
    if missing:
        more = ", ..." * (len(missing) > 3)
        warnings.warn(f"another optimizer of {', '.join(missing[:3])}{more} would not follow a cut", stacklevel=4)
    if environment.ranks() > 1:
        raise UserError("Pruner works in one process; of several, each would have to know of every cut")
    known = asdict(ds_pruning.Constants()) | {"definition": {}}
    if wrong := [name for name in constants if name not in known]:
        raise UserError(f"{wrong[0]}: no constant of a method; takes {', '.join(known)}")
    plan = ds_pruning.Constants.of(SimpleNamespace(**constants), measure)
    if not 0 <= plan.warmup < plan.settle <= 1:
        raise UserError(f"warmup, settle: got {plan.warmup} and {plan.settle}, take 0 <= warmup < settle <= 1")
