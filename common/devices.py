"""The device that a script trains on, and the precision that it computes in."""

import torch

from common import environment
from common.errors import UserError
from common.settings import KINDS


def pick(name: str) -> torch.device:
    """Of several processes on a machine, each gets a CUDA device of its own."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise UserError(f"DEVICE: got {name!r}, takes {KINDS['DEVICE'].takes}")
    if device.type == "cuda" and environment.ranks() > 1:
        if device.index is not None or environment.processes_here() > torch.cuda.device_count():
            raise UserError(
                f"DEVICE: got {name!r} for {environment.processes_here()} processes on a machine where torch sees "
                f"{torch.cuda.device_count()} CUDA devices; takes auto, cpu or cuda, and as many processes as devices"
            )
        return torch.device("cuda", environment.local_rank())
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(
            f"DEVICE: got {name!r}, but torch sees {torch.cuda.device_count()} CUDA devices; takes auto, cpu"
        )
    return device


def pick_precision(name: str, device: torch.device) -> str:
    """bf16 where the hardware computes it (elsewhere it is emulated, slowly), fp32 otherwise."""
    if name != "auto":
        return name
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    native = getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    return "bf16" if native() else "fp32"
