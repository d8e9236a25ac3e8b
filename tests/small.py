"""A residual network of two blocks, with all that ResNet-18 is made of: NETWORK is tests.small:network."""

from torch import Tensor, nn

from common.models.activations import ACTIVATIONS
from common.models.resnet import BasicBlock, conv_bn


class Small(nn.Module):
    def __init__(self, classes: int, channels: int, width: int, activation: str):
        super().__init__()
        act = ACTIVATIONS[activation]
        self.conv1, self.bn1 = conv_bn(channels, width, 3)
        self.act = act()
        self.layer1, self.layer2 = BasicBlock(width, width, 1, act), BasicBlock(width, 2 * width, 2, act)
        self.fc = nn.Linear(2 * width, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer2(self.layer1(self.act(self.bn1(self.conv1(x)))))
        return self.fc(x.mean((2, 3)))


def network(classes: int, channels: int, width: int, activation: str) -> nn.Module:
    return Small(classes, channels, width, activation)
