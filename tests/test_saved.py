"""A pruned network is loaded in another process, and a file that is not whole is refused."""

import os
from pathlib import Path

import pytest
import torch
from torch import nn

from common.errors import UserError
from common.saved import load_network
from tests.conftest import ROOT
from tests.finals import IMAGES, RESNET18, run_python
from tests.test_export import refused

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
