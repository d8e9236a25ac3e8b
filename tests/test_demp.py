"""Demon Pruning: its pull, its noise, what it cuts, and the rows, places and lines of a method without targets."""

import math
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from common import files, models
from common.pruning.demp import Constants, DemonPruning, one_cycle
from common.pruning.task import Task
from common.reports.comparison import comparison, markdown
from common.saved import load_network
from common.tracing import find_groups
from common.training import checkpoints

IMAGE = torch.zeros(1, 1, 8, 8)
FLAGS = "--study neuron-sparsity --hold-out 900 --pruning-learning-rate 0.1 --methods demp"


def run_of(strength=0.1, progress=0.261, **constants):
    """A callback and a run as it stands before a step, with gradients of 1 but for one block, where they are 0."""
    torch.manual_seed(0)
    model = models.resnet18(10, channels=1, width=4)
    for name, parameter in model.named_parameters():
        parameter.grad = torch.full_like(parameter, 0.0 if name.startswith("layer2.0.") else 1.0)
    layers = {name: len(m) for name, m in find_groups(model, IMAGE).outputs.items() if "act" in name}
    run = SimpleNamespace(model=model, device=torch.device("cpu"), epoch=2, progress=progress, optimizer=None)
    run.groups, run.watch = find_groups(model, IMAGE), SimpleNamespace(layers=layers)
    task = Task(None, "neuron", 0, 1, None, None, None, strength)
    pruning = DemonPruning(task, Constants(**constants))
    pruning.prepare(run)
    pruning.on_epoch_start(run)
    return pruning, run


# The parts --------------------------------------------------------------------------------------------------------


def test_the_strength_rises_to_its_height_and_is_gone_at_its_end():
    cycle = [one_cycle(progress, 0.3, 0.8) for progress in np.linspace(0, 1, 101)]
    assert cycle[0] == 0
    assert cycle[24] == max(cycle) == 1
    assert cycle[12] == pytest.approx(0.5)
    assert cycle[52] == pytest.approx(0.5)
    assert all(value == 0 for value in cycle[80:])
    assert np.all(np.diff(cycle[:25]) > 0)
    assert np.all(np.diff(cycle[24:81]) < 0)


@pytest.mark.parametrize("penalty", ["l1", "l2"])
def test_the_pull_is_the_gradient_of_the_penalty_on_the_scales(penalty):
    pruning, run = run_of(0.2, penalty=penalty)
    norms = models.batch_norms(run.model)
    with torch.no_grad():
        for norm in norms:
            norm.weight.uniform_(-1, 1)
    before = {name: p.grad.clone() for name, p in run.model.named_parameters()}
    pruning.pull(run)
    scales = {id(norm.weight): norm.weight.detach().double().requires_grad_() for norm in norms}
    size = sum(scale.abs().sum() if penalty == "l1" else scale.square().sum() for scale in scales.values())
    (0.2 * one_cycle(run.progress, 0.3, 0.87) * size).backward()
    for name, parameter in run.model.named_parameters():
        added = (parameter.grad - before[name]).double()
        wanted = scales[id(parameter)].grad if id(parameter) in scales else torch.zeros_like(added)
        assert torch.allclose(added, wanted, atol=1e-6), name
    assert any(scale.grad.abs().max() > 0.1 for scale in scales.values())


def test_noise_shakes_every_weight_that_has_a_gradient_and_no_other():
    pruning, run = run_of(noise=0.01)
    before = {name: p.detach().clone() for name, p in run.model.named_parameters()}
    pruning.shake(run)
    moved = {name: p.detach() - before[name] for name, p in run.model.named_parameters()}
    still = {name for name, p in run.model.named_parameters() if not p.grad.any()}
    assert {name for name, values in moved.items() if not values.any()} == still != set()
    values = torch.cat([values.flatten() for name, values in moved.items() if name not in still])
    assert (values != 0).float().mean() > 0.99
    assert values.std().item() == pytest.approx(0.01, rel=0.02)
    assert abs(values.mean().item()) < 0.01 / math.sqrt(len(values)) * 4


def test_what_did_not_fire_in_an_epoch_is_cut_and_nothing_else():
    pruning, run = run_of()
    groups, firing = run.groups, torch.ones(sum(run.watch.layers.values()), dtype=torch.bool)
    rng = np.random.default_rng(0)
    for number in rng.choice(len(firing), 30, replace=False):
        firing[number] = False
    dead = groups.all_dead(~firing, list(run.watch.layers))
    assert 0 < dead.sum() < 30  # a stream's group takes all of its layers
    pruning.cut(run, ~firing)
    assert torch.equal(~groups.alive, dead)
    assert pruning.emptied == []


def test_a_layer_of_dead_units_keeps_one_and_is_told_once(capsys):
    pruning, run = run_of(0.3)
    coupling = next(coupling for coupling in run.groups.couplings if len(coupling.layers) == 1)
    silent = torch.cat([torch.full((n,), name in coupling.layers) for name, n in run.watch.layers.items()])
    for _ in range(2):
        pruning.cut(run, silent)
    assert run.groups.alive[coupling.slice].sum() == 1
    assert run.groups.alive.sum() == len(run.groups) - coupling.size + 1
    (line,) = capsys.readouterr().out.splitlines()
    assert f"demp at strength 0.3: all units of {coupling.name} are dead in epoch 3" in line


