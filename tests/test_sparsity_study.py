"""The table of a sparsity study."""

import json
from contextlib import nullcontext

import numpy as np
import pandas as pd
import pytest
from filelock import FileLock
from matplotlib.text import Text

from common.errors import UserError
from common.files import read_csv, write_csv
from common.reports import canvas, figures, redraw, tradeoff
from common.reports import sparsity as report
from common.studies import sparsity

FLAGS = "--study neuron-sparsity --sparsities 0.5 --epochs 1 --hold-out 1200 --methods"


def test_an_extended_table_keeps_its_rows_and_trains_only_what_it_lacks(call, tmp_path):
    table = tmp_path / "out" / "Resnet18" / "neuron-sparsity.csv"
    call("Resnet18", f"{FLAGS} dense random")
    before = read_csv(table)
    status, _, error = call("Resnet18", f"{FLAGS} dense random magnitude --extend", run_dir=tmp_path / "elsewhere")
    rows = read_csv(table)
    assert status == 0, error
    assert [row for row in rows if row["method"] != "magnitude"] == before
    assert [row["method"] for row in rows] == ["dense", "random", "magnitude"]
    trained = [path.parent.name for path in (tmp_path / "elsewhere").rglob("final.pt")]
    ranks = (table.parent / "neuron-sparsity-summary.md").read_text().splitlines()
    assert [line.split(" | ")[1] for line in ranks[2:] if line.startswith("|")] == ["1", "2"]
    assert [name.split("-")[0] for name in trained] == ["magnitude"]


def test_a_table_made_under_other_conditions_is_not_extended(call, tmp_path):
    table = tmp_path / "out" / "Resnet18" / "neuron-sparsity.csv"
    call("Resnet18", f"{FLAGS} random")
    before = table.read_bytes()
    status, _, error = call("Resnet18", f"{FLAGS} magnitude --extend --settle 0.5 --pruning-learning-rate 0.2")
    assert (status, len(error.splitlines())) == (2, 1)
    assert "pruning_learning_rate" in error
    assert table.read_bytes() == before


def test_without_extend_a_table_is_made_anew_and_rows_of_other_runs_are_set_aside(call, tmp_path):
    table, aside = (tmp_path / "out" / "Resnet18" / f"neuron-sparsity{end}.csv" for end in ("", "-before"))
    call("Resnet18", f"{FLAGS} random")
    (random,) = read_csv(table)
    assert f"1 row of {table}, of other runs, goes to {aside}" in call("Resnet18", f"{FLAGS} magnitude")[1]
    (magnitude,) = read_csv(table)
    assert (magnitude["method"], read_csv(aside)) == ("magnitude", [random])
    call("Resnet18", f"{FLAGS} random", run_dir=tmp_path / "elsewhere")
    call("Resnet18", f"{FLAGS} dense")
    assert {row["method"] for row in read_csv(aside)} == {"magnitude", "random"}  # nothing is lost by the way


def test_of_a_method_with_other_constants_the_row_is_set_aside_and_of_a_run_that_is_gone_it_stays(call, tmp_path):
    table, aside = (tmp_path / "out" / "Resnet18" / f"neuron-sparsity{end}.csv" for end in ("", "-before"))
    flags = f"{FLAGS} random ds-pruning --epochs 2"
    call("Resnet18", flags)
    random, pruned = read_csv(table)
    for path in (tmp_path / "state").rglob("final.pt"):
        path.write_bytes(b"")
    status, output, error = call("Resnet18", f"{flags} --warmup 0.3")
    assert (status, "1 row of" in output, "random 0.5 seed 0" in error) == (2, True, True)
    rows = read_csv(table)
    assert (rows[0], rows[1]["method"], read_csv(aside)) == (random, "ds-pruning", [pruned])


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (lambda text: text[:-60], "has not as many fields"),
        (lambda text: text + text.splitlines()[1] + ",9\n", "has not as many fields"),
        (lambda text: text + text.splitlines()[1] + "\n", "the same row twice"),
        (lambda text: text.replace(",random,", ",randon,"), "a row is not understood"),
        (lambda text: text.replace("\nResnet18", '\n"Resnet18'), "is damaged"),
        (lambda text: "", "is damaged"),
        (lambda text: text.replace(",0.5,0.5", ",0.5,0.5,", 1), "has not as many fields"),
    ],
)
def test_a_damaged_table_is_named_set_aside_and_not_extended(call, tmp_path, harm, words):
    call("Resnet18", f"{FLAGS} random")
    table = tmp_path / "out" / "Resnet18" / "neuron-sparsity.csv"
    whole, damaged = table.read_text(), table.with_name("neuron-sparsity-damaged.csv")
    table.write_text(harm(whole))
    status, _, error = call("Resnet18", f"{FLAGS} random --extend")
    assert (status, error.count("\n"), words in error) == (2, 1, True), error
    whole_lines = words in ("the same row twice", "a row is not understood")
    with nullcontext() if whole_lines else pytest.raises(UserError, match="damaged or not ours"):
        redraw.main([str(table)])
    status, output, error = call("Resnet18", f"{FLAGS} random")
    assert (status, error, f"it is now {damaged}" in output) == (0, "", True)
    assert (table.read_text(), damaged.read_text()) == (whole, harm(whole))


