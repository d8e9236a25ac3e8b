"""The two figures of the lead against width and against length of training."""

import json
import sys

import pytest

from common.files import write_csv
from common.reports import canvas, scale

COLUMNS = ["method", "target", "neuron_sparsity", "test_accuracy", "seed", "epochs", "width", "strength"]
SETTINGS = {"dataset": "cifar10", "activation": "relu", "hold_out": 0}
METHODS = {"snap": {}, "random": {}, "ds-pruning": {}, "dense": {}}


def table(folder, width, epochs, settings=SETTINGS, known=METHODS, **methods):
    """A table of neuron-sparsity: accuracies by seed of each method, at the target."""
    folder.mkdir(parents=True)
    rows = [
        {"method": name.replace("_", "-"), "target": 0.8, "neuron_sparsity": 0.8, "test_accuracy": accuracy}
        | {"seed": seed, "width": width, "epochs": epochs}
        for name, accuracies in methods.items()
        for seed, accuracy in enumerate(accuracies)
    ]
    write_csv(folder / "neuron-sparsity.csv", COLUMNS, rows)
    (folder / "neuron-sparsity.json").write_text(json.dumps({"settings": {**settings, "methods": known}}))


@pytest.fixture
def plots(tmp_path):
    table(tmp_path / "Resnet18", 16, 10, dense=[0.9], ds_pruning=[0.70, 0.72, 0.71], snap=[0.65, 0.66, 0.67])
    table(tmp_path / "width-32" / "Resnet18", 32, 10, ds_pruning=[0.80], snap=[0.79], random=[0.7])
    table(tmp_path / "epochs-30" / "Resnet18", 16, 30, ds_pruning=[0.80, 0.81], snap=[0.81, 0.83])
    table(tmp_path / "gpu" / "Resnet18", 64, 30, ds_pruning=[0.9], snap=[0.8])  # on neither axis
    table(tmp_path / "other" / "Resnet18", 64, 10, {**SETTINGS, "activation": "swish"}, ds_pruning=[0.9], snap=[0.1])
    void = {name: constants for name, constants in METHODS.items() if name != "snap"}  # scored otherwise than today
    table(tmp_path / "old" / "Resnet18", 8, 10, SETTINGS, void, ds_pruning=[0.9], snap=[0.1])
    return tmp_path


def test_leads_are_paired_differences_at_the_values_that_tables_have(plots):
    rows = scale.rows_below(plots)
    width, epochs = (scale.leads(rows, axis) for axis in ("width", "epochs"))
    assert {method: list(line) for method, line in width.items()} == {"random": [32], "snap": [16, 32]}
    assert {method: list(line) for method, line in epochs.items()} == {"snap": [10, 30]}
    assert width["snap"][16]["difference"] == pytest.approx(-0.05)
    assert width["snap"][32]["low"] is None
    assert epochs["snap"][30]["difference"] == pytest.approx(0.015)


def test_both_figures_are_drawn_and_a_missing_axis_is_named(plots, monkeypatch, capsys):
    drawn = {}
    monkeypatch.setattr(canvas, "save", lambda figure, path: drawn.update({path.name: figure}))
    monkeypatch.setattr(sys, "argv", ["scale", "--plots", str(plots)])
    assert scale.main() == 0
    assert drawn.keys() == {"lead-width.png", "lead-epochs.png"}
    panels = {axes.get_title(loc="left"): axes for axes in drawn["lead-width.png"].axes}
    assert panels.keys() == {"random", "SNAP"}
    assert [label.get_text() for label in panels["SNAP"].get_xticklabels()] == ["16", "32"]
    _, line, *_ = panels["SNAP"].get_lines()
    assert line.get_ydata() == pytest.approx([5, 1])
    ((low, high),) = [bar.get_segments()[0][:, 1] for bar in panels["SNAP"].collections]  # the one of three seeds
    assert low < 5 < high
    (plots / "epochs-30/Resnet18/neuron-sparsity.csv").unlink()
    assert scale.main() == 1
    assert "lead against epochs: takes tables of two values, found [10]" in capsys.readouterr().out
