"""The sweeps as a user runs them."""

import json
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
from matplotlib.text import Text
from PIL import Image

from common import names
from common.files import read_csv
from common.reports import canvas, figures, paper
from common.studies import study, sweeps
from common.training import fit, runs
from tests.test_settings import assert_refused, script_module

SHORT = "--width 4 --epochs 2"
FEW = f"{SHORT} --batch-size 128"  # seconds for a run's training on one core
PRESSURE = "--regularization 0.4 --learning-rates 0.1 --gradient-clip 0"  # kills units of the digits
DOCUMENTED = {
    "seed",
    "epochs",
    "units",
    "dead_units",
    "nearly_dead_units",
    "dying_units",
    "cumulative_dead",
    "test_accuracy",
    "seconds",
}


def untimed(rows: list[dict]) -> list[dict]:
    return [{name: value for name, value in row.items() if name != "seconds"} for row in rows]


@pytest.mark.parametrize(
    ("study", "swept", "values"),
    [
        ("batch-size", "--batch-sizes", [128, 256]),
        ("learning-rate", "--learning-rates", [0.05, 0.1]),
        ("regularization", "--regularizations", [0.0, 0.01]),
    ],
)
def test_a_sweep_leaves_a_row_a_run_a_figure_and_what_it_was_made_of(call, tmp_path, study, swept, values):
    more = "" if study == "regularization" else "--regularization 0"
    flags = SHORT if study == "batch-size" else FEW
    status, output, error = call("Resnet18", f"--study {study} {flags} {swept} {' '.join(map(str, values))} {more}")
    assert (status, error) == (0, "")
    folder = tmp_path / "out" / "Resnet18"
    rows = read_csv(folder / f"{study}.csv")
    column = names.SWEEPS[study].column
    assert list(rows[0]) == sweeps.COLUMNS
    assert {*DOCUMENTED, column} <= set(sweeps.COLUMNS)
    assert [row[column] for row in rows if row["footing"] == "epochs"] == values
    for row in rows:
        assert (row["script"], row["units"], row["width"]) == ("Resnet18", 244, 4)
        assert row["dead_units"] <= row["nearly_dead_units"] <= 244
        assert 0 <= row["test_accuracy"] <= 1
    assert json.loads((folder / f"{study}.json").read_text())["settings"]["network"]["width"] == 4
    assert min(Image.open(folder / f"{study}.png").size) > 300
    for name in (f"{study}.csv", f"{study}.png", f"{study}-trends.md"):
        assert str(folder / name) in output


@pytest.mark.parametrize(
    ("study", "rates", "strengths", "runs_of_a_seed"),
    [
        ("accumulation", (0.01, 0.05), (0.0,), 2),
        ("batch-size", (0.05,), (0.0, 0.01), 2 * 2 * 5),
        ("learning-rate", (0.01, 0.025, 0.05, 0.075, 0.1), (0.0, 0.01), 2 * 5),
        ("regularization", (0.05,), None, 10),
    ],
)
def test_the_study_settles_what_the_script_leaves_open_and_a_flag_wins(
    tmp_path, study, rates, strengths, runs_of_a_seed
):
    from common import settings

    places = ["--output-dir", str(tmp_path), "--run-dir", str(tmp_path), "--study", study]
    module = script_module("Resnet18")
    found = settings.read(vars(module), module.STUDIES, places)
    assert (found.learning_rates, found.regularization) == (rates, strengths)
    if study in names.SWEEPS:
        assert len(sweeps.plan(found)) == runs_of_a_seed
        assert {0.0, 9e-8, 9e-7, 9e-6, 9e-5} < set(found.regularizations)
    assert settings.read(vars(module), module.STUDIES, [*places, "--learning-rates", "3"]).learning_rates == (3,)


