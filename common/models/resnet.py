"""ResNet-18 and ResNet-50 in which every activation layer is a module of its own.

All names of parameters and buffers are torchvision's.
"""

from collections.abc import Callable

from torch import Tensor, nn

from common import names
from common.models.activations import ACTIVATIONS


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
