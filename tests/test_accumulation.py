"""The study as a user runs it: files, columns, figures, and runs that survive."""

import contextlib
import csv
import json
import os
import shutil
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from PIL import Image

from common import files
from common.errors import UserError
from common.studies.accumulation import COLUMNS
from common.training import runs
from tests.test_data import save_images

SCRIPTS = ("Resnet18", "LeakyReLU", "Swish", "SGD", "SGD_noise")
DOCUMENTED = (
    "script,activation,learning_rate,batch_size,regularization,noise_std,seed,epoch,units,dead_units,nearly_dead_units,"
    "silent_units_per_batch,revived_units,dying_units,divergence_bits,train_loss,train_accuracy,test_loss,"
    "test_accuracy,seconds,code"
)


def rows(path: Path) -> list[dict]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def untimed(found: list[dict]) -> list[dict]:
    return [{name: value for name, value in row.items() if name != "seconds"} for row in found]


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_script_leaves_a_row_an_epoch_and_figures(call, tmp_path, script):
    status, output, error = call(script, "--epochs 2 --batch-size 96 --learning-rates 0.05 0.1")
    assert (status, error) == (0, "")
    found = rows(tmp_path / "out" / script / "accumulation.csv")
    assert ",".join(found[0]) == DOCUMENTED == ",".join(COLUMNS)
    assert [(row["learning_rate"], row["epoch"]) for row in found] == [(r, e) for r in ("0.05", "0.1") for e in "12"]
    for row in found:
        assert row["script"] == script
        assert int(row["units"]) == 488
        assert int(row["dead_units"]) <= int(row["nearly_dead_units"]) <= 488
        assert 0 <= float(row["test_accuracy"]) <= 1
        assert (row["dying_units"] == "") == (row["epoch"] == "1")
    for figure in ("accumulation.png", "accumulation-layers.png"):
        assert str(tmp_path / "out" / script / figure) in output
        assert min(Image.open(tmp_path / "out" / script / figure).size) > 300
    assert "test-%" in output


def test_regularization_kills_units_and_more_of_it_kills_more(call, tmp_path):
    call("Resnet18", "--learning-rates 0.1 --gradient-clip 0 --regularization 0 0.03 0.1")
    last = [row for row in rows(tmp_path / "out" / "Resnet18" / "accumulation.csv") if row["epoch"] == "3"]
    dead = {float(row["regularization"]): int(row["dead_units"]) for row in last}
    assert 10 * dead[0.0] < dead[0.03] < dead[0.1]


def test_the_file_of_a_run_holds_the_counts_that_its_rows_were_made_of(call, tmp_path):
    call("Resnet18", "--epochs 2 --learning-rates 0.1 --gradient-clip 0 --regularization 0.4")
    final = files.load(next(tmp_path.glob("state/**/final.pt")))
    fired, pairs = final["counts"]["fired"], final["counts"]["pairs"]
    assert fired.shape == (2, 488)
    assert [(epoch == 0).sum().item() for epoch in fired] == [row["dead_units"] for row in final["rows"]]
    assert pairs[0, 0] == 1437 * 64  # every image at 8x8 positions
    assert (fired <= pairs).all()


def test_a_run_with_the_same_constants_is_not_repeated_and_another_is(call, tmp_path):
    call("Swish", "--epochs 2 --learning-rates 0.05")
    final = next(tmp_path.glob("state/**/final.pt"))
    before, first = final.stat().st_mtime_ns, rows(tmp_path / "out/Swish/accumulation.csv")
    status, output, _ = call("Swish", "--epochs 2 --learning-rates 0.05")
    assert status == 0
    assert "finished before" in output
    assert final.stat().st_mtime_ns == before
    assert rows(tmp_path / "out/Swish/accumulation.csv") == first
    call("Swish", "--epochs 2 --learning-rates 0.05 --momentum 0.8")
    assert len(list(tmp_path.glob("state/**/final.pt"))) == 2
    assert rows(tmp_path / "out/Swish/accumulation.csv") == first
    assert rows(tmp_path / "out/digits-quick/Swish/accumulation.csv") != first


