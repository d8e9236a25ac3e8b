"""Groups: which units must be removed together, and cutting them out of a network and its optimiser.

A *coupling* is one channel dimension that several layers share: the inside of a block, or a residual stream with
every layer that adds into it or reads from it. A *group* is one channel of one coupling: the smallest thing whose
removal leaves a smaller dense network. Couplings are found by tracing the network once (DepGraph, Fang et al. 2023).

A cut made while training goes on may leave *padding*: removed channels that stay in the tensors, all zero. They
compute f(0) = 0, get zero gradients, and so stay zero under SGD with momentum and weight decay and under Adam. They
exist only because widths that are a multiple of 8 or 16 are faster; they are never counted, and `Groups.compact`
drops them. (Their running variance, 1 at first, fades to 0: a batch-norm's eps keeps 0 / sqrt(0 + eps) harmless.)
"""

import copy
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from common.models import ACTIVATION_TYPES, activation_layers, batch_norms

if TYPE_CHECKING:
    import torch_pruning as tp

ALIVE, PADDING, GONE = 0, 1, 2  # a group's channels: in use; removed but still in the tensors; removed
WEIGHTED = (nn.Conv2d, nn.Linear)
RESIZED = (*WEIGHTED, nn.modules.batchnorm._BatchNorm)
TENSORS = ("weight", "bias", "running_mean", "running_var")  # theirs, all with the output channels as dimension 0


class GroupError(ValueError):
    """A network that cannot be traced, a cut that would empty a coupling, or a state of another network."""


@dataclass(frozen=True)
class Coupling:
    """One coupled channel dimension of the dense network: groups start, ..., start + size - 1."""

    name: str  # of its first layer
    start: int
    size: int
    layers: tuple[str, ...]  # its activation layers
    batch_norms: tuple[str, ...]  # those whose scale and shift act on it
    gated: bool  # all that reads it reads it behind one of its activation layers

    @property
    def slice(self) -> slice:
        return slice(self.start, self.start + self.size)


