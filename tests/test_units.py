"""Counts against a brute-force count that keeps every pre-activation."""

import math

import pytest
import torch
import torchvision

from common import models, units
from common.machine import counting
from common.units import Counts


def network(activation="relu", stem="cifar"):
    torch.manual_seed(0)
    return models.resnet18(10, width=8, stem=stem, activation=activation).to(memory_format=torch.channels_last)


def inputs(*sizes, seed=0):
    generator = torch.Generator().manual_seed(seed)
    for size in sizes:
        yield torch.randn(size, 3, 16, 16, generator=generator).to(memory_format=torch.channels_last)


def forward(model, batches, precision):
    for batch in batches:
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            model(batch)


def brute_force(model, batches, precision):
    """fired, pairs and silent of every unit, from stored pre-activations."""
    stored = {name: [] for name in models.activation_layers(model)}
    hooks = [
        module.register_forward_pre_hook(lambda _, x, name=name: stored[name].append(x[0].detach().double()))
        for name, module in models.activation_layers(model).items()
    ]
    forward(model, batches, precision)
    for hook in hooks:
        hook.remove()
    fired = [[(x > 0).sum((0, 2, 3)) for x in batches] for batches in stored.values()]
    pairs = [
        torch.full_like(layer[0], sum(x[:, 0].numel() for x in stored[name]))
        for name, layer in zip(stored, fired, strict=True)
    ]
    silent = [torch.stack([batch == 0 for batch in layer]).sum(0) for layer in fired]
    return torch.cat([torch.stack(layer).sum(0) for layer in fired]), torch.cat(pairs), torch.cat(silent)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("activation", models.ACTIVATIONS)
def test_counts_agree_exactly_with_every_activation_stored(activation, precision):
    model = network(activation)
    with torch.no_grad():
        model.layer2[0].bn1.bias[:3] = -1.5  # units that are silent in some batches only
    expected = brute_force(model, inputs(16, 16, 5), precision)  # the last batch is smaller
    watch = units.UnitWatch(model, torch.zeros(1, 3, 16, 16))
    forward(model, inputs(16, 16, 5), precision)
    counts = watch.end_epoch()
    assert torch.equal(counts.fired, expected[0])
    assert torch.equal(counts.pairs, expected[1])
    assert torch.equal(counts.silent, expected[2])
    assert counts.batches == 3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize(
    "shape",
    [(3, 8, 5, 5), (200, 16, 16, 16), (200, 13, 16, 16), (4, 6, 5, 5), (3, 7, 5, 5), (5, 12), (5, 6), (2, 4, 1, 1)],
)
def test_fast_counting_is_exact_for_any_type_shape_and_memory_format(shape, dtype):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    x[0, 0], x[-1, 1] = 0.0, -0.0
    x[0, 2], x[-1, 3] = torch.finfo(dtype).tiny / 2, float("inf")  # a subnormal number is > 0
    expected = (x.double() > 0).sum([d for d in range(x.dim()) if d != 1])
    assert torch.equal(counting.fire_counts(x), expected)
    if x.dim() == 4:
        assert torch.equal(counting.fire_counts(x.to(memory_format=torch.channels_last)), expected)


def test_a_unit_forced_dead_is_dead_and_one_that_fires_once_is_not():
    model = network()
    watch = units.UnitWatch(model, torch.zeros(1, 3, 16, 16))
    with torch.no_grad():
        model.bn1.weight[2:4], model.bn1.bias[2:4] = 0, -1
    batches = list(inputs(16, 16))
    once = {"left": 1}

    def fire_once(_module, args):
        if once["left"]:
            once["left"] = 0
            changed = args[0].clone()
            changed[5, 3, 1, 2] = 1e-30
            return changed
        return args[0]

    handle = model.act.register_forward_pre_hook(fire_once, prepend=True)
    forward(model, batches, "fp32")
    handle.remove()
    counts = watch.end_epoch()
    measured = units.measures(counts, None)
    assert measured["dead_units"][2] == 1
    assert counts.fired[3] == 1
    assert measured["dead_units"][3] == 0
    assert measured["nearly_dead_units"][3] == 1
    assert measured["silent_units_per_batch"][2:4].tolist() == [1.0, 0.5]


