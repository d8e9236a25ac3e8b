"""The tensors of the pretend accelerator and what is done with them; see tests/pretend/__init__.py.

A tensor on device `pretend` is a wrapper around a CPU tensor, `raw`. Every operation on it arrives at `dispatch`, which
refuses what CUDA refuses, counts what CUDA would launch and wait for, and calls the CPU's kernel.
"""

import copy
from collections import OrderedDict
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from tests.pretend.machine import machine

FIRST = "pretend:0"
# No work for a device: names, views, memory without values.
NOT_LAUNCHED = {"empty", "empty_like", "empty_strided", "empty_permuted", "new_empty", "new_empty_strided"}
NOT_LAUNCHED |= {"_unsafe_view", "is_pinned", "is_same_size", "_has_same_storage_numel", "record_stream"}
# What needs on the host a value, or how many there are.
WAITING = {"_local_scalar_dense": "item"} | {
    name: name
    for name in ("nonzero", "masked_select", "equal", "bincount", "_unique2", "unique_dim", "unique_consecutive")
}
COPYING = ("copy_", "_to_copy", "_foreach_copy_")
INDEXING = ("index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index", "_unsafe_index_put")


class Pretend(Tensor):
    """A tensor on device `pretend:N`.

    To C++ all are on `pretend:0`, as torch's autograd knows one device of a backend in Python; `device` and `to` tell
    them apart.
    """

    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, raw: Tensor, ordinal: int):
        made = Tensor._make_wrapper_subclass(
            cls, raw.size(), strides=raw.stride(), storage_offset=raw.storage_offset(), dtype=raw.dtype, device=FIRST
        )
        made.raw, made.ordinal = raw, ordinal
        machine.hold(raw, ordinal)
        return made

    def __init__(self, raw: Tensor, ordinal: int): ...

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return dispatch(func, args, kwargs or {})

    def __repr__(self):
        return f"Pretend({self.raw!r}, device='{self.device}')"

    @property
    def device(self) -> torch.device:
        return torch.device("pretend", self.ordinal)

    def get_device(self) -> int:
        return self.ordinal

    @property
    def data(self) -> Tensor:
        return Tensor.data.__get__(self)

    @data.setter
    def data(self, other: Tensor):
        Tensor.data.__set__(self, other)
        self.raw, self.ordinal = other.raw, other.ordinal

    def to(self, *args, **kwargs) -> Tensor:
        device, dtype, non_blocking, memory_format = torch._C._nn._parse_to(*args, **kwargs)
        device = next((a.device for a in (*args, *kwargs.values()) if isinstance(a, Pretend)), device)
        if device is None or device.type != "pretend":
            return super().to(*args, **kwargs)
        same = {"dtype": dtype or self.dtype, "non_blocking": non_blocking, "memory_format": memory_format}
        if machine.ordinal(device) == self.ordinal:
            return super().to(copy=kwargs.get("copy", False), **same)
        return torch.ops.aten._to_copy(self, device=device, **same)

    def tolist(self) -> list:
        machine.wait("tolist")
        return self.raw.tolist()

    def numpy(self, *, force: bool = False):
        if not force:
            raise TypeError(f"can't convert {self.device} device type tensor to numpy. Use Tensor.cpu() first.")
        return self.detach().cpu().numpy()

    def __array__(self, dtype=None):
        return self.numpy()

    def data_ptr(self) -> int:
        return self.raw.data_ptr()

    def untyped_storage(self) -> torch.UntypedStorage:
        return self.raw.untyped_storage()

    def __deepcopy__(self, memo: dict):
        if id(self) in memo:
            return memo[id(self)]
        if not self.is_leaf:
            raise RuntimeError(
                "Only Tensors created explicitly by the user support the deepcopy protocol at the moment"
            )
        made = Pretend(copy.deepcopy(self.raw, memo), self.ordinal).requires_grad_(self.requires_grad)
        if isinstance(self, torch.nn.Parameter):
            made._is_param = True
        elif self.grad is not None:
            made.grad = copy.deepcopy(self.grad, memo)
        memo[id(self)] = made
        return made

    def __reduce_ex__(self, protocol: int):
        """Saved as a tensor of a CPU and where it belongs: torch.load(map_location="cpu") leaves it there."""
        if isinstance(self, torch.nn.Parameter):
            bare = Pretend(self.raw, self.ordinal)
            return torch._utils._rebuild_parameter, (bare, self.requires_grad, OrderedDict())
        machine.wait("copy to host")
        given = self.raw, self.dtype, str(self.device), self.requires_grad
        return torch._utils._rebuild_device_tensor_from_cpu_tensor, given


