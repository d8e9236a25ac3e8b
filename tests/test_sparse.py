"""Masks that hold at every step, exact densities, and SNIP, ERK, SET and RigL against their definitions."""

import math
from types import SimpleNamespace

import pytest
import torch
from torch.func import functional_call
from torch.nn import functional

from common import files, models, sparsity
from common.cutting import WEIGHTED
from common.pruning import METHODS, sparse
from common.pruning.ds_pruning import planned_sparsity
from common.pruning.task import Task, Unreachable
from common.tracing import find_groups
from common.training import loop
from tests.test_scores import IMAGE, interrupted_after, rows

SHAPES = [module.weight.shape for module in models.conv_and_linear(models.resnet18(10, channels=1, width=16))]

UNSTRUCTURED = [name for name, method in METHODS.items() if not method.structured]


def task(target=0.9, seed=0):
    return Task(target, "weight", seed, 1, SimpleNamespace(batch_size=8))


# Which weights


@pytest.mark.parametrize("target", [0.1, 0.5, 0.9, 0.98])
def test_erk_densities_are_proportional_to_their_equation_capped_at_1_and_sum_to_the_target(target):
    sizes = [math.prod(shape) for shape in SHAPES]
    count = sparse.kept(target, sum(sizes))
    counts = sparse.erdos_renyi_kernel(SHAPES, count)
    assert sum(counts) == count
    assert 1 - count / sum(sizes) == pytest.approx(target, abs=1 / sum(sizes))
    raw = [sum(shape) / size for shape, size in zip(SHAPES, sizes, strict=True)]  # (n_in + n_out + kh + kw) / product
    capped = [c == size for c, size in zip(counts, sizes, strict=True)]
    factors = [c / size / r for c, size, r, full in zip(counts, sizes, raw, capped, strict=True) if not full]
    factor = sorted(factors)[len(factors) // 2]
    for got, size, r, full in zip(counts, sizes, raw, capped, strict=True):
        assert abs(got - min(factor * r, 1) * size) <= 2  # whole weights
        assert not full or factor * r * size >= size - 2
    assert any(capped) == (target < 0.98)


def test_erk_that_leaves_a_layer_without_a_weight_is_refused():
    with pytest.raises(Unreachable):
        sparse.erdos_renyi_kernel(SHAPES, 20)


def test_what_rigl_exchanges_by_hand():
    weight = torch.tensor([[0.5, -0.1, 0.9], [0.0, 0.2, 0.0], [0.0, 0.0, -0.3]])
    mask = torch.tensor([[1, 1, 1], [0, 1, 0], [0, 0, 1]], dtype=torch.bool)
    gradient = torch.tensor([[9.0, 0.1, 9.0], [0.4, 0.2, -5.0], [3.0, 0.0, 9.0]])
    # Dropped: -0.1 and 0.2. Largest gradients of what is out then: -5 and 3, both out before.
    expected = torch.tensor([[1, 0, 1], [0, 0, 1], [1, 0, 1]], dtype=torch.bool)
    assert torch.equal(sparse.exchange(mask, weight, gradient.abs(), 2), expected)
    # -0.1 has the largest gradient of all that is out: it is taken back.
    gradient[0, 1] = 7.0
    expected = torch.tensor([[1, 1, 1], [0, 0, 1], [0, 0, 1]], dtype=torch.bool)
    assert torch.equal(sparse.exchange(mask, weight, gradient.abs(), 2), expected)
    assert torch.equal(sparse.exchange(mask, weight, gradient.abs(), 0), mask)


def test_the_share_exchanged_is_03_at_first_and_falls_to_0_along_a_cosine():
    mask, weight = torch.zeros(2000, dtype=torch.bool), torch.zeros(2000)
    mask[:1000], weight[:1000] = True, torch.arange(1000) + 1.0
    growth = torch.zeros(2000)
    growth[1000:] = 1.0
    for step, share in ((0, 0.3), (25, 0.15 * (1 + math.sqrt(0.5))), (50, 0.15), (100, 0.0)):
        (new,) = sparse.moved([mask], [weight], [growth], step, 100)
        assert new[1000:].sum() == int(1000 * share + 1e-9)
        assert new.sum() == 1000


def test_a_ranking_over_all_layers_keeps_the_highest_and_one_in_every_layer():
    given = [torch.tensor([[5.0, 4.0], [3.0, 2.0]]), torch.tensor([0.1, 0.3, 0.2])]
    first, second = sparse.largest(given, 3)
    assert first.tolist() == [[True, True], [False, False]]
    assert second.tolist() == [False, True, False]


def test_saliency_keeps_the_largest_derivatives_of_the_loss_in_a_factor_on_the_weight(monkeypatch):
    run, _ = started(models.resnet18(10, channels=1, width=4).double(), 0.9)
    batches = [(images.double(), labels) for images, labels in data(8)]
    monkeypatch.setattr(sparse, "scoring_batches", lambda task, number: batches)
    masks = sparse.most_salient(run, task())
    parameters = dict(run.model.named_parameters())
    names = [name + ".weight" for name, m in run.model.named_modules() if isinstance(m, WEIGHTED)]
    factors = [torch.ones_like(parameters[name], requires_grad=True) for name in names]
    scaled = {name: parameters[name].detach() * factor for name, factor in zip(names, factors, strict=True)}
    loss = sum(functional.cross_entropy(functional_call(run.model, scaled, x), y) for x, y in batches)
    slopes = torch.cat([slope.abs().flatten() for slope in torch.autograd.grad(loss, factors)])
    mask = torch.cat([mask.flatten() for mask in masks])
    assert mask.sum() == sparse.kept(0.9, len(mask))
    assert slopes[mask].sort().values[len(masks) :].min() >= slopes[~mask].max()  # each layer's one is exempt


# While the network trains


def data(count, size=8):
    generator = torch.Generator().manual_seed(1)
    return [
        (torch.randn(size, 1, 8, 8, generator=generator), torch.randint(10, (size,), generator=generator))
        for _ in range(count)
    ]


def started(model, target, epochs=2, steps=30):
    optimizer, scheduler = loop.sgd(model, 0.1, 0.9, 5e-4, "constant", epochs * steps)
    run = loop.Training(model, optimizer, scheduler, epochs, steps, "fp32", torch.device("cpu"))
    run.groups = find_groups(model, IMAGE)
    return run, task(target)


class Probe(loop.Callback):
    """Looks at weights, gradients and momentum at every step, and notes the masks."""

    def __init__(self, masked):
        self.masked, self.masks, self.grown = masked, [], 0

    def on_gradients(self, run):
        for weight, mask in zip(self.masked.weights, self.masked.masks, strict=True):
            assert (weight.grad[~mask] == 0).all()

    def on_step(self, run):
        before = self.masks[-1] if self.masks else self.masked.masks
        for weight, mask, old in zip(self.masked.weights, self.masked.masks, before, strict=True):
            momentum = run.optimizer.state[weight]["momentum_buffer"]
            for values in (weight.detach(), momentum):
                assert (values[~mask] == 0).all()
                assert (values[mask & ~old] == 0).all()
            self.grown += int((mask & ~old).sum())
        self.masks.append([mask.clone() for mask in self.masked.masks])


@pytest.mark.parametrize("method", UNSTRUCTURED)
def test_masks_hold_on_weights_gradients_and_momentum_at_every_step(method, monkeypatch):
    monkeypatch.setattr(sparse, "scoring_batches", lambda task, number: data(2))
    monkeypatch.setattr(sparse, "check_scoring", lambda task: None)
    torch.manual_seed(0)
    run, job = started(models.resnet18(10, channels=1, width=4), 0.9)
    (masked,) = METHODS[method].callbacks(job)
    masked.prepare(run)
    probe = Probe(masked)
    loop.train(run, lambda epoch: data(30), [masked, probe])
    total = sum(weight.numel() for weight in masked.weights)
    counts = [[int(mask.sum()) for mask in masks] for masks in probe.masks]
    assert sum(int((weight != 0).sum()) for weight in masked.weights) <= sum(counts[-1])
    assert sum(counts[-1]) == sparse.kept(0.9, total)
    assert run.densities == {n: c / w.numel() for n, c, w in zip(masked.names, counts[-1], masked.weights, strict=True)}
    changes = [n for n in range(1, 60) if not all(map(torch.equal, probe.masks[n], probe.masks[n - 1]))]
    if method in ("set", "rigl"):
        assert all(count == counts[0] for count in counts)  # in every layer, after every update
        assert probe.grown > 100
        assert len(changes) >= 8
        assert max(changes) < 45
    elif method == "saliency":
        assert changes == []
    else:
        plan = [sparse.kept(planned_sparsity(step, 3, 45, 0.9), total) for step in changes]
        assert [sum(counts[step]) for step in changes] == plan
        assert len(changes) >= 8
        assert max(changes) == 45


def test_gradual_magnitude_pruning_keeps_the_largest_weights_of_the_whole_network():
    torch.manual_seed(0)
    run, job = started(models.resnet18(10, channels=1, width=4), 0.8)
    weights = [module.weight for module in models.conv_and_linear(run.model)]
    masks = sparse.shrink(job, weights, [], sparse.everything(run, job), 45, 45)
    kept = torch.cat([w.detach()[mask].abs() for w, mask in zip(weights, masks, strict=True)])
    gone = torch.cat([w.detach()[~mask].abs() for w, mask in zip(weights, masks, strict=True)])
    assert len(kept) == sparse.kept(0.8, len(kept) + len(gone))
    assert kept.min() >= gone.max()


def test_what_set_grows_depends_on_seed_and_step_only():
    torch.manual_seed(0)
    run, job = started(models.resnet18(10, channels=1, width=4), 0.9)
    weights = [module.weight for module in models.conv_and_linear(run.model)]
    masks = sparse.random_by_layer(run, job)

    def grown(seed, step):
        new = sparse.grow_at_random(task(seed=seed), weights, [], masks, step, 1000)
        return torch.cat([(mask & ~old).flatten() for mask, old in zip(new, masks, strict=True)])

    assert torch.equal(grown(0, 10), grown(0, 10))
    assert not torch.equal(grown(0, 10), grown(1, 10))
    assert not torch.equal(grown(0, 10), grown(0, 11))


# Whole runs


def test_every_unstructured_method_ends_at_its_target_and_is_counted_by_its_masks(call, tmp_path):
    methods = " ".join(UNSTRUCTURED)
    flags = f"--study weight-sparsity --sparsities 0.9 --epochs 2 --hold-out 1000 --methods {methods}"
    assert call("Resnet18", flags)[::2] == (0, "")
    dense = models.resnet18(10, channels=1, width=8)
    whole, flops = sparsity.measure(dense, IMAGE), sparsity.layer_flops(dense, IMAGE)
    found = {row["method"]: row for row in rows(tmp_path / "out/Resnet18/weight-sparsity.csv")}
    assert sorted(found) == sorted(UNSTRUCTURED)
    for path in tmp_path.glob("state/**/final.pt"):
        final = files.load(path)
        row = found[final["config"]["method"]]
        masks = final["Masked"]["masks"]
        assert all((final["model"][f"{name}.weight"][~mask] == 0).all() for name, mask in masks.items())
        used = sum(int(mask.sum()) for mask in masks.values())
        assert used == sparse.kept(0.9, whole.weights)
        assert float(row["weight_sparsity"]) == pytest.approx(1 - used / whole.weights, abs=1e-12)
        assert int(row["parameters"]) == whole.parameters - whole.weights + used
        shares = {name: mask.double().mean().item() for name, mask in masks.items()}
        counted = sum(shares.get(name, 0) * count for name, count in flops.items())
        assert int(row["inference_flops"]) == pytest.approx(counted, abs=2)
        training_ratio, inference_ratio = float(row["training_flops_ratio"]), float(row["inference_flops_ratio"])
        if row["method"] == "magnitude-unstructured":
            assert inference_ratio < training_ratio < 1
        else:
            assert training_ratio == pytest.approx(inference_ratio, rel=1e-6)


@pytest.mark.parametrize("method", ["set", "rigl"])
def test_an_interrupted_sparse_run_ends_as_if_untouched(call, tmp_path, monkeypatch, method):
    flags = f"--study weight-sparsity --sparsities 0.9 --epochs 2 --hold-out 1000 --methods {method}"
    assert call("Resnet18", flags, run_dir=tmp_path / "whole")[0] == 0
    with monkeypatch.context() as patch:
        interrupted_after(1, patch)
        assert call("Resnet18", flags)[0] == 130
    assert call("Resnet18", flags)[0] == 0
    whole, pieces = (files.load(next((tmp_path / name).glob("**/final.pt"))) for name in ("whole", "state"))
    masks, again = whole["Masked"]["masks"], pieces["Masked"]["masks"]
    assert all(torch.equal(masks[name], again[name]) for name in masks)
    assert all(torch.equal(whole["model"][name], pieces["model"][name]) for name in whole["model"])


# Wrong use


@pytest.mark.parametrize("method", UNSTRUCTURED)
def test_a_method_without_units_has_no_place_in_the_neuron_sparsity_study(call, tmp_path, method):
    status, _, error = call("Resnet18", f"--study neuron-sparsity --sparsities 0.5 --methods dense {method}")
    assert status == 2
    assert method in error
    assert "removes single weights and no units" in error
    assert "earlycrop-s" in error
    assert error.count("\n") == 1
    assert not list(tmp_path.glob("state/**/final.pt"))


def test_a_target_that_leaves_less_than_a_weight_a_layer_is_listed(call):
    status, _, error = call(
        "Resnet18", "--study weight-sparsity --sparsities 0.9999 --epochs 1 --methods rigl saliency"
    )
    assert status == 2
    assert error.count("target: got 0.9999") == 2