def test_what_another_process_has_set_aside_meanwhile_is_left_alone(call, tmp_path, monkeypatch):
    call("Resnet18", f"{FLAGS} random")
    table = tmp_path / "out" / "Resnet18" / "neuron-sparsity.csv"
    whole, damaged = table.read_text(), table.with_name("neuron-sparsity-damaged.csv")
    table.write_text("")
    honest = sparsity.Sparsity.make

    def make(self, *rest):  # while another command does the same
        table.replace(damaged)
        table.write_text(whole)
        return honest(self, *rest)

    monkeypatch.setattr(sparsity.Sparsity, "make", make)
    assert "it is now" not in call("Resnet18", f"{FLAGS} random")[1]
    assert (table.read_text(), damaged.read_text()) == (whole, "")


def test_impossible_accuracies_and_settings_are_refused(call, tmp_path):
    call("Resnet18", f"{FLAGS} random")
    table = tmp_path / "out" / "Resnet18" / "neuron-sparsity.csv"
    rows = read_csv(table)
    write_csv(table, list(rows[0]), [{**rows[0], "test_accuracy": 9.42}])
    assert "a test accuracy of 9.42" in call("Resnet18", f"{FLAGS} random --extend")[2]
    write_csv(table, list(rows[0]), rows)
    made = table.with_suffix(".json")
    for settings in ({"methods": None}, {"methods": []}, {}, {"network": "x"}):
        made.write_text(json.dumps({"settings": settings}))
        status, _, error = call("Resnet18", f"{FLAGS} random --extend")
        assert (status, error.count("\n")) == (2, 1)
        with pytest.raises(UserError):
            redraw.main([str(table)])
    made.write_text("[" * 100_000)
    with pytest.raises(UserError):
        redraw.main([str(table)])


def test_a_study_goes_on_past_a_run_that_another_process_is_training(call, tmp_path):
    call("Resnet18", f"{FLAGS} random")
    (final,) = (tmp_path / "state").rglob("final.pt")
    final.unlink()
    with FileLock(final.parent / "lock"):
        status, output, error = call("Resnet18", f"{FLAGS} random magnitude")
    assert (status, error) == (0, "")
    assert "left to the processes that train them: random 0.5 seed 0" in output
    table = read_csv(tmp_path / "out/Resnet18/neuron-sparsity.csv")
    assert [row["method"] for row in table] == ["random", "magnitude"]  # the first as the table had it


def test_an_interrupted_study_leaves_the_table_of_what_it_has_done(call, tmp_path, monkeypatch):
    honest = sparsity.train

    def interrupted(settings, dataset, shared, trial, *rest):
        if trial.method == "magnitude":
            raise KeyboardInterrupt
        return honest(settings, dataset, shared, trial, *rest)

    monkeypatch.setattr(sparsity, "train", interrupted)
    status, _, _ = call("Resnet18", f"{FLAGS} dense random magnitude")
    assert status == 130
    assert [row["method"] for row in read_csv(tmp_path / "out/Resnet18/neuron-sparsity.csv")] == ["dense", "random"]


def test_both_studies_share_the_dense_run(call, tmp_path):
    call("Resnet18", f"{FLAGS} dense random")
    status, _, error = call("Resnet18", f"{FLAGS} dense random --study weight-sparsity")
    assert status == 0, error
    trained = sorted(path.parent.name.split("-")[0] for path in (tmp_path / "state").rglob("final.pt"))
    assert trained == ["dense", "random", "random"]
    accuracies = [
        [row["test_accuracy"] for row in read_csv(tmp_path / f"out/Resnet18/{study}.csv") if row["method"] == "dense"]
        for study in ("neuron-sparsity", "weight-sparsity")
    ]
    assert accuracies[0] == accuracies[1]


