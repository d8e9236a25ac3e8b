"""A module of its own for each use of an activation, in networks that were written otherwise."""

import copy
from itertools import count

import torch
from torch import Tensor, fx, nn
from torch.nn import functional
from torch.utils._pytree import tree_leaves

from common.models.activations import ACTIVATION_TYPES, FUNCTIONS, UNSTEADY, Inputs, call, watched

# The functions that have a module of the same arguments in the same order, by their names without "_".
MODULES = {
    "relu": nn.ReLU,
    "relu6": nn.ReLU6,
    "leaky_relu": nn.LeakyReLU,
    "silu": nn.SiLU,
    "gelu": nn.GELU,
    "elu": nn.ELU,
    "selu": nn.SELU,
    "celu": nn.CELU,
    "mish": nn.Mish,
    "hardswish": nn.Hardswish,
}
# These too become modules, as only a module goes by its mode.
DROPOUTS = {
    functional.dropout: nn.Dropout,
    functional.dropout1d: nn.Dropout1d,
    functional.dropout2d: nn.Dropout2d,
    functional.dropout3d: nn.Dropout3d,
    functional.alpha_dropout: nn.AlphaDropout,
    functional.feature_alpha_dropout: nn.FeatureAlphaDropout,
}
MODE = "self.training"


class Shallow(fx.Tracer):
    """Follows the forward of one module, not those of its children."""

    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        return True


def own_activations(model: nn.Module, inputs: Inputs) -> nn.Module:
    """Gives every use of an activation a module of its own, in place; returns the network.

    Activations that are called as functions become modules; a module that is used in several places is copied for each.
    What the network computes stays the same bit for bit, and so do its parameters and buffers, and their names. A
    module whose forward has to change becomes one of a subclass with the new forward, which torch.fx writes: so the
    state dict can be saved, the module itself cannot be pickled; and numbers that the forward reads from attributes
    are those of now.

    Args:
        inputs: one example [1, C, H, W], or a tuple of inputs, for a pass in evaluation mode.

    Raises:
        ValueError: for a forward that torch.fx cannot follow, or that is another in training than in evaluation; the
            network is then as it was.
    """
    tried, why = copy.deepcopy(model), ""
    with torch.no_grad():
        before, again = (tree_leaves(call(tried.eval(), inputs)) for _ in range(2))
        if not _equal(before, again):
            raise ValueError(UNSTEADY)
        _rewrite(tried, inputs)
        try:
            after = tree_leaves(call(tried, inputs))
        except Exception as error:  # whatever was written wrongly: inputs that are left out, for instance
            after, why = [], f" ({error})"
    if not _equal(before, after) or watched(tried, inputs).shared:
        raise ValueError(f"the activations of this network cannot be told apart{why}: write a module for each use")
    _rewrite(model, inputs)
    return model


def _equal(ones: list, others: list) -> bool:
    """Whether outputs are equal; of tensors without values, as where a file's network is built, the shapes."""
    pairs = [(a, b) for a, b in zip(ones, others, strict=False) if isinstance(a, Tensor)]
    return len(ones) == len(others) and all(a.shape == b.shape and (a.is_meta or torch.equal(a, b)) for a, b in pairs)


def _rewrite(model: nn.Module, inputs: Inputs) -> None:
    names = [n for n, m in model.named_modules(remove_duplicate=False) if isinstance(m, ACTIVATION_TYPES)]
    first = {id(module): name for name, module in model.named_modules()}
    for name in names:
        module = model.get_submodule(name)
        if first[id(module)] != name:  # the same object under another name
            _put(model, name, copy.deepcopy(module))
    for module in model.modules():  # as those of torch's transformers
        held = {key: function for key, value in vars(module).items() for function in FUNCTIONS if function is value}
        for key, function in held.items():
            if (kind := function.__name__.rstrip("_")) in MODULES:
                setattr(module, key, MODULES[kind]().train(module.training))
    seen = watched(model, inputs)
    owners = [owner for function, owner in seen.functions if function.rstrip("_") in MODULES]
    owners += [owner for name in seen.shared for owner in seen.uses[name]]
    for owner in dict.fromkeys(owners):
        _rewrite_forward(model.get_submodule(owner), owner)


def _put(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, module)


def _rewrite_forward(owner: nn.Module, name: str) -> None:
    """Gives one module a forward in which every use of an activation is the call of a child of its own."""
    graph, training = _followed(owner, name), owner.training
    owner.training = not training
    other = _followed(owner, name)
    owner.training = training
    if str(graph) != str(other):
        raise ValueError(f"{_named(name)} does other things in training than in evaluation: rewrite its forward")
    used = set()
    for node in graph.nodes:
        module = None
        if node.op == "call_module" and isinstance(child := owner.get_submodule(node.target), ACTIVATION_TYPES):
            module = copy.deepcopy(child) if node.target in used else None
            used.add(node.target)
        elif node.op in ("call_function", "call_method"):
            module = _module_of(node, name)
        if module is not None:
            kind = node.target if node.op == "call_module" else _function(node)
            node.op, node.target = "call_module", _free_name(owner, kind.replace(".", "_"))
            node.args, node.kwargs = node.args[:1], {}
            owner.add_module(node.target, module.train(training))
    graph.lint()
    kind, forward = type(owner), type(fx.GraphModule(owner, graph)).forward
    owner.__class__ = type(kind.__name__, (kind,), {"forward": forward, "__module__": kind.__module__})


def _followed(owner: nn.Module, name: str) -> fx.Graph:
    try:
        graph = Shallow().trace(owner)
    except Exception as error:  # whatever the module's own code may raise when it is given no tensors
        reason = str(error).strip().partition("\n")[0]
        raise ValueError(f"the forward of {_named(name)} cannot be followed by torch.fx: {reason}") from error
    for node in graph.nodes:
        if node.target in DROPOUTS and node.kwargs["training"] == owner.training:
            node.update_kwarg("training", MODE)
    return graph


def _named(name: str) -> str:
    return name or "the network itself"


def _free_name(owner: nn.Module, name: str) -> str:
    names = (name if not number else f"{name}_{number}" for number in count())
    return next(free for free in names if not hasattr(owner, free))


def _function(node: fx.Node) -> str:
    return (node.target if isinstance(node.target, str) else node.target.__name__).rstrip("_")


def _module_of(node: fx.Node, name: str) -> nn.Module | None:
    """The module that does what a node's function does, where it is an activation, or dropout in training."""
    if node.target in DROPOUTS and node.kwargs["training"] == MODE:
        return DROPOUTS[node.target](node.kwargs["p"], node.kwargs["inplace"])
    target = getattr(Tensor, node.target, None) if node.op == "call_method" else node.target
    if target not in FUNCTIONS or _function(node) not in MODULES:
        return None
    own = node.target if isinstance(node.target, str) else node.target.__name__
    arguments = dict(node.kwargs) | ({"inplace": True} if own.endswith("_") else {})
    if any(isinstance(value, fx.Node) for value in (*node.args[1:], *arguments.values())) or not node.args:
        raise ValueError(f"{own} in {_named(name)} takes values that are computed: write a module for it")
    return MODULES[_function(node)](*node.args[1:], **arguments)
