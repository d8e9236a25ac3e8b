"""Imagenet.py on a small folder of photos: all criteria, the paper's table, and runs that were stopped."""

import csv
import shutil

import pytest
import torch

from common import files
from common.saved import load_network
from common.studies import sparsity
from common.studies.imagenet import OWN_COLUMNS
from common.training import fit
from tests.ranks import stops_after_step_3

SMALL = (
    "--no-pretrained --image-size 32 --width 4 --epochs 2 --batch-size 8 --workers 0 --precision fp32 "
    "--checkpoint-steps 3"
)
PRUNED = "--sparsities 0.8 --methods"


def rows(path) -> list[dict]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def final(folder) -> dict:
    return files.load(next(folder.glob("**/final.pt")))


def test_all_ten_criteria_meet_their_target_and_fill_the_papers_table(call, photos, tmp_path):
    flags = "--no-pretrained --image-size 64 --width 8 --epochs 2 --batch-size 8 --workers 1 --sparsities 0.8"
    status, output, error = call("Imagenet", flags, data_dir=photos)
    assert (status, error) == (0, "")
    found = rows(tmp_path / "out/Imagenet/imagenet.csv")
    assert list(found[0]) == OWN_COLUMNS
    assert [name for name in OWN_COLUMNS if name != "test_top5_accuracy"] == sparsity.COLUMNS
    assert len({row["method"] for row in found}) == len(found) == 10
    assert found[0]["method"] == "dense"
    for row in found:
        assert 0 <= float(row["weight_sparsity"]) - float(row["target"]) < 0.01
        assert 0 <= float(row["test_accuracy"]) <= float(row["test_top5_accuracy"]) == 1  # four classes
        dense = row["method"] == "dense"
        for name in ("inference_flops_ratio", "training_flops_ratio"):
            assert (float(row[name]) == 1) == dense
    table = (tmp_path / "out/Imagenet/imagenet.md").read_text().splitlines()
    assert table[0].startswith("| Method | Target (%) | Accuracy (%) | Top-5 (%) | Neuron sparsity (%)")
    assert len([line for line in table if line.startswith("| ")]) == 12
    ours = next(line for line in table if line.startswith("| DS-Pruning"))
    for published in ("(69.98)", "(55.8)", "(80.0)", "(1.23)", "(0.57)", "(0.53)"):
        assert published in ours
    assert (tmp_path / "out/Imagenet/imagenet.png").stat().st_size > 10_000
    assert "1 process x 1 pass of 8" in output
    network = load_network(next(tmp_path.glob("state/**/ds-pruning*/final.pt")))
    assert network(torch.zeros(1, 3, 64, 64)).shape == (1, 4)


def test_the_accumulation_study_names_damaged_images(call, photos, tmp_path):
    folder = tmp_path / "photos"
    shutil.copytree(photos, folder)
    damaged = folder / "val" / "bee" / "0.jpg"
    damaged.write_bytes(b"")
    for _ in range(2):  # of a run that was finished before, too
        status, output, error = call("Imagenet", f"{SMALL} --study accumulation --epochs 1", data_dir=folder)
        assert (status, error) == (0, "")
        assert f"1 damaged image left out:\n  {damaged}\n" in output


@pytest.mark.parametrize(
    "flags", [f"{PRUNED} ds-pruning", f"{PRUNED} rigl --micro-batch 4", "--study accumulation --noise-std 0.001"]
)
def test_a_run_stopped_within_an_epoch_ends_bit_for_bit_as_if_untouched(call, photos, tmp_path, monkeypatch, flags):
    flags = f"{SMALL} {flags}"
    assert call("Imagenet", flags, data_dir=photos, run_dir=tmp_path / "whole")[0] == 0
    with monkeypatch.context() as patch:
        stops_after_step_3(patch)
        assert call("Imagenet", flags, data_dir=photos)[0] == 130
    state = files.load(next(tmp_path.glob("state/**/checkpoint.pt")))
    assert (state["epoch"], state["step"]) == (0, 3)
    assert call("Imagenet", flags, data_dir=photos)[0] == 0
    whole, pieces = final(tmp_path / "whole"), final(tmp_path / "state")
    assert all(torch.equal(whole["model"][name], pieces["model"][name]) for name in whole["model"])
    assert all(torch.equal(whole["counts"][name], pieces["counts"][name]) for name in ("fired", "pairs", "silent"))
    assert whole.get("Cost") == pieces.get("Cost")
    for one, other in zip(whole["rows"], pieces["rows"], strict=True):
        assert {**one, "seconds": 0} == {**other, "seconds": 0}


