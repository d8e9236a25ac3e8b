"""Finding the groups of a network by tracing it once (DepGraph, Fang et al. 2023)."""

import copy
from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from common.cutting import RESIZED, WEIGHTED, GroupError, bare_copy, by_output, is_depthwise, width_of
from common.errors import told
from common.groups import Coupling, Groups
from common.models import (
    ACTIVATION_TYPES,
    Inputs,
    activation_layers,
    batch_norms,
    call,
    check_bare,
    check_example,
    each,
    watched,
)
from common.models.activations import UNSTEADY

if TYPE_CHECKING:
    import torch_pruning as tp

FIXED = "; perhaps a view or reshape has a fixed size, in the place of one from x.shape"
# A layer's part in a coupling: its name, whether by its input, its channels, and the coupling's channel for each.
Member = tuple[str, bool, list[int], list[int]]
Traced = tuple[list[Member], bool, set[str]]  # a coupling's members, whether it is gated, its bare layers


def find_groups(model: nn.Module, inputs: Inputs) -> Groups:
    """Find the groups of a network of any architecture by tracing one pass of one example: an image [1, C, H, W], or a
    tuple of inputs.

    The values do not matter, and of the sizes that the network takes the smallest is the fastest. (Only FLOPs depend on
    the size of an image.) Neither the network nor the global random state is touched. What was found is put to the
    proof: without a random half of its channels the network must compute what it computes with them at zero. Channels
    of which that is not true, or which a layer reads that cannot be cut, stay; `Groups.kept` names them.

    Raises:
        GroupError: in one line, for a network that cannot be traced, or of which nothing can be cut out exactly.
        ValueError: for a network in a wrapper, as DistributedDataParallel.
    """
    check_bare(model)
    check_example(inputs)
    probe = bare_copy(model).cpu().float().eval().requires_grad_()
    try:
        inputs = each(lambda x: x.detach().cpu().float() if x.is_floating_point() else x.detach().cpu(), inputs)
        traced, units, kept = _trace(probe, inputs)
        positions = _positions(probe, inputs)
        groups = _number(probe, traced, units, positions, kept)
        if _fault(groups, probe, inputs):  # whose?
            faults = [_fault(_number(probe, [found], units, positions, {}), probe, inputs) for found in traced]
            pairs = list(zip(traced, faults, strict=True))
            kept |= {found[0][0][0]: fault for found, fault in pairs if fault}
            groups = _number(probe, [found for found, fault in pairs if not fault], units, positions, kept)
            if groups.couplings and (fault := _fault(groups, probe, inputs)):
                raise GroupError(f"cannot trace {type(model).__name__}: of its channels together, {fault}")
    except GroupError:
        raise
    except Exception as error:  # whatever the network's own code, autograd or Torch-Pruning may raise
        raise GroupError(f"cannot trace {type(model).__name__}: {told(error)}") from error
    if not groups.couplings:
        name, reason = next(iter(kept.items()), ("", "found no channel that can be removed"))
        raise GroupError(
            f"cannot trace {type(model).__name__}: {f'the channels of {name} stay: ' * bool(name)}{reason}"
        )
    return groups


def _trace(probe: nn.Module, inputs: Inputs) -> tuple[list[Traced], dict[str, int], dict[str, str]]:
    """Every coupling except the classes; activation layer -> units; the couplings that stay, and why."""
    import torch_pruning as tp  # here, as most of those who import Groups trace nothing

    activations, seen = activation_layers(probe), watched(probe, inputs)
    for name, count in seen.shared.items():
        raise GroupError(
            f"activation layer {name} is used {count} times: each use needs a module of its own (see own_activations)"
        )
    units = {name: layer.units for name, layer in seen.layers.items()}
    graph = tp.DependencyGraph()
    with torch.enable_grad():
        graph.build_dependency(
            probe,
            inputs,
            forward_fn=lambda network, x: [t for t in tree_leaves(call(network, x)) if isinstance(t, Tensor)],
            # As customised layers, activations become nodes of the graph by themselves.
            customized_pruners={type(module): tp.ops.DummyPruner() for module in activations.values()},
            verbose=False,
        )
    names = {module: name for name, module in probe.named_modules()}
    removable = [found for found in graph.get_all_groups() if not _is_output(graph, found)]
    couplings, kept, taken = [], {}, {key: set(range(size)) for key, size in _sizes(probe, units).items()}
    for found in removable:
        try:
            members = list(_members(graph, found, names))
            _take(members, taken)
        except GroupError as reason:
            kept[names.get(found[0].dep.target.module, "a parameter")] = str(reason)
        else:
            couplings.append((members, _is_gated(graph, found), _bare(graph, found, names)))
    return couplings, units, kept


