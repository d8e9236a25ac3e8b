"""What a cut leaves unchanged, what it never does, what padding does, and how the result is kept."""

import copy
import io

import pytest
import torch
from torch import Tensor, nn

from common.cutting import GroupError, shrink_to
from common.groups import Groups
from common.models import activation_layers, batch_norms, resnet18
from common.tracing import find_groups
from tests.cut_networks import (
    IMAGE,
    NETWORKS,
    OPTIMIZERS,
    assert_logits,
    assert_same,
    copies,
    images,
    make,
    some,
    step,
    tensors,
    trained,
)


@torch.no_grad()
def kill(network: nn.Module, groups: Groups, mask: Tensor) -> None:
    """Sink the shift of all that feeds the groups' units, so deep that they never fire."""
    norms = {name for coupling in groups.couplings for name in coupling.batch_norms}
    for name, module in network.named_modules():
        if name in norms or isinstance(module, nn.Linear):
            module.bias[groups.spread(name, mask)] = -1e5


def dead_units(network: nn.Module, x: Tensor) -> tuple[Tensor, list[str]]:
    """bool [U], no pre-activation above 0, and the activation layers that these units are of."""
    dead = {}

    def note(name):
        return lambda _module, inputs: dead.__setitem__(name, (inputs[0] <= 0).transpose(0, 1).flatten(1).all(1))

    hooks = [module.register_forward_pre_hook(note(name)) for name, module in activation_layers(network).items()]
    network(x)
    for hook in hooks:
        hook.remove()
    return torch.cat(list(dead.values())), list(dead)


@pytest.mark.parametrize("name", NETWORKS)
def test_removing_dead_groups_leaves_logits_unchanged(name):
    network, groups = make(name)
    mask = some(groups) & groups.candidates
    kill(network, groups, mask)
    expected = network(images())
    dead = groups.all_dead(*dead_units(network, images()))
    assert dead[mask].all()
    dead[[coupling.start for coupling in groups.couplings]] = False
    assert groups.cut(network, None, dead) == int(dead.sum()) > 10
    assert_logits(network, expected)


@pytest.mark.parametrize("name", NETWORKS)
def test_removing_living_groups_does_what_masking_their_units_does(name):
    network, groups = make(name)
    mask = some(groups) & groups.candidates
    masked = mask_units(copy.deepcopy(network), groups, mask)
    expected = masked(images())
    groups.cut(network, None, mask)
    assert_logits(network, expected)


def mask_units(network: nn.Module, groups: Groups, mask: Tensor) -> nn.Module:
    """Every unit of the groups puts out 0, by hooks on the activation layers."""

    def hook(name):
        live = ~groups.spread(name, mask)
        return lambda _module, _inputs, output: output * live.view(1, -1, *[1] * (output.dim() - 2)).to(output)

    for name, module in activation_layers(network).items():
        if name in groups.layer_units:
            module.register_forward_hook(hook(name))
    return network


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("name", ["resnet18-cifar", "resnet50", "mobilenet_v2"])
def test_a_training_step_after_a_cut_is_that_of_the_masked_network(name, optimizer):
    cut, optimizer, groups = trained(name, optimizer)
    full, full_optimizer, full_groups = copies(cut, optimizer, groups)
    mask = some(groups) & groups.candidates
    mask_units(full, groups, mask)
    groups.cut(cut, optimizer, mask)
    for _ in range(2):
        step(cut, optimizer)
        step(full, full_optimizer)
    full_groups.cut(full, full_optimizer, mask)
    assert_same(tensors(cut, optimizer), tensors(full, full_optimizer), 1e-10)


def test_a_step_can_follow_a_cut_while_the_last_loss_is_kept():
    network, optimizer, groups = trained("resnet18-cifar")
    for seed in range(3):
        loss = step(network, optimizer)
        groups.cut(network, optimizer, some(groups, 0.2, seed))
    loss = step(network, optimizer)
    assert loss.isfinite()


def test_gradients_that_are_there_are_cut_too():
    network, optimizer, groups = trained("resnet18-cifar")
    groups.cut(network, optimizer, some(groups))
    assert all(p.grad.shape == p.shape for p in network.parameters())
    optimizer.step()


def test_parameters_stay_the_objects_the_optimiser_knows():
    network, optimizer, groups = trained("resnet18-cifar")
    before = [id(p) for p in network.parameters()]
    groups.cut(network, optimizer, some(groups))
    assert [id(p) for p in network.parameters()] == before == [id(p) for p in optimizer.param_groups[0]["params"]]
    assert set(map(id, optimizer.state)) == set(before)