def overload(name: str) -> torch._ops.OpOverload:
    """One of torch's operations by its name, as `sum.dim_IntList`."""
    packet, _, kind = name.partition(".")
    return getattr(getattr(torch.ops.aten, packet), kind or "default")


@dataclass(frozen=True)
class Operation:
    """What the device has to know of an operation of torch."""

    name: str
    launched: bool
    seeded: bool  # draws random numbers
    generator: bool  # takes a generator
    composite: bool  # made of others; arrives here only without autograd
    written: tuple[int | str, ...]  # the arguments that it writes into: places, or names


def has_kernel(func: torch._ops.OpOverload) -> bool:
    return torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), "CPU")


@cache
def operation(func: torch._ops.OpOverload) -> Operation:
    arguments = func._schema.arguments
    written = [
        argument.name if argument.kwarg_only else place
        for place, argument in enumerate(arguments)
        if argument.alias_info is not None and argument.alias_info.is_write
    ]
    name = func.overloadpacket.__name__
    return Operation(
        name,
        launched=not (func.is_view or torch.Tag.inplace_view in func.tags or name in NOT_LAUNCHED),
        seeded=torch.Tag.nondeterministic_seeded in func.tags,
        generator=any(argument.name == "generator" for argument in arguments),
        composite=func._can_decompose() and not has_kernel(func),
        written=tuple(written),
    )


def tensors_in(values) -> list[Tensor]:
    """Those in a list of arguments, which may be lists of tensors."""
    single = [value if isinstance(value, (list, tuple)) else (value,) for value in values]
    return [tensor for part in single for tensor in part if isinstance(tensor, Tensor)]


def raw_of(value):
    if isinstance(value, (list, tuple)):
        return [raw_of(part) for part in value]
    return value.raw if isinstance(value, Pretend) else value


def unfused_sgd(
    parameters, grads, momenta, *, weight_decay, momentum, lr, dampening, nesterov, maximize, is_first_step, **_
) -> None:
    """What the fused step of SGD does, as the CPU's plain one does it, so that the two agree to the last bit."""
    if nesterov or maximize or dampening:
        raise NotImplementedError("nesterov, maximize and dampening")
    for place, (parameter, grad) in enumerate(zip(parameters, grads, strict=True)):
        step = grad.add(parameter, alpha=weight_decay) if weight_decay else grad
        if momentum:
            kept = momenta[place]
            step = kept.copy_(step) if is_first_step else kept.mul_(momentum).add_(step)
        parameter.add_(step, alpha=-lr)


STAND_INS = {"_fused_sgd_": unfused_sgd}


def dispatch(func: torch._ops.OpOverload, args: tuple, kwargs: dict):
    """Does one operation that has a tensor of the device among its arguments."""
    done = operation(func)
    if done.composite:
        return func.decompose(*args, **kwargs)
    tensors = tensors_in((*args, *kwargs.values()))
    written = tensors_in([args[p] if isinstance(p, int) else kwargs.get(p) for p in done.written])
    ordinal = next(tensor.ordinal for tensor in tensors if isinstance(tensor, Pretend))
    if done.name in COPYING:
        return transfer(func, args, kwargs, ordinal)
    refuse_mixed(done, args, tensors, written)
    await_host(done, args, kwargs)
    if done.launched:
        machine.launch(done.name)
    target = kwargs.get("device")
    if target is not None:
        target, kwargs = torch.device(target), {**kwargs, "device": kernels_of(torch.device(target))}
    kwargs = {name: raw_of(value) for name, value in kwargs.items() if name != "pin_memory"}
    with machine.random(done, kwargs, ordinal):
        result = STAND_INS.get(done.name, func)(*map(raw_of, args), **kwargs)
    for tensor in written:
        follow(tensor)
    if target is not None and target.type != "pretend":
        return result
    return wrapped(result, {id(t.raw): t for t in tensors if isinstance(t, Pretend)}, ordinal)


def kernels_of(device: torch.device) -> torch.device:
    return torch.device("cpu") if device.type == "pretend" else device