def test_a_checkpoint_of_another_configuration_is_refused(call, photos, tmp_path, monkeypatch):
    def stop(self, run):
        raise KeyboardInterrupt

    flags = f"{SMALL} {PRUNED} dense --momentum"
    with monkeypatch.context() as patch:
        patch.setattr(fit.Progress, "on_epoch_end", stop)
        for momentum in ("0.8", "0.9"):
            assert call("Imagenet", f"{flags} {momentum}", data_dir=photos)[0] == 130
    one, other = tmp_path.glob("state/**/checkpoint.pt")
    before = other.read_bytes()
    other.write_bytes(one.read_bytes())
    one.write_bytes(before)
    for momentum in ("0.8", "0.9"):
        status, _, error = call("Imagenet", f"{flags} {momentum}", data_dir=photos)
        assert status == 2
        assert "checkpoint.pt is of another configuration (momentum)" in error
        assert error.count("\n") == 1


@pytest.fixture
def damaged(photos, tmp_path):
    """The photos, one of which is cut short."""
    path = shutil.copytree(photos, tmp_path / "photos") / "train" / "bee" / "7.jpg"
    path.write_bytes(path.read_bytes()[:300])
    return path


def test_a_damaged_image_is_listed_at_the_end(call, damaged, tmp_path):
    flags = f"{SMALL} {PRUNED} dense"
    for _ in range(2):  # trained, and read from what the run left
        status, output, error = call("Imagenet", flags, data_dir=tmp_path / "photos")
        assert (status, error) == (0, "")
        assert f"1 damaged image left out:\n  {damaged}\n" in output


def test_more_than_one_damaged_image_in_a_hundred_stops_the_run(call, damaged, tmp_path):
    shutil.copy(damaged, damaged.with_name("6.jpg"))
    status, _, error = call("Imagenet", f"{SMALL} {PRUNED} dense", data_dir=tmp_path / "photos")
    assert status == 2
    assert f"2 of the 68 images in {tmp_path}/photos/train cannot be read" in error
    assert error.count("\n") == 1


WRONG = [
    ("--data-dir nowhere", "DATA_DIR: got 'nowhere'"),
    ("--batch-size 9 --micro-batch 2", "BATCH_SIZE: got 9", "multiple of 2"),
    ("--micro-batch 1", "MICRO_BATCH: got"),
    ("--batch-size 80", "BATCH_SIZE: got 80", "68"),
    ("--label-smoothing 1", "LABEL_SMOOTHING"),
    ("--methods magic", "METHODS: got 'magic'"),
    ("--sparsities 1", "SPARSITIES"),
]


@pytest.mark.parametrize("case", WRONG, ids=lambda case: case[0])
def test_a_wrong_constant_ends_in_one_line(call, photos, tmp_path, case):
    flags, *words = case
    status, _, error = call("Imagenet", f"--no-pretrained --image-size 32 --width 4 {flags}", data_dir=photos)
    assert status == 2
    assert error.count("\n") == 1
    for word in words:
        assert word in error
    assert not list(tmp_path.glob("state/**/final.pt"))


@pytest.mark.parametrize("part", ["val", "classes"])
def test_a_folder_without_val_or_with_other_classes_ends_in_one_line(call, photos, tmp_path, part):
    folder = shutil.copytree(photos, tmp_path / "photos")
    if part == "val":
        shutil.rmtree(folder / "val")
    else:
        (folder / "val" / "bee").rename(folder / "val" / "wasp")
    status, _, error = call("Imagenet", SMALL, data_dir=folder)
    assert status == 2
    assert part in error
    assert error.count("\n") == 1
