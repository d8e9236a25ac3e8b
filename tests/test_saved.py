"""A pruned network is a thing one can keep: loaded in another process, and run without this repository."""

import copy
import json
import os
import subprocess
import sys
from itertools import product
from pathlib import Path

import pytest
import torch
from torch import nn

from common import export
from common.errors import UserError
from common.machine import process
from common.models import ACTIVATIONS, batch_norms, build
from common.names import STEMS
from common.saved import load_network
from common.tracing import find_groups
from tests.conftest import ROOT
from tests.test_settings import assert_refused

RESNET18 = {"name": "resnet18", "classes": 10, "channels": 3, "width": 8, "stem": "cifar", "activation": "relu"}
NETWORKS = {  # name -> the network and how much of it is cut out
    **{f"{a}-{s}": ({**RESNET18, "activation": a, "stem": s}, 0.6) for a, s in product(ACTIVATIONS, STEMS)},
    "one-channel": (RESNET18, 1.0),
    "dense": (RESNET18, 0.0),
    "resnet50": ({**RESNET18, "name": "resnet50", "width": 4}, 0.6),
}
EXPORTED = [name for name in NETWORKS if name not in ("dense", "resnet50")]
BATCHES = (1, 2, 3, 20)
IMAGES = torch.randn(20, 3, 16, 16, generator=torch.Generator().manual_seed(1))
PIXELS = torch.randint(0, 256, IMAGES.shape, generator=torch.Generator().manual_seed(2), dtype=torch.uint8)
MEAN, DEVIATION = (torch.tensor([0.2, 0.5, 0.7]), torch.tensor([0.1, 0.2, 0.3]))
CLASSES = [f"class {number}" for number in range(10)]


def pruned(network: dict, share: float) -> nn.Module:
    """A network that looks trained, with a random share of its groups cut out and no padding left."""
    torch.manual_seed(0)
    model = build(network).to(memory_format=torch.channels_last)
    for norm in batch_norms(model):
        for tensor, low in ((norm.weight, 0.5), (norm.bias, -0.5), (norm.running_mean, -0.2), (norm.running_var, 0.5)):
            nn.init.uniform_(tensor, low, low + 1)
    groups = find_groups(model, IMAGES[:1])
    removed = torch.rand(len(groups)) < share
    removed[[coupling.start for coupling in groups.couplings]] = False
    groups.cut(model, None, removed, multiple=8)
    return groups.compact(model).eval()


def final_of(network: dict, model: nn.Module) -> dict:
    """What a finished run leaves."""
    config = {"format": 1, "seed": 0}
    image = list(IMAGES.shape[1:])
    known = {"mean": MEAN.tolist(), "deviation": DEVIATION.tolist(), "classes": CLASSES}
    measured = {"rows": [], "counts": {}}
    return {"config": config, "network": network, "image": image, **known, "model": model.state_dict(), **measured}


def normalised(pixels: torch.Tensor) -> torch.Tensor:
    return (pixels / 255 - MEAN[:, None, None]) / DEVIATION[:, None, None]


@pytest.fixture(scope="module")
def models():
    return {name: pruned(*how) for name, how in NETWORKS.items()}


@pytest.fixture(scope="module")
def finals(models, tmp_path_factory) -> Path:
    """A folder with the final.pt of every network, under its name."""
    folder = tmp_path_factory.mktemp("finals")
    for name, model in models.items():
        torch.save(final_of(NETWORKS[name][0], model), folder / f"{name}.pt")
    return folder


def run_python(arguments: list[str], folder: Path, **variables) -> subprocess.CompletedProcess:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **variables}
    return subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True, timeout=300
    )


def exported(*arguments) -> int:
    return process.run(lambda: export.main([str(argument) for argument in arguments]))


LOAD = """
import sys, torch
from common.saved import load_network
torch.set_num_threads(1)
images, results = torch.load("images.pt"), {}
for path in sys.argv[1:]:
    network = load_network(path)
    shapes = {name: list(tensor.shape) for name, tensor in network.state_dict().items()}
    results[path] = (network.training, shapes, network(images).detach())
torch.save(results, "results.pt")
"""


