"""The claims of common/groups.py, on real networks that are small."""

import copy
import io
import re
from functools import partial

import pytest
import torch
import torchvision
from torch import Tensor, nn

from common.cutting import GroupError, bare_copy, shrink_to
from common.groups import Groups
from common.models import activation_layers, batch_norms, resnet18, resnet50
from common.tracing import find_groups

torch.set_num_threads(1)
IMAGE = torch.zeros(1, 3, 32, 32)


def narrow_vgg16_bn() -> nn.Module:
    """Torchvision's VGG-16-BN, layer by layer, at a sixteenth of its width."""
    with torch.device("meta"):
        network = torchvision.models.vgg16_bn(num_classes=10)
    plan = [size if size == "M" else size // 16 for size in torchvision.models.vgg.cfgs["D"]]
    network.features = torchvision.models.vgg.make_layers(plan, batch_norm=True)
    head = [nn.Linear(32 * 49, 24), nn.ReLU(True), nn.Dropout(), nn.Linear(24, 24), nn.ReLU(True), nn.Dropout()]
    network.classifier = nn.Sequential(*head, nn.Linear(24, 10))
    return network


NETWORKS = {
    "resnet18-cifar": lambda: resnet18(10, width=8),
    "resnet18-imagenet": lambda: resnet18(10, width=8, stem="imagenet"),
    "resnet50": lambda: resnet50(10, width=4),
    "vgg16_bn": narrow_vgg16_bn,
    "mobilenet_v2": lambda: torchvision.models.mobilenet_v2(num_classes=10, width_mult=0.35),
}
OPTIMIZERS = {
    "sgd": lambda parameters: torch.optim.SGD(parameters, lr=0.005, momentum=0.9, weight_decay=5e-4),
    "adam": lambda parameters: torch.optim.Adam(parameters, lr=0.001, weight_decay=5e-4, amsgrad=True),
}


def make(name: str, dtype: torch.dtype = torch.float64) -> tuple[nn.Module, Groups]:
    """A network in evaluation mode whose logits depend on the image, as a trained one's do, and its groups."""
    torch.manual_seed(7)
    network = NETWORKS[name]().to(dtype)
    for module in network.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0  # two networks are to be compared
        elif isinstance(module, nn.Linear):
            nn.init.kaiming_normal_(module.weight)
    for norm in batch_norms(network):
        nn.init.uniform_(norm.weight, 0.5, 1.5)
        nn.init.normal_(norm.bias, std=0.3)
        norm.momentum = 1.0
    network.train()(images(dtype=dtype))
    for norm in batch_norms(network):
        norm.momentum = 0.1
    return network.eval(), find_groups(network, IMAGE)


def some(groups: Groups, share: float = 0.4, seed: int = 0) -> Tensor:
    """bool [G]: a random share of the groups, never all of a coupling."""
    mask = torch.rand(len(groups), generator=torch.Generator().manual_seed(seed)) < share
    mask[[coupling.start for coupling in groups.couplings]] = False
    return mask & groups.alive


def images(count: int = 8, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(1)).to(dtype)


def step(network: nn.Module, optimizer: torch.optim.Optimizer, autocast: bool = False) -> Tensor:
    """One training step on eight images; returns the loss, whose graph lives as long as the caller keeps it."""
    network.train()
    x = images(dtype=next(network.parameters()).dtype)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        logits = network(x)
    loss = nn.functional.cross_entropy(logits, torch.arange(len(x)))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss


def trained(name: str, optimizer: str = "sgd", dtype: torch.dtype = torch.float64):
    """A network after two training steps, its optimiser and its groups."""
    network, groups = make(name, dtype)
    optimizer = OPTIMIZERS[optimizer](network.parameters())
    step(network, optimizer)
    step(network, optimizer)
    return network, optimizer, groups


def tensors(network: nn.Module, optimizer: torch.optim.Optimizer | None = None) -> dict[str, Tensor]:
    """Every tensor of a network and its optimiser, by name."""
    found = dict(network.state_dict())
    for name, parameter in network.named_parameters() if optimizer else ():
        for key, value in optimizer.state[parameter].items():
            found[f"{name}.{key}"] = value
    return found


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float = 0.0) -> None:
    assert found.keys() == expected.keys()
    for name, value in found.items():
        message = partial("{}: {}".format, name)
        torch.testing.assert_close(value, expected[name], rtol=tolerance, atol=tolerance, msg=message)


def assert_logits(network: nn.Module, expected: Tensor) -> None:
    assert expected.std(0).min() > 1e-5  # they do depend on the image
    torch.testing.assert_close(network(images()), expected, rtol=0, atol=1e-10)


def copies(network: nn.Module, optimizer: torch.optim.Optimizer, groups: Groups):
    """Independent copies that belong together."""
    return copy.deepcopy((network, optimizer, groups))


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


# What a cut leaves unchanged.


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


# Networks that cannot be traced.


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
        (Broken(), r"cannot trace Broken: RuntimeError: no such thing \(test_groups.py, line \d+\)"),
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
        (Fixed, r"without them a pass fails, RuntimeError: shape .* \(test_groups.py, line \d+\); perhaps a view .*"),
    ],
)
def test_channels_that_cannot_be_cut_exactly_stay_and_are_named(kind, reason):
    groups = find_groups(kind(), IMAGE)
    assert [coupling.name for coupling in groups.couplings] == ["conv2"]
    assert list(groups.kept) == ["conv1"]
    assert re.fullmatch(reason, groups.kept["conv1"])


def test_the_plain_network_among_them_is_traced():
    assert [coupling.name for coupling in find_groups(Plain(), IMAGE).couplings] == ["conv1", "conv2"]


def test_a_bare_copy_is_not_watched():
    network, _ = make("resnet18-cifar")
    network.act.register_forward_hook(lambda *_: pytest.fail("the copy called the original's hook"))
    bare_copy(network)(images())
