"""Nobody's results are destroyed: not by a command of other conditions, not by a damaged checkpoint."""

import json
import os
import threading

import pytest
import torch

from common import files
from common.errors import Damaged
from common.machine import workers
from common.studies import study
from common.training import checkpoints, runs

SMALL = "--epochs 2 --width 4 --learning-rates 0.05"


def test_a_table_of_other_conditions_stays_and_the_new_one_goes_beside_it(call, tmp_path):
    table = tmp_path / "out" / "SGD" / "accumulation.csv"
    assert call("SGD", SMALL)[0] == 0
    before = table.read_bytes()
    for name, flags in (("digits-quick", "--momentum 0.8"), ("digits-quick-2", "--momentum 0.7")):
        for _ in range(2):  # the second time it is found there
            status, output, error = call("SGD", f"{SMALL} {flags}")
            assert (status, error) == (0, "")
            assert f"{table} was made with another momentum and stays" in output
            assert f"table: {tmp_path / 'out' / name / 'SGD' / 'accumulation.csv'}" in output
    assert table.read_bytes() == before
    assert "stays" not in call("SGD", SMALL)[1]
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"SGD", "digits-quick", "digits-quick-2"}


def test_what_goes_beside_it_is_extended_there(call, tmp_path):
    flags = "--study neuron-sparsity --sparsities 0.5 --epochs 1 --hold-out 1300 --width 4 --methods random"
    assert call("Resnet18", f"{flags} --momentum 0.8")[0] == 0
    assert call("Resnet18", flags)[0] == 0
    assert call("Resnet18", f"{flags} --seeds 1 --extend")[0] == 0
    rows = files.read_csv(tmp_path / "out" / "digits-quick" / "Resnet18" / "neuron-sparsity.csv")
    assert [row["seed"] for row in rows] == [0, 1]
    status, _, error = call("Resnet18", f"{flags} --seeds 1 --extend --momentum 0.7")
    assert status == 2
    assert "was made with another momentum" in error


def test_a_table_that_another_command_made_meanwhile_stays_too(call, tmp_path, monkeypatch):
    honest = workers.go_through

    def go_through(settings):
        monkeypatch.setattr(workers, "go_through", honest)
        assert call("SGD", f"{SMALL} --momentum 0.8")[0] == 0

    monkeypatch.setattr(workers, "go_through", go_through)
    status, output, error = call("SGD", SMALL)
    assert (status, error) == (0, "")
    for place, momentum in (("out", 0.8), ("out/digits-quick", 0.9)):
        made = json.loads((tmp_path / place / "SGD" / "accumulation.json").read_text())
        assert made["settings"]["momentum"] == momentum
    assert "was made with another momentum and stays; this goes to" in output
    assert f"table: {tmp_path / 'out/digits-quick/SGD/accumulation.csv'}" in output


def test_a_command_says_what_it_trains_and_how_far_it_is(call):
    output = call("SGD", "--epochs 1 --width 4 --learning-rates 0.05 0.1 --precision fp32 --device cpu")[1].splitlines()
    assert output[0] == (
        "accumulation: ResNet-18 of width 4 with relu, digits, protocol quick, 1 epoch, batch size 32, fp32 on cpu"
    )
    assert "run 2 of 2" in output


@pytest.fixture
def interrupted(call, tmp_path, monkeypatch):
    """A run of four epochs that was stopped after the third, and its folder."""
    honest, flags = checkpoints.Checkpoints.on_epoch_end, "--epochs 4 --width 4 --batch-size 128 --learning-rates 0.05"

    def stop(self, training):
        honest(self, training)
        if training.epoch == 3:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints.Checkpoints, "on_epoch_end", stop)
        assert call("SGD", flags)[0] == 130
    return flags, next(tmp_path.rglob("checkpoint.pt")).parent


