"""A finished run's network, loaded from its final.pt as the smaller network that it became.

    network = load_network("runs/.../final.pt")
    logits = network(images)  # [B, channels, H, W], normalised as for training -> [B, classes]

The file says which network was built and holds the tensors that are left of it: their shapes alone say what was
pruned. It also has the mean and deviation of the pixels, float [C] on the scale [0, 1], and the names of the classes:

    final = read("runs/.../final.pt")
    network = with_pixels(rebuild(final, "it"), final, "it")
    final["classes"][network(images).argmax()]  # uint8 [1, channels, H, W]
"""

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from common.cutting import TENSORS, GroupError, shrink_to
from common.errors import UserError
from common.files import FORMAT, read_tensors
from common.models import NETWORKS, build

PARTS = ("config", "network", "model")  # of a final.pt, each a dict


def load_network(path: Path | str) -> nn.Module:
    """The network of a final.pt, on the CPU, in fp32 and in evaluation mode. Takes and leaves no random numbers.

    Raises:
        UserError: when the file cannot be read, is damaged or not ours, of another format, or contradicts itself.
    """
    return rebuild(read(path), path)


def read(path: Path | str) -> dict:
    """The content of a final.pt, tensors and plain values only; raises as `load_network` does, except for shapes."""
    final = read_tensors(path)
    if not isinstance(final, dict) or not all(isinstance(final.get(part), dict) for part in PARTS):
        raise UserError(f"{path} is damaged or not the final.pt of a run")
    if final["config"].get("format") != FORMAT:
        raise UserError(f"{path} is of format {final['config'].get('format')}, this version reads format {FORMAT}")
    return final


def rebuild(final: dict, path: Path | str) -> nn.Module:
    """The network of what `read` returned; `path` is for the errors."""
    network, state = final["network"], final["model"]
    if ":" in (name := str(network.get("name"))) and name not in NETWORKS:
        raise UserError(f"{path}: its network is code, {name}; add --network {name}, or call models.include({name!r})")
    try:
        with torch.device("meta"):  # neither memory nor initial values for what is replaced at once
            model = build(network)
        if different := model.state_dict().keys() ^ state.keys():
            raise ValueError(f"{min(map(str, different))} is only in the file or only in the network")
        if not all(isinstance(tensor, Tensor) for tensor in state.values()):
            raise ValueError("not all of its weights are tensors")
        shrink_to(model, state)
        for name, module in model.named_modules():
            sizes = {len(tensor) for key in TENSORS if (tensor := getattr(module, key, None)) is not None}
            if len(sizes) > 1:
                raise ValueError(f"{name} has tensors of {' and of '.join(map(str, sorted(sizes)))} channels")
        # Assigned, not copied: a kernel is chosen by a tensor's strides, and so are the last bits of the logits.
        model.load_state_dict(state, assign=True)
        model.float().eval()
        with torch.no_grad(), NoBroadcast():
            own = ":" in network["name"]  # its images may be of one size only
            shape = model(torch.zeros(1, *(final["image"] if own else (network["channels"], 8, 8)))).shape
        if shape != (1, network["classes"]):
            raise ValueError(f"{shape[-1]} logits for {network['classes']} classes")
    except (GroupError, KeyError, TypeError, ValueError, RuntimeError) as error:
        reason = f"unknown or missing: {error}" if isinstance(error, KeyError) else " ".join(str(error).split())
        raise UserError(f"{path} does not hold the network that it describes ({reason})") from None
    return model


class Pixels(nn.Module):
    """A network that takes images as they are, uint8 [B, C, H, W], and normalises them as for training.

    mean, deviation: float32 [C] of pixels in [0, 1].
    """

    def __init__(self, network: nn.Module, mean: Tensor, deviation: Tensor):
        super().__init__()
        self.network = network
        self.register_buffer("mean", 255 * mean[:, None, None])
        self.register_buffer("deviation", 255 * deviation[:, None, None])

    def forward(self, images: Tensor) -> Tensor:
        return self.network((images.float() - self.mean) / self.deviation)


def with_pixels(network: nn.Module, final: dict, path: Path | str) -> Pixels:
    """The network of `rebuild`, for images as they are.

    Raises:
        UserError: where the file, as those of earlier versions, does not say how images were normalised.
    """
    try:
        mean, deviation = (torch.tensor(final[name], dtype=torch.float32) for name in ("mean", "deviation"))
    except KeyError:
        raise UserError(
            f"{path} does not say how its images were normalised; add --normalised, and normalise them"
        ) from None
    return Pixels(network, mean, deviation).eval()


class NoBroadcast(TorchDispatchMode):
    """Refuses sums of tensors of different shapes: one channel added to many would go unnoticed."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        shapes = [list(arg.shape) for arg in args if isinstance(arg, Tensor)]
        if func.overloadpacket in (torch.ops.aten.add, torch.ops.aten.add_) and shapes[1:] and shapes[0] != shapes[1]:
            raise ValueError(f"{shapes[0]} is added to {shapes[1]}")
        return func(*args, **(kwargs or {}))
