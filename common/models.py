"""ResNet-18 and ResNet-50 in which every activation layer is a module of its own.

A unit is one channel of one activation layer, watched by a forward hook. Hooks see modules only, so no
activation is functional and none is used twice. All names of parameters and buffers are torchvision's.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from common import names

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    name: partial(getattr(nn, kind), **arguments) for name, (kind, arguments) in names.ACTIVATIONS.items()
}
# A unit of these fires where its pre-activation is above 0. Their value at 0 is 0, so that cutting what is 0 is exact.
ACTIVATION_TYPES = (nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.SiLU, nn.GELU, nn.Hardswish, nn.ELU, nn.CELU, nn.SELU, nn.Mish)
# For these nothing says when a unit fires, or it has parameters that are cut by no rule. (Gates, as of
# squeeze-and-excitation, and softmax are no activations of units.)
UNWATCHED = (nn.PReLU, nn.RReLU, nn.Tanh, nn.Softplus, nn.Hardtanh, nn.Hardshrink, nn.Softshrink, nn.Tanhshrink)
UNWATCHED += (nn.Softsign, nn.Threshold, nn.LogSigmoid, nn.GLU)
FUNCTIONS = {functional.relu, functional.relu_, functional.relu6, functional.leaky_relu, functional.leaky_relu_}
FUNCTIONS |= {functional.silu, functional.gelu, functional.elu, functional.elu_, functional.selu, functional.celu}
FUNCTIONS |= {functional.mish, functional.hardswish, functional.hardtanh, functional.prelu, functional.softplus}
FUNCTIONS |= {torch.relu, torch.relu_, torch.tanh, Tensor.relu, Tensor.relu_, Tensor.tanh, functional.tanh}


def conv_bn(inputs: int, outputs: int, kernel: int, stride: int = 1) -> tuple[nn.Conv2d, nn.BatchNorm2d]:
    conv = nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False)
    return conv, nn.BatchNorm2d(outputs)


def projection(inputs: int, outputs: int, stride: int) -> nn.Module | None:
    """The shortcut of a block: None where its input can be added as it is."""
    return nn.Sequential(*conv_bn(inputs, outputs, 1, stride)) if stride != 1 or inputs != outputs else None


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut: [B, inputs, H, W] -> [B, width, H/stride, W/stride]."""

    expansion = 1

    def __init__(self, inputs: int, width: int, stride: int, activation: Callable[[], nn.Module]):
        super().__init__()
        self.conv1, self.bn1 = conv_bn(inputs, width, 3, stride)
        self.act1 = activation()
        self.conv2, self.bn2 = conv_bn(width, width, 3)
        self.act2 = activation()
        self.downsample = projection(inputs, width, stride)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        out = self.act1(self.bn1(self.conv1(x)))
        return self.act2(self.bn2(self.conv2(out)) + shortcut)


class Bottleneck(nn.Module):
    """1x1, 3x3 (which takes the stride) and 1x1 convolution: [B, inputs, H, W] -> [B, 4 width, H/stride, W/stride]."""

    expansion = 4

    def __init__(self, inputs: int, width: int, stride: int, activation: Callable[[], nn.Module]):
        super().__init__()
        self.conv1, self.bn1 = conv_bn(inputs, width, 1)
        self.act1 = activation()
        self.conv2, self.bn2 = conv_bn(width, width, 3, stride)
        self.act2 = activation()
        self.conv3, self.bn3 = conv_bn(width, width * self.expansion, 1)
        self.act3 = activation()
        self.downsample = projection(inputs, width * self.expansion, stride)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        out = self.act1(self.bn1(self.conv1(x)))
        out = self.act2(self.bn2(self.conv2(out)))
        return self.act3(self.bn3(self.conv3(out)) + shortcut)


