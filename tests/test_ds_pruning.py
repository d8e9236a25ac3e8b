"""The controller's five parts, and whole runs that end at their target."""

import csv
from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional

from common import files, models, sparsity, units
from common.pruning import METHODS
from common.pruning.ds_pruning import Constants, Press, Vitality, choose, evened, planned_sparsity
from common.pruning.task import Task, spread_order, within_floor
from common.saved import load_network
from common.tracing import find_groups

IMAGE = torch.zeros(1, 1, 8, 8)


def network(activation="relu", dtype=torch.float32):
    torch.manual_seed(0)
    model = models.resnet18(10, channels=1, width=8, activation=activation).to(dtype)
    with torch.no_grad():  # shifts and scales of their own, so that no derivative is 0 by symmetry
        for norm in models.batch_norms(model):
            norm.weight.uniform_(0.5, 1.5)
            norm.bias.uniform_(-0.5, 0.5)
    return model, find_groups(model, IMAGE)


def norms_of(model, groups):
    fed = {name for coupling in groups.couplings for name in coupling.batch_norms}
    return {name: module for name, module in model.named_modules() if name in fed}


def task(target=0.5, measure="neuron"):
    return Task(target, measure, 0, 1, SimpleNamespace(activation="relu"))


# Choose


def test_the_plan_starts_at_warmup_ends_at_settle_and_never_falls():
    plan = [planned_sparsity(step / 100, 0.1, 0.5, 0.8) for step in range(101)]
    assert plan[:11] == [0.0] * 11
    assert plan[50:] == [0.8] * 51
    assert plan == sorted(plan)
    assert plan[30] == pytest.approx(0.8 * (1 - 0.5**3))
    assert planned_sparsity(0.3, 0.1, 0.5, 0.8, power=1.0) == pytest.approx(0.4)


def test_evenness_moves_costs_from_as_they_are_to_relative_to_their_layer():
    _, groups = network()
    cost = torch.rand(len(groups), dtype=torch.float64, generator=torch.Generator().manual_seed(1)) + 0.1
    first = groups.couplings[0].slice
    cost[first] *= 100
    assert torch.equal(evened(groups, cost, 0.0), cost)
    relative = evened(groups, cost, 1.0)
    for coupling in groups.couplings:
        assert relative[coupling.slice].mean() == pytest.approx(1)
        assert torch.equal(relative[coupling.slice].argsort(), cost[coupling.slice].argsort())
    half = evened(groups, cost, 0.5)
    assert relative[first].mean() < half[first].mean() < cost[first].mean()


def test_of_equal_vitality_groups_of_many_weights_go_first_where_weights_are_to_go():
    _, groups = network()
    settings = SimpleNamespace()
    costs = {}
    for measure in ("neuron", "weight"):
        price = Task(0.8, measure, 0, 1, settings).price(groups)
        constants = Constants.of(settings, measure)
        costs[measure] = evened(groups, 1 / price, constants.evenness)
    assert costs["neuron"].min() == costs["neuron"].max()
    weights = price  # of the last one
    assert costs["weight"][weights.argmin()] > 2 * costs["weight"][weights.argmax()]
    assert Constants.of(SimpleNamespace(evenness=1.0), "weight").evenness == 1.0


@pytest.mark.parametrize("activation", ["relu", "leaky-relu"])
def test_vitality_is_the_squared_derivative_of_the_loss_in_a_gate_on_the_group(activation):
    model, groups = network(activation, torch.float64)
    inputs, labels = torch.randn(16, 1, 8, 8, dtype=torch.float64), torch.arange(16) % 10
    norms = norms_of(model, groups)

    def loss(group=None, gate=1.0):
        """With the outputs of all the batch norms that feed the group scaled by the gate."""
        gates = torch.ones(len(groups), dtype=torch.float64)
        if group is not None:
            gates[group] = gate
        hooks = [
            norm.register_forward_hook(lambda _m, _i, out, name=name: out * inside(name, gates)[:, None, None])
            for name, norm in norms.items()
        ]
        value = functional.cross_entropy(model(inputs), labels)
        for hook in hooks:
            hook.remove()
        return value

    def inside(name, gates):
        return groups.spread(name, gates)

    vitality = Vitality(groups, 1, torch.device("cpu"))
    loss().backward()
    vitality.mean_square = vitality.mean_square.double()
    vitality.observe(groups, norms)
    streams = groups.units.argmax().item(), groups.units.argmin().item()
    for group in (*streams, 100, 150):
        with torch.no_grad():
            slope = (loss(group, 1 + 1e-7) - loss(group, 1 - 1e-7)) / 2e-7
        assert vitality.mean_square[group] == pytest.approx(slope.item() ** 2, rel=1e-4, abs=1e-14)


