"""What is watched is all there is, or it is said by name."""

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from common.units import UnitWatch

IMAGE = torch.zeros(1, 3, 8, 8)


class Network(nn.Module):
    """A convolution whose activation is a module, and one whose activation is what is given."""

    def __init__(self, second):
        super().__init__()
        self.conv1, self.conv2, self.act1 = nn.Conv2d(3, 32, 3), nn.Conv2d(32, 16, 3), nn.ReLU()
        self.second, self.fc = second, nn.Linear(16, 5)

    def forward(self, x):
        return self.fc(self.second(self.conv2(self.act1(self.conv1(x)))).mean((2, 3)))


@pytest.mark.parametrize(
    ("second", "words"),
    [
        (functional.relu, "relu in the network itself"),
        (torch.relu, "relu in the network itself"),
        (lambda x: x.relu(), "relu in the network itself"),
        (lambda x: functional.gelu(x), "gelu in the network itself"),
        (nn.Tanh(), "second, Tanh"),
        (nn.PReLU(), "second, PReLU"),
        (nn.Softplus(), "second, Softplus"),
        (nn.Hardtanh(), "second, Hardtanh"),
        (nn.Sequential(nn.Identity(), nn.Tanh()), "second.1, Tanh"),
    ],
)
def test_what_cannot_be_watched_is_named_when_the_watch_is_made(second, words):
    with pytest.raises(ValueError, match=f"cannot be counted in {words}: give every activation a module of its own"):
        UnitWatch(Network(second), IMAGE)


def test_a_network_without_activation_layers_is_named():
    with pytest.raises(ValueError, match="a network without activation layers"):
        UnitWatch(nn.Conv2d(3, 4, 3), IMAGE)


@pytest.mark.parametrize("act", [nn.ELU, nn.CELU, nn.SELU, nn.Mish, nn.Hardswish])
def test_a_unit_of_other_activations_fires_above_0(act):
    torch.manual_seed(0)
    model, images = Network(act()), torch.randn(6, 3, 8, 8)
    watch = UnitWatch(model, IMAGE)
    assert watch.layers == {"act1": 32, "second": 16}
    seen = []
    model.second.register_forward_pre_hook(lambda _m, x: seen.append(x[0].detach()))
    model(images)
    assert torch.equal(watch.end_epoch().fired[32:], (seen[0] > 0).sum((0, 2, 3)))


class Tokens(nn.Module):
    """[B, 3, 8, 8] -> 16 tokens of 12 features -> 20 features -> classes; as images in channels-last if `image`."""

    def __init__(self, image: bool):
        super().__init__()
        self.image, self.embed, self.norm = image, nn.Conv2d(3, 12, 2, stride=2), nn.LayerNorm(12)
        self.up, self.act, self.down = nn.Linear(12, 20), nn.GELU(), nn.Linear(20, 5)

    def forward(self, x):
        x = self.embed(x).permute(0, 2, 3, 1)
        x = self.norm(x if self.image else x.flatten(1, 2))
        return self.down(self.act(self.up(x))).mean(tuple(range(1, x.dim() - 1)))


@pytest.mark.parametrize("image", [False, True])
def test_the_units_of_tokens_and_of_channels_last_images_are_their_features(image):
    torch.manual_seed(0)
    model, seen = Tokens(image), []
    watch = UnitWatch(model, IMAGE)
    assert watch.layers == {"act": 20}
    model.act.register_forward_pre_hook(lambda _m, x: seen.append(x[0].detach()))
    for _ in range(2):
        model(torch.randn(4, 3, 8, 8))
    counts = watch.end_epoch()
    assert torch.equal(counts.fired, sum((x.reshape(-1, 20) > 0).sum(0) for x in seen))
    assert counts.pairs.tolist() == [2 * 4 * 16] * 20


# Passes that are no training steps


@pytest.fixture
def watched():
    torch.manual_seed(0)
    model = Network(nn.ReLU())
    return model, UnitWatch(model, IMAGE), torch.randn(6, 3, 8, 8)


def same(watch, model, images) -> None:
    """The watch has counted one pass of these images."""
    counts, alone = watch.end_epoch(), UnitWatch(model, IMAGE)
    model(images)
    expected = alone.end_epoch()
    assert torch.equal(counts.fired, expected.fired)
    assert torch.equal(counts.pairs, expected.pairs)
    assert counts.batches == expected.batches == 1


def test_passes_in_evaluation_without_gradients_and_while_paused_do_not_count(watched):
    model, watch, images = watched
    model.eval()(images)
    model.train()
    with torch.no_grad():
        model(images)
    with watch.paused():
        model(2 * images)
    model(images)
    same(watch, model, images)


def test_what_activation_checkpointing_computes_again_is_counted_once(watched):
    model, watch, images = watched
    plain = model.forward

    def part(x):
        return model.act1(model.conv1(x))

    model.forward = lambda x: model.fc(model.second(model.conv2(checkpoint(part, x, use_reentrant=False))).mean((2, 3)))
    model(images).sum().backward()
    model.forward = plain
    same(watch, model, images)


def test_a_pass_that_ended_in_an_error_and_was_repeated_is_counted_once(watched):
    model, watch, images = watched

    def fails(_module, _inputs):
        raise RuntimeError("out of memory")

    hook = model.fc.register_forward_pre_hook(fails)
    with pytest.raises(RuntimeError, match="out of memory"):
        model(images)
    hook.remove()
    model(images)
    same(watch, model, images)


def test_what_was_never_counted_is_not_dead(watched):
    model, watch, images = watched
    model.second.eval()
    model(images)
    counts = watch.end_epoch()
    assert not counts.dead[32:].any()
    assert counts.pairs[32:].sum() == 0
