"""The quick protocol, for ten epochs, gives today what it gave when golden.csv was made, on any torch that is tested.

python -m tests.test_golden     makes golden.csv again, where numbers are meant to change
"""

import sys
import tempfile
from pathlib import Path

import pytest

from common import files
from common.machine import process
from common.reports import tables
from tests.conftest import script_module

TABLE = Path(__file__).with_name("golden.csv")
STUDY = (
    "--dataset digits --protocol quick --study neuron-sparsity --sparsities 0.6 --hold-out 600 --device cpu "
    "--methods dense ds-pruning --precision fp32 --epochs 10 --seeds 0 1 2 3"
)
# How far the mean over the seeds may be from the table's. Bits of a sum differ between versions of torch and between
# processors, and training carries them into decisions: these means differ by one point between torch 2.11 and 2.15, and
# between the AVX and the AVX2 kernels of one processor. (After three epochs, or of a random shape, by five and ten.)
TOLERANCE = {
    "test_accuracy": 0.06,
    "neuron_sparsity": 0.02,
    "weight_sparsity": 0.05,
    "inference_flops_ratio": 0.05,
    "training_flops_ratio": 0.05,
}


def made(folder: Path) -> list[dict]:
    """The mean over all seeds for each method of the study, as far as it is compared."""
    sys.argv = ["Resnet18.py", *STUDY.split(), "--output-dir", str(folder / "out"), "--run-dir", str(folder / "runs")]
    assert process.run(script_module("Resnet18").main) == 0
    table = tables.read(folder / "out" / "Resnet18" / "neuron-sparsity.csv")
    return table.groupby(["method", "target"])[list(TOLERANCE)].mean().reset_index().to_dict("records")


def test_the_quick_protocol_gives_the_golden_table(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", [])
    golden = files.read_csv(TABLE)
    for row, expected in zip(made(tmp_path), golden, strict=True):
        near = {name: pytest.approx(expected[name], abs=tolerance) for name, tolerance in TOLERANCE.items()}
        assert row == {**expected, **near}


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        rows = made(Path(temporary))
    files.write_csv(TABLE, list(rows[0]), rows)
