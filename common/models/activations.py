"""Activation layers: which kinds are counted, where a network has them, and how many units each has.

A unit is one channel of one activation layer, watched by a forward hook. Hooks see modules only: an activation that is
called as a function, or a module that is used twice, cannot be counted (`rewriting.own_activations` helps).
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from common import names

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    name: partial(getattr(nn, kind), **arguments) for name, (kind, arguments) in names.ACTIVATIONS.items()
}
# A unit of these fires where its pre-activation is above 0. Their value at 0 is 0, so that cutting what is 0 is exact.
ACTIVATION_TYPES = (nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.SiLU, nn.GELU, nn.Hardswish, nn.ELU, nn.CELU, nn.SELU, nn.Mish)
# For these nothing says when a unit fires, or it has parameters that are cut by no rule. (Gates, as of
# squeeze-and-excitation, and softmax are no activations of units.)
UNWATCHED = (nn.PReLU, nn.RReLU, nn.Tanh, nn.Softplus, nn.Hardtanh, nn.Hardshrink, nn.Softshrink, nn.Tanhshrink)
UNWATCHED += (nn.Softsign, nn.Threshold, nn.LogSigmoid, nn.GLU)
ACTIVATING = (*ACTIVATION_TYPES, *UNWATCHED)
FUNCTIONS = {functional.relu, functional.relu_, functional.relu6, functional.leaky_relu, functional.leaky_relu_}
FUNCTIONS |= {functional.silu, functional.gelu, functional.elu, functional.elu_, functional.selu, functional.celu}
FUNCTIONS |= {functional.mish, functional.hardswish, functional.hardtanh, functional.prelu, functional.softplus}
FUNCTIONS |= {functional.threshold, functional.rrelu, functional.softsign, functional.logsigmoid, functional.glu}
FUNCTIONS |= {functional.hardshrink, functional.softshrink, functional.tanhshrink}
FUNCTIONS |= {torch.relu, torch.relu_, torch.tanh, Tensor.relu, Tensor.relu_, Tensor.tanh, functional.tanh}

UNSTEADY = (
    "two passes in evaluation mode differ; functional.dropout drops there too, unless it is given "
    "training=self.training"
)
Inputs = Tensor | tuple[Tensor, ...]  # of a network's forward pass


def call(model: nn.Module, inputs: Inputs):
    return model(*inputs) if isinstance(inputs, tuple) else model(inputs)


def each(change: Callable[[Tensor], Tensor], inputs: Inputs) -> Inputs:
    return tuple(change(x) for x in inputs) if isinstance(inputs, tuple) else change(inputs)


def check_bare(model: nn.Module) -> None:
    """Raises ValueError for a network in a wrapper that knows the shapes which a cut changes."""
    kind = type(model).__name__
    if kind == "OptimizedModule":
        raise ValueError("the network is wrapped by torch.compile: give what is inside, its ._orig_mod")
    if kind in ("DataParallel", "DistributedDataParallel", "FullyShardedDataParallel"):
        raise ValueError(f"the network is wrapped in {kind}: train what is inside, its .module, in one process")


def check_example(inputs: Inputs) -> None:
    """Raises ValueError for what is no example of a network's inputs."""
    parts = inputs if isinstance(inputs, tuple) else (inputs,)
    if not parts or not all(isinstance(part, Tensor) and part.dim() > 0 for part in parts):
        raise ValueError(
            f"example: got a {type(inputs).__name__}, takes one input as a tensor [1, ...], or a tuple of them"
        )


def activation_layers(model: nn.Module) -> dict[str, nn.Module]:
    """The activation layers of any network, name -> module, in the order of `named_modules`."""
    return {name: module for name, module in model.named_modules() if isinstance(module, ACTIVATION_TYPES)}


def replace_activations(model: nn.Module, activation: str) -> int:
    """Put a new activation module in the place of every one the network has; returns how many were replaced."""
    found = [n for n, m in model.named_modules(remove_duplicate=False) if isinstance(m, ACTIVATION_TYPES)]
    for name in found:
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, ACTIVATIONS[activation]())
    return len(found)


