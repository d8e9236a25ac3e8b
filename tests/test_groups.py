"""Which channels belong together, and what is known of them."""

import copy

import pytest
import torch
import torchvision
from torch import nn

from common.cutting import bare_copy
from common.models import activation_layers, resnet18
from common.tracing import find_groups
from tests.cut_networks import (
    IMAGE,
    NETWORKS,
    assert_same,
    images,
    make,
    some,
    tensors,
)

# What belongs together.


@pytest.mark.parametrize("stem", ["cifar", "imagenet"])
@pytest.mark.parametrize("activation", ["relu", "leaky-relu", "swish"])
def test_units_of_all_groups_add_up_to_those_of_resnet18(stem, activation):
    groups = find_groups(resnet18(10, width=64, stem=stem, activation=activation), IMAGE)
    assert int(groups.units.sum()) == sum(groups.layer_units.values()) == 3904
    assert len(groups.layer_units) == 17
    assert len(groups) == 3904 - 64 * 2 - (128 + 256 + 512)  # streams: 3 layers in the first stage, then 2
    assert groups.candidates.all()


def test_a_stream_group_holds_the_channel_of_every_layer_on_the_stream():
    groups = find_groups(resnet18(10, width=8), IMAGE)
    layers = {coupling.name: coupling.layers for coupling in groups.couplings}
    norms = {coupling.name: coupling.batch_norms for coupling in groups.couplings}
    assert len(layers) == 4 + 8
    assert layers["conv1"] == ("act", "layer1.0.act2", "layer1.1.act2")
    assert norms["conv1"] == ("bn1", "layer1.0.bn2", "layer1.1.bn2")
    assert layers["layer2.0.conv2"] == ("layer2.0.act2", "layer2.1.act2")
    assert norms["layer2.0.conv2"] == ("layer2.0.bn2", "layer2.0.downsample.1", "layer2.1.bn2")
    assert layers["layer4.1.conv1"] == ("layer4.1.act1",)
    assert norms["layer4.1.conv1"] == ("layer4.1.bn1",)


@pytest.mark.parametrize("name", NETWORKS)
def test_every_group_has_each_of_its_channels_in_the_layers_it_names(name):
    network, groups = make(name)
    for coupling in groups.couplings:
        for layer in coupling.layers + coupling.batch_norms:
            assert set(groups.channels(layer).tolist()) == set(range(len(groups))[coupling.slice])
    layers = [layer for coupling in groups.couplings for layer in coupling.layers]
    assert sorted(layers) == sorted(groups.layer_units) == sorted(activation_layers(network))
    first = next(layer for layer, module in network.named_modules() if isinstance(module, nn.Conv2d))
    last = [layer for layer, module in network.named_modules() if isinstance(module, nn.Linear)][-1]
    assert (groups.inputs[first] == len(groups)).all()  # the image's channels
    assert (groups.outputs[last] == len(groups)).all()  # the classes


def test_couplings_without_an_activation_are_no_candidates():
    groups = find_groups(torchvision.models.mobilenet_v2(), IMAGE)
    plain = [coupling for coupling in groups.couplings if not coupling.layers]
    assert len(plain) == 7  # the linear bottlenecks of its seven stages
    assert not any(groups.candidates[coupling.slice].any() for coupling in plain)


def test_a_coupling_that_is_read_past_its_activations_is_no_candidate():
    """So narrow, MobileNetV2 adds a linear bottleneck to its stem: dead units do not silence that stream."""
    groups = find_groups(torchvision.models.mobilenet_v2(width_mult=0.1), IMAGE)
    stem = groups.couplings[0]
    assert stem.layers == ("features.0.2", "features.1.conv.0.2")
    assert not groups.candidates[stem.slice].any()


def test_a_flattened_channel_is_all_of_its_pixels_in_the_linear_layer():
    _, groups = make("vgg16_bn")
    assert int(groups.units.sum()) == 4224 // 16 + 2 * 24
    assert torch.equal(groups.inputs["classifier.0"], groups.outputs["features.40"].repeat_interleave(49))


def test_finding_groups_touches_neither_the_network_nor_the_random_state():
    network, _ = make("resnet18-cifar")
    network.layer1.train()
    seen = []
    network.act.register_forward_hook(lambda *_: seen.append(1))
    before, random = copy.deepcopy(tensors(network)), torch.get_rng_state()
    modes = [module.training for module in network.modules()]
    find_groups(network, IMAGE)
    assert_same(tensors(network), before)
    assert torch.equal(torch.get_rng_state(), random)
    assert [module.training for module in network.modules()] == modes
    assert not seen
    assert len(network.act._forward_hooks) == 1


# Between units and groups.


def test_a_group_is_dead_when_all_of_its_units_are():
    network, groups = make("resnet18-cifar")
    groups.cut(network, None, [3], multiple=8)
    dead = {name: torch.zeros(size, dtype=torch.bool) for name, size in groups.layer_units.items()}
    stream = groups.couplings[0]
    for name in stream.layers[:-1]:
        dead[name][:] = True
    assert not groups.all_dead(torch.cat(list(dead.values())), list(dead)).any()
    dead[stream.layers[-1]][torch.tensor([2, 3])] = True  # 3 is cut out by now
    for layers in (list(dead), list(dead)[::-1]):
        found = groups.all_dead(torch.cat([dead[name] for name in layers]), layers)
        assert found.nonzero().flatten().tolist() == [stream.start + 2]


def test_totals_leave_padding_out():
    network, groups = make("resnet18-cifar")
    groups.cut(network, None, some(groups), multiple=8)
    ones = {name: torch.ones(len(groups.channels(name)), dtype=torch.int64) for name in groups.layer_units}
    assert sum(map(len, ones.values())) > groups.units[groups.alive].sum()
    assert torch.equal(groups.total(ones), groups.units * groups.alive)


@pytest.mark.parametrize("activation", ["relu", "leaky-relu"])
def test_vitality_is_the_derivative_of_a_gate_on_all_that_reads_the_group(activation):
    """Homogeneous activations: sum of gamma dL/dgamma + beta dL/dbeta over the batch-norms that feed a group."""
    torch.manual_seed(0)
    network = resnet18(10, width=8, activation=activation).double()
    groups = find_groups(network, IMAGE)
    groups.cut(network, None, some(groups), multiple=4)
    gate = torch.ones(len(groups) + 1, dtype=torch.float64, requires_grad=True)
    for name, module in network.named_modules():
        if name in groups.inputs:
            own = gate[groups.channels(name, inputs=True)]
            own = own if isinstance(module, nn.Linear) else own.view(1, -1, 1, 1)
            module.register_forward_pre_hook(lambda _module, inputs, own=own: inputs[0] * own)
    nn.functional.cross_entropy(network.train()(images()), torch.arange(8)).backward()
    norms = {name: network.get_submodule(name) for coupling in groups.couplings for name in coupling.batch_norms}
    vitality = groups.total({n: (m.weight * m.weight.grad + m.bias * m.bias.grad).detach() for n, m in norms.items()})
    torch.testing.assert_close(vitality, gate.grad[:-1].where(groups.alive, 0.0), rtol=0, atol=1e-10)
    assert vitality.count_nonzero() > 0.9 * groups.alive.sum()


def test_a_bare_copy_is_not_watched():
    network, _ = make("resnet18-cifar")
    network.act.register_forward_hook(lambda *_: pytest.fail("the copy called the original's hook"))
    bare_copy(network)(images())