# Whole runs ----------------------------------------------------------------------------------------------------


def test_stronger_is_sparser_and_the_saved_network_is_what_the_rows_say(call, tmp_path):
    status, _, error = call("Resnet18", f"{FLAGS} dense --epochs 6 --demp-strengths 0.01 0.05 0.2")
    assert (status, error) == (0, "")
    rows = files.read_csv(tmp_path / "out/Resnet18/neuron-sparsity.csv")
    assert [(row["method"], row["target"], row["strength"]) for row in rows] == [
        ("dense", 0.0, None),
        ("demp", None, 0.01),
        ("demp", None, 0.05),
        ("demp", None, 0.2),
    ]
    sparsities = [row["neuron_sparsity"] for row in rows]
    assert sparsities == sorted(sparsities)
    assert sparsities[1] == 0
    assert 0 < sparsities[2] < sparsities[3]
    for path in (tmp_path / "state").rglob("final.pt"):
        final = files.load(path)
        strength = final["config"]["strength"]
        (row,) = [row for row in rows if row["strength"] == strength]
        left = sum(p.numel() for n, p in load_network(path).named_parameters() if n.endswith(".weight") and p.dim() > 1)
        dense = models.build(final["network"])
        whole = sum(m.weight.numel() for m in dense.modules() if isinstance(m, (nn.Conv2d, nn.Linear)))
        assert row["weight_sparsity"] == pytest.approx(1 - left / whole)


def test_a_run_of_demp_is_the_same_in_all_studies_and_extends_a_table(call, tmp_path):
    flags = "--epochs 1 --demp-strengths 0.01"
    assert call("Resnet18", f"{FLAGS} {flags}")[0] == 0
    status, output, _ = call("Resnet18", f"{FLAGS} {flags} --study flops-sparsity")
    assert status == 0
    assert "demp strength 0.01 seed 0: finished before" in output
    table = tmp_path / "out/Resnet18/neuron-sparsity.csv"
    # A table of an earlier version has no strengths.
    table.write_text("".join(f"{line.rpartition(',')[0]}\n" for line in table.read_text().splitlines()[:1]))
    more = "--sparsities 0.5 --extend --methods demp random"
    status, _, error = call("Resnet18", f"{FLAGS} {flags} {more}")
    assert (status, error) == (0, "")
    assert [(row["method"], row["strength"]) for row in files.read_csv(table)] == [("random", None), ("demp", 0.01)]


def test_an_interrupted_run_ends_as_if_untouched(call, tmp_path, monkeypatch):
    flags = f"{FLAGS} --epochs 4 --demp-strengths 0.3"
    assert call("Resnet18", flags, run_dir=tmp_path / "whole")[0] == 0
    honest = checkpoints.Checkpoints.on_epoch_end

    def stop(self, run):
        honest(self, run)
        if run.epoch == 3:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints.Checkpoints, "on_epoch_end", stop)
        assert call("Resnet18", flags, run_dir=tmp_path / "pieces")[0] == 130
    assert call("Resnet18", flags, run_dir=tmp_path / "pieces")[0] == 0
    whole, pieces = (files.load(*(tmp_path / name).rglob("final.pt")) for name in ("whole", "pieces"))
    assert not whole["counts"]["alive"][2].all()  # something was cut before it was interrupted
    for name, tensor in whole["model"].items():
        assert torch.equal(tensor, pieces["model"][name]), name


# Its place in the tables -----------------------------------------------------------------------------------------


def rows_of(method, accuracies, sparsity, target=0.8, strength=None):
    return [
        {"method": method, "target": target, "strength": strength, "seed": seed, "test_accuracy": accuracy}
        | {"neuron_sparsity": sparsity}
        for seed, accuracy in enumerate(accuracies)
    ]


OURS = rows_of("ds-pruning", [0.70, 0.72, 0.71], 0.8)
LOW, HIGH = [0.60, 0.621, 0.611], [0.80, 0.821, 0.811]


def test_at_a_target_stands_the_strength_whose_sparsity_is_nearest():
    far = rows_of("demp", HIGH, 0.5, None, 0.01)
    near = rows_of("demp", LOW, 0.78, None, 0.03)
    (_, row) = comparison(pd.DataFrame(OURS + far + near))
    assert (row["method"], row["sparsity"]) == ("demp", pytest.approx(0.78))
    assert row["mean"] == pytest.approx(np.mean(LOW))
    assert "Demon Pruning (at 78.0 %)" in markdown([row])


@pytest.mark.parametrize(
    ("accuracies", "sparsity", "verdict"),
    [
        (LOW, 0.78, "ahead"),  # it kept more units and is still behind
        (LOW, 0.803, "ahead"),
        (LOW, 0.82, "cannot be told"),
        (HIGH, 0.82, "behind"),
        (HIGH, 0.78, "cannot be told"),
    ],
)
def test_where_it_kept_more_or_less_than_the_target_only_what_follows_is_told(accuracies, sparsity, verdict):
    table = comparison(pd.DataFrame(OURS + rows_of("demp", accuracies, sparsity, None, 0.03)))
    assert {row["method"]: row["verdict"] for row in table}["demp"] == verdict