def wrapped(result, known: dict[int, "Pretend"], ordinal: int):
    """A kernel's result as tensors of the device; those that were given are the same again."""
    if isinstance(result, (list, tuple)):
        return type(result)(wrapped(part, known, ordinal) for part in result)
    if not isinstance(result, Tensor):
        return result
    return known[id(result)] if id(result) in known else Pretend(result, ordinal)


def follow(tensor: "Pretend") -> None:
    """Where a kernel has given the raw tensor another shape or layout."""
    raw = tensor.raw
    if tensor.shape != raw.shape or tensor.stride() != raw.stride() or tensor.storage_offset() != raw.storage_offset():
        Tensor.data.__set__(tensor, Pretend(raw, tensor.ordinal))
        machine.hold(raw, tensor.ordinal)


def refuse_mixed(done: Operation, args: tuple, tensors: list[Tensor], written: list[Tensor]) -> None:
    """Of the host, an operation on the device takes single values, and indices; it writes nothing there."""
    devices = {tensor.device for tensor in tensors}
    if len(devices) == 1:
        return
    allowed = tensors_in([args[1]]) if done.name in INDEXING and isinstance(args[0], Pretend) else []
    allowed = {id(t) for t in allowed + [t for t in tensors if t.dim() == 0] if t.device.type == "cpu"}
    allowed -= {id(tensor) for tensor in written}
    devices = sorted({str(tensor.device) for tensor in tensors if id(tensor) not in allowed})
    if len(devices) > 1:
        raise RuntimeError(
            f"Expected all tensors to be on the same device, but found at least two devices, {' and '.join(devices)}! "
            f"(in {done.name})"
        )


def await_host(done: Operation, args: tuple, kwargs: dict) -> None:
    """Counts the points at which the host waits for the device before it can go on."""
    if done.name in WAITING:
        machine.wait(WAITING[done.name])
    elif done.name == "repeat_interleave" and kwargs.get("output_size") is None:
        machine.wait(done.name)
    elif done.name in INDEXING:
        indices = tensors_in([args[1]])
        masks = [index for index in indices if index.dtype in (torch.bool, torch.uint8)]
        # One value wherever a mask says so: torch fills, and need not know where that is.
        fills = len(args) > 2 and args[2].numel() == 1 and len(masks) == len(indices) and args[3:4] in ((), (False,))
        if masks and not fills and any(isinstance(mask, Pretend) for mask in masks):
            machine.wait(done.name)
        for index in indices:
            if not isinstance(index, Pretend):
                machine.wait("copy to device")


def transfer(func: torch._ops.OpOverload, args: tuple, kwargs: dict, ordinal: int):
    """Copies, which alone may go from one device to another."""
    name = func.overloadpacket.__name__
    machine.launch(name)
    if name == "_to_copy":
        return transfer_to(func, args[0], kwargs)
    targets, sources = (value if isinstance(value, (list, tuple)) else [value] for value in args[:2])
    unawaited = kwargs.get("non_blocking", args[2] if len(args) > 2 else False)
    for target, source in zip(targets, sources, strict=True):
        to_host = isinstance(source, Pretend) and not isinstance(target, Pretend)
        if to_host and unawaited and target.is_pinned():
            machine.send(target, source.raw.clone())
            continue
        if to_host:
            machine.wait("copy to host")
        elif not isinstance(source, Pretend) and not unawaited:
            machine.wait("copy to device")
        raw_of(target).copy_(raw_of(source))
    return args[0] if name == "copy_" else None


def transfer_to(func: torch._ops.OpOverload, source: "Pretend", kwargs: dict) -> Tensor:
    """A copy as another type or on another device; one to the host that need not be awaited goes into pinned memory."""
    target = torch.device(kwargs.get("device") or source.device)
    unawaited = kwargs.get("non_blocking", False)
    values = func(source.raw, **{**kwargs, "device": kernels_of(target), "pin_memory": None})
    if target.type == "pretend":
        return Pretend(values, source.ordinal if kwargs.get("device") is None else machine.ordinal(target))
    if target.type == "meta":
        return values
    if not unawaited:
        machine.wait("copy to host")
        return values
    pinned = torch.zeros_like(values)
    machine.pin(pinned)
    machine.send(pinned, values)
    return pinned