def test_the_course_of_a_run_shows_all_that_was_decided_and_what_came_back(tmp_path, monkeypatch):
    log = [
        {"step": 10 * i, "planned": i / 10, "measured": i / 12, "chosen": 7, "cut": 5, "cut_dead_by_themselves": 2}
        for i in range(1, 8)
    ]
    course = {"log": log, "steps": 100, "revived": [0, 0, 3, 0, 1], "couplings": ["stem"], "widths": [3]}
    drawn = []
    monkeypatch.setattr(canvas, "save", lambda figure, path: drawn.append(figure))
    figures.course_figure({"80%": {**course, "dense_widths": [8]}}, tmp_path / "course.png", "x")
    texts = {text.get_text() for text in drawn[0].findobj(Text)}
    assert {"planned", "measured", "chosen", "cut", "dead by themselves", "units revived", "stem"} <= texts
    lines = [line.get_xydata() for line in drawn[0].axes[1].get_lines()[:4]]
    assert [line[-1].tolist() for line in lines] == [[100, 49], [100, 35], [100, 14], [100, 4]]
    assert np.array_equal(lines[3], [[20, 0], [40, 0], [60, 3], [80, 3], [100, 4]])  # after each of the epochs


@pytest.mark.parametrize("wide", [False, True])
def test_of_one_target_the_labels_stand_beside_their_points(tmp_path, monkeypatch, wide):
    accuracies = {"dense": 0.8, "random": 0.5, "ds-pruning": 0.7, "snap": 0.6}
    rows = [
        {"method": method, "target": 0.5, "strength": np.nan, "seed": 0, "test_accuracy": accuracy, "at": 0.5 + i / 999}
        for i, (method, accuracy) in enumerate(accuracies.items())
    ]
    drawn = []
    monkeypatch.setattr(canvas, "save", lambda figure, path: drawn.append(figure))
    tradeoff.tradeoff_figure(pd.DataFrame(rows), tmp_path / "x.png", "x", "at", "%", {}, wide=wide)
    drawn[0].draw_without_rendering()
    (axes,), frame = drawn[0].axes, drawn[0].axes[0].get_window_extent()
    labels = [text for text in axes.texts if text.get_text() != "dense"]
    assert sorted(text.get_text() for text in labels) == ["DS-Pruning", "SNAP", "random"]
    for label in labels:
        point = axes.transData.transform(label.xy)[0]
        assert frame.x0 + 0.3 * frame.width < point < label.get_window_extent().x0 < point + 0.1 * frame.width
        assert label.get_window_extent().x1 < frame.x1


def test_what_was_measured_once_is_kept_and_measured_anew_only_where_it_is_damaged(tmp_path):
    path, asked = tmp_path / "kept.json", []

    def measure():
        asked.append(len(asked))
        return 1.25 + len(asked)

    assert [sparsity.kept(path, measure) for _ in range(3)] == [2.25] * 3
    whole = path.read_bytes()
    for place in range(len(whole)):
        for bit in (0, 3):
            flipped = bytearray(whole)
            flipped[place] ^= 1 << bit
            path.write_bytes(bytes(flipped))
            before = len(asked)
            found = sparsity.kept(path, measure)
            assert found == 2.25 or len(asked) == before + 1, bytes(flipped)  # blanks may be flipped
    path.write_text("1.5\n")  # as earlier versions left it
    assert sparsity.kept(path, measure) == 1.5


def test_a_figure_says_below_it_which_rows_are_void_and_which_were_ranked_otherwise():
    rows = pd.DataFrame({"method": ["dense", "ds-pruning", "snap", "earlycrop-s"]})
    now = {"snap": {"combine": "mean"}, "earlycrop-s": {"combine": "maximum"}}
    assert report.notes_of(now, rows) == []
    assert report.notes_of({}, rows[:2]) == []
    before = {"earlycrop-s": {"combine": "mean"}}
    assert report.notes_of(before, rows) == [
        "void: SNAP, scored in training mode, unlike their authors",
        "ranked otherwise than today: EarlyCroP-S by the mean of their channels, now by the largest",
    ]