class Watched(NamedTuple):
    """An activation layer as a pass finds it: its units, and the dimension of its input that they lie along: 1, as
    behind a convolution, or the last, as behind a linear layer that takes tokens or channels-last images."""

    units: int
    dim: int


class Pass(TorchFunctionMode):
    """What one forward pass shows of a network's activations.

    layers: activation layer -> what it is.
    uses: activation layer -> in which modules it was used, one entry a use.
    functions: what was called as a function outside of any activation layer: its name and the module that called it.
    unknown: modules that are activations of no kind that can be watched.
    """

    def __init__(self):
        super().__init__()
        self.layers: dict[str, Watched] = {}
        self.uses: dict[str, list[str]] = {}
        self.functions: list[tuple[str, str]] = []
        self.unknown: list[str] = []
        self.within: list[str] = []  # modules that are being run, the innermost last
        self.inside = 0  # of modules that are activations
        self.along = 1  # the features of what was made last

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func in FUNCTIONS and not self.inside:
            self.functions.append((func.__name__, self.within[-1]))
        return func(*args, **(kwargs or {}))

    def enter(self, name: str, module: nn.Module, inputs: tuple) -> None:
        if isinstance(module, ACTIVATION_TYPES):
            dim = self.along if inputs[0].dim() > 2 else 1
            self.layers[name] = Watched(inputs[0].shape[dim], dim)
            self.uses.setdefault(name, []).append(self.within[-1] if self.within else "")
        elif isinstance(module, UNWATCHED):
            self.unknown.append(f"{name}, {type(module).__name__}")
        self.within.append(name)
        self.inside += isinstance(module, ACTIVATING)

    def leave(self, module: nn.Module, output) -> None:
        self.within.pop()
        self.inside -= isinstance(module, ACTIVATING)
        if isinstance(module, (nn.modules.conv._ConvNd, nn.modules.batchnorm._BatchNorm, nn.GroupNorm)):
            self.along = 1
        elif isinstance(module, (nn.Linear, nn.LayerNorm)) and isinstance(output, Tensor) and output.dim() > 2:
            self.along = -1

    @property
    def unwatched(self) -> list[str]:
        """What acts as an activation and cannot be watched by a hook."""
        called = [f"{function} in {name or 'the network itself'}" for function, name in self.functions]
        return self.unknown + list(dict.fromkeys(called))

    def check(self) -> None:
        """Raises ValueError for what cannot be watched, by name."""
        others = self.unwatched + [f"{name}, used {count} times" for name, count in self.shared.items()]
        if others or not self.layers:
            named = ", ".join(others[:4]) + f" and {len(others) - 4} more" * (len(others) > 4)
            raise ValueError(
                f"units cannot be counted in {named or 'a network without activation layers'}: give every activation "
                f"a module of its own, one of {', '.join(kind.__name__ for kind in ACTIVATION_TYPES)} "
                "(own_activations does so for most networks)"
            )

    @property
    def shared(self) -> dict[str, int]:
        """Activation layer -> how often it is used, where that is more than once."""
        return {name: len(uses) for name, uses in self.uses.items() if len(uses) > 1}


@torch.no_grad()
def watched(model: nn.Module, inputs: Inputs) -> Pass:
    """One pass in evaluation mode of one example [1, C, H, W], or of a tuple of inputs. Leaves no trace.

    Raises:
        ValueError: for a network in a wrapper, as DistributedDataParallel.
    """
    check_bare(model)
    check_example(inputs)
    seen, hooks = Pass(), []
    for name, module in model.named_modules():
        hooks.append(module.register_forward_pre_hook(lambda m, x, name=name: seen.enter(name, m, x)))
        hooks.append(module.register_forward_hook(lambda m, _x, y: seen.leave(m, y)))
    modes = {module: module.training for module in model.modules()}  # some batch-norms may be frozen
    model.eval()
    try:
        with seen:
            call(model, inputs)
    finally:
        for module, training in modes.items():
            module.training = training
        for hook in hooks:
            hook.remove()
    return seen


def units(model: nn.Module, inputs: Inputs) -> dict[str, int]:
    """Units of each activation layer, found by one forward pass of one example [1, C, H, W]."""
    return {name: layer.units for name, layer in watched(model, inputs).layers.items()}
