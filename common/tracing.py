"""Finding the groups of a network by tracing it once (DepGraph, Fang et al. 2023)."""

import copy
from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from common.models import ACTIVATION_TYPES, activation_layers, batch_norms, watched

if TYPE_CHECKING:
    import torch_pruning as tp
from common.cutting import RESIZED, WEIGHTED, GroupError, bare_copy, width_of
from common.groups import Coupling, Groups

# Finding the groups.

# A layer's part in a coupling: its name, whether by its input, its channels, and the coupling's channel for each.
Member = tuple[str, bool, list[int], list[int]]
Traced = tuple[list[Member], bool, set[str]]  # a coupling's members, whether it is gated, its bare layers


def find_groups(model: nn.Module, image: Tensor) -> Groups:
    """Find the groups of a network of any architecture by tracing one pass of `image` [1, C, H, W].

    The image's values do not matter, and of the sizes that the network takes the smallest is the fastest. Neither the
    network nor the global random state is touched. What was found is put to the proof: without a random half of its
    channels the network must compute what it computes with them at zero. Raises GroupError, in one line, for a
    network that cannot be traced or whose channels cannot be cut out exactly.
    (Only FLOPs depend on the size of the image.)
    """
    probe = bare_copy(model).cpu().float().eval().requires_grad_()
    try:
        image = image.detach().cpu().float()
        groups = _number(probe, *_trace(probe, image), _positions(probe, image))
        exact = _is_exact(groups, probe, image.shape)
    except GroupError:
        raise
    except Exception as error:  # whatever the network's own code, autograd or Torch-Pruning may raise
        reason = str(error).strip().partition("\n")[0]
        raise GroupError(f"cannot trace {type(model).__name__}: {type(error).__name__}: {reason}") from error
    if not exact:
        raise GroupError(f"cannot trace {type(model).__name__}: cutting channels changes what the others compute")
    return groups


def _trace(probe: nn.Module, image: Tensor) -> tuple[list[Traced], dict[str, int]]:
    """Every coupling except the classes; and activation layer -> units."""
    import torch_pruning as tp  # here, as most of those who import Groups trace nothing

    activations = activation_layers(probe)
    units = {name: layer.units for name, layer in watched(probe, image)[0].items()}
    calls: Counter[str] = Counter()

    def note(name: str):
        def hook(_module: nn.Module, _inputs: tuple, output: Tensor) -> None:
            calls[name] += 1

        return hook

    for name, module in activations.items():
        module.register_forward_hook(note(name))
    graph = tp.DependencyGraph()
    with torch.enable_grad():
        graph.build_dependency(
            probe,
            image,
            forward_fn=lambda network, inputs: network(inputs),
            # As customised layers, activations become nodes of the graph by themselves.
            customized_pruners={type(module): tp.ops.DummyPruner() for module in activations.values()},
            verbose=False,
        )
    for module in activations.values():
        module._forward_hooks.clear()
    for name, count in calls.items():
        if count > 1:
            raise GroupError(f"activation layer {name} is used {count} times: each use needs a module of its own")
    names = {module: name for name, module in probe.named_modules()}
    removable = [found for found in graph.get_all_groups() if not _is_output(graph, found)]
    couplings = [
        (list(_members(graph, found, names)), _is_gated(graph, found), _bare(graph, found, names))
        for found in removable
    ]
    if not couplings:
        raise GroupError(f"cannot trace {type(probe).__name__}: found no channel that can be removed")
    return couplings, units


@torch.no_grad()
def _positions(probe: nn.Module, image: Tensor) -> dict[str, int]:
    """Convolution or linear layer -> positions of its output in one pass of one example, over all its uses."""
    found: Counter[str] = Counter()

    def note(name: str):
        def hook(module: nn.Module, _inputs: tuple, output: Tensor) -> None:
            found[name] += output[0].numel() // width_of(module)

        return hook

    hooks = [m.register_forward_hook(note(name)) for name, m in probe.named_modules() if isinstance(m, WEIGHTED)]
    probe(image)
    for hook in hooks:
        hook.remove()
    return dict(found)


def _is_output(graph: "tp.DependencyGraph", found: "tp.Group") -> bool:
    """Whether these channels reach the network's output: then they are the classes."""
    return any(not dep.target.outputs and graph.is_out_channel_pruning_fn(dep.handler) for dep, _ in found.items)


def _is_gated(graph: "tp.DependencyGraph", found: "tp.Group") -> bool:
    """Whether every way from a layer of the coupling to one that reads it leads through an activation layer."""
    inside = {dep.target for dep, _ in found.items}
    readers = [dep.target for dep, _ in found.items if not graph.is_out_channel_pruning_fn(dep.handler)]
    ahead = [node for reader in readers for node in reader.inputs if node in inside]
    seen = set()
    while ahead:
        node = ahead.pop()
        if isinstance(node.module, RESIZED):
            return False
        if node not in seen and not isinstance(node.module, ACTIVATION_TYPES):
            ahead += [node for node in node.inputs if node in inside]
        seen.add(node)
    return True