def test_batch_sizes_are_compared_at_equal_epochs_and_at_equal_steps(call, tmp_path):
    call("Resnet18", f"--study batch-size {SHORT} --batch-sizes 128 256 512 --regularization 0")
    rows = {(row["footing"], row["batch_size"]): row for row in read_csv(tmp_path / "out/Resnet18/batch-size.csv")}
    assert [rows["epochs", size]["epochs"] for size in (128, 256, 512)] == [2, 2, 2]
    assert [rows["epochs", size]["steps"] for size in (128, 256, 512)] == [24, 12, 6]
    assert [rows["steps", size]["epochs"] for size in (128, 256, 512)] == [2, 4, 8]
    assert [rows["steps", size]["steps"] for size in (128, 256, 512)] == [24, 24, 24]
    assert rows["epochs", 128] | {"footing": ""} == rows["steps", 128] | {"footing": ""}
    assert len(list((tmp_path / "state").rglob("final.pt"))) == 5  # that run was trained once


@pytest.mark.parametrize(
    ("sizes", "epochs", "expected"),
    [
        ((16, 32, 64, 128, 256), 10, [2, 4, 8, 16, 32]),  # two at least: the published sizes under the cpu protocol
        ((16, 32, 64, 128, 256), 100, [16, 32, 64, 128, 256]),
        ((256, 128), 30, [40, 20]),
        ((48, 100), 10, [6, 12]),
    ],
)
def test_runs_at_equal_steps_take_about_the_epochs_of_those_at_equal_epochs(sizes, epochs, expected):
    settings = SimpleNamespace(batch_sizes=sizes, epochs=epochs)
    assert [sweeps.epochs_of(settings, "steps", size) for size in sizes] == expected
    assert sum(expected) <= 1.25 * max(len(sizes) * epochs, 2 * sum(sizes) / min(sizes))


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("--study batch-size --batch-sizes 16 1", ("BATCH_SIZES", "'1'")),
        ("--study batch-size --batch-sizes 16 5000", ("BATCH_SIZES", "5000", "1437 training images")),
        ("--study learning-rate --learning-rates 0.1 0", ("LEARNING_RATES", "'0'")),
        ("--study regularization --regularizations 0 -1", ("REGULARIZATIONS", "'-1'")),
        ("--study regularization --regularization 0.1", ("REGULARIZATION: the study regularization does not read it",)),
    ],
)
def test_a_value_that_cannot_be_swept_is_named_before_anything_is_trained(call, tmp_path, flags, words):
    assert_refused(call("Resnet18", flags), *words)
    assert not list(tmp_path.rglob("final.pt"))


def test_a_run_that_diverges_is_listed_and_the_others_are_drawn(call, tmp_path):
    flags = f"--study learning-rate {FEW} --precision fp32 --learning-rates 0.05 1e30 0.1 --regularization 0"
    status, output, error = call("Resnet18", flags)
    assert status == 2
    assert "not finished: learning-rate 1e+30" in error
    assert "Traceback" not in error
    assert [row["learning_rate"] for row in read_csv(tmp_path / "out/Resnet18/learning-rate.csv")] == [0.05, 0.1]
    assert "learning-rate.png" in output


def test_a_run_that_left_a_damaged_file_is_listed_and_the_others_are_drawn(call, tmp_path):
    flags = f"--study learning-rate {FEW} --learning-rates 0.05 0.1 --regularization 0"
    call("Resnet18", flags)
    damaged = next(tmp_path.glob("state/**/*lr-0.05-*/final.pt"))
    damaged.write_bytes(damaged.read_bytes()[:1000])
    status, output, error = call("Resnet18", flags)
    assert status == 2
    assert f"not finished: learning-rate 0.05 at equal epochs, lr 0.05 seed 0: {damaged} is damaged" in error
    assert [row["learning_rate"] for row in read_csv(tmp_path / "out/Resnet18/learning-rate.csv")] == [0.05, 0.1]
    assert "learning-rate.png" in output


