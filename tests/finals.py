"""The final.pt of pruned networks."""

import copy
import os
import subprocess
import sys
from itertools import product
from pathlib import Path

import pytest
import torch
from torch import nn

from common.models import ACTIVATIONS, batch_norms, build
from common.names import STEMS
from common.tracing import find_groups

RESNET18 = {"name": "resnet18", "classes": 10, "channels": 3, "width": 8, "stem": "cifar", "activation": "relu"}
NETWORKS = {  # name -> the network and how much of it is cut out
    **{f"{a}-{s}": ({**RESNET18, "activation": a, "stem": s}, 0.6) for a, s in product(ACTIVATIONS, STEMS)},
    "one-channel": (RESNET18, 1.0),
    "dense": (RESNET18, 0.0),
    "resnet50": ({**RESNET18, "name": "resnet50", "width": 4}, 0.6),
}
BATCHES = (1, 2, 3, 20)
IMAGES = torch.randn(20, 3, 16, 16, generator=torch.Generator().manual_seed(1))
MEAN, DEVIATION = (torch.tensor([0.2, 0.5, 0.7]), torch.tensor([0.1, 0.2, 0.3]))
CLASSES = [f"class {number}" for number in range(10)]


def pruned(network: dict, share: float) -> nn.Module:
    """A network that looks trained, with a random share of its groups cut out and no padding left."""
    torch.manual_seed(0)
    model = build(network).to(memory_format=torch.channels_last)
    for norm in batch_norms(model):
        for tensor, low in ((norm.weight, 0.5), (norm.bias, -0.5), (norm.running_mean, -0.2), (norm.running_var, 0.5)):
            nn.init.uniform_(tensor, low, low + 1)
    groups = find_groups(model, IMAGES[:1])
    removed = torch.rand(len(groups)) < share
    removed[[coupling.start for coupling in groups.couplings]] = False
    groups.cut(model, None, removed, multiple=8)
    return groups.compact(model).eval()


def final_of(network: dict, model: nn.Module) -> dict:
    """What a finished run leaves."""
    config = {"format": 1, "seed": 0}
    image = list(IMAGES.shape[1:])
    known = {"mean": MEAN.tolist(), "deviation": DEVIATION.tolist(), "classes": CLASSES}
    measured = {"rows": [], "counts": {}}
    return {"config": config, "network": network, "image": image, **known, "model": model.state_dict(), **measured}


@pytest.fixture(scope="module")
def models():
    return {name: pruned(*how) for name, how in NETWORKS.items()}


@pytest.fixture(scope="module")
def finals(models, tmp_path_factory) -> Path:
    """A folder with the final.pt of every network, under its name."""
    folder = tmp_path_factory.mktemp("finals")
    for name, model in models.items():
        torch.save(final_of(NETWORKS[name][0], model), folder / f"{name}.pt")
    return folder


def run_python(arguments: list[str], folder: Path, **variables) -> subprocess.CompletedProcess:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **variables}
    return subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True, timeout=300
    )


@pytest.fixture
def make(models, tmp_path):
    """make(final -> None): a final.pt that was changed so before it was saved."""

    def write(change) -> Path:
        final = copy.deepcopy(final_of(RESNET18, models["relu-cifar"]))
        change(final)
        torch.save(final, tmp_path / "final.pt")
        return tmp_path / "final.pt"

    return write