@torch.no_grad()
def _positions(probe: nn.Module, inputs: Inputs) -> dict[str, int]:
    """Convolution or linear layer -> positions of its output in one pass of one example, over all its uses; of a
    transposed convolution, of its input, which each of its weights meets once."""
    found: Counter[str] = Counter()

    def note(name: str):
        def hook(module: nn.Module, given: tuple, output: Tensor) -> None:
            if isinstance(module, nn.modules.conv._ConvTransposeNd):
                found[name] += given[0][0].numel() // module.in_channels
            else:
                found[name] += output[0].numel() // width_of(module)

        return hook

    hooks = [m.register_forward_hook(note(name)) for name, m in probe.named_modules() if isinstance(m, WEIGHTED)]
    call(probe, inputs)
    for hook in hooks:
        hook.remove()
    return dict(found)


def _is_output(graph: "tp.DependencyGraph", found: "tp.Group") -> bool:
    """Whether these channels reach the network's output: then they are the classes."""
    return any(not dep.target.outputs and graph.is_out_channel_pruning_fn(dep.handler) for dep, _ in found.items)


def _is_gated(graph: "tp.DependencyGraph", found: "tp.Group") -> bool:
    """Whether every way from a layer of the coupling to one that reads it leads through an activation layer; of the two
    factors of a product, as in squeeze-and-excitation, one is enough."""
    inside = {dep.target for dep, _ in found.items}
    readers = [dep.target for dep, _ in found.items if not graph.is_out_channel_pruning_fn(dep.handler)]
    starts = [node for reader in readers for node in reader.inputs if node in inside]
    ahead, gated = list(starts), {}
    while ahead:
        node = ahead[-1]
        before = [] if isinstance(node.module, (*RESIZED, *ACTIVATION_TYPES)) else node.inputs
        before = [source for source in before if source in inside]
        unknown = [source for source in before if source not in gated]
        if node in gated or not unknown:
            ways = [gated.get(source, True) for source in before]
            is_product = "MulBackward" in getattr(node.module, "_grad_fn", "")
            gated[node] = not isinstance(node.module, RESIZED) and (any(ways) if is_product and ways else all(ways))
            ahead.pop()
        ahead += [] if node in gated else unknown
    return all(gated[node] for node in starts)


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
        if getattr(module, "groups", 1) > 1 and not is_depthwise(module):
            raise GroupError(f"cannot cut channels out of {name}, a grouped convolution")
        yield name, not graph.is_out_channel_pruning_fn(item.dep.handler), item.idxs, item.root_idxs


def _sizes(probe: nn.Module, units: dict[str, int]) -> dict[tuple[str, bool], int]:
    """A layer, and whether its inputs: how many channels that is."""
    sizes = {(name, False): size for name, size in units.items()}
    for name, module in probe.named_modules():
        if isinstance(module, RESIZED):
            sizes[name, False] = width_of(module)
        if isinstance(module, WEIGHTED) and getattr(module, "groups", 1) == 1:
            sizes[name, True] = by_output(module, module.weight).shape[1]
    return sizes


def _take(members: list[Member], free: dict[tuple[str, bool], set[int]]) -> None:
    """Takes a coupling's channels from those that are free, in place.

    Raises:
        GroupError: where they are not there, as behind a reshape that was not understood; then none is taken.
    """
    left: dict[tuple[str, bool], set[int]] = {}
    for name, is_input, channels, _ in members:
        mine = left.setdefault((name, is_input), set(free.get((name, is_input), ())))
        if not mine.issuperset(channels) or len({*channels}) < len(channels):
            raise GroupError(f"cannot tell which channels of {name} they are, behind a reshape or a concatenation")
        mine.difference_update(channels)
    free |= left