@pytest.mark.parametrize(
    ("raised", "reason"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB."), "CUDA out of memory"),
        (
            RuntimeError("err == 0. CPU: can't allocate memory: you tried to allocate 9 bytes. Error code 12"),
            "can't allocate memory: you tried to allocate 9 bytes",
        ),
    ],
    ids=["gpu", "cpu"],
)
def test_a_run_too_large_for_memory_is_listed_and_the_others_are_drawn(call, tmp_path, monkeypatch, raised, reason):
    honest = fit.train

    def too_large(state, batches, callbacks):
        if state.steps_per_epoch < 30:
            raise raised
        honest(state, batches, callbacks)

    monkeypatch.setattr(fit, "train", too_large)
    status, output, error = call("Resnet18", f"--study batch-size {SHORT} --batch-sizes 32 64 --regularization 0")
    assert status == 2
    assert "not finished: batch-size 64 at equal epochs, lr 0.05 seed 0: out of memory" in error
    assert f"({reason}); lower BATCH_SIZE" in error
    assert "Traceback" not in error
    assert {row["batch_size"] for row in read_csv(tmp_path / "out/Resnet18/batch-size.csv")} == {32}
    assert "batch-size.png" in output


def test_a_run_that_another_process_trains_is_listed_and_the_others_are_made(call, tmp_path, monkeypatch):
    honest = sweeps.train

    def busy(settings, dataset, shared, trial, changes):
        if trial.learning_rate != 0.05:
            return honest(settings, dataset, shared, trial, changes)
        with runs.Run(tmp_path, "lr 0.05", {}).locked(), runs.Run(tmp_path, "lr 0.05", {}).locked():
            raise AssertionError

    monkeypatch.setattr(sweeps, "train", busy)
    flags = f"--study learning-rate {FEW} --learning-rates 0.05 0.1 --regularization 0"
    status, output, error = call("Resnet18", flags)
    assert (status, error) == (0, "")
    assert "left to the processes that train them: learning-rate 0.05 at equal epochs" in output
    assert [row["learning_rate"] for row in read_csv(tmp_path / "out/Resnet18/learning-rate.csv")] == [0.1]


def test_a_sweeps_figure_says_how_many_seeds_it_shows_what_is_the_papers_and_what_is_missing(tmp_path, monkeypatch):
    rows = [
        {"learning_rate": rate, "seed": seed, "units": 976, "dead_at_end": 400 + seed, "cumulative_dead": 2000 + seed}
        | {"epochs": 10, "dying_units": None if rate == 0.01 else 480.0, "test_accuracy": 0.7}
        for seed in range(3)
        for rate in (0.01, 0.05, 0.1)
        if (seed, rate) != (2, 0.1)
    ]
    drawn = []
    monkeypatch.setattr(canvas, "save", lambda figure, path: drawn.append(figure))
    published, missed = paper.DEAD["learning-rate"], [f"learning-rate {rate} seed 2" for rate in range(20)]
    swept, path = names.SWEEPS["learning-rate"], tmp_path / "figure.png"
    figures.sweep_figure({"epochs": {"λ 0.01": pd.DataFrame(rows)}}, swept, path, "x", published, missed)
    drawn[0].draw_without_rendering()
    assert max(text.get_window_extent().x1 for text in drawn[0].findobj(Text)) <= drawn[0].bbox.x1
    texts = " ".join(text.get_text().replace("\n", " ") for text in drawn[0].findobj(Text))
    for words in (
        "mean of 2 to 3 seeds",
        "paper, scaled",
        "coin toss",
        "λ 0.01",
        "not finished: learning-rate 0 seed 2, ",
        ", learning-rate 19 seed 2",
    ):
        assert words in texts
    one = [row for row in rows if row["seed"] == 0]
    figures.sweep_figure({"epochs": {"": pd.DataFrame(one)}}, swept, path, "x", {}, [])
    texts = " ".join(text.get_text() for text in drawn[1].findobj(Text))
    assert "one seed" in texts
    assert "paper" not in texts
    assert "not finished" not in texts


