"""What other code made is named as such, and what a table shows of a run does not change."""

import shutil

import pandas as pd
import pytest

from common import files
from common.training import code, runs

FLAGS = "--study neuron-sparsity --sparsities 0.5 --epochs 1 --hold-out 1300 --width 4 --methods dense random"


@pytest.fixture
def as_other_code(monkeypatch):
    def change(digest: str) -> None:
        monkeypatch.setattr(code, "digest", lambda: digest)

    return change


def rows(tmp_path) -> list[dict]:
    return files.read_csv(tmp_path / "out/Resnet18/neuron-sparsity.csv")


def test_a_run_of_other_code_is_named_and_kept_or_trained_again(call, tmp_path, as_other_code):
    as_other_code("aaaaaaaa")
    assert call("Resnet18", FLAGS)[0] == 0
    assert {row["code"] for row in rows(tmp_path)} == {"aaaaaaaa"}
    output = call("Resnet18", FLAGS)[1]
    assert "random 0.5 seed 0: finished before, in" in output
    as_other_code("bbbbbbbb")
    output = call("Resnet18", FLAGS)[1]
    assert "random 0.5 seed 0: finished before by other code (aaaaaaaa, now bbbbbbbb), in" in output
    assert "--again trains it again" in output
    assert {row["code"] for row in rows(tmp_path)} == {"aaaaaaaa"}
    output = call("Resnet18", f"{FLAGS} --again")[1]
    assert "; trained again" in output
    assert {row["code"] for row in rows(tmp_path)} == {"bbbbbbbb"}
    assert "by other code" not in call("Resnet18", f"{FLAGS} --again")[1]


def test_a_run_that_goes_on_from_other_codes_checkpoint_has_both(call, tmp_path, as_other_code, monkeypatch):
    from common.training import checkpoints

    def stop(self, training):
        honest(self, training)
        raise KeyboardInterrupt

    honest, flags = checkpoints.Checkpoints.on_epoch_end, "--learning-rates 0.05 --epochs 2 --width 4"
    as_other_code("aaaaaaaa")
    with monkeypatch.context() as patch:
        patch.setattr(checkpoints.Checkpoints, "on_epoch_end", stop)
        assert call("SGD", flags)[0] == 130
    as_other_code("bbbbbbbb")
    output = call("SGD", flags)[1]
    assert "goes on from a checkpoint by other code (aaaaaaaa, now bbbbbbbb)" in output
    assert files.load(next(tmp_path.rglob("final.pt")))["code"] == "aaaaaaaa+bbbbbbbb"


def test_what_a_table_shows_of_a_run_stays_when_it_is_made_again(call, tmp_path, monkeypatch):
    honest, reads = runs.load, []
    monkeypatch.setattr(runs, "load", lambda path: reads.append(path) or honest(path))
    assert call("Resnet18", FLAGS)[0] == 0
    assert len(reads) == 2  # of each run once
    before = rows(tmp_path)
    assert before[0]["inference_speedup"] == 1  # the dense network against itself
    assert call("Resnet18", FLAGS)[0] == 0
    assert len(reads) == 5  # and the second one for the first table, before it is its turn
    assert rows(tmp_path) == before


def test_the_digest_goes_by_what_trains_and_not_by_comments_and_figures(tmp_path, monkeypatch):
    (tmp_path / "reports").mkdir()
    module, figure = tmp_path / "loop.py", tmp_path / "reports" / "figures.py"
    monkeypatch.setattr(code, "COMMON", tmp_path)

    def now() -> str:
        code.digest.cache_clear()
        return code.digest()

    module.write_text("STEPS = 8\n")
    figure.write_text("COLOUR = 1\n")
    first = now()
    module.write_text("# how many\n\nSTEPS = 8\n")
    figure.write_text("COLOUR = 2\n")
    assert now() == first
    module.write_text("STEPS = 9\n")
    assert now() != first
    code.digest.cache_clear()


def test_a_figure_of_several_scripts_is_labelled_by_what_was_done_in_them():
    from common.reports.accumulation import COMPARISONS, labels_of

    _, _, activation = COMPARISONS["activations"]
    kinds = {"Resnet18": "swish", "LeakyReLU": "leaky-relu", "Swish": "swish"}
    tables = {script: pd.DataFrame({"activation": [kind]}) for script, kind in kinds.items()}
    last = tables.pop("Swish")
    assert labels_of(tables, activation) == {"Resnet18": "Swish", "LeakyReLU": "Leaky ReLU"}
    tables["Swish"] = last
    assert labels_of(tables, activation)["Resnet18"] == "Swish (Resnet18.py)"
    _, _, noise = COMPARISONS["gradient-noise"]
    assert [noise({"noise_std": value}) for value in (0.0, 0.5)] == ["SGD", "noise 0.5"]


def test_a_run_is_found_again_where_its_images_lie_elsewhere(call, photos, tmp_path):
    flags = "--width 4 --epochs 1 --batch-size 16 --image-size 16 --learning-rates 0.05"
    assert call("SGD", flags, dataset=photos)[0] == 0
    moved = shutil.copytree(photos, tmp_path / "moved")
    output = call("SGD", flags, dataset=moved)[1]
    assert "finished before" in output
    assert len(list(tmp_path.rglob("final.pt"))) == 1