class Groups:
    """All groups of one network and what has become of each. Made by `find_groups`.

    Groups are numbered 0, ..., G - 1 and stay so; tensors [G] are in this order, on the CPU unless said otherwise. A
    layer is known by its name in `named_modules`; its *channels* are those now in memory, padding included.

    couplings: in the order of the network.
    coupling: int64 [G], the coupling of each group.
    units: int64 [G], how many units a group removes.
    layer_units: activation layer -> its units in the dense network.
    outputs, inputs: layer -> int64 [dense size], the group of each output (input) channel; G where the channel is in
        no group, as image channels and classes are. A depthwise convolution has no inputs of its own.
    kernels: convolution or linear layer -> weights between one input and one output channel.
    positions: the same layer -> positions of its output in one pass of one example; 1 for a linear layer.
    version: grows whenever something is cut out or restored.
    """

    def __init__(
        self,
        couplings: Sequence[Coupling],
        outputs: dict[str, Tensor],
        inputs: dict[str, Tensor],
        positions: dict[str, int],
        model: nn.Module,
    ):
        self.couplings = tuple(couplings)
        self.outputs, self.inputs, self.positions = outputs, inputs, positions
        self.coupling = torch.arange(len(couplings)).repeat_interleave(torch.tensor([c.size for c in couplings]))
        self.layer_units = {name: len(outputs[name]) for name in activation_layers(model) if name in outputs}
        units = torch.cat([outputs[name] for name in self.layer_units] or [torch.empty(0, dtype=torch.int64)])
        self.units = torch.bincount(units, minlength=len(self) + 1)[:-1]
        self.kernels = {n: m.weight[0, 0].numel() for n, m in model.named_modules() if isinstance(m, WEIGHTED)}
        self._state = torch.zeros(len(self) + 1, dtype=torch.uint8)  # the last: channels in no group, ever alive
        self._cache: dict = {}  # of this state
        self.version = 0  # how often the state changed

    def __len__(self) -> int:
        return len(self.coupling)

    @property
    def alive(self) -> Tensor:
        """bool [G]: not removed."""
        return self._state[:-1] == ALIVE

    @property
    def candidates(self) -> Tensor:
        """bool [G]: alive, and silent when its units are. A linear bottleneck's channels, without units, never are."""
        gated = torch.tensor([coupling.gated for coupling in self.couplings])
        return self.alive & gated[self.coupling] & (self.units > 0)

    @property
    def widths(self) -> Tensor:
        """int64 [couplings]: alive channels of each."""
        return torch.bincount(self.coupling[self.alive], minlength=len(self.couplings))

    # Between groups and the channels of a layer.

    def channels(self, name: str, inputs: bool = False, device: torch.device | str = "cpu") -> Tensor:
        """int64 [channels]: the group of each of a layer's output (input) channels; G for a channel in no group."""
        key = name, inputs, torch.device(device)
        if key not in self._cache:
            table = (self.inputs if inputs else self.outputs)[name]
            self._cache[key] = table[self._state[table] != GONE].to(device)
        return self._cache[key]

    def alive_channels(self, name: str) -> Tensor:
        """bool [channels]: False at padding."""
        return self._state[self.channels(name)] == ALIVE

    def numbers(self, name: str) -> Tensor:
        """int64 [channels]: the number that each channel had in the dense network; -1 at padding."""
        state = self._state[self.outputs[name]]
        return torch.arange(len(state)).where(state == ALIVE, -1)[state != GONE]

    def spread(self, name: str, values: Tensor) -> Tensor:
        """[G] -> [channels] of one layer: each channel gets its group's value, a channel in no group gets 0."""
        return torch.cat([values, values.new_zeros(1)])[self.channels(name, device=values.device)]

    def total(self, values: dict[str, Tensor]) -> Tensor:
        """Layer -> [channels], for any layers, to [G]: the sum over each group's channels; 0 for removed groups.

        On the values' device; two kernels for any number of layers, so that every training step can afford it.
        """
        flat = torch.cat(list(values.values()))
        key = tuple(values), flat.device
        if key not in self._cache:
            alive = torch.cat([self.alive, torch.tensor([False])])
            index = torch.cat([self.channels(name) for name in values])
            self._cache[key] = index.where(alive[index], len(self)).to(flat.device)
        return flat.new_zeros(len(self) + 1).index_add_(0, self._cache[key], flat)[:-1]

    def largest(self, values: dict[str, Tensor]) -> Tensor:
        """Layer -> [channels], for any layers, to [G]: the largest of each group's channels, on the CPU."""
        found = torch.full((len(self) + 1,), -torch.inf, dtype=torch.float64)
        for name, column in values.items():
            found.scatter_reduce_(0, self.channels(name), column.double().cpu(), "amax")
        return found[:-1]

    def all_dead(self, dead: Tensor, layers: Sequence[str]) -> Tensor:
        """bool [G]: the candidates all of whose units are dead.

        dead: bool [U], every unit of the dense network. layers: its activation layers in the order of `dead`.
        """
        owners = torch.cat([self.outputs[name] for name in layers])
        counts = torch.bincount(owners[dead.cpu()], minlength=len(self) + 1)[:-1]
        return (counts == self.units) & self.candidates

    # Surgery.

    def cut(self, model: nn.Module, optimizer: torch.optim.Optimizer | None, removed, multiple: int = 1) -> int:
        """Remove groups, in place, from the network and from the optimiser's state; returns how many went.

        removed: group numbers, or bool [G]; those already removed are passed over. Parameters stay the objects that
            they are; gradients, and all that the optimiser keeps in a parameter's shape, are cut with them.
        multiple: each coupling keeps so much padding that its width is a multiple of this, or what it was if less;
            where that adds more than a third to its width, none (measured: 4 channels train faster than 16, 13 do not).
        Raises GroupError, with nothing changed, if a coupling would be left without a channel.
        """
        mask = torch.zeros(len(self), dtype=torch.bool)
        mask[removed] = True
        mask &= self.alive
        if not mask.any():
            return 0
        after = self._state.clone()
        for coupling in self.couplings:
            state = after[coupling.slice]  # a view
            alive = (state == ALIVE) & ~mask[coupling.slice]
            if not alive.any():
                raise GroupError(f"{coupling.name}: removing all of its {coupling.size} channels would empty it")
            spare = (~alive & (state != GONE)).nonzero().flatten()
            width = int(alive.sum())
            padding = min(-width % multiple, len(spare))
            padding = padding if 3 * padding <= width else 0
            state[spare[:padding]] = PADDING
            state[spare[padding:]] = GONE
        self._resize(model, optimizer, after)
        self._enter(after)
        return int(mask.sum())

    def compact(self, model: nn.Module) -> nn.Module:
        """A copy of the network without padding, hooks and gradients: what is saved and counted."""
        small = bare_copy(model)
        self._resize(small, None, self._state.where(self._state != PADDING, GONE))
        return small

    def state_dict(self) -> dict:
        """What `restore` needs: two plain lists and a tensor, loadable with weights_only=True."""
        names, sizes = [c.name for c in self.couplings], [c.size for c in self.couplings]
        return {"names": names, "sizes": sizes, "state": self._state.clone()}

    def restore(self, model: nn.Module, saved: dict) -> None:
        """Bring a network fresh from its constructor to the shapes and the padding it had when `saved` was taken.

        The values are for `model.load_state_dict` to set. Raises GroupError for the state of another network.
        """
        mine = self.state_dict()
        if any(saved[key] != mine[key] for key in ("names", "sizes")) or (saved["state"] < self._state).any():
            raise GroupError("the saved groups are not those of this network")
        self._resize(model, None, saved["state"])
        self._enter(saved["state"].clone())

    def _enter(self, state: Tensor) -> None:
        self._state = state
        self._cache = {}
        self.version += 1

    def _resize(self, model: nn.Module, optimizer: torch.optim.Optimizer | None, after: Tensor) -> None:
        """Bring a network's tensors from the present state to the state `after`, uint8 [G + 1]."""
        layers = [(name, module) for name, module in model.named_modules() if isinstance(module, RESIZED)]
        for name, module in layers:  # before anything changes
            width, expected = _width(module), len(self.channels(name))
            if width != expected:
                raise GroupError(f"{name} has {width} channels where the groups know of {expected}")
        for name, module in layers:
            outputs = _selection(self.channels(name), after)
            inputs = [_selection(self.channels(name, inputs=True), after)] if name in self.inputs else []
            for key in TENSORS:
                tensor = getattr(module, key, None)
                if tensor is not None:
                    dims = [outputs, *inputs] if key == "weight" else [outputs]
                    _cut_tensor(tensor, dims, 1.0 if key == "running_var" else 0.0, optimizer)
            _tell_shapes(module, depthwise=name in self.kernels and name not in self.inputs)