def test_a_sweep_whose_runs_all_fail_leaves_the_table_that_was_there(call, tmp_path):
    flags = f"--study learning-rate {FEW} --precision fp32 --regularization 0 --learning-rates"
    assert call("Resnet18", f"{flags} 0.05")[0] == 0
    before = {path.name: path.read_bytes() for path in (tmp_path / "out/Resnet18").iterdir()}
    assert call("Resnet18", f"{flags} 1e30")[0] == 2
    assert {path.name: path.read_bytes() for path in (tmp_path / "out/Resnet18").iterdir()} == before


def test_a_mean_says_how_many_seeds_are_behind_it():
    assert canvas.mean_of([1, 1]) == "one seed"
    assert canvas.mean_of([2, 2]) == "mean of 2 seeds"
    assert canvas.mean_of([3, 1]) == "mean of 1 to 3 seeds"


def test_an_extended_sweep_trains_only_what_it_lacks_and_ends_like_one_made_at_once(call, tmp_path):
    flags = f"--study learning-rate {FEW} {PRESSURE} --epochs 4 --seeds"
    names = ["learning-rate.csv", "learning-rate-layers.csv", "learning-rate-returns.csv", "learning-rate-trends.md"]
    call("Resnet18", f"{flags} 0 1")
    whole = tmp_path / "out/Resnet18"
    call("Resnet18", f"{flags} 0", output_dir=tmp_path / "grown", run_dir=tmp_path / "one")
    status, _, error = call(
        "Resnet18", f"{flags} 0 1 --extend", output_dir=tmp_path / "grown", run_dir=tmp_path / "two"
    )
    assert (status, error) == (0, "")
    grown = tmp_path / "grown/Resnet18"
    assert len(list((tmp_path / "two").rglob("final.pt"))) == 1
    assert untimed(read_csv(grown / names[0])) == untimed(read_csv(whole / names[0]))
    for name in names[1:]:
        assert (grown / name).read_text() == (whole / name).read_text()
    for figure in ("learning-rate.png", "learning-rate-layers.png", "learning-rate-returns.png"):
        assert (grown / figure).exists()


def test_a_sweep_and_the_accumulation_study_train_the_same_run_once(call, tmp_path):
    call("Resnet18", f"{FEW} --learning-rates 0.05 0.1")
    status, output, _ = call("Resnet18", f"--study learning-rate {FEW} --learning-rates 0.05 0.2 --regularization 0")
    assert status == 0
    assert "lr 0.05 seed 0: finished before" in output
    assert len(list((tmp_path / "state").rglob("final.pt"))) == 3


def test_a_sweep_made_under_other_conditions_is_not_extended(call, tmp_path):
    flags = f"--study learning-rate {FEW} --learning-rates 0.05 --regularization 0"
    call("Resnet18", flags)
    table = tmp_path / "out/Resnet18/learning-rate.csv"
    before = table.read_bytes()
    assert_refused(call("Resnet18", f"{flags} --extend --epochs 1 --momentum 0.5"), "epochs, momentum", "--no-extend")
    assert table.read_bytes() == before


def test_a_sweep_that_is_interrupted_leaves_the_rows_it_has(call, tmp_path, monkeypatch):
    honest, trained = study.fit, []

    def interrupted(*arguments):
        trained.append(arguments)
        if len(trained) == 2:
            raise KeyboardInterrupt
        return honest(*arguments)

    monkeypatch.setattr(study, "fit", interrupted)
    flags = f"--study learning-rate {FEW} --learning-rates 0.05 0.1 --regularization 0"
    assert call("Resnet18", flags)[0] == 130
    assert [row["learning_rate"] for row in read_csv(tmp_path / "out/Resnet18/learning-rate.csv")] == [0.05]
    layers = (
        tmp_path / "out/Resnet18/learning-rate-layers.csv"
    )  # killed between two files, it may be ahead of the table
    layers.write_text(layers.read_text() + layers.read_text().splitlines()[-1].replace("0.05", "0.1") + "\n")
    assert call("Resnet18", f"{flags} --extend")[0] == 0
    assert len(trained) == 3
    assert [(row["learning_rate"], row["epoch"]) for row in read_csv(layers)] == [
        (r, e) for r in (0.05, 0.1) for e in (1, 2)
    ]
