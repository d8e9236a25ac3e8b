"""The list of runs: what tells them apart, how they ended, and what is told of damaged ones."""

import os

import pandas as pd
import pytest

from common import files
from common.reports import runs


def shown(capsys, *arguments) -> str:
    capsys.readouterr()
    assert runs.main(list(map(str, arguments))) == 0
    return capsys.readouterr().out


def refused(*arguments) -> str:
    with pytest.raises(runs.UserError) as error:
        runs.main(list(map(str, arguments)))
    return str(error.value)


def test_each_run_is_a_line_with_what_tells_it_from_the_others(call, capsys, tmp_path):
    flags = "--study neuron-sparsity --sparsities 0.5 --methods dense random --seeds 0 1 --epochs 1 --hold-out 1300"
    assert call("Resnet18", f"{flags} --width 2")[0] == 0
    made = tmp_path / "state"
    lines = shown(capsys, made).splitlines()
    assert lines[0].split() == [
        "method",
        "seed",
        "target",
        "state",
        "accuracy",
        "dead",
        "sparsity",
        "ended",
        "code",
        "name",
    ]
    assert len(lines) == 5
    assert sum("finished" in line for line in lines) == 4
    assert sum(" 50.0 " in line for line in lines) == 2

    out = shown(capsys, made, "--where", "method=random", "--sort", "accuracy", "--csv", tmp_path / "runs.csv")
    assert len(out.splitlines()) == 3
    table = pd.read_csv(tmp_path / "runs.csv")
    assert list(table["seed"].sort_values()) == [0, 1]
    assert table["accuracy"].is_monotonic_increasing
    assert "method" not in table  # the same in all that are shown

    assert refused(made, "--where", "method") == "--where: got 'method', takes constant=value"
    assert refused(made, "--where", "method=none") == "--where: no run is so; leave it out to see all"
    assert refused(made, "--sort", "x").startswith("--sort: got 'x', takes one of method, seed, target, state")

    finals = sorted(made.rglob("final.pt"))
    finals[0].unlink()
    finals[1].write_bytes(b"no more")
    lines = shown(capsys, made).splitlines()
    assert sum("1 epochs" in line for line in lines) == 1
    assert len(lines) == 4


def test_what_only_a_hash_would_tell_apart_is_a_column():
    first = {"network": {"name": "my:net", "code": "1a", "width": 4}, "constants": {"definition": {"score": "mean"}}}
    second = {"network": {**first["network"], "code": "2b"}, "constants": {"definition": {"score": "largest"}}}
    one, two = runs.flat(first), runs.flat(second)
    assert one == {"network": "my:net", "network_code": "1a", "width": 4, "definition.score": "mean"}
    assert {name for name in one if one[name] != two[name]} == {"network_code", "definition.score"}


def test_a_folder_without_runs_is_named(tmp_path):
    assert refused(tmp_path) == f"{tmp_path}: no runs there; takes the RUN_DIR of a script"


def test_what_a_finished_run_says_counts_and_what_is_damaged_is_left_out_by_name(call, capsys, tmp_path):
    assert call("SGD", "--epochs 1 --width 2 --batch-size 512 --learning-rates 0.01 0.02 0.03 0.04 0.05")[0] == 0
    made = tmp_path / "state"
    folders = sorted(path.parent for path in made.rglob("final.pt"))
    before = [line.split()[:3] for line in shown(capsys, made).splitlines()[1:]]
    (folders[0] / "log.csv").write_bytes((folders[0] / "log.csv").read_bytes()[:-40])
    assert [line.split()[:3] for line in shown(capsys, made).splitlines()[1:]] == before
    (folders[1] / "config.json").write_text("null")
    files.write_tensors(folders[2] / "final.pt", files.load(folders[0] / "final.pt"))  # of another run
    os.mkfifo(folders[3] / "pipe")
    (folders[3] / "pipe").replace(folders[3] / "final.pt")
    assert runs.main([str(made)]) == 0
    output, error = capsys.readouterr()
    assert [line.split()[:3] for line in output.splitlines()[1:]] == [before[0], before[4]]
    assert error.count("left out: ") == error.count("\n") == 3
    for folder in folders:
        (folder / "config.json").write_text("{")
    assert refused(made) == "no run there can be read"
    assert refused(made.parent, "--csv", "/nowhere/x.csv") == "no run there can be read"
