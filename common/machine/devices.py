"""The device that is trained on: which one it is, and what it can do.

Everything else is written for any device that `torch.accelerator` offers (CUDA, MPS, XPU, ...) and for the CPU. What
one of them lacks is found out here, by trying. Sums over many steps are made in int32 on the device and in float64
on the host, so that neither float64 nor int64 reductions, which MPS has not, are asked for.
"""

from functools import cache
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn

from common.errors import UserError
from common.machine import environment

ON_CPU = 16  # channel counts that the kernels of a CPU like are multiples of this
ELSEWHERE = 8  # and those of an accelerator of this
CONVOLVE = nn.Conv2d._conv_forward  # torch's own


def accelerator() -> torch.device | None:
    """The kind of accelerator that this machine has; None where it has none."""
    return torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None


def offered() -> str:
    """The words for what DEVICE takes on this machine."""
    found = accelerator()
    if found is None:
        return "auto or cpu (torch finds no cuda, mps or xpu device)"
    count = torch.accelerator.device_count()
    return f"auto, cpu, {found.type}" + (f" or {found.type}:0 to {found.type}:{count - 1}" if count > 1 else "")


def pick(name: str) -> torch.device:
    """The device that DEVICE names; `auto`: the accelerator where there is one. Of several processes on a machine,
    each gets an accelerator of its own.

    Raises:
        UserError: a device that is not there, an index too high, or a kind that nothing can be trained on.
    """
    avoid_broken_kernel()
    found = accelerator()
    if name == "auto":
        name = found.type if found else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    known = name == "cpu" or (device is not None and found is not None and device.type == found.type)
    if not known:
        raise UserError(f"DEVICE: got {name!r}, takes {offered()}")
    if device.type == "cpu":
        return device
    count = torch.accelerator.device_count()
    if environment.ranks() > 1:
        if device.index is not None or environment.processes_here() > count:
            raise UserError(
                f"DEVICE: got {name!r} for {environment.processes_here()} processes on a machine where torch sees "
                f"{count} {device.type} device{'s' * (count != 1)}; takes auto, cpu or {device.type}, and as many "
                "processes as devices"
            )
        return torch.device(device.type, environment.local_rank())
    if (device.index or 0) >= count:
        raise UserError(f"DEVICE: got {name!r}, but torch sees {count} of that kind; takes {offered()}")
    return device


def pick_precision(name: str, device: torch.device) -> str:
    """bf16 where the hardware computes it (elsewhere it is emulated, slowly), fp32 otherwise.

    Raises:
        UserError: bf16 asked for where torch has none for the device.
    """
    if name == "auto":
        return "bf16" if computes_bf16(device) else "fp32"
    if name == "bf16" and not torch.amp.is_autocast_available(device.type):
        raise UserError(f"PRECISION: got 'bf16', which torch does not offer on {device.type}; takes auto or fp32")
    return name


def computes_bf16(device: torch.device) -> bool:
    if not torch.amp.is_autocast_available(device.type):
        return False
    if device.type == "cpu":
        return getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)()
    supported = getattr(torch.get_device_module(device), "is_bf16_supported", None)
    if device.type == "cuda":
        return supported(including_emulation=False)
    return supported is not None and supported()


def avoid_broken_kernel() -> None:
    """On a CPU with AVX2 and no AVX-512, strided 1x1 convolutions of few channels pick their pixels themselves.

    There the backward pass of oneDNN writes beyond its memory where the kernel is 1x1, the stride above 1, and the
    channels that are read are fewer than 8 (torch 2.11 and 2.15, channels-last, fp32, an AMD EPYC).
    """
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:  # no Linux
        return
    if " avx2 " in flags and " avx512f " not in flags:
        nn.Conv2d._conv_forward = _convolve


def _convolve(conv: nn.Conv2d, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    unpadded = conv.kernel_size == (1, 1) and conv.padding in ((0, 0), "valid")
    if not unpadded or conv.stride == (1, 1) or weight.shape[1] >= 8:
        return CONVOLVE(conv, x, weight, bias)
    picked = x[..., :: conv.stride[0], :: conv.stride[1]]
    return nn.functional.conv2d(picked, weight, bias, groups=conv.groups)


def use(device: torch.device) -> None:
    """Makes it the one that is meant where none is named, as its events and streams are."""
    if device.type != "cpu" and device.index is not None:
        torch.accelerator.set_device_index(device.index)


def backend(device: torch.device) -> str:
    """What several processes exchange tensors of the CPU and of this device by."""
    if device.type == "cpu":
        return "gloo"
    return f"cpu:gloo,{device.type}:{dist.get_default_backend_for_device(device)}"


def synchronize(device: torch.device) -> None:
    """Waits until the device has done all that it was told."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def width_multiple(device: torch.device) -> int:
    return ON_CPU if device.type == "cpu" else ELSEWHERE


@cache
def pins(device: torch.device) -> bool:
    """Whether host memory can be pinned, so that copies to and from the device need not wait."""
    if device.type == "cpu":
        return False
    try:
        return torch.empty(1).pin_memory().is_pinned()
    except (RuntimeError, NotImplementedError):
        return False


@cache
def fuses(device: torch.device) -> bool:
    """Whether SGD takes one launch for all parameters. On a CPU it would gain nothing and round otherwise."""
    if device.type == "cpu":
        return False
    try:
        torch.optim.SGD([torch.zeros(1, device=device, requires_grad=True)], 0.1, momentum=0.9, fused=True)
    except (RuntimeError, NotImplementedError):
        return False
    return True


def send(values: Tensor, device: torch.device) -> Tensor:
    """A host tensor on the device, without waiting for it where memory can be pinned."""
    return (values.pin_memory() if pins(device) else values).to(device, non_blocking=True)


class HostCopy:
    """A tensor's values on their way to the host: `ready` says whether they have arrived, without waiting for them.

    (Where memory cannot be pinned they are waited for at once.)
    """

    def __init__(self, values: Tensor):
        self.event = None
        if not pins(values.device):
            self.values = values.cpu()
            return
        self.values = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
        self.values.copy_(values, non_blocking=True)
        self.event = torch.Event(values.device)
        self.event.record()

    @property
    def ready(self) -> bool:
        return self.event is None or self.event.query()
