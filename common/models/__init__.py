"""Networks, and what a network of any architecture is made of: its activations, batch-norms and weighted layers."""

from torch import nn

from common.models.activations import (
    ACTIVATION_TYPES,
    ACTIVATIONS,
    Inputs,
    activation_layers,
    call,
    check_bare,
    each,
    replace_activations,
    units,
    watched,
)
from common.models.resnet import ResNet, resnet18, resnet50
from common.models.rewriting import own_activations

__all__ = [
    "ACTIVATIONS",
    "ACTIVATION_TYPES",
    "NETWORKS",
    "Inputs",
    "ResNet",
    "activation_layers",
    "batch_norm_before",
    "batch_norms",
    "build",
    "call",
    "check_bare",
    "conv_and_linear",
    "each",
    "own_activations",
    "replace_activations",
    "resnet18",
    "resnet50",
    "units",
    "watched",
]

NETWORKS = {"resnet18": resnet18, "resnet50": resnet50}


def build(network: dict) -> ResNet:
    """A network from {"name": "resnet18" or "resnet50", and the arguments of that function}."""
    return NETWORKS[network["name"]](**{key: value for key, value in network.items() if key != "name"})


def batch_norm_before(layer: str) -> str:
    """The batch-norm before an activation layer, by name; before the last of a block, that of the residual branch."""
    return "bn1" if layer == "act" else layer.replace("act", "bn")


def batch_norms(model: nn.Module) -> list[nn.Module]:
    """Every batch-norm layer with a scale and a shift, in order."""
    return [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.affine]


def conv_and_linear(model: nn.Module) -> list[nn.Module]:
    """The layers whose weights count for weight sparsity, in order."""
    return [m for m in model.modules() if isinstance(m, (nn.modules.conv._ConvNd, nn.Linear))]