def test_a_fresh_process_loads_the_smaller_network_with_exactly_its_logits(models, finals, tmp_path):
    torch.save(IMAGES, tmp_path / "images.pt")
    paths = {name: str(finals / f"{name}.pt") for name in models}
    done = run_python(["-c", LOAD, *paths.values()], tmp_path, PYTHONPATH=str(ROOT))
    assert (done.returncode, done.stderr) == (0, "")
    results = torch.load(tmp_path / "results.pt")
    sizes = {}
    for name, model in models.items():
        training, shapes, logits = results[paths[name]]
        assert not training
        assert shapes == {key: list(tensor.shape) for key, tensor in model.state_dict().items()}
        assert torch.equal(logits, model(IMAGES))
        assert logits.std() > 0.01
        sizes[name] = sum(tensor.numel() for tensor in model.parameters())
    assert sizes["relu-cifar"] < 0.25 * sizes["dense"]
    assert shapes["fc.weight"][1] < 16 * RESNET18["width"]  # the ResNet-50's


def test_a_loaded_network_trains_on(finals):
    network = load_network(finals / "relu-cifar.pt").train()
    nn.functional.cross_entropy(network(IMAGES), torch.arange(20) % 10).backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


def test_loading_takes_and_leaves_no_random_numbers(finals):
    torch.manual_seed(3)
    before = torch.get_rng_state()
    first = load_network(finals / "relu-cifar.pt")(IMAGES)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(load_network(finals / "relu-cifar.pt")(IMAGES), first)


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


@pytest.fixture
def make(models, tmp_path):
    """make(final -> None): a final.pt that was changed so before it was saved."""

    def write(change) -> Path:
        final = copy.deepcopy(final_of(RESNET18, models["relu-cifar"]))
        change(final)
        torch.save(final, tmp_path / "final.pt")
        return tmp_path / "final.pt"

    return write


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


def refused(capsys, arguments: tuple, *words) -> None:
    status = exported(*arguments)
    captured = capsys.readouterr()
    assert_refused((status, captured.out, captured.err), *words)


def test_an_output_of_another_kind_or_nowhere_is_refused(finals, tmp_path, capsys):
    final = finals / "one-channel.pt"
    before = final.read_bytes()
    refused(capsys, (final, final, "--force"), "ends in .pt2 or .onnx")
    refused(capsys, (final, tmp_path / "nowhere" / "network.pt2"), "no folder")
    refused(capsys, (final,), "output", "--help")
    assert final.read_bytes() == before


def assert_unreadable(path: Path, capsys, *words) -> None:
    """Both the call and the command say so in one line, and the command leaves no file."""
    with pytest.raises(UserError) as error:
        load_network(path)
    for word in (str(path), *words):
        assert word in str(error.value)
    refused(capsys, (path, path.parent / "out.pt2"), str(error.value))
    assert not (path.parent / "out.pt2").exists()


@pytest.mark.parametrize("left", [0, 3, 0.5, 0.999])
def test_a_truncated_file_is_refused(finals, tmp_path, capsys, left):
    content = (finals / "one-channel.pt").read_bytes()
    path = tmp_path / "final.pt"
    path.write_bytes(content[: left if left >= 1 else int(left * len(content))])
    assert_unreadable(path, capsys, "damaged or not the final.pt of a run")


def test_a_file_with_a_changed_weight_is_refused(finals, models, tmp_path, capsys):
    content = (finals / "one-channel.pt").read_bytes()
    weight = models["one-channel"].fc.bias.detach().numpy().tobytes()
    assert content.count(weight) == 1
    path = tmp_path / "final.pt"
    path.write_bytes(content.replace(weight, weight[:-1] + bytes([weight[-1] ^ 1])))
    assert_unreadable(path, capsys, "damaged")