def test_scripts_made_alike_are_drawn_together_and_others_are_not(call, tmp_path):
    call("Resnet18", "--epochs 2 --learning-rates 0.05 --batch-size 96")
    assert not (tmp_path / "out/activations.png").exists()
    call("Swish", "--epochs 2 --learning-rates 0.05 0.1 --batch-size 96")
    assert (tmp_path / "out/activations.png").exists()
    call("SGD", "--epochs 2 --learning-rates 0.05 --batch-size 96")
    status, output, _ = call("SGD_noise", "--epochs 1 --learning-rates 0.05 --batch-size 96")
    assert status == 0
    assert "not drawn together with SGD" in output
    assert not (tmp_path / "out/gradient-noise.png").exists()
    call("SGD_noise", "--epochs 2 --learning-rates 0.05 --batch-size 96")  # beside its table of one epoch
    assert (tmp_path / "out/digits-quick/gradient-noise.png").exists()


def test_one_diverging_run_is_named_and_the_others_are_kept(call, tmp_path):
    status, output, error = call("SGD", "--epochs 2 --learning-rates 1e30 0.05 --precision fp32")
    assert status == 2
    assert "lr 1e+30 seed 0: the loss is not finite in epoch 1, step" in error
    assert "Traceback" not in error
    assert {row["learning_rate"] for row in rows(tmp_path / "out/SGD/accumulation.csv")} == {"0.05"}
    assert "accumulation.png" in output


def test_divergence_keeps_the_last_good_checkpoint(call, tmp_path, monkeypatch):
    from common import data

    honest = data.Dataset.batches

    def poisoned(dataset, size, seed, epoch, *rest):
        for inputs, labels in honest(dataset, size, seed, epoch, *rest):
            yield inputs * (float("nan") if epoch == 2 else 1), labels

    monkeypatch.setattr(data.Dataset, "batches", poisoned)
    status, _, error = call("Resnet18", "--epochs 4 --learning-rates 0.05")
    assert status == 2
    assert "epoch 3, step 1" in error
    assert files.load(next(tmp_path.glob("state/**/checkpoint.pt")))["epoch"] == 2
    monkeypatch.setattr(data.Dataset, "batches", honest)
    assert call("Resnet18", "--epochs 4 --learning-rates 0.05")[0] == 0


def test_an_interrupt_that_python_lost_stops_the_run_at_the_next_step(call, tmp_path, monkeypatch):
    from common import data
    from common.machine import process

    honest = data.Dataset.batches

    def losing(*arguments):
        for number, batch in enumerate(honest(*arguments)):
            if number == 3 and arguments[3] == 1:
                with contextlib.suppress(KeyboardInterrupt):
                    process.Interrupts.note(signal.SIGINT)
            yield batch

    monkeypatch.setattr(data.Dataset, "batches", losing)
    status, _, error = call("Resnet18", "--epochs 3 --learning-rates 0.05")
    assert status == 130
    assert "the same command goes on" in error
    assert files.load(next(tmp_path.glob("state/**/checkpoint.pt")))["epoch"] == 1
    monkeypatch.setattr(data.Dataset, "batches", honest)
    assert call("Resnet18", "--epochs 3 --learning-rates 0.05")[0] == 0


def test_a_damaged_run_is_named_and_what_the_table_has_of_it_stays(call, tmp_path):
    call("Resnet18", "--epochs 1 --learning-rates 0.05")
    final, table = next(tmp_path.glob("state/**/final.pt")), next(tmp_path.glob("out/**/accumulation.csv"))
    before = table.read_bytes()
    final.write_bytes(final.read_bytes()[:1000])
    status, _, error = call("Resnet18", "--epochs 1 --learning-rates 0.05")
    assert status == 2
    told = f"lr 0.05 seed 0: {final} is damaged or not ours; delete it to begin that run again\n"
    assert error == f"error: {told}error: not finished: {told}"
    assert table.read_bytes() == before