def test_evaluation_is_not_counted_and_an_epoch_starts_from_nothing():
    model = network()
    watch = units.UnitWatch(model, torch.zeros(1, 3, 16, 16))
    forward(model.eval(), inputs(8), "fp32")
    with pytest.warns(UserWarning, match="no pass was counted"):
        assert watch.end_epoch().batches == 0
    forward(model.train(), inputs(8), "fp32")
    first = watch.end_epoch()
    forward(model, inputs(8), "fp32")
    assert torch.equal(watch.end_epoch().pairs, first.pairs)


def test_units_that_were_never_counted_are_not_dead_nor_anything_else():
    model = network().train()
    watch = units.UnitWatch(model, torch.zeros(1, 3, 16, 16))
    model.layer2.eval()
    histories = []
    for _ in range(2):
        forward(model, inputs(8), "fp32")
        histories.append(watch.end_epoch())
    before, now = histories
    idle = torch.cat([torch.full((n,), name.startswith("layer2")) for name, n in watch.layers.items()])
    assert torch.equal(now.pairs == 0, idle)
    assert idle.any()
    assert not now.dead[idle].any()
    for name, values in units.measures(now, before).items():
        assert values.isfinite().all(), name
        assert not values[idle].any(), name


def test_watching_changes_no_gradient():
    gradients = []
    for watched in (False, True):
        model = network()
        if watched:
            units.UnitWatch(model, torch.zeros(1, 3, 16, 16))
        for batch in inputs(8):
            model(batch).square().mean().backward()
        gradients.append([p.grad for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_watching_keeps_memory_in_proportion_to_the_units():
    model = network()
    watch = units.UnitWatch(model, torch.zeros(1, 3, 16, 16))
    forward(model, inputs(4, 4), "fp32")
    held = [value for value in vars(watch).values() if isinstance(value, torch.Tensor)]
    assert len(held) > 2
    count = sum(watch.layers.values())
    assert {tensor.numel() % count for tensor in held} == {0}
    assert max(tensor.numel() for tensor in held) == units.ROWS * count


def test_an_activation_used_twice_is_refused():
    with pytest.raises(
        ValueError, match="units cannot be counted in layer1.0.relu, used 2 times, layer1.1.relu, .*own"
    ):
        units.UnitWatch(torchvision.models.resnet18(), torch.zeros(1, 3, 32, 32))


def counts_of(fired, pairs=1000):
    fired = torch.tensor(fired)
    alive = torch.ones(len(fired), dtype=torch.bool)
    return Counts(fired, torch.full_like(fired, pairs), torch.zeros_like(fired), alive, 10)


def test_entropy_is_one_bit_at_a_half_and_nothing_at_both_ends():
    rate = torch.tensor([0.0, 0.5, 1.0, 0.11], dtype=torch.float64)
    expected = [0, 1, 0, -0.11 * math.log2(0.11) - 0.89 * math.log2(0.89)]
    assert units.entropy(rate).tolist() == pytest.approx(expected, abs=1e-12)


def test_divergence_is_the_bernoulli_kl_in_bits_and_stays_finite():
    now, before = counts_of([250, 0, 500, 300]), counts_of([500, 500, 0, 300])
    found = units.divergence(now, before).tolist()
    q = 0.5 / 1000
    assert found[0] == pytest.approx(0.25 * math.log2(0.5) + 0.75 * math.log2(1.5), abs=1e-12)
    assert found[1] == pytest.approx(q * math.log2(q / 0.5) + (1 - q) * math.log2((1 - q) / 0.5), abs=1e-12)
    assert found[2] == pytest.approx(0.5 * math.log2(0.5 / q) + 0.5 * math.log2(0.5 / (1 - q)), abs=1e-12)
    assert found[3] == 0


def test_dead_nearly_dead_revived_and_dying_follow_their_definitions():
    before, now = counts_of([0, 0, 500, 400, 100]), counts_of([0, 1, 400, 500, 900])
    measured = units.measures(now, before)
    assert measured["dead_units"].tolist() == [1, 0, 0, 0, 0]
    assert measured["nearly_dead_units"].tolist() == [1, 1, 0, 0, 0]
    assert measured["revived_units"].tolist() == [0, 1, 0, 0, 0]
    assert measured["dying_units"].tolist() == [0, 0, 1, 0, 0]
    totals = units.totals(measured)
    assert totals["dead_units"] == 1
    assert totals["dying_units"] == 1
    assert units.totals(units.measures(now, None))["dying_units"] is None


def test_layer_means_weigh_up_to_the_total():
    values = torch.arange(10, dtype=torch.float64)
    means = units.by_layer(values, {"a": 4, "b": 6})
    assert means == {"a": 1.5, "b": 6.5}
