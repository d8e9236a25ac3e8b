"""Cutting channels out of layers and their optimiser; bare copies; the shapes of a pruned network."""

import copy

import torch
from torch import Tensor, nn

ALIVE, PADDING, GONE = 0, 1, 2  # a group's channels: in use; removed but still in the tensors; removed
WEIGHTED = (nn.modules.conv._ConvNd, nn.Linear)
RESIZED = (*WEIGHTED, nn.modules.batchnorm._BatchNorm)
TENSORS = ("weight", "bias", "running_mean", "running_var")  # theirs, all with the output channels as dimension 0


def is_depthwise(module: nn.Module) -> bool:
    """Whether each input channel makes one output channel: both go together."""
    return getattr(module, "groups", 1) > 1 and module.groups == module.in_channels == module.out_channels


def by_output(module: nn.Module, tensor: Tensor) -> Tensor:
    """A view of a tensor like the layer's weight, output channels first: a transposed convolution has them second."""
    return tensor.movedim(1, 0) if _is_transposed(module) else tensor


def _is_transposed(module: nn.Module) -> bool:
    return isinstance(module, nn.modules.conv._ConvTransposeNd) and not is_depthwise(module)


class GroupError(ValueError):
    """A network that cannot be traced, a cut that would empty a coupling, or a state of another network."""


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
        tell_shapes(module)
    return model


def load_pruned(model: nn.Module, state_dict: dict[str, Tensor]) -> nn.Module:
    """A dense network brought to the shapes and the weights of a pruned one's state dict, in place; returns it.

    Raises GroupError, with nothing changed, if a shape is no cut of the network's own.
    """
    if not isinstance(model, nn.Module) or not isinstance(state_dict, dict):
        kinds = type(model).__name__, type(state_dict).__name__
        raise TypeError(f"load_pruned: got a {kinds[0]} and a {kinds[1]}, takes a dense network and a state dict")
    shrink_to(model, state_dict).load_state_dict(state_dict)
    return model


def selection(channels: Tensor, after: Tensor) -> tuple[Tensor, Tensor]:
    """Which of a layer's channels stay, and which of those that stay are padding: int64 [n], int64 [m <= n]."""
    kept = (after[channels] != GONE).nonzero().flatten()
    return kept, (after[channels[kept]] == PADDING).nonzero().flatten()


def cut_tensor(
    tensor: Tensor, dims: list[tuple[Tensor, Tensor]], fill: float, optimizer: torch.optim.Optimizer | None
) -> None:
    """Cut a parameter or buffer, its gradient, and the optimiser's tensors of its shape; where such a tensor has 1 in
    the place of a dimension, as Adafactor's factors have, only the others are cut."""
    shape = tensor.shape
    if all(len(kept) == size and not len(padding) for size, (kept, padding) in zip(shape, dims, strict=False)):
        return
    dims = [(kept.to(tensor.device), padding.to(tensor.device)) for kept, padding in dims]
    slots = optimizer.state.get(tensor, {}) if optimizer is not None else {}
    for key, value in slots.items():
        sizes = value.shape if isinstance(value, Tensor) and value.dim() == len(shape) > 0 else ()
        if sizes and all(size in (1, whole) for size, whole in zip(sizes, shape, strict=True)):
            pairs = zip(sizes, shape, dims, strict=False)
            slots[key] = _select(value, [pair if size == whole else None for size, whole, pair in pairs], 0.0)
    gradient = None if tensor.grad is None else _select(tensor.grad, dims, 0.0)
    _replace(tensor, _select(tensor.detach(), dims, fill))
    tensor.grad = gradient


def _select(tensor: Tensor, dims: list[tuple[Tensor, Tensor] | None], fill: float) -> Tensor:
    """The kept channels along each of the first dimensions but those that are None, with `fill` at padding, in the same
    memory format."""
    result = tensor
    for dim, (kept, padding) in ((dim, pair) for dim, pair in enumerate(dims) if pair is not None):
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


def width_of(module: nn.Module) -> int:
    """The output channels that a layer's tensors have; a batch-norm without any has what it was made for."""
    if _is_transposed(module):
        return module.weight.shape[1] * module.groups
    sizes = [len(tensor) for key in TENSORS if (tensor := getattr(module, key, None)) is not None]
    return sizes[0] if sizes else module.num_features


def tell_shapes(module: nn.Module) -> None:
    """Let a layer's own numbers say what shape its tensors have."""
    if isinstance(module, nn.modules.conv._ConvNd):
        if is_depthwise(module):
            module.groups = module.weight.shape[0]
        outputs, inputs = by_output(module, module.weight).shape[:2]
        if _is_transposed(module):
            module.out_channels, module.in_channels = outputs * module.groups, inputs
        else:
            module.out_channels, module.in_channels = outputs, inputs * module.groups
    elif isinstance(module, nn.Linear):
        module.out_features, module.in_features = module.weight.shape
    else:
        module.num_features = width_of(module)
