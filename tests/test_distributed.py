"""Two processes do what one does, decide alike or stop, and stop together."""

import json
import os
import re
import socket
import subprocess
import sys

import pytest
import torch

from common import files
from common.studies import sparsity
from tests.conftest import ROOT

FLAGS = (
    "--no-pretrained --image-size 32 --width 4 --epochs 2 --batch-size 16 --workers 0 --precision fp32 --device cpu "
    "--checkpoint-steps 3 --sparsities 0.8 --silence 6"
)


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("ranks")


@pytest.fixture(scope="module")
def both(place, photos):
    """Goes through all cases with two processes: name -> [[status, error lines] of each process]."""
    cases = {
        "pruned": {"flags": "--methods ds-pruning snap rigl", "run": "two"},
        "stopped": {"flags": "--methods ds-pruning", "run": "pieces", "spoil": "stops_after_step_3"},
        "resumed": {"flags": "--methods ds-pruning", "run": "pieces"},
        "stopped for one": {"flags": "--methods rigl", "run": "fewer", "spoil": "stops_after_step_3"},
        "other channels": {"flags": "--methods snap", "spoil": "cuts_one_fewer"},
        "other masks": {"flags": "--methods rigl", "spoil": "masks_one_other"},
        "unreadable": {"flags": "--methods dense", "spoil": "cannot_read"},
        "disk full": {"flags": "--methods dense", "spoil": "cannot_write"},
        "other constants": {"flags": "--methods dense", "spoil": "other_flags"},
        "odd batch": {"flags": "--methods dense --batch-size 9"},
        "odd passes": {"flags": "--methods dense --micro-batch 3"},
        "too few images": {"flags": "--methods dense --batch-size 100"},
        "no folder": {"flags": f"--methods dense --data-dir {place}/nowhere"},
        "one process only": {"script": "Resnet18"},
        "silent": {"flags": "--methods dense", "run": "silent", "spoil": "falls_silent"},
    }
    written = []
    for number, case in enumerate(cases.values()):
        script = case.get("script", "Imagenet")
        flags = f"{FLAGS} --data-dir {photos} --output-dir {place}/out {case.get('flags')}" if "flags" in case else ""
        flags += f" --run-dir {place}/{case.get('run', number)}" if "flags" in case else ""
        written.append({"script": script, "flags": flags, "spoil": case.get("spoil")})
    (place / "cases").write_text(json.dumps(written))
    processes = start(place, free_port())
    last = processes[0].communicate()[1]
    processes[1].kill()
    outcomes = [[*json.loads((place / f"outcome{rank}").read_text()), None] for rank in range(2)]
    found = dict(zip(cases, zip(*outcomes, strict=True), strict=True))
    return {**found, "silent": (processes[0].returncode, last)}


def start(place, port: int) -> list[subprocess.Popen]:
    common = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    started = []
    for rank in range(2):
        command = [sys.executable, "-m", "tests.ranks", str(place / "cases"), str(place / f"outcome{rank}")]
        environment = {**os.environ, **common, "RANK": str(rank), "LOCAL_RANK": str(rank)}
        started.append(subprocess.Popen(command, env=environment, cwd=ROOT, stderr=subprocess.PIPE, text=True))
    return started


def finals(folder) -> dict[str, dict]:
    found = map(files.load, folder.glob("**/final.pt"))
    return {final["config"]["method"]: final for final in found}


def removed(final: dict) -> list:
    """What a run cut or masked, to compare."""
    masks = final.get("Masked", {}).get("masks", {})
    return [final["counts"]["alive"].tolist(), {name: mask.tolist() for name, mask in masks.items()}]