def _number(probe: nn.Module, traced: list[Traced], units: dict[str, int], positions: dict[str, int], kept) -> Groups:
    """Number couplings and groups in the order of the network, and note the group of every channel."""
    order = {name: position for position, (name, _) in enumerate(probe.named_modules())}
    layers = {name: module for name, module in probe.named_modules() if isinstance(module, RESIZED)}
    gates = {id(module) for module in batch_norms(probe)}
    tables = {key: torch.full((size,), -1) for key, size in _sizes(probe, units).items()}
    couplings, start = [], 0
    for members, gated, bare in sorted(traced, key=lambda found: min(order[name] for name, *_ in found[0])):
        members.sort(key=lambda member: order[member[0]])
        for name, is_input, channels, roots in members:
            tables[name, is_input][channels] = torch.tensor(roots) + start
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
    return Groups(couplings, outputs, inputs, positions, probe, kept)


@torch.no_grad()
def redraw(model: nn.Module, generator: torch.Generator | None = None) -> nn.Module:
    """Gives every parameter values that matter, in place: a new network may have zeros, or scales near 0, that hide
    what lies behind them."""
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.normal_(0, (parameter.numel() / len(parameter)) ** -0.5, generator=generator)
        else:
            parameter.uniform_(0.5, 1.5, generator=generator)
    return model


@torch.no_grad()
def silence(model: nn.Module, groups: Groups, removed: Tensor) -> None:
    """Sets to 0, in place, what `Groups.cut` would take out: bool [G]."""
    for name, module in model.named_modules():
        if isinstance(module, RESIZED):
            gone = groups.spread(name, removed)
            for key in ("weight", "bias"):
                if (tensor := getattr(module, key)) is not None:
                    (by_output(module, tensor) if key == "weight" else tensor)[gone] = 0


@torch.no_grad()
def _fault(groups: Groups, probe: nn.Module, inputs: Inputs) -> str:
    """Why the network does not compute the same with half of its channels at zero and without them; "" if it does.

    Raises:
        GroupError: where it does not even compute the same twice.
    """
    generator = torch.Generator().manual_seed(0)
    removed = torch.rand(len(groups), generator=generator) < 0.5
    removed[[coupling.start for coupling in groups.couplings]] = False
    zeroed = redraw(bare_copy(probe).double(), generator)
    for norm in batch_norms(zeroed):
        norm.train()  # by the statistics of the two examples, so that no signal fades on its way through a new network

    def two(x: Tensor) -> Tensor:
        random = x.is_floating_point()
        return torch.randn(2, *x.shape[1:], generator=generator).double() if random else torch.cat([x, x])

    def outputs(network: nn.Module) -> list[Tensor]:
        return [x for x in tree_leaves(call(network, examples)) if isinstance(x, Tensor)]

    examples, small = each(two, inputs), bare_copy(zeroed)
    copy.copy(groups).cut(small, None, removed)
    silence(zeroed, groups, removed)
    expected = outputs(zeroed)
    try:
        found = outputs(small)
    except (RuntimeError, ValueError) as error:  # shapes that no longer fit
        return f"without them a pass fails, {told(error)}{FIXED}"
    if [x.shape for x in found] != [x.shape for x in expected]:
        return f"without them the outputs have another shape{FIXED}"
    if _alike(expected, found):
        return ""
    if not _alike(expected, outputs(zeroed)):
        raise GroupError(f"cannot trace {type(probe).__name__}: {UNSTEADY}")
    return "cutting them changes what the others compute"


def _alike(ones: list[Tensor], others: list[Tensor]) -> bool:
    pairs = zip(ones, others, strict=True)
    return all((a - b).abs().max() <= 1e-6 * a.abs().max() for a, b in pairs)