def test_many_may_write_one_file_and_it_is_always_whole(tmp_path):
    path, texts = tmp_path / "table.csv", [f"{letter}" * 100_000 for letter in "abcdefgh"]
    found = set()
    with ThreadPoolExecutor(len(texts)) as pool:
        writing = [pool.submit(lambda text=text: [files.write_text(path, text) for _ in range(10)]) for text in texts]
        while not all(one.done() for one in writing):
            found |= {path.read_text()} if path.exists() else set()
        for one in writing:
            one.result()
    assert found | {path.read_text()} <= set(texts)
    assert list(tmp_path.iterdir()) == [path]


def test_what_a_killed_process_left_half_written_is_cleared_away(tmp_path):
    run = runs.Run(tmp_path, "one", {})
    run.folder.mkdir()
    left = [run.folder / f".{name}.0123{files.UNFINISHED}" for name in ("final.pt", "config.json")]
    begun = run.folder / f".inference-speedup.json.4567{files.UNFINISHED}"  # by a process that needs no lock for it
    for path in (*left, begun):
        path.write_bytes(b"half")
    with run.locked():
        assert not any(path.exists() for path in left)
        assert begun.exists()
        assert (run.folder / "config.json").exists()


def test_a_full_disk_loses_nothing_that_was_there(tmp_path):
    path = tmp_path / "file.pt"
    files.write(path, lambda file: file.write(b"old"))

    def save(file):
        file.write(b"half")
        raise OSError(28, os.strerror(28))

    with pytest.raises(UserError, match=r"file\.pt: the disk is full; make room"):
        files.write(path, save)
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["file.pt"]


def test_two_processes_never_train_the_same_run(tmp_path):
    config = {"seed": 0}
    with (
        runs.Run(tmp_path, "run", config).locked(),
        pytest.raises(UserError, match="another process"),
        runs.Run(tmp_path, "run", config).locked(),
    ):
        pass


def test_the_settings_behind_a_figure_are_kept_beside_it(call, tmp_path):
    call("Resnet18", "--epochs 1 --learning-rates 0.05")
    made = json.loads((tmp_path / "out/Resnet18/accumulation.json").read_text())
    assert made["settings"]["epochs"] == 1
    assert made["settings"]["network"]["width"] == 8
    assert "--learning-rates 0.05" in made["command"]


def test_an_image_folder_trains_from_end_to_end(call, tmp_path):
    folder = save_images(tmp_path / "photos", count=8)
    status, _, _ = call("Resnet18", "--width 4 --epochs 1 --batch-size 4 --image-size 16", dataset=folder)
    assert status == 0


def test_imagenet_watches_a_resnet50_on_a_folder(call, tmp_path):
    folder = save_images(tmp_path / "photos", ("train", "val"), count=8)
    flags = "--study accumulation --no-pretrained --workers 0 --width 4 --epochs 1 --batch-size 8 --image-size 32"
    status, _, _ = call("Imagenet", flags, data_dir=folder)
    assert status == 0
    (row,) = rows(tmp_path / "out/Imagenet/accumulation.csv")
    assert int(row["units"]) == 4 + (3 * 6 + 4 * 12 + 6 * 24 + 3 * 48) * 4  # stem, then 1 + 1 + 4 widths a block
    status, _, error = call("Imagenet", flags, data_dir=tmp_path / "nowhere")
    assert status == 2
    assert error.startswith("error: DATA_DIR: got")
    assert error.count("\n") == 1


def test_a_table_is_extended_by_other_seeds_and_keeps_the_rows_of_runs_that_are_gone(call, tmp_path):
    flags = "--epochs 1 --hold-out 1300 --width 2 --learning-rates 0.05"
    table = tmp_path / "out/Resnet18/accumulation.csv"
    assert call("Resnet18", f"{flags} --seeds 0")[0] == 0
    first = files.read_csv(table)
    shutil.rmtree(tmp_path / "state")
    status, out, _ = call("Resnet18", f"{flags} --seeds 0 1 --extend")
    assert status == 0
    assert "seed 0, epoch" not in out  # not trained again
    rows = files.read_csv(table)
    assert [row["seed"] for row in rows] == [0, 1]
    assert rows[:1] == first
    assert call("Resnet18", f"{flags} --seeds 0 --extend")[0] == 0
    assert files.read_csv(table) == rows
    assert call("Resnet18", f"{flags} --epochs 2 --extend")[0] == 2  # made otherwise