def bare_copy(model: nn.Module) -> nn.Module:
    """A deep copy without forward hooks, as a copy is not watched, and without gradients."""
    twin = copy.deepcopy(model)
    for module in twin.modules():
        module._forward_hooks.clear()
        module._forward_pre_hooks.clear()
    twin.zero_grad(set_to_none=True)
    return twin


def shrink_to(model: nn.Module, state_dict: dict[str, Tensor]) -> nn.Module:
    """Give every convolution, linear layer and batch-norm the shape that it has in `state_dict`, in place.

    A pruned network is loaded without any knowledge of how it was pruned: build it dense, shrink it, and call
    `load_state_dict`. Raises GroupError, with nothing changed, if a shape is no cut of the network's own.
    """
    layers = [(name, module) for name, module in model.named_modules() if isinstance(module, RESIZED)]
    changes = []
    for name, module in layers:
        for key in TENSORS:
            tensor, path = getattr(module, key, None), f"{name}.{key}" if name else key
            if tensor is not None and path in state_dict:
                old, new = tensor.shape, state_dict[path].shape
                if len(old) != len(new) or old[2:] != new[2:] or not all(0 < new[d] <= old[d] for d in range(len(old))):
                    raise GroupError(f"{path}: {list(new)} is no cut of {list(old)}")
                changes.append((tensor, new))
    for tensor, new in changes:
        if tensor.shape != new:
            _replace(tensor, _formatted(tensor.detach()[tuple(slice(size) for size in new)], tensor))
    for _, module in layers:
        _tell_shapes(module, depthwise=getattr(module, "groups", 1) > 1 and module.weight.shape[1] == 1)
    return model


def _selection(channels: Tensor, after: Tensor) -> tuple[Tensor, Tensor]:
    """Which of a layer's channels stay, and which of those that stay are padding: int64 [n], int64 [m <= n]."""
    kept = (after[channels] != GONE).nonzero().flatten()
    return kept, (after[channels[kept]] == PADDING).nonzero().flatten()


def _cut_tensor(
    tensor: Tensor, dims: list[tuple[Tensor, Tensor]], fill: float, optimizer: torch.optim.Optimizer | None
) -> None:
    """Cut a parameter or buffer, its gradient, and the optimiser's tensors of its shape."""
    shape = tensor.shape
    if all(len(kept) == size and not len(padding) for size, (kept, padding) in zip(shape, dims, strict=False)):
        return
    dims = [(kept.to(tensor.device), padding.to(tensor.device)) for kept, padding in dims]
    slots = optimizer.state.get(tensor, {}) if optimizer is not None else {}
    for key, value in slots.items():
        if isinstance(value, Tensor) and value.shape == shape:
            slots[key] = _select(value, dims, 0.0)
    gradient = None if tensor.grad is None else _select(tensor.grad, dims, 0.0)
    _replace(tensor, _select(tensor.detach(), dims, fill))
    tensor.grad = gradient


