"""Where units die and how often each fires, by the rows that studies leave."""

import pytest

from common import files
from common.files import read_csv
from tests.test_sweeps import FEW, PRESSURE


def test_the_rows_of_a_sweep_are_what_its_runs_counted(call, tmp_path):
    call("Resnet18", f"--study learning-rate {FEW} {PRESSURE} --epochs 4")
    (row,) = read_csv(tmp_path / "out/Resnet18/learning-rate.csv")
    final = files.load(next((tmp_path / "state").rglob("final.pt")))
    dead = final["counts"]["fired"] == 0
    assert row["dead_units"] == dead[-1].sum() > 0
    assert row["cumulative_dead"] == dead.sum()
    assert row["dead_at_end"] >= row["dead_units"]  # its window is a part of the last epoch
    layers = read_csv(tmp_path / "out/Resnet18/learning-rate-layers.csv")
    widths = final["counts"]["layers"]
    for epoch, shares in enumerate(layers):
        assert sum(shares[layer] * width for layer, width in widths.items()) == pytest.approx(
            dead[epoch].sum().item(), abs=1e-3
        )


def test_fire_rates_of_every_unit_are_kept_and_drawn_for_scripts_made_alike(call, tmp_path):
    call("Resnet18", f"{FEW} {PRESSURE} --epochs 6")
    final = files.load(next((tmp_path / "state").rglob("final.pt")))
    rows = read_csv(tmp_path / "out/Resnet18/accumulation-fire-rates.csv")
    expected = final["counts"]["fired"][-1] / final["counts"]["pairs"][-1]
    assert [row["fire_rate"] for row in rows] == pytest.approx(expected.tolist(), rel=1e-4)
    assert [row["fire_rate"] == 0 for row in rows] == (expected == 0).tolist()
    assert (rows[-1]["layer"], rows[-1]["unit"]) == ("layer4.1.act2", 31)
    for name, weights in {"scale": "weight", "shift": "bias"}.items():
        norms = [final["model"][f"{norm}.{weights}"] for norm in ("bn1", "layer4.1.bn2")]
        found = [[row[name] for row in rows if row["layer"] == layer] for layer in ("act", "layer4.1.act2")]
        assert found == [pytest.approx(norm.tolist(), rel=1e-4) for norm in norms]
    # the mean of what a batch-norm puts out is its shift: where it is above 0, something fires
    dead = [row for row in rows if row["layer"].endswith("act1") and row["fire_rate"] == 0]
    assert dead
    assert all(row["shift"] < 0 for row in dead)
    drawn = [tmp_path / "out" / name for name in ("fire-rates.png", "batch-norms.png")]
    assert not any(path.exists() for path in drawn)
    output = call("Swish", f"{FEW} {PRESSURE} --epochs 6")[1]
    assert all(str(path) in output and path.exists() for path in drawn)


def test_fire_rates_of_an_earlier_version_are_left_out_by_name(call, tmp_path):
    call("Resnet18", FEW)
    table = tmp_path / "out/Resnet18/accumulation-fire-rates.csv"
    table.write_text("\n".join(line.rsplit(",", 2)[0] for line in table.read_text().splitlines()))
    status, output = call("Swish", FEW)[:2]
    assert status == 0
    assert f"not drawn: {table}" in output
    assert not (tmp_path / "out/fire-rates.png").exists()