@pytest.mark.parametrize("harm", ["one bit", "cut", "empty", "gone"])
def test_a_damaged_checkpoint_costs_an_epoch(call, interrupted, tmp_path, harm):
    flags, folder = interrupted
    last = folder / runs.LAST
    weight = files.load(last)["model"]["conv1.weight"]
    whole = last.read_bytes()
    place = whole.index(weight.permute(0, 2, 3, 1).contiguous().numpy().tobytes())  # as it lies in memory
    content = whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :]
    {
        "one bit": lambda: last.write_bytes(content),
        "cut": lambda: last.write_bytes(whole[:-1000]),
        "empty": lambda: last.write_bytes(b""),
        "gone": last.unlink,
    }[harm]()
    status, output, error = call("SGD", flags)
    assert status == 0
    assert [", epoch 3/4" in output, ", epoch 2/4" in output] == [True, False]
    assert error.count("its run goes on from the checkpoint before") == (harm != "gone")
    found = files.load(folder / "final.pt")
    assert not list(folder.glob("checkpoint*"))
    call("SGD", flags, run_dir=tmp_path / "untouched")
    untouched = files.load(next((tmp_path / "untouched").rglob("final.pt")))
    assert all((found["model"][name] == untouched["model"][name]).all() for name in found["model"])


def test_a_flipped_bit_anywhere_in_a_file_of_a_run_is_noticed(interrupted):
    _, folder = interrupted
    whole = (folder / runs.LAST).read_bytes()
    path, kept = folder / "flipped.pt", files.load(folder / runs.LAST)
    missed = 0
    for place in range(7, len(whole), len(whole) // 60):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :])
        try:
            found = files.load(path)
        except Damaged:
            continue
        missed += str(found["model"]) != str(kept["model"]) or str(found["rows"]) != str(kept["rows"])
    assert missed == 0


def test_a_file_of_an_earlier_version_whose_tensor_passes_for_a_folder_is_damaged(interrupted):
    """One bit of the directory, which no checksum in the archive covers; torch would leave the tensor empty."""
    _, folder = interrupted
    path, state = folder / "earlier.pt", files.load(folder / runs.LAST)
    torch.save(state, path)
    assert files.load(path)["epoch"] == state["epoch"]
    content = bytearray(path.read_bytes())
    end = content.rindex(b"PK\5\6")
    entry = int.from_bytes(content[end + 16 : end + 20], "little")
    while (
        b"/data/" not in content[entry + 46 : entry + 46 + int.from_bytes(content[entry + 28 : entry + 30], "little")]
    ):
        entry = content.index(b"PK\1\2", entry + 4)
    content[entry + 38] ^= 16
    path.write_bytes(content)
    with pytest.raises(Damaged):
        files.load(path)
    assert files.is_whole(folder / runs.LAST)
    sealed = bytearray((folder / runs.LAST).read_bytes())
    for place in [*range(len(sealed) - 4000, len(sealed) - 14, 19), *range(len(sealed) - 14, len(sealed))]:
        sealed[place] ^= 16
        path.write_bytes(sealed)
        sealed[place] ^= 16
        try:
            found = files.load(path)
        except Damaged:
            continue
        assert str(found["model"]) == str(state["model"])


@pytest.mark.parametrize("lacks", ["model", "rows", "optimizer", "epoch"])
def test_a_checkpoint_that_lacks_a_part_is_damaged(call, interrupted, lacks):
    flags, folder = interrupted
    state = files.load(folder / runs.LAST)
    del state[lacks]
    files.write_tensors(folder / runs.LAST, state)
    status, _, error = call("SGD", flags)
    assert (status, error.count("goes on from the checkpoint before")) == (0, 1)


@pytest.mark.parametrize(
    "change",
    [lambda f: f.clear(), lambda f: f.pop("counts"), lambda f: f["counts"].clear(), lambda f: f.update(rows=1)],
)
def test_a_final_that_lacks_a_part_is_told_in_a_line(call, interrupted, change, capsys):
    flags, folder = interrupted
    assert call("SGD", flags)[0] == 0
    final = files.load(folder / "final.pt")
    change(final)
    files.write_tensors(folder / "final.pt", final)
    status, _, error = call("SGD", flags)
    assert (status, error.splitlines()[0].startswith("error: lr 0.05 seed 0: ")) == (2, True)
    assert "Traceback" not in error


def test_who_writes_the_tables_is_waited_for_with_a_word(call, tmp_path, monkeypatch):
    monkeypatch.setattr(study.Study, "PATIENCE", 0.1)
    (tmp_path / "state").mkdir()
    held = os.open(tmp_path / "state" / ".SGD-accumulation.lock", os.O_CREAT | os.O_RDWR)
    pytest.importorskip("fcntl").flock(held, 2)  # as another process would
    release = threading.Timer(12, os.close, [held])
    release.start()
    status, output, _ = call("SGD", SMALL)
    release.join()
    assert (status, output.count("waiting for another process, which writes the tables")) == (0, 1)
