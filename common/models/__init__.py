"""Networks, and what a network of any architecture is made of: its activations, batch-norms and weighted layers."""

import sys
from collections.abc import Callable
from importlib import import_module
from inspect import signature
from pathlib import Path

from torch import nn

from common.errors import UserError, told
from common.models.activations import (
    ACTIVATION_TYPES,
    ACTIVATIONS,
    Inputs,
    activation_layers,
    call,
    check_bare,
    check_example,
    each,
    replace_activations,
    units,
    watched,
)
from common.models.resnet import ResNet, resnet18, resnet50
from common.models.rewriting import own_activations
from common.models.vgg import VGG16BN

__all__ = [
    "ACTIVATIONS",
    "ACTIVATION_TYPES",
    "NETWORKS",
    "Inputs",
    "ResNet",
    "VGG16BN",
    "activation_layers",
    "batch_norm_before",
    "batch_norms",
    "build",
    "call",
    "check_bare",
    "check_example",
    "conv_and_linear",
    "each",
    "include",
    "options_of",
    "own_activations",
    "replace_activations",
    "resnet18",
    "resnet50",
    "units",
    "watched",
]

# name -> function of the number of classes and of any of OPTIONS
NETWORKS: dict[str, Callable[..., nn.Module]] = {"resnet18": resnet18, "resnet50": resnet50, "vgg16-bn": VGG16BN}
OPTIONS = ("channels", "width", "stem", "activation")


def include(name: str) -> None:
    """Makes a network of one's own known by its name, "module:function".

    This runs the module. So only what a user asks for is included, never what a file names.

    Raises:
        UserError: where it cannot be imported.
    """
    if name in NETWORKS or ":" not in name:
        return
    module, function = name.split(":")
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.append(here)
    try:
        found = getattr(import_module(module), function)
        signature(found)  # raises for what cannot be called
        NETWORKS[name] = found
    except Exception as error:  # whatever the module's own code may raise
        raise UserError(f"NETWORK: got {name!r}, which cannot be imported: {told(error)}") from None


def options_of(name: str) -> list[str]:
    """Those of OPTIONS that the function of a network takes."""
    takes = signature(NETWORKS[name]).parameters
    any_of_them = any(parameter.kind is parameter.VAR_KEYWORD for parameter in takes.values())
    return [option for option in OPTIONS if any_of_them or option in takes]


def build(network: dict) -> nn.Module:
    """A network from {"name": one of NETWORKS, "classes": their number, and what else its function takes}."""
    known = {key: value for key, value in network.items() if key not in ("name", "code")}
    return NETWORKS[network["name"]](**known)


def batch_norm_before(layer: str) -> str:
    """The batch-norm before an activation layer, by name; before the last of a block, that of the residual branch."""
    return "bn1" if layer == "act" else layer.replace("act", "bn")


def batch_norms(model: nn.Module) -> list[nn.Module]:
    """Every batch-norm layer with a scale and a shift, in order."""
    return [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.affine]


def conv_and_linear(model: nn.Module) -> list[nn.Module]:
    """The layers whose weights count for weight sparsity, in order."""
    return [m for m in model.modules() if isinstance(m, (nn.modules.conv._ConvNd, nn.Linear))]
