import pytest
import torch
import torchvision
from torch import nn

from common import models, names

IMAGES = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_torchvision_weights_load_and_give_the_same_logits(name):
    torch.manual_seed(0)
    reference = getattr(torchvision.models, name)().eval()
    network = models.build({"name": name, "classes": 1000, "stem": "imagenet"}).eval()
    network.load_state_dict(reference.state_dict())
    assert torch.equal(network(IMAGES), reference(IMAGES))


@pytest.mark.parametrize("stem", names.STEMS)
@pytest.mark.parametrize("width", [3, 8, 13])
def test_any_width_and_both_stems_take_small_and_large_images(stem, width):
    network = models.resnet18(7, channels=1, width=width, stem=stem).eval()
    for size in (8, 32):
        assert network(torch.rand(2, 1, size, size)).shape == (2, 7)


def test_resnet18_of_width_64_has_17_activation_layers_and_3904_units():
    counts = models.units(models.resnet18(10), torch.rand(1, 3, 32, 32))
    assert len(counts) == 17
    assert sum(counts.values()) == 3904


@pytest.mark.parametrize("build", [models.resnet18, models.resnet50])
def test_no_activation_module_is_used_twice(build):
    network = build(10, width=8).eval()
    calls = dict.fromkeys(models.activation_layers(network), 0)
    for name, module in models.activation_layers(network).items():
        module.register_forward_hook(lambda *_, name=name: calls.__setitem__(name, calls[name] + 1))
    network(IMAGES)
    assert set(calls.values()) == {1}


@pytest.mark.parametrize(("name", "kind"), [("relu", nn.ReLU), ("leaky-relu", nn.LeakyReLU), ("swish", nn.SiLU)])
def test_the_activation_asked_for_is_the_one_everywhere(name, kind):
    layers = models.activation_layers(models.resnet18(10, width=8, activation=name)).values()
    assert len(layers) == 17
    assert {type(layer) for layer in layers} == {kind}
    if name == "leaky-relu":
        assert {layer.negative_slope for layer in layers} == {0.05}


def test_replacing_the_activation_replaces_all_of_them_even_shared_ones():
    network = torchvision.models.resnet18()
    assert models.replace_activations(network, "swish") == 9  # torchvision uses one ReLU twice in a block
    assert not [m for m in network.modules() if isinstance(m, nn.ReLU)]
    modules = list(models.activation_layers(network).values())
    assert len({id(m) for m in modules}) == 9
    before = models.resnet18(10, width=8)
    after = models.resnet18(10, width=8, activation="leaky-relu")
    after.load_state_dict(before.state_dict())
    models.replace_activations(before, "leaky-relu")
    assert torch.equal(before.eval()(IMAGES), after.eval()(IMAGES))
