"""Which layers are cut, and which stay and are named."""

import copy

import torch
from torch import nn

from common import find_groups


def assert_cut_is_exact(model, example, kept=()):
    """Without half of each coupling's channels it computes what it computes with them at 0."""
    groups = find_groups(model, example)
    assert set(groups.kept) == set(kept)
    model.double().eval()
    removed = torch.arange(len(groups)) % 2 == 1
    small, inputs = copy.deepcopy(model), torch.randn(3, *example.shape[1:]).double()
    with torch.no_grad():
        for name, module in model.named_modules():
            if name in groups.kernels or isinstance(module, nn.modules.batchnorm._BatchNorm):
                gone = groups.spread(name, removed)
                for key in ("weight", "bias"):
                    if (tensor := getattr(module, key)) is not None:
                        transposed = isinstance(module, nn.modules.conv._ConvTransposeNd) and key == "weight"
                        (tensor.movedim(1, 0) if transposed and module.groups == 1 else tensor)[gone] = 0
        groups.cut(small, None, removed)
        assert torch.allclose(small(inputs), model(inputs))
    assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in model.parameters())
    return groups, small


def test_one_layer_that_cannot_be_cut_does_not_refuse_the_others():
    model = nn.Sequential(
        *(nn.Conv2d(3, 8, 3), nn.GroupNorm(2, 8), nn.ReLU(), nn.Conv2d(8, 16, 3), nn.BatchNorm2d(16), nn.ReLU()),
        *(nn.Conv2d(16, 16, 3, groups=4), nn.ReLU(), nn.Conv2d(16, 12, 1), nn.ReLU(), nn.Conv2d(12, 5, 1)),
    )
    groups, _ = assert_cut_is_exact(model, torch.zeros(1, 3, 12, 12), kept=("0", "3", "6"))
    assert [coupling.name for coupling in groups.couplings] == ["8"]
    assert groups.kept["0"] == "cannot cut channels out of 1, a GroupNorm"
    assert "a grouped convolution" in groups.kept["3"]
    assert len(groups.layer_units) == 4  # all are counted


def test_transposed_and_one_dimensional_convolutions_are_cut():
    up = nn.Sequential(
        *(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.ConvTranspose2d(8, 12, 2, 2), nn.BatchNorm2d(12)),
        *(nn.ReLU(), nn.ConvTranspose2d(12, 4, 3)),
    )
    groups, small = assert_cut_is_exact(up, torch.zeros(1, 3, 8, 8))
    assert (small[3].in_channels, small[3].out_channels, small[6].in_channels) == (4, 6, 6)
    assert [len(groups), groups.kernels["3"]] == [20, 4]
    sound = nn.Sequential(
        nn.Conv1d(2, 8, 3), nn.BatchNorm1d(8), nn.ReLU(), nn.Conv1d(8, 6, 3), nn.ReLU(), nn.Conv1d(6, 3, 1)
    )
    assert_cut_is_exact(sound, torch.zeros(1, 2, 16))
    volume = nn.Sequential(nn.Conv3d(1, 8, 3), nn.BatchNorm3d(8), nn.ReLU(), nn.Conv3d(8, 3, 1))
    assert_cut_is_exact(volume, torch.zeros(1, 1, 5, 5, 5))


def test_a_squeeze_and_excitation_block_is_pruned():
    class Gated(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm, self.act = nn.Conv2d(1, 16, 3), nn.BatchNorm2d(16), nn.SiLU()
            self.down, self.down_act, self.up = nn.Conv2d(16, 4, 1), nn.ReLU(), nn.Conv2d(4, 16, 1)
            self.last = nn.Conv2d(16, 5, 1)

        def forward(self, x):
            x = self.act(self.norm(self.conv(x)))
            return self.last(x * self.up(self.down_act(self.down(x.mean((2, 3), keepdim=True)))).sigmoid()).mean((2, 3))

    groups, _ = assert_cut_is_exact(Gated(), torch.zeros(1, 1, 9, 9))
    assert int(groups.candidates.sum()) == (16 + 4) / 2  # those that are left
