"""Networks that cannot be traced, or not wholly."""

import copy
import re

import pytest
import torch
import torchvision
from torch import Tensor, nn

from common.cutting import GroupError
from common.tracing import find_groups
from tests.cut_networks import (
    IMAGE,
    assert_same,
    tensors,
)


class Plain(nn.Module):
    """A network with nothing special between its two convolutions."""

    def __init__(self):
        super().__init__()
        self.conv1, self.act, self.conv2 = nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3)
        self.fc = nn.Linear(8, 10)

    def between(self, x: Tensor) -> Tensor:
        return x

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.conv2(self.between(self.act(self.conv1(x)))).mean((2, 3)))


class Shuffled(Plain):
    """Channels in another order: no shape tells."""

    def between(self, x: Tensor) -> Tensor:
        return x.flip(1)


class Shifted(Plain):
    """A channel at zero does not stay there."""

    def between(self, x: Tensor) -> Tensor:
        return x.cos()


class Reshaped(Plain):
    """Channels and pixels mixed."""

    def between(self, x: Tensor) -> Tensor:
        return x.transpose(1, 2).reshape(x.shape)


class Enlarged(Plain):
    """Channels that become pixels."""

    def __init__(self):
        super().__init__()
        self.conv2 = nn.Conv2d(2, 8, 3)

    def between(self, x: Tensor) -> Tensor:
        return nn.functional.pixel_shuffle(x, 2)


class Fixed(Plain):
    def between(self, x: Tensor) -> Tensor:
        return x.view(len(x), 8, *x.shape[2:])


class Dropping(Plain):
    def between(self, x: Tensor) -> Tensor:
        return nn.functional.dropout(x, 0.5)


class Untraceable(Plain):
    def forward(self, x: Tensor) -> Tensor:
        return torch.from_numpy(super().forward(x).detach().numpy())


class Broken(Plain):
    def between(self, x: Tensor) -> Tensor:
        raise RuntimeError("no such thing\nin detail")


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (Untraceable(), "cannot trace Untraceable: .*"),
        (Broken(), r"cannot trace Broken: RuntimeError: no such thing \(test_tracing.py, line \d+\)"),
        (Dropping(), "cannot trace Dropping: two passes in evaluation mode differ; functional.dropout drops there .*"),
        (nn.Sequential(nn.Flatten(), nn.Linear(3072, 10)), "cannot trace Sequential: found no channel .*"),
        (torchvision.models.resnet18(), "activation layer layer1.0.relu is used 2 times: .*"),
        (
            nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, groups=2), nn.ReLU(), nn.Conv2d(8, 9, 1)),
            "cannot trace Sequential: the channels of 1 stay: cannot cut channels out of 1, a grouped convolution",
        ),
        (
            nn.Sequential(nn.Conv2d(3, 8, 3), nn.GroupNorm(2, 8), nn.ReLU(), nn.Conv2d(8, 9, 1)),
            "cannot trace Sequential: the channels of 0 stay: cannot cut channels out of 1, a GroupNorm",
        ),
    ],
    ids=[
        "untraceable",
        "broken",
        "dropping",
        "no-channels",
        "shared-activation",
        "grouped",
        "group-norm",
    ],
)
def test_a_network_that_cannot_be_traced_is_one_clear_error(network, message):
    before = copy.deepcopy(tensors(network))
    with pytest.raises(GroupError, match=f"^{message}$") as raised:
        find_groups(network, IMAGE)
    assert "\n" not in str(raised.value)
    assert_same(tensors(network), before)


BEHIND = "cannot tell which channels of {} they are, behind a reshape or a concatenation"


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        (Shuffled, "cutting them changes what the others compute"),
        (Shifted, "cutting them changes what the others compute"),
        (Reshaped, "cutting them changes what the others compute"),
        (Enlarged, BEHIND.format("conv2")),
        (Fixed, r"without them a pass fails, RuntimeError: shape .* \(test_tracing.py, line \d+\); perhaps a view .*"),
    ],
)
def test_channels_that_cannot_be_cut_exactly_stay_and_are_named(kind, reason):
    groups = find_groups(kind(), IMAGE)
    assert [coupling.name for coupling in groups.couplings] == ["conv2"]
    assert list(groups.kept) == ["conv1"]
    assert re.fullmatch(reason, groups.kept["conv1"])


def test_the_plain_network_among_them_is_traced():
    assert [coupling.name for coupling in find_groups(Plain(), IMAGE).couplings] == ["conv1", "conv2"]
