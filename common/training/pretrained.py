"""torchvision's weights for the ResNet-50, kept or downloaded where torch keeps its own: TORCH_HOME.

IMAGENET1K_V1 (76.13 % top-1), which the paper's dense 74.98 % is near; V2's 80.86 % comes of a longer recipe.
"""

import socket
import sys
from pathlib import Path

import torch
from torch import Tensor
from torchvision.models import ResNet50_Weights

from common.errors import RunFailed, UserError
from common.files import read_tensors
from common.models import ResNet, resnet50

URL = ResNet50_Weights.IMAGENET1K_V1.url


def load_weights(model: ResNet) -> None:
    """Puts the weights into a ResNet-50, in place. Its last layer stays as it is unless it has 1,000 classes.

    Raises:
        UserError: when they fit no such network, are not there and cannot be downloaded, or are damaged.
    """
    with torch.device("meta"):
        reference = shapes(resnet50(1000, stem="imagenet").state_dict())
    new_head = len(model.fc.bias) != 1000
    if new_head:
        reference = {name: shape for name, shape in reference.items() if not name.startswith("fc.")}
    if shapes(model.state_dict()) | reference != shapes(model.state_dict()):
        raise UserError("PRETRAINED: torchvision's weights take WIDTH 64 and STEM imagenet; or train --no-pretrained")
    path = Path(torch.hub.get_dir(), "checkpoints", Path(URL).name)
    if not path.exists():
        download(path)
    weights = read(path)
    found = shapes({name: tensor for name, tensor in weights.items() if name in reference})
    counters = {name for name in reference if name.endswith("num_batches_tracked")}  # old files are without
    if any(found.get(name) != shape for name, shape in reference.items() if name not in counters):
        raise UserError(f"PRETRAINED: {path} is not of torchvision's ResNet-50; delete it or train --no-pretrained")
    model.load_state_dict({name: weights[name] for name in found}, strict=False)


def shapes(state: dict[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in state.items()}


def download(path: Path) -> None:
    timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(30)
    print(f"downloading torchvision's ResNet-50 into {path}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(URL, str(path), path.stem.rpartition("-")[2], progress=sys.stderr.isatty())
    except Exception as error:  # of the network, the disk or the file's hash
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(
            f"PRETRAINED: torchvision's weights are not in {path} and could not be downloaded ({reason}); put {URL} "
            f"there, set TORCH_HOME to a folder that has it as hub/checkpoints/{path.name}, or train --no-pretrained"
        ) from None
    finally:
        socket.setdefaulttimeout(timeout)


def read(path: Path) -> dict[str, Tensor]:
    """The tensors in `path`. A file that was there already has met no check of its hash."""
    try:
        weights = read_tensors(path)
    except RunFailed as error:
        raise UserError(f"PRETRAINED: {error}") from None
    if not isinstance(weights, dict) or not all(isinstance(tensor, Tensor) for tensor in weights.values()):
        raise UserError(
            f"PRETRAINED: {path} is damaged; delete it to have it downloaded again, set TORCH_HOME to a folder with a "
            "whole one, or train --no-pretrained"
        )
    return weights