def test_layers_know_their_new_shapes():
    for name in NETWORKS:
        network, groups = make(name)
        groups.cut(network, None, some(groups))
        for module in network.modules():
            if isinstance(module, nn.Conv2d):
                shape = (module.out_channels, module.in_channels // module.groups, *module.kernel_size)
                assert module.weight.shape == shape
            elif isinstance(module, nn.Linear):
                assert module.weight.shape == (module.out_features, module.in_features)
            elif isinstance(module, nn.BatchNorm2d):
                assert len(module.running_var) == module.num_features


# What a cut never does.


def test_a_cut_with_nothing_to_cut_changes_no_byte():
    network, optimizer, groups = trained("resnet18-cifar")
    groups.cut(network, optimizer, some(groups), multiple=8)
    before, state = copy.deepcopy(tensors(network, optimizer)), groups.state_dict()
    places = [value.data_ptr() for value in tensors(network, optimizer).values()]
    for nothing in ([], torch.zeros(len(groups), dtype=torch.bool), ~groups.alive):
        assert groups.cut(network, optimizer, nothing) == 0
    assert_same(tensors(network, optimizer), before)
    assert [value.data_ptr() for value in tensors(network, optimizer).values()] == places
    assert torch.equal(groups.state_dict()["state"], state["state"])


@pytest.mark.parametrize("name", NETWORKS)
def test_no_coupling_is_ever_emptied(name):
    network, groups = make(name)
    before = copy.deepcopy(tensors(network))
    for coupling in groups.couplings:
        with pytest.raises(GroupError, match=f"{coupling.name}: removing all of its {coupling.size} channels"):
            groups.cut(network, None, torch.arange(len(groups))[coupling.slice])
    assert_same(tensors(network), before)
    assert groups.alive.all()
    groups.cut(network, None, [g for c in groups.couplings for g in range(c.start + 1, c.start + c.size)])
    assert (groups.widths == 1).all()
    assert network(images()).isfinite().all()


def test_a_network_of_other_widths_is_refused():
    network, groups = make("resnet18-cifar")
    with pytest.raises(GroupError, match="conv1 has 4 channels where the groups know of 8"):
        groups.cut(resnet18(10, width=4), None, [0])
    assert groups.alive.all()


# Padding.


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("autocast", [False, True], ids=["fp32", "bf16"])
@pytest.mark.parametrize("activation", ["relu", "leaky-relu", "swish"])
def test_padding_stays_exactly_zero_while_training_goes_on(activation, autocast, optimizer):
    torch.manual_seed(0)
    network = resnet18(10, width=8, activation=activation).to(memory_format=torch.channels_last)
    groups = find_groups(network, IMAGE)
    optimizer = OPTIMIZERS[optimizer](network.parameters())
    step(network, optimizer, autocast)
    groups.cut(network, optimizer, some(groups, 0.2), multiple=8)
    for _ in range(4):
        step(network, optimizer, autocast)
    modules, checked = dict(network.named_modules()), 0
    for name in groups.outputs:
        padding = ~groups.alive_channels(name)
        for key in ("weight", "bias", "running_mean"):
            if isinstance(tensor := getattr(modules[name], key, None), Tensor):
                state = optimizer.state.get(tensor, {}).values()
                for value in (tensor, *(value for value in state if value.shape == tensor.shape)):
                    assert not value[padding].any()
                    assert value[~padding].any()
                    checked += int(padding.sum())
        if name in groups.inputs:
            padding = ~torch.cat([groups.alive, torch.tensor([True])])[groups.channels(name, inputs=True)]
            assert not modules[name].weight[:, padding].any()
            checked += int(padding.sum())
    assert checked > 500


@pytest.mark.parametrize("name", NETWORKS)
def test_the_padded_network_computes_and_learns_what_the_compact_one_does(name):
    network, optimizer, groups = trained(name)
    small, small_optimizer, small_groups = copies(network, optimizer, groups)
    mask = some(groups, 0.6)
    groups.cut(network, optimizer, mask, multiple=4)
    small_groups.cut(small, small_optimizer, mask)
    assert_same(tensors(groups.compact(network)), tensors(small))
    for _ in range(2):
        step(network, optimizer)
        step(small, small_optimizer)
    compact = groups.compact(network)
    assert_same(tensors(compact), tensors(small), 1e-10)
    assert_logits(compact.eval(), network.eval()(images()))


def test_padding_rounds_widths_up_by_a_third_at_most_and_never_beyond_what_was_there():
    network, groups = make("resnet18-cifar")  # width 8: its widths are 8, 16, 32 and 64
    kinds = set()
    for seed in range(6):
        before = {name: len(groups.channels(name)) for name in groups.layer_units}
        groups.cut(network, None, some(groups, 0.2, seed), multiple=16)
        for coupling in groups.couplings:
            alive, width = int(groups.alive[coupling.slice].sum()), len(groups.channels(coupling.layers[0]))
            rounded = min(-(-alive // 16) * 16, before[coupling.layers[0]])
            assert width == (rounded if rounded <= alive * 4 / 3 else alive)
            kinds.add(width > alive)
        assert network(images()).isfinite().all()
    assert kinds == {True, False}


def test_channels_are_known_by_their_first_numbers_after_any_number_of_cuts():
    network, groups = make("resnet18-cifar")
    for norm in batch_norms(network):
        norm.running_mean.copy_(torch.arange(norm.num_features))
    for seed in range(4):
        groups.cut(network, None, some(groups, 0.3, seed), multiple=(1, 4)[seed % 2])
        for coupling in groups.couplings:
            for name in coupling.batch_norms:
                mean, alive = network.get_submodule(name).running_mean, groups.alive_channels(name)
                assert torch.equal(mean[alive].long(), groups.numbers(name)[alive])
                assert (groups.numbers(name)[~alive] == -1).all()
                assert torch.equal(groups.channels(name)[alive], coupling.start + groups.numbers(name)[alive])


# Layout, saving and loading.


def test_a_cut_keeps_channels_last_with_the_strides_of_a_fresh_network():
    network, _ = make("mobilenet_v2", torch.float32)
    network.to(memory_format=torch.channels_last)
    groups = find_groups(network, IMAGE)
    optimizer = OPTIMIZERS["sgd"](network.parameters())
    step(network, optimizer)
    groups.cut(network, optimizer, some(groups, 0.8))
    fresh = shrink_to(NETWORKS["mobilenet_v2"](), network.state_dict()).to(memory_format=torch.channels_last)
    late = shrink_to(NETWORKS["mobilenet_v2"]().to(memory_format=torch.channels_last), network.state_dict())
    for one, two, three in zip(network.parameters(), fresh.parameters(), late.parameters(), strict=True):
        assert one.stride() == two.stride() == three.stride()
        assert one.shape == optimizer.state[one]["momentum_buffer"].shape


@pytest.mark.parametrize("multiple", [1, 4])
def test_an_interrupted_run_goes_on_bit_for_bit(multiple):
    network, optimizer, groups = trained("resnet18-cifar", dtype=torch.float32)
    network.to(memory_format=torch.channels_last)
    groups.cut(network, optimizer, some(groups), multiple)
    step(network, optimizer)
    file = io.BytesIO()
    parts = {"model": network, "optimizer": optimizer, "groups": groups}
    torch.save({key: part.state_dict() for key, part in parts.items()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)

    again = NETWORKS["resnet18-cifar"]().to(memory_format=torch.channels_last)
    again_groups = find_groups(again, IMAGE)
    again_groups.restore(again, saved["groups"])
    again.load_state_dict(saved["model"])
    again_optimizer = OPTIMIZERS["sgd"](again.parameters())
    again_optimizer.load_state_dict(saved["optimizer"])
    mask = some(groups, 0.3, seed=1)
    for model, optim, found in ((network, optimizer, groups), (again, again_optimizer, again_groups)):
        step(model, optim)
        assert found.cut(model, optim, mask, multiple) > 10
        step(model, optim)
    assert_same(tensors(again, again_optimizer), tensors(network, optimizer))
    assert torch.equal(again_groups.alive, groups.alive)


def test_the_groups_of_another_network_are_refused():
    network, groups = make("resnet18-cifar")
    saved = find_groups(resnet18(10, width=4), IMAGE).state_dict()
    with pytest.raises(GroupError, match="not those of this network"):
        groups.restore(network, saved)
    assert network(images()).isfinite().all()


@pytest.mark.parametrize("name", NETWORKS)
def test_a_pruned_network_loads_from_its_state_dict_alone(name):
    network, groups = make(name)
    groups.cut(network, None, some(groups, 0.5), multiple=4)
    file = io.BytesIO()
    torch.save(groups.compact(network).state_dict(), file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    loaded = shrink_to(NETWORKS[name]().double().eval(), saved)
    loaded.load_state_dict(saved)
    assert_logits(loaded, network(images()))


@pytest.mark.parametrize(
    ("key", "shape"),
    [("conv1.weight", (9, 3, 3, 3)), ("bn1.bias", (0,)), ("fc.weight", (5,)), ("conv1.weight", (4, 3, 1, 1))],
)
def test_shapes_that_are_no_cut_of_the_network_are_refused(key, shape):
    network, _ = make("resnet18-cifar")
    before = copy.deepcopy(tensors(network))
    saved = {**network.state_dict(), "layer1.0.conv1.weight": torch.empty(4, 8, 3, 3), key: torch.empty(shape)}
    with pytest.raises(GroupError, match=f"{key}: .* is no cut of "):
        shrink_to(network, saved)
    assert_same(tensors(network), before)
