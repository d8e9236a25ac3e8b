"""Activations told apart: a module of its own for each use, and the same network."""

import copy

import pytest
import torch
import torchvision
from torch import nn
from torch.nn import functional

from common import UnitWatch, find_groups, own_activations
from tests.test_own_network import Network, network


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "googlenet", "densenet121"])
def test_networks_of_torchvision_get_activations_of_their_own_and_compute_the_same(name):
    torch.manual_seed(0)
    options = {"init_weights": False} if name == "googlenet" else {}
    model, image = getattr(torchvision.models, name)(**options).eval(), torch.randn(2, 3, 64, 64)
    before, state = copy.deepcopy(model), list(model.state_dict())
    assert own_activations(model, image[:1]) is model
    UnitWatch(model, image[:1]).close()
    assert list(model.state_dict()) == state
    with torch.no_grad():
        assert torch.equal(model(image), before(image))
    assert isinstance(model, type(before))


def test_a_copy_of_a_rewritten_network_uses_its_own_parts():
    model = network()
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.zero_()
    x = torch.randn(2, 1, 8, 8)
    assert not twin.eval()(x).any()
    assert model.eval()(x).any()


def test_functions_keep_their_arguments():
    class Leaky(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(1, 4, 3)

        def forward(self, x):
            x = functional.leaky_relu(self.conv(x), 0.3)
            return functional.gelu(torch.relu(x).relu_() - 0.5, approximate="tanh")

    model = own_activations(Leaky(), torch.zeros(1, 1, 8, 8))
    found = [str(module) for module in list(model.modules())[2:]]
    assert found == ["LeakyReLU(negative_slope=0.3)", "ReLU()", "ReLU(inplace=True)", "GELU(approximate='tanh')"]


def test_a_forward_that_differs_in_training_or_cannot_be_followed_is_refused_and_left_alone():
    class Sometimes(Network):
        def forward(self, x):
            return super().forward(x if self.training else x + 1)

    class Looks(Network):
        def forward(self, x):
            return super().forward(x if x.sum() > 0 else -x)

    for kind, message in {Sometimes: "does other things in training", Looks: "cannot be followed by torch.fx"}.items():
        model = kind()
        with pytest.raises(ValueError, match=f"the network itself {message}"):
            own_activations(model, torch.zeros(1, 1, 8, 8))
        assert type(model) is kind
        assert [name for name, _ in model.named_children()] == [name for name, _ in Network().named_children()]


def test_one_module_under_two_names_becomes_two():
    relu = nn.ReLU()
    model = nn.Sequential(nn.Conv2d(1, 4, 3), relu, nn.Conv2d(4, 4, 3), relu, nn.Flatten(), nn.Linear(64, 3))
    own_activations(model, torch.zeros(1, 1, 8, 8))
    assert model[1] is not model[3]
    assert len(find_groups(model, torch.zeros(1, 1, 8, 8))) == 8


class Transformer(nn.Module):
    """Functions that torch's own layer holds, and dropout that goes by the mode."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 8, 3)
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.head = nn.Linear(8, 10)

    def forward(self, x):
        x = self.layer(functional.relu(self.conv(x)).flatten(2).mT).mean(1)
        return self.head(functional.dropout(x, 0.5, self.training))


@pytest.mark.parametrize("training", [True, False])
def test_functions_that_a_layer_holds_and_dropout_become_modules(training):
    torch.manual_seed(0)
    model, x = Transformer().train(training), torch.randn(2, 1, 8, 8)
    before = copy.deepcopy(model)
    UnitWatch(own_activations(model, x[:1]), x[:1]).close()
    assert {module.training for module in model.modules()} == {training}
    for mode in (True, False):
        torch.manual_seed(1)
        expected = before.train(mode)(x)
        torch.manual_seed(1)
        assert torch.equal(model.train(mode)(x), expected)
    assert find_groups(model, x[:1]).layer_units == {"layer.activation": 16, "relu": 8}


def test_dropout_in_evaluation_mode_is_told():
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3))
    model.register_forward_hook(lambda module, x, y: functional.dropout(y))
    with pytest.raises(ValueError, match=r"two passes .* differ; functional.dropout .* training=self.training"):
        own_activations(model, torch.randn(1, 1, 8, 8))