def test_a_dead_group_has_no_vitality_and_is_chosen_first():
    model, groups = network()
    norms = norms_of(model, groups)
    inner = groups.couplings[2]
    group = inner.start + 3
    with torch.no_grad():
        for name in inner.batch_norms:
            norms[name].weight[3], norms[name].bias[3] = 0.0, -1.0
    vitality = Vitality(groups, 1, torch.device("cpu"))
    functional.cross_entropy(model(torch.randn(8, 1, 8, 8)), torch.arange(8)).backward()
    vitality.observe(groups, norms)
    assert vitality.mean_square[group] == 0
    chosen = choose(groups, vitality.mean_square.double(), torch.zeros(len(groups), dtype=torch.bool), task(), 0.1, 0.1)
    assert chosen[0] == group


@pytest.mark.parametrize("measure", ["neuron", "weight"])
@pytest.mark.parametrize("due", [0.3, 0.6, 0.8])
def test_what_is_chosen_reaches_the_plan_to_within_one_group_and_keeps_the_floor(measure, due):
    _, groups = network()
    cost = torch.rand(len(groups), dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    taken = torch.zeros(len(groups), dtype=torch.bool)
    taken[[5, 60, 200]] = True
    job = task(measure=measure)
    chosen = choose(groups, cost, taken, job, due, 0.1)
    everything = torch.cat([taken.nonzero().flatten(), chosen])
    curve = job.curve(groups, everything)
    assert curve[-1] >= due > curve[-2]
    assert not taken[chosen].any()
    left = groups.alive.clone()
    left[everything] = False
    for coupling in groups.couplings:
        assert left[coupling.slice].sum() >= 0.1 * coupling.size


def test_nothing_is_chosen_while_deaths_by_themselves_keep_up_with_the_plan():
    _, groups = network()
    order = spread_order(groups, None)
    taken = torch.zeros(len(groups), dtype=torch.bool)
    taken[order[:120]] = True
    due = task().curve(groups, order[:120])[-1].item()
    cost = torch.rand(len(groups), dtype=torch.float64)
    assert len(choose(groups, cost, taken, task(), due - 0.01, 0.0)) == 0
    assert len(choose(groups, cost, taken, task(), due + 0.05, 0.0)) > 0


@pytest.mark.parametrize(("measure", "target", "share"), [("neuron", 0.8, 0.2), ("weight", 0.75, 0.5)])
def test_a_floor_is_a_share_of_what_an_even_layer_keeps(measure, target, share):
    _, groups = network()
    assert task(target, measure).floor(groups, 0.5) == pytest.approx(share / 2)


@pytest.mark.parametrize("measure", ["neuron", "weight"])
@pytest.mark.parametrize("target", [0.5, 0.9, 0.95])
def test_a_floor_gives_way_to_the_target(measure, target):
    _, groups = network()  # of 8 channels: its layers cannot keep the even share of 5 % to the channel
    job = task(target, measure)
    if target == 0.95 and measure == "neuron":
        assert job.most(groups, job.even_share) < target
    assert 0 <= job.floor(groups, 1.0) <= job.even_share
    assert job.most(groups, job.floor(groups, 1.0)) >= target


def test_no_coupling_is_emptied_whatever_is_asked():
    _, groups = network()
    order = within_floor(groups, spread_order(groups, torch.Generator().manual_seed(0)), 0.0)
    left = groups.alive.clone()
    left[order] = False
    assert [int(left[coupling.slice].sum()) for coupling in groups.couplings] == [1] * len(groups.couplings)


# Press


@pytest.mark.parametrize("activation", ["relu", "leaky-relu"])
def test_a_pressed_group_stops_firing_and_the_others_are_left_alone(activation):
    model, groups = network(activation)
    norms = norms_of(model, groups)
    chosen = torch.tensor(
        [groups.couplings[0].start + 1, groups.couplings[1].start + 2, groups.couplings[-1].start + 5]
    )
    before = {name: (n.weight.clone(), n.bias.clone()) for name, n in norms.items()}
    press = Press(groups, 20, 3.0, activation != "relu", dict.fromkeys(norms, 1.0))
    press.add(chosen)
    watch = units.UnitWatch(model, IMAGE)
    for _ in range(20):
        press.apply(groups, norms)
    assert press.over.nonzero().flatten().tolist() == sorted(chosen.tolist())
    model(torch.randn(64, 1, 8, 8))
    counts = watch.end_epoch()
    groups_of_units = torch.cat([groups.outputs[layer] for layer in watch.layers])
    silent = torch.isin(groups_of_units, chosen)
    assert (counts.fired[silent] == 0).all()
    assert (counts.fired[~silent] > 0).float().mean() > 0.9
    marks = torch.zeros(len(groups), dtype=torch.bool)
    marks[chosen] = True
    for name, norm in norms.items():
        others = ~groups.spread(name, marks)
        assert torch.equal(norm.weight[others], before[name][0][others])
        assert torch.equal(norm.bias[others], before[name][1][others])


# Whole runs


def rows(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize(
    ("script", "study"),
    [("Resnet18", "neuron-sparsity"), ("Resnet18", "weight-sparsity"), ("LeakyReLU", "neuron-sparsity")],
)
def test_ds_pruning_and_its_controls_end_at_their_target_on_the_network_that_is_saved(call, tmp_path, script, study):
    methods = "dense random scratch ds-pruning"
    flags = f"--study {study} --sparsities 0.5 0.8 --epochs 2 --hold-out 300 --methods {methods}"
    status, _, error = call(script, flags)
    assert (status, error) == (0, "")
    found = rows(tmp_path / "out" / script / f"{study}.csv")
    assert len(found) == 1 + 3 * 2
    dense = models.resnet18(10, channels=1, width=8)
    groups = find_groups(dense, IMAGE)
    measure = study.split("-")[0]
    price = task(measure=measure).price(groups).max().item()
    price /= sum(groups.layer_units.values()) if measure == "neuron" else sparsity.measure(dense, IMAGE).weights
    for row in found[1:]:
        assert 0 <= float(row[f"{measure}_sparsity"]) - float(row["target"]) < price
    for path in tmp_path.glob("state/**/final.pt"):
        final = files.load(path)
        size, whole = sparsity.measure(load_network(path), IMAGE), sparsity.measure(dense, IMAGE)
        got = size.neuron_sparsity(whole) if measure == "neuron" else size.weight_sparsity(whole)
        assert 0 <= got - final["config"].get("target", 0) < price or final["config"]["method"] == "dense"
        if final["config"]["method"] == "ds-pruning":
            assert sum(entry["cut_still_firing"] for entry in final["DSPruning"]["log"]) == 0
            assert final["DSPruning"]["log"][-1]["measured"] == pytest.approx(got)


def test_the_rows_of_scratch_have_the_shape_that_ds_pruning_ended_with(call, tmp_path):
    call("Resnet18", "--study neuron-sparsity --sparsities 0.6 --epochs 2 --methods scratch ds-pruning")
    finals = {f["config"]["method"]: f for f in map(files.load, tmp_path.glob("state/**/final.pt"))}
    ours, theirs = finals["scratch"]["model"], finals["ds-pruning"]["model"]
    assert {name: value.shape for name, value in ours.items()} == {name: value.shape for name, value in theirs.items()}
    assert not torch.equal(ours["conv1.weight"], theirs["conv1.weight"])


def test_a_new_method_needs_a_line_in_the_table_and_nothing_else(call, tmp_path, monkeypatch):
    monkeypatch.setitem(METHODS, "random-twin", METHODS["random"])
    status, _, _ = call("Resnet18", "--study neuron-sparsity --methods random random-twin --sparsities 0.5 --epochs 1")
    assert status == 0
    one, two = rows(tmp_path / "out/Resnet18/neuron-sparsity.csv")
    assert one["test_accuracy"] == two["test_accuracy"]


WRONG = [
    ("--sparsities 1", "SPARSITIES", "[0, 1)"),
    ("--sparsities -0.1", "SPARSITIES"),
    ("--sparsities 0.99", "target: got 0.99", "without losing a whole layer"),
    ("--settle 0.05 --warmup 0.3", "SETTLE", "after WARMUP"),
    ("--settle 1.5", "SETTLE", "(0, 1]"),
    ("--methods magic", "METHODS: got 'magic'", "ds-pruning"),
    ("--epochs 1 --batch-size 1400", "epochs: 2 steps leave 1", "too few"),
]


@pytest.mark.parametrize("case", WRONG, ids=lambda case: case[0])
def test_a_wrong_constant_ends_in_one_line(call, tmp_path, case):
    flags, *words = case
    status, _, error = call("Resnet18", f"--study neuron-sparsity --methods ds-pruning --sparsities 0.5 {flags}")
    assert status == 2
    assert error.count("\n") == 1
    for word in words:
        assert word in error
    assert not list(tmp_path.glob("state/**/final.pt"))