class Trap:
    """Touches a file when it is unpickled without care."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_files_that_are_not_ours_are_refused_and_never_run(tmp_path, capsys):
    path, sprung = tmp_path / "final.pt", tmp_path / "sprung"
    others = [nn.Linear(2, 2).state_dict(), nn.Linear(2, 2), torch.zeros(3), [1, 2], {"model": {}, "epoch": 3}]
    ours = {"config": {"format": 1}, "network": RESNET18, "model": {}}
    for content in (*others, {**ours, "model": [1]}, {**ours, "trap": Trap(sprung)}):
        torch.save(content, path)
        assert_unreadable(path, capsys, "damaged or not the final.pt of a run")
    path.write_text("epoch,units\n1,976\n")
    assert_unreadable(path, capsys, "damaged or not the final.pt of a run")
    assert not sprung.exists()


def test_a_file_that_cannot_be_read_is_named(tmp_path, capsys):
    assert_unreadable(tmp_path / "none.pt", capsys, "No such file")
    (tmp_path / "folder.pt").mkdir()
    assert_unreadable(tmp_path / "folder.pt", capsys, "Is a directory")


@pytest.mark.parametrize("version", [0, 2, "new", None])
def test_another_format_is_refused(make, capsys, version):
    path = make(lambda final: final["config"].update(format=version))
    assert_unreadable(path, capsys, f"format {version}, this version reads format 1")


def narrow(key: str, dim: int = 0, to: int | None = None):
    """A change that cuts one dimension of one tensor, by one channel or to some number of them."""

    def change(final: dict) -> None:
        tensor = final["model"][key]
        final["model"][key] = tensor.narrow(dim, 0, to or tensor.shape[dim] - 1).clone()

    return change


def one_channel_shortcut(final: dict) -> None:
    for key in ("0.weight", "1.weight", "1.bias", "1.running_mean", "1.running_var"):
        narrow(f"layer2.0.downsample.{key}", to=1)(final)


def wider(final: dict) -> None:
    final["model"]["bn1.weight"] = torch.ones(9)


CONTRADICTIONS = {
    "another network": (lambda final: final["network"].update(name="vgg16"), "unknown or missing: 'vgg16'"),
    "no channels": (lambda final: final["network"].pop("channels"), "unknown or missing: 'channels'"),
    "an unknown argument": (lambda final: final["network"].update(depth=3), "'depth'"),
    "an impossible width": (lambda final: final["network"].update(width=-8), "-8"),
    "an unthinkable width": (lambda final: final["network"].update(width=10**14), "overflow"),
    "a width below": (lambda final: final["network"].update(width=1), "is no cut of"),
    "more channels than the dense network": (wider, "bn1.weight: [9] is no cut of [8]"),
    "more classes": (lambda final: final["network"].update(classes=11), "10 logits for 11 classes"),
    "fewer classes": (lambda final: final["network"].update(classes=9), "is no cut of"),
    "more image channels": (lambda final: final["network"].update(channels=4), "4 channels"),
    "fewer image channels": (lambda final: final["network"].update(channels=1), "is no cut of"),
    "a missing tensor": (lambda final: final["model"].pop("fc.bias"), "fc.bias is only in"),
    "another tensor": (lambda final: final["model"].update(mask=torch.ones(3)), "mask is only in"),
    "no tensor": (lambda final: final["model"].update({"fc.bias": [0.0] * 10}), "not all of its weights"),
    "a convolution's outputs": (narrow("layer2.0.conv1.weight"), "elements"),
    "a convolution's inputs": (narrow("layer2.0.conv1.weight", dim=1), "channels"),
    "a kernel": (narrow("layer2.0.conv1.weight", dim=2), "is no cut of"),
    "a batch-norm": (narrow("layer3.0.bn1.running_var"), "layer3.0.bn1 has tensors of"),
    "a batch-norm's scalar": (lambda final: final["model"].update({"bn1.num_batches_tracked": torch.ones(2)}), "bn1."),
    "a bias of one": (narrow("fc.bias", to=1), "fc has tensors of 1 and of 10 channels"),
    "a shortcut of one channel": (one_channel_shortcut, "is added to"),
}


@pytest.mark.parametrize("case", CONTRADICTIONS)
def test_a_file_that_contradicts_itself_is_refused(make, capsys, case):
    change, word = CONTRADICTIONS[case]
    assert_unreadable(make(change), capsys, "does not hold the network that it describes", word)
