"""VGG-16 with batch norm (Simonyan & Zisserman 2014), for images of any size."""

from torch import Tensor, nn

from common.models.activations import ACTIVATIONS
from common.models.resnet import conv_bn

STAGES = ((1, 1), (2, 2), (4, 4, 4), (8, 8, 8), (8, 8, 8))  # widths of the convolutions, in those of the first


class VGG16BN(nn.Module):
    """Stages of 3x3 convolutions, a max pool behind each, and one linear layer behind their mean over all positions.

    Images [B, channels, H, W] -> logits [B, classes]. (The three linear layers of the original are for large images.)
    """

    def __init__(self, classes: int, channels: int = 3, width: int = 64, activation: str = "relu"):
        super().__init__()
        self.pool, inputs = nn.MaxPool2d(2, ceil_mode=True), channels
        self.ends = [sum(map(len, STAGES[:stage])) for stage in range(1, len(STAGES) + 1)]
        for number, times in enumerate((times for stage in STAGES for times in stage), 1):
            conv, norm = conv_bn(inputs, times * width, 3)
            nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
            for name, module in {"conv": conv, "bn": norm, "act": ACTIVATIONS[activation]()}.items():
                self.add_module(f"{name}{number}", module)
            inputs = times * width
        self.fc = nn.Linear(inputs, classes)

    def forward(self, x: Tensor) -> Tensor:
        for number in range(1, self.ends[-1] + 1):
            conv, norm, act = (getattr(self, f"{kind}{number}") for kind in ("conv", "bn", "act"))
            x = act(norm(conv(x)))
            x = self.pool(x) if number in self.ends else x
        return self.fc(x.mean((2, 3)))