def _select(tensor: Tensor, dims: list[tuple[Tensor, Tensor]], fill: float) -> Tensor:
    """The kept channels along each of the first dimensions, with `fill` at padding, in the same memory format."""
    result = tensor
    for dim, (kept, padding) in enumerate(dims):
        if len(kept) < result.shape[dim]:
            result = result.index_select(dim, kept)
        if len(padding):
            result = result.index_fill(dim, padding, fill)
    return _formatted(result, tensor)


def _formatted(result: Tensor, like: Tensor) -> Tensor:
    """A copy with the strides that a new tensor in the memory format of `like` has, along dimensions of size 1 too.

    Kernels are chosen by strides: with others, a run that was interrupted would not be bit-identical.
    """
    last = torch.empty(like.shape, device="meta", memory_format=torch.channels_last) if like.dim() == 4 else None
    is_last = last is not None and like.stride() == last.stride()
    return result.clone(memory_format=torch.channels_last if is_last else torch.contiguous_format)


def _replace(tensor: Tensor, new: Tensor) -> None:
    """Put `new`, of another shape, into a parameter or buffer, which stays the same object."""
    tensor.grad = None
    # Autograd keeps a parameter's accumulator, with its old shape, as long as any old graph lives; the last step's
    # loss still does when the next forward pass runs. A change of type makes autograd forget it.
    other = torch.float16 if tensor.dtype != torch.float16 else torch.float32
    tensor.data = torch.empty(0, dtype=other, device=tensor.device)
    tensor.data = new


def _width(module: nn.Module) -> int:
    """The output channels that a layer's tensors have; a batch-norm without any has what it was made for."""
    sizes = [len(tensor) for key in TENSORS if (tensor := getattr(module, key, None)) is not None]
    return sizes[0] if sizes else module.num_features


def _tell_shapes(module: nn.Module, depthwise: bool) -> None:
    """Let a layer's own numbers say what shape its tensors have."""
    if isinstance(module, nn.Conv2d):
        module.out_channels = module.weight.shape[0]
        module.groups = module.out_channels if depthwise else module.groups
        module.in_channels = module.weight.shape[1] * module.groups
    elif isinstance(module, nn.Linear):
        module.out_features, module.in_features = module.weight.shape
    else:
        module.num_features = _width(module)


# Finding the groups.

# A layer's part in a coupling: its name, whether by its input, its channels, and the coupling's channel for each.
Member = tuple[str, bool, list[int], list[int]]
Traced = tuple[list[Member], bool]  # a coupling's members, and whether it is gated


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
    units: dict[str, int] = {}
    calls: Counter[str] = Counter()

    def note(name: str):
        def hook(_module: nn.Module, _inputs: tuple, output: Tensor) -> None:
            units[name] = output.shape[1]
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
    couplings = [(list(_members(graph, found, names)), _is_gated(graph, found)) for found in removable]
    if not couplings:
        raise GroupError(f"cannot trace {type(probe).__name__}: found no channel that can be removed")
    return couplings, units


@torch.no_grad()
def _positions(probe: nn.Module, image: Tensor) -> dict[str, int]:
    """Convolution or linear layer -> positions of its output in one pass of one example, over all its uses."""
    found: Counter[str] = Counter()

    def note(name: str):
        def hook(module: nn.Module, _inputs: tuple, output: Tensor) -> None:
            found[name] += output[0].numel() // _width(module)

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
        tables[name, False] = torch.full((_width(module),), -1)
        if isinstance(module, WEIGHTED) and getattr(module, "groups", 1) == 1:
            tables[name, True] = torch.full((module.weight.shape[1],), -1)
    couplings, start = [], 0
    for members, gated in sorted(traced, key=lambda found: min(order[name] for name, *_ in found[0])):
        members.sort(key=lambda member: order[member[0]])
        for name, is_input, channels, roots in members:
            table = tables[name, is_input]
            if (table[channels] != -1).any():
                raise GroupError(f"cannot trace {type(probe).__name__}: a channel of {name} is in two couplings")
            table[channels] = torch.tensor(roots) + start
        own = list(dict.fromkeys(name for name, is_input, *_ in members if not is_input))
        norms = tuple(name for name in own if name in layers and id(layers[name]) in gates)
        size = 1 + max(max(roots) for *_, roots in members)
        couplings.append(Coupling(members[0][0], start, size, tuple(n for n in own if n in units), norms, gated))
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