def test_two_processes_and_one_in_two_passes_remove_the_same_units_and_count_the_same(
    both, place, call, photos, monkeypatch
):
    monkeypatch.setattr(sparsity, "inference_speedup", lambda *_: 1.0)  # measured for seconds
    assert both["pruned"] == ([0, ""], [0, ""])
    flags = f"{FLAGS} --micro-batch 8 --methods ds-pruning snap rigl"
    assert call("Imagenet", flags, data_dir=photos, run_dir=place / "one")[0] == 0
    two, one = finals(place / "two"), finals(place / "one")
    assert sorted(two) == sorted(one) == ["ds-pruning", "rigl", "snap"]
    for method in one:
        assert removed(one[method]) == removed(two[method]), method
        for counts in ("fired", "pairs", "silent"):
            assert torch.equal(one[method]["counts"][counts], two[method]["counts"][counts]), (method, counts)
        assert one[method]["Cost"] == two[method]["Cost"]
        assert one[method]["rows"][-1]["train_loss"] == pytest.approx(two[method]["rows"][-1]["train_loss"])
    assert not one["ds-pruning"]["counts"]["alive"][-1].all()
    assert not one["snap"]["counts"]["alive"][-1].all()


def test_two_processes_stopped_within_an_epoch_end_bit_for_bit_as_if_untouched(both, place):
    assert [status for status, _ in both["stopped"]] == [130, 130]
    assert both["resumed"] == ([0, ""], [0, ""])
    whole, pieces = finals(place / "two")["ds-pruning"], finals(place / "pieces")["ds-pruning"]
    assert whole["DSPruning"]["log"] == pieces["DSPruning"]["log"]
    assert all(torch.equal(whole["model"][name], pieces["model"][name]) for name in whole["model"])
    assert all(torch.equal(whole["counts"][name], pieces["counts"][name]) for name in ("fired", "pairs", "silent"))


def test_one_process_goes_on_where_two_stopped_within_an_epoch(both, place, call, photos):
    assert [status for status, _ in both["stopped for one"]] == [130, 130]
    state = files.load(next((place / "fewer").glob("**/checkpoint.pt")))
    assert (state["epoch"], state["step"]) == (0, 3)
    flags = f"{FLAGS} --methods rigl --micro-batch 8"
    assert call("Imagenet", flags, data_dir=photos, run_dir=place / "fewer")[0] == 0
    whole, pieces = finals(place / "two")["rigl"], finals(place / "fewer")["rigl"]
    assert removed(whole) == removed(pieces)
    assert torch.equal(whole["counts"]["fired"], pieces["counts"]["fired"])


def test_a_stopped_process_ends_the_others_with_its_name_and_the_last_checkpoint_is_kept(both, place):
    status, error = both["silent"]
    assert status == 2
    said = r"error: rank 1 on \S+ gave no sign of life for 6 s: .*; the same command goes on from the last checkpoint\n"
    assert re.fullmatch(said, error)
    state = files.load(next((place / "silent").glob("**/checkpoint.pt")))
    assert (state["epoch"], state["step"]) == (0, 3)


TOGETHER = {
    "other channels": "decided differently in epoch 1, step 0",
    "other masks": "decided differently in epoch 1, step",
    "unreadable": "a.jpg: Input/output error",
    "disk full": "No space left on device",
    "other constants": "started with different constants",
    "odd batch": "BATCH_SIZE: got 9, which 2 processes cannot share equally; takes a multiple of 2",
    "odd passes": "which 2 processes cannot share equally in passes of MICRO_BATCH 3; takes a multiple of 6",
    "too few images": "BATCH_SIZE: got 100, takes at most the 68 training images",
    "no folder": "nowhere",
    "one process only": "Resnet18.py is for one process",
}


@pytest.mark.parametrize("case", TOGETHER)
def test_both_processes_stop_with_the_same_line_and_status_2(both, case):
    (status, error), other = both[case]
    assert [status, error] == other
    assert status == 2
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert TOGETHER[case] in error


def test_under_torchrun_every_process_says_what_is_wrong_and_ends_with_status_2(tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", f"--master-port={free_port()}"]
    flags = ["--data-dir", "nowhere", "--device", "cpu", "--output-dir", "out", "--run-dir", "runs", "--no-pretrained"]
    done = subprocess.run([*command, ROOT / "Imagenet.py", *flags], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1  # torchrun's own
    assert done.stderr.count("error: DATA_DIR: got 'nowhere'") == 2
    assert re.findall(r"exitcode +: (-?\d+)", done.stderr) == ["2", "2"]
