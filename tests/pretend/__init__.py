"""A pretend accelerator, so that what the scripts do on a GPU can be tested on a machine without one.

    pretend.install()                # once a process; raises Unsupported where torch is too old for it
    with pretend.on():               # torch sees two devices, pretend:0 and pretend:1
        with pretend.counting() as seen:
            (torch.ones(3, device="pretend") * 2).sum().item()
        print(seen.launches.total(), seen.syncs)

Its memory is the host's and its kernels are the CPU's, so its numbers are the CPU's to the last bit. But like CUDA it
refuses operations on tensors of two devices; an optimiser takes its foreach and fused paths; a copy to pinned memory
has arrived only once an event or the host waited for it; and every operation started and every wait is counted.

Unlike CUDA: one launch an operation, whatever its kernels; a 0-dim CPU tensor is taken by every operation; Module.to
makes new parameters, so an optimiser is built after it; torch.load takes map_location="cpu" only; an optimiser of
tensors on pretend:1 works, a graph over both devices does not; one stream.
"""

from contextlib import ExitStack, contextmanager
from functools import cache
from unittest import mock

import torch
from torch import Tensor, library
from torch.nn.utils import clip_grad
from torch.optim.optimizer import _foreach_supported_types as in_optimizers
from torch.utils._device import _device_constructors
from torch.utils._foreach_utils import _foreach_supported_types as in_foreach
from torch.utils._foreach_utils import _group_tensors_by_device_and_dtype

from tests.pretend import autocast, module
from tests.pretend.machine import DEVICES, Seen, machine
from tests.pretend.tensor import Pretend, dispatch, overload

# What makes tensors on the host, in pinned memory where it is asked to.
MAKING = ("empty", "empty_like", "empty_strided", "full", "full_like", "ones", "ones_like", "rand", "randn", "tensor")
MAKING += ("zeros", "zeros_like")
# What CUDA has kernels of, and torch takes apart for a device that it does not know.
DECOMPOSED = ("silu_backward", "mish_backward", "native_channel_shuffle")


class Unsupported(Exception):
    """This torch, or this machine, cannot have the pretend accelerator; says why."""


@contextmanager
def counting():
    """Counts what is started on the device and waited for until the end of the block."""
    seen = Seen()
    machine.watchers.append(seen)
    try:
        yield seen
    finally:
        machine.watchers.remove(seen)


module.counting = counting  # for benchmarks, which ask the device

# Installing and switching ----------------------------------------------------------------------------------------


@cache
def install() -> None:
    """Makes torch know the device, for the rest of the process; it is there only while it is `on`.

    To be called before the first backward pass of the process, at which autograd counts the devices.

    Raises:
        Unsupported: where torch is too old for it, or there is a real accelerator, whose place it would take.
    """
    if torch.accelerator.is_available():
        raise Unsupported(f"a pretend accelerator would hide {torch.accelerator.current_accelerator()}")
    try:
        from torch.utils.backend_registration import _setup_privateuseone_for_python_backend as setup
    except ImportError:
        raise Unsupported(f"torch {torch.__version__} takes no device that is written in Python; 2.10 does") from None
    _device_constructors()  # it remembers what torch has; not what `on` puts in their place
    register(setup)
    with on():
        tried = torch.ones(2, device="pretend", requires_grad=True)
        (3 * tried).sum().backward()
        assert tried.grad.tolist() == [3, 3]


kept = []  # what torch forgets when nobody holds it


def register(setup) -> None:
    class Hook(torch._C._acc.PrivateUse1Hooks):
        def is_available(self) -> bool:
            return machine.on

        def has_primary_context(self, ordinal: int) -> bool:
            return machine.on

        def is_built(self) -> bool:
            return True

    hook, kernels, fallbacks = Hook(), library.Library("aten", "IMPL"), library.Library("_", "IMPL")
    kept.extend((hook, kernels, fallbacks))
    setup("pretend", module, hook)
    for name in ("empty.memory_format", "empty_strided"):
        kernels.impl(name, making(name), "PrivateUse1")
    kernels.impl("_copy_from", copy_from, "PrivateUse1")  # in torch.tensor, which goes past the tensors' own class
    for name in DECOMPOSED:
        kernels.impl(name, launching(name), "PrivateUse1")
    fallbacks.fallback(library.fallthrough_kernel, "AutocastPrivateUse1")
    for name in autocast.ALL:
        kernels.impl(name, autocast.casting(name), "AutocastPrivateUse1")
    for supported in (in_foreach, in_optimizers):
        supported.append(Pretend)
    machine.generators = [module.Generator(f"pretend:{ordinal}") for ordinal in range(DEVICES)]


def making(name: str):
    """Memory without values, which all that makes tensors on the device begins with."""
    kernel = overload(name)

    def make(*args, device=None, pin_memory=None, **kwargs) -> Pretend:
        if not machine.on:
            raise RuntimeError("the pretend accelerator is off")
        return Pretend(kernel(*args, device=torch.device("cpu"), **kwargs), machine.ordinal(device))

    return make


def launching(name: str):
    """An operation that torch would take apart for a device that has no kernel of it."""
    return lambda *args, **kwargs: dispatch(overload(name), args, kwargs)


def copy_from(source: Tensor, target: Tensor, non_blocking: bool = False) -> Tensor:
    return dispatch(torch.ops.aten.copy_.default, (target, source, non_blocking), {})


def pinning(make):
    """A function that makes tensors, with `pin_memory`."""

    def made(*args, pin_memory: bool = False, **kwargs) -> Tensor:
        tensor = make(*args, **kwargs)
        if pin_memory:
            machine.pin(tensor)
        return tensor

    return made


def pinned_copy(tensor: Tensor, device=None) -> Tensor:
    copied = tensor.clone()
    machine.pin(copied)
    return copied


def grouped(lists: list[list[Tensor]], with_indices: bool = False) -> dict:
    """By device and type; C++, which torch asks, takes all for tensors of the first device."""
    found = _group_tensors_by_device_and_dtype(lists, with_indices)
    return {(group[0][0].device, dtype): (group, places) for (_, dtype), (group, places) in found.items()}


@contextmanager
def on():
    """Switches the device on for the block: torch.accelerator finds it, and memory can be pinned."""
    host = library.Library("aten", "IMPL")
    host.impl("is_pinned", lambda tensor, device=None: machine.is_pinned(tensor), "CPU")
    host.impl("_pin_memory", pinned_copy, "CPU")
    patches = [mock.patch.object(torch, name, pinning(getattr(torch, name))) for name in MAKING]
    patches += [mock.patch.object(torch, kind.__name__, kind) for kind in module.STANDING]
    patches.append(mock.patch.object(clip_grad, "_group_tensors_by_device_and_dtype", grouped))
    patches += [
        mock.patch.object(torch._C, f"_accelerator_{name}", function)
        for name, function in module.ACCELERATOR.items()
        if hasattr(torch._C, f"_accelerator_{name}")
    ]
    with ExitStack() as stack:
        for patch in patches:
            stack.enter_context(patch)
        machine.on = True
        try:
            yield
        finally:
            machine.on, machine.current = False, 0
            machine.arrive(machine.sent)
            host._destroy()
