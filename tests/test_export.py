"""A finished run's network as a program that runs without this repository."""

import json

import pytest
import torch
from torch import nn

from common import export
from common.machine import process
from tests.conftest import ROOT
from tests.finals import BATCHES, CLASSES, DEVIATION, IMAGES, MEAN, NETWORKS, run_python
from tests.test_settings import assert_refused


def exported(*arguments) -> int:
    return process.run(lambda: export.main([str(argument) for argument in arguments]))


def refused(capsys, arguments: tuple, *words) -> None:
    status = exported(*arguments)
    captured = capsys.readouterr()
    assert_refused((status, captured.out, captured.err), *words)


EXPORTED = [name for name in NETWORKS if name not in ("dense", "resnet50")]
PIXELS = torch.randint(0, 256, IMAGES.shape, generator=torch.Generator().manual_seed(2), dtype=torch.uint8)


def normalised(pixels: torch.Tensor) -> torch.Tensor:
    return (pixels / 255 - MEAN[:, None, None]) / DEVIATION[:, None, None]


RUN = """
import json, sys, torch
torch.set_num_threads(1)
images, results, names = torch.load("images.pt"), {}, {"classes.json": ""}
for path in sys.argv[2:]:
    network = torch.export.load(path, extra_files=names).module()
    assert len(json.loads(names["classes.json"])) == 10
    results[path] = {batch: network(images[:batch]) for batch in map(int, sys.argv[1].split())}
assert "common" not in sys.modules and "torch_pruning" not in sys.modules
torch.save(results, "results.pt")
"""


def test_an_exported_network_runs_without_this_repository_in_batches_of_any_size(models, finals, tmp_path, capfd):
    programs = {name: tmp_path / f"{name}.pt2" for name in EXPORTED}
    for name, path in programs.items():
        assert exported(finals / f"{name}.pt", path) == 0
    captured = capfd.readouterr()
    assert captured.err == ""
    assert [line.split(": ")[0] for line in captured.out.splitlines()] == [str(path) for path in programs.values()]
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    torch.save(PIXELS, elsewhere / "images.pt")
    done = run_python(["-I", "-c", RUN, " ".join(map(str, BATCHES)), *map(str, programs.values())], elsewhere)
    assert done.returncode == 0, done.stderr  # PyTorch 2.11 warns of its own way to read
    results = torch.load(elsewhere / "results.pt")
    for name, path in programs.items():
        for batch in BATCHES:
            logits = results[str(path)][batch]
            assert logits.shape == (batch, 10)
            assert (logits - models[name](normalised(PIXELS[:batch]))).abs().max() < 1e-4


def test_an_onnx_file_takes_the_same_images_to_the_same_logits_and_class_names(
    models, finals, tmp_path, monkeypatch, capsys
):
    runtime = [pytest.importorskip(name) for name in export.ONNX][-1]
    output = tmp_path / "network.onnx"
    assert exported(finals / "one-channel.pt", output) == 0
    session = runtime.InferenceSession(output)
    for batch in (1, 20):
        (logits,) = session.run(None, {"images": PIXELS[:batch].numpy()})
        expected = models["one-channel"](normalised(PIXELS[:batch]))
        assert (torch.from_numpy(logits) - expected).abs().max() < 1e-4
    assert json.loads(session.get_modelmeta().custom_metadata_map["classes"]) == CLASSES


def test_a_program_that_disagrees_with_its_network_is_not_written(finals, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(export, "find_spec", lambda name: None)
    refused(capsys, (finals / "dense.pt", tmp_path / "network.onnx"), "pip install onnx onnxscript onnxruntime")
    right = export.program
    monkeypatch.setattr(export, "program", lambda network, image: right(Shifted(network), image))
    refused(capsys, (finals / "one-channel.pt", tmp_path / "network.pt2"), "logits are off by 0.5", "not written")
    assert not list(tmp_path.iterdir())


class Shifted(nn.Module):
    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, images):
        return self.network(images) + 0.5


def test_the_command_writes_a_program_once_and_says_what_it_is(models, finals, tmp_path):
    output = tmp_path / "network.pt2"
    command = ["-m", "common.export", str(finals / "one-channel.pt"), str(output)]
    done = run_python(command, ROOT)
    assert (done.returncode, done.stderr) == (0, "")
    parameters = sum(parameter.numel() for parameter in models["one-channel"].parameters())
    assert done.stdout == f"{output}: images 3 x 16 x 16, 10 classes, {parameters:,} parameters\n"
    before = output.read_bytes()
    again = run_python(command, ROOT)
    assert_refused((again.returncode, again.stdout, again.stderr), str(output), "exists", "--force")
    assert output.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["network.pt2"]


def test_force_replaces_a_program(finals, tmp_path):
    output = tmp_path / "network.pt2"
    output.write_text("in the way")
    assert exported(finals / "one-channel.pt", output, "--force", "--normalised") == 0
    assert torch.export.load(output).module()(IMAGES[:1]).shape == (1, 10)


def test_the_size_of_the_images_is_the_runs_or_the_one_asked_for(make, tmp_path, capsys):
    path = make(lambda final: final.update(image=[3, 16, 24]))
    output = tmp_path / "network.pt2"
    assert exported(path, output) == 0
    assert torch.export.load(output).module()(torch.zeros(1, 3, 16, 24, dtype=torch.uint8)).shape == (1, 10)

    def of_an_earlier_version(final: dict) -> None:
        for name in ("image", "mean", "deviation", "classes"):
            del final[name]

    path = make(of_an_earlier_version)
    assert exported(path, output, "--force", "--image-size", "40", "--normalised") == 0
    assert torch.export.load(output).module()(torch.zeros(5, 3, 40, 40)).shape == (5, 10)
    capsys.readouterr()
    refused(capsys, (path, tmp_path / "new.pt2"), "how large its images are", "--image-size")
    refused(capsys, (path, tmp_path / "new.pt2", "--image-size", "8"), "how its images were normalised", "--normalised")
    refused(capsys, (path, tmp_path / "new.pt2", "--image-size", "2"), "IMAGE_SIZE: got '2', takes")
    path = make(lambda final: final.update(image=[1, 16, 16]))
    refused(capsys, (path, tmp_path / "new.pt2"), "[1, 16, 16]", "3 channels")
    assert not (tmp_path / "new.pt2").exists()


def test_an_output_of_another_kind_or_nowhere_is_refused(finals, tmp_path, capsys):
    final = finals / "one-channel.pt"
    before = final.read_bytes()
    refused(capsys, (final, final, "--force"), "ends in .pt2 or .onnx")
    refused(capsys, (final, tmp_path / "nowhere" / "network.pt2"), "no folder")
    refused(capsys, (final,), "output", "--help")
    assert final.read_bytes() == before
