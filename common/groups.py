"""Groups: which units must be removed together, and cutting them out of a network and its optimiser.

A *coupling* is one channel dimension that several layers share: the inside of a block, or a residual stream with
every layer that adds into it or reads from it. A *group* is one channel of one coupling: the smallest thing whose
removal leaves a smaller dense network. Couplings are found by tracing the network once (DepGraph, Fang et al. 2023).

A cut made while training goes on may leave *padding*: removed channels that stay in the tensors, all zero. They
compute f(0) = 0, get zero gradients, and so stay zero under SGD with momentum and weight decay and under Adam. They
exist only because widths that are a multiple of 8 or 16 are faster; they are never counted, and `Groups.compact`
drops them. (Their running variance, 1 at first, fades to 0: a batch-norm's eps keeps 0 / sqrt(0 + eps) harmless.)
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from common.cutting import (
    ALIVE,
    GONE,
    PADDING,
    RESIZED,
    TENSORS,
    WEIGHTED,
    GroupError,
    bare_copy,
    by_output,
    cut_tensor,
    selection,
    tell_shapes,
    width_of,
)
from common.models import activation_layers


def kernel_of(module: nn.Module) -> int:
    """Weights between one input and one output channel; of a convolution in groups, all of one output channel's."""
    return (
        module.weight.numel() // width_of(module) if getattr(module, "groups", 1) > 1 else module.weight[0, 0].numel()
    )


@dataclass(frozen=True)
class Coupling:
    """One coupled channel dimension of the dense network: groups start, ..., start + size - 1."""

    name: str  # of its first layer
    start: int
    size: int
    layers: tuple[str, ...]  # its activation layers
    batch_norms: tuple[str, ...]  # those whose scale and shift act on it
    gated: bool  # all that reads it reads it behind one of its activation layers
    bare: tuple[str, ...] = ()  # convolutions and linear layers whose output no batch-norm changes before an activation

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
    kernels: convolution or linear layer -> weights between one input and one output channel (`kernel_of`).
    positions: the same layer -> positions of its output in one pass of one example; 1 for a linear layer.
    version: grows whenever something is cut out or restored.
    kept: layer -> why the channels that it shares with others stay, whatever is asked for.
    followers: networks of the same architecture that every cut is made in too, such as averages of the weights.
    """

    def __init__(
        self,
        couplings: Sequence[Coupling],
        outputs: dict[str, Tensor],
        inputs: dict[str, Tensor],
        positions: dict[str, int],
        model: nn.Module,
        kept: dict[str, str] | None = None,
    ):
        self.kept = kept or {}
        self.followers: list[nn.Module] = []
        self.couplings = tuple(couplings)
        self.outputs, self.inputs, self.positions = outputs, inputs, positions
        sizes = torch.tensor([coupling.size for coupling in couplings], dtype=torch.int64)
        self.coupling = torch.arange(len(couplings)).repeat_interleave(sizes)
        self.layer_units = {name: len(outputs[name]) for name in activation_layers(model) if name in outputs}
        units = torch.cat([outputs[name] for name in self.layer_units] or [torch.empty(0, dtype=torch.int64)])
        self.units = torch.bincount(units, minlength=len(self) + 1)[:-1]
        self.kernels = {n: kernel_of(m) for n, m in model.named_modules() if isinstance(m, WEIGHTED)}
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
        for follower in self.followers:
            self._resize(follower, None, after)
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
        for network in (model, *self.followers):
            self._resize(network, None, saved["state"])
        self._enter(saved["state"].clone())

    def _enter(self, state: Tensor) -> None:
        self._state = state
        self._cache = {}
        self.version += 1

    def _resize(self, model: nn.Module, optimizer: torch.optim.Optimizer | None, after: Tensor) -> None:
        """Bring a network's tensors from the present state to the state `after`, uint8 [G + 1]."""
        layers = [(name, module) for name, module in model.named_modules() if isinstance(module, RESIZED)]
        for name, module in layers:  # before anything changes
            width, expected = width_of(module), len(self.channels(name))
            if width != expected:
                raise GroupError(f"{name} has {width} channels where the groups know of {expected}")
        for name, module in layers:
            outputs = selection(self.channels(name), after)
            inputs = [selection(self.channels(name, inputs=True), after)] if name in self.inputs else []
            for key in TENSORS:
                tensor = getattr(module, key, None)
                if tensor is not None:
                    dims = [outputs, *inputs] if key == "weight" else [outputs]
                    if dims[1:] and by_output(module, tensor) is not tensor:
                        dims.reverse()
                    cut_tensor(tensor, dims, 1.0 if key == "running_var" else 0.0, optimizer)
            tell_shapes(module)