def _bare(graph: "tp.DependencyGraph", found: "tp.Group", names: dict[nn.Module, str]) -> set[str]:
    """The weighted layers of the coupling from which a way leads to an activation layer past no batch-norm."""

    def reaches_an_activation(node) -> bool:
        ahead, seen = list(node.outputs), set()
        while ahead:
            node = ahead.pop()
            if isinstance(node.module, ACTIVATION_TYPES):
                return True
            if node not in seen and not isinstance(node.module, RESIZED):
                ahead += node.outputs
            seen.add(node)
        return False

    makers = [dep.target for dep, _ in found.items if graph.is_out_channel_pruning_fn(dep.handler)]
    return {names[n.module] for n in makers if isinstance(n.module, WEIGHTED) and reaches_an_activation(n)}


def _members(graph: "tp.DependencyGraph", found: "tp.Group", names: dict[nn.Module, str]) -> Iterator[Member]:
    for item in found.items:
        module = item.dep.target.module
        if isinstance(module, nn.Parameter):
            raise GroupError("cannot trace a parameter that is no layer's")
        if module not in names:
            continue  # an addition, a reshape, ...: nothing to cut
        name = names[module]
        if not isinstance(module, (*RESIZED, *ACTIVATION_TYPES)):
            raise GroupError(f"cannot cut channels out of {name}, a {type(module).__name__}")
        if getattr(module, "groups", 1) > 1 and not module.groups == module.in_channels == module.out_channels:
            raise GroupError(f"cannot cut channels out of {name}, a grouped convolution")
        yield name, not graph.is_out_channel_pruning_fn(item.dep.handler), item.idxs, item.root_idxs


def _number(probe: nn.Module, traced: list[Traced], units: dict[str, int], positions: dict[str, int]) -> Groups:
    """Number couplings and groups in the order of the network, and note the group of every channel."""
    order = {name: position for position, (name, _) in enumerate(probe.named_modules())}
    layers = {name: module for name, module in probe.named_modules() if isinstance(module, RESIZED)}
    gates = {id(module) for module in batch_norms(probe)}
    tables = {(name, False): torch.full((size,), -1) for name, size in units.items()}
    for name, module in layers.items():
        tables[name, False] = torch.full((width_of(module),), -1)
        if isinstance(module, WEIGHTED) and getattr(module, "groups", 1) == 1:
            tables[name, True] = torch.full((module.weight.shape[1],), -1)
    couplings, start = [], 0
    for members, gated, bare in sorted(traced, key=lambda found: min(order[name] for name, *_ in found[0])):
        members.sort(key=lambda member: order[member[0]])
        for name, is_input, channels, roots in members:
            table = tables[name, is_input]
            if (table[channels] != -1).any():
                raise GroupError(f"cannot trace {type(probe).__name__}: a channel of {name} is in two couplings")
            table[channels] = torch.tensor(roots) + start
        own = list(dict.fromkeys(name for name, is_input, *_ in members if not is_input))
        norms = tuple(name for name in own if name in layers and id(layers[name]) in gates)
        size = 1 + max(max(roots) for *_, roots in members)
        activations, bare = (tuple(name for name in own if name in among) for among in (units, bare))
        couplings.append(Coupling(members[0][0], start, size, activations, norms, gated, bare))
        start += size
    for table in tables.values():
        table[table == -1] = start
    outputs = {name: table for (name, is_input), table in tables.items() if not is_input}
    inputs = {name: table for (name, is_input), table in tables.items() if is_input}
    return Groups(couplings, outputs, inputs, positions, probe)


@torch.no_grad()
def _is_exact(groups: Groups, probe: nn.Module, shape: torch.Size) -> bool:
    """Whether the network computes the same with half of its channels at zero and without them. Spoils the probe."""
    generator = torch.Generator().manual_seed(0)
    removed = torch.rand(len(groups), generator=generator) < 0.5
    removed[[coupling.start for coupling in groups.couplings]] = False
    images = torch.randn(2, *shape[1:], generator=generator).double()
    for norm in batch_norms(probe.double()):
        norm.train()  # by the statistics of the two images, so that no signal fades on its way through a new network
    small = bare_copy(probe)
    copy.copy(groups).cut(small, None, removed)
    for name, module in probe.named_modules():
        for key in ("weight", "bias") if isinstance(module, RESIZED) else ():
            if (tensor := getattr(module, key)) is not None:
                tensor[groups.spread(name, removed)] = 0
    zeroed, cut = probe(images), small(images)
    return bool((zeroed - cut).abs().max() <= 1e-6 * zeroed.abs().max())