class ResNet(nn.Module):
    """A residual network of four stages (He et al. 2016), images [B, channels, H, W] -> logits [B, classes]."""

    def __init__(
        self,
        block: type[BasicBlock] | type[Bottleneck],
        depths: tuple[int, int, int, int],
        classes: int,
        channels: int = 3,
        width: int = 64,
        stem: str = "cifar",
        activation: str = "relu",
    ):
        super().__init__()
        if stem not in names.STEMS or activation not in ACTIVATIONS:
            raise ValueError(
                f"stem {stem!r} takes {', '.join(names.STEMS)}; activation {activation!r}: {', '.join(ACTIVATIONS)}"
            )
        act = ACTIVATIONS[activation]
        if stem == "imagenet":
            self.conv1, self.bn1 = conv_bn(channels, width, 7, stride=2)
            self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        else:
            self.conv1, self.bn1 = conv_bn(channels, width, 3)
            self.maxpool = nn.Identity()
        self.act = act()
        inputs = width
        for stage, depth in enumerate(depths):
            blocks = []
            for index in range(depth):
                stride = 2 if stage > 0 and index == 0 else 1
                blocks.append(block(inputs, width << stage, stride, act))
                inputs = (width << stage) * block.expansion
            setattr(self, f"layer{stage + 1}", nn.Sequential(*blocks))
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(inputs, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.act(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(self.avgpool(x).flatten(1))


def resnet18(classes: int, **options) -> ResNet:
    """ResNet-18. At width 64 with the `imagenet` stem it loads torchvision's `resnet18` state dict.

    Options: channels (of the images), width (of the first stage), stem (`cifar`, `imagenet`), activation
    (`relu`, `leaky-relu`, `swish`).
    """
    return ResNet(BasicBlock, (2, 2, 2, 2), classes, **options)


def resnet50(classes: int, **options) -> ResNet:
    """ResNet-50, its stride on the 3x3 convolution as torchvision's, whose state dict it loads. Options as above."""
    return ResNet(Bottleneck, (3, 4, 6, 3), classes, **options)


NETWORKS = {"resnet18": resnet18, "resnet50": resnet50}


def build(network: dict) -> ResNet:
    """A network from {"name": "resnet18" or "resnet50", and the arguments of that function}."""
    return NETWORKS[network["name"]](**{key: value for key, value in network.items() if key != "name"})


def activation_layers(model: nn.Module) -> dict[str, nn.Module]:
    """The activation layers of any network, name -> module, in the order of `named_modules`."""
    return {name: module for name, module in model.named_modules() if isinstance(module, ACTIVATION_TYPES)}


def batch_norm_before(layer: str) -> str:
    """The batch-norm before an activation layer, by name; before the last of a block, that of the residual branch."""
    return "bn1" if layer == "act" else layer.replace("act", "bn")


def replace_activations(model: nn.Module, activation: str) -> int:
    """Put a new activation module in the place of every one the network has; returns how many were replaced."""
    found = [n for n, m in model.named_modules(remove_duplicate=False) if isinstance(m, ACTIVATION_TYPES)]
    for name in found:
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, ACTIVATIONS[activation]())
    return len(found)


def batch_norms(model: nn.Module) -> list[nn.Module]:
    """Every batch-norm layer with a scale and a shift, in order."""
    return [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.affine]


def conv_and_linear(model: nn.Module) -> list[nn.Module]:
    """The layers whose weights count for weight sparsity, in order."""
    return [m for m in model.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]


class Watched(NamedTuple):
    """An activation layer as a pass finds it: its units, and the dimension of its input that they lie along: 1, as
    behind a convolution, or the last, as behind a linear layer that takes tokens or channels-last images."""

    units: int
    dim: int


class Calls(TorchFunctionMode):
    """Notes activations that are called as functions, outside of any module that is one."""

    def __init__(self):
        super().__init__()
        self.within: list[str] = []  # modules that are being run, the innermost last
        self.inside = 0  # of modules that are activations
        self.found: list[str] = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func in FUNCTIONS and not self.inside:
            self.found.append(f"{func.__name__} in {self.within[-1] or 'the network itself'}")
        return func(*args, **(kwargs or {}))


@torch.no_grad()
def watched(model: nn.Module, image: Tensor) -> tuple[dict[str, Watched], list[str]]:
    """One pass of `image` [1, C, H, W]: every activation layer, and what acts as an activation and is none of
    ACTIVATION_TYPES, which no hook can watch."""
    found: dict[str, Watched] = {}
    calls, others, hooks, along = Calls(), [], [], [1]  # along: the features of what was made last

    def enter(name: str, module: nn.Module, inputs: tuple):
        calls.within.append(name)
        calls.inside += isinstance(module, (*ACTIVATION_TYPES, *UNWATCHED))
        if isinstance(module, ACTIVATION_TYPES):
            dim = along[0] if inputs[0].dim() > 2 else 1
            found[name] = Watched(inputs[0].shape[dim], dim)
        elif isinstance(module, UNWATCHED):
            others.append(f"{name}, {type(module).__name__}")

    def leave(module: nn.Module, output):
        calls.within.pop()
        calls.inside -= isinstance(module, (*ACTIVATION_TYPES, *UNWATCHED))
        if isinstance(module, (nn.modules.conv._ConvNd, nn.modules.batchnorm._BatchNorm, nn.GroupNorm)):
            along[0] = 1
        elif isinstance(module, (nn.Linear, nn.LayerNorm)) and isinstance(output, Tensor) and output.dim() > 2:
            along[0] = -1

    for name, module in model.named_modules():
        hooks.append(module.register_forward_pre_hook(lambda m, x, name=name: enter(name, m, x)))
        hooks.append(module.register_forward_hook(lambda m, _x, y: leave(m, y)))
    training = model.training
    model.eval()
    try:
        with calls:
            model(image)
    finally:
        model.train(training)
        for hook in hooks:
            hook.remove()
    return found, others + list(dict.fromkeys(calls.found))


def units(model: nn.Module, image: Tensor) -> dict[str, int]:
    """Units of each activation layer, found by one forward pass of `image` [1, C, H, W]."""
    return {name: layer.units for name, layer in watched(model, image)[0].items()}
