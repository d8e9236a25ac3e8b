"""NETWORK: the networks that the CIFAR scripts train, and one of the user's own."""

import sys

import pytest
import torch

from common import export, files, load_network, models
from common.errors import UserError

OWN = """
import functools
import torch
from torch import nn
from common import own_activations

def tiny(classes, width):
    return own_activations(nn.Sequential(
        nn.Conv2d(1, width, 3), nn.ReLU(), nn.Conv2d(width, 8, 3), nn.BatchNorm2d(8), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, classes)
    ), torch.zeros(1, 1, 8, 8))

def seven(classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 5), nn.ReLU(), nn.Linear(5, 7))

def silent(classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, classes))

def wrong(classes):
    return nn.Linear(width, classes)

class Viewing(nn.Sequential):
    def forward(self, x):
        return self[2](self[1](self[0](x)).view(len(x), -1))

def viewing(classes):
    return Viewing(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Linear(288, classes))

number = 3
half = functools.partial(wrong, 3)

def uncut(classes):
    return nn.Sequential(nn.Conv2d(1, 8, 3), nn.GroupNorm(2, 8), nn.ReLU(), nn.Flatten(), nn.Linear(288, classes))
"""
QUICK = "--epochs 2 --hold-out 1300"


@pytest.fixture
def own(tmp_path, monkeypatch):
    """The module of a user's networks, in the folder that the script is started in."""
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "my_networks.py").write_text(OWN)
    monkeypatch.chdir(folder)
    yield folder / "my_networks.py"
    sys.modules.pop("my_networks", None)
    for name in [name for name in models.NETWORKS if ":" in name]:
        del models.NETWORKS[name]
    if str(folder) in sys.path:
        sys.path.remove(str(folder))


def finals(folder):
    return [files.load(path) for path in folder.rglob("final.pt")]


def test_vgg_is_trained_and_pruned(call, tmp_path):
    flags = f"{QUICK} --network vgg16-bn --width 2 --study neuron-sparsity --sparsities 0.5 --methods dense random"
    status, out, _ = call("Resnet18", flags)
    assert status == 0
    assert "VGG-16-BN of width 2 with relu" in out
    assert {final["network"]["name"] for final in finals(tmp_path)} == {"vgg16-bn"}
    for path in tmp_path.rglob("final.pt"):
        assert load_network(path)(torch.zeros(2, 1, 8, 8)).shape == (2, 10)


@pytest.mark.parametrize(
    ("flags", "words"),
    [("vgg16-bn --stem cifar", "STEM: vgg16-bn"), ("my_networks:seven --width 4", "WIDTH: my_networks:seven")],
)
def test_a_constant_that_the_network_has_not_is_an_error(call, own, flags, words):
    status, _, error = call("Resnet18", f"{QUICK} --network {flags}")
    assert (status, error) == (2, f"error: {words} has none; leave the flag out\n")


def test_vgg_counts_its_units_as_torchvisions_does():
    network = models.build({"name": "vgg16-bn", "classes": 10})
    assert sum(models.units(network, torch.zeros(1, 3, 32, 32)).values()) == 2 * 64 + 2 * 128 + 3 * 256 + 6 * 512
    assert sum(p.numel() for p in network.parameters()) == 14_728_266 - 4_224  # without the biases of convolutions


def test_a_network_of_ones_own_is_counted_pruned_and_found_again(call, own, tmp_path):
    flags = f"{QUICK} --network my_networks:tiny --width 6"
    assert call("Resnet18", flags)[0] == 0
    assert call("Resnet18", f"{flags} --study weight-sparsity --sparsities 0.5 --methods dense random")[0] == 0
    found = finals(tmp_path)
    assert {final["network"]["name"] for final in found} == {"my_networks:tiny"}
    assert {final["network"]["width"] for final in found} == {6}
    again = call("Resnet18", flags)[1]
    assert again.count("finished before") == 2
    own.write_text(OWN.replace("nn.Conv2d(width, 8, 3)", "nn.Conv2d(width, 8, 3, padding=1)"))
    sys.modules.pop("my_networks")
    models.NETWORKS.pop("my_networks:tiny")
    assert "finished before" not in call("Resnet18", flags)[1]


def test_a_file_never_names_the_code_that_is_run(call, own, tmp_path):
    assert call("Resnet18", f"{QUICK} --network my_networks:tiny --learning-rates 0.05")[0] == 0
    (path,) = tmp_path.rglob("final.pt")
    assert load_network(path)(torch.zeros(2, 1, 8, 8)).shape == (2, 10)
    models.NETWORKS.pop("my_networks:tiny")
    with pytest.raises(UserError, match="its network is code, my_networks:tiny; add --network my_networks:tiny"):
        load_network(path)
    assert export.main([str(path), str(tmp_path / "x.pt2"), "--network", "my_networks:tiny"]) == 0
    program = torch.export.load(tmp_path / "x.pt2").module()
    assert program(torch.zeros(2, 1, 8, 8, dtype=torch.uint8)).shape == (2, 10)
    load_network(path)


def test_what_cannot_be_pruned_is_told_where_it_is_to_be(call, own):
    flags = f"{QUICK} --network my_networks:uncut --study neuron-sparsity --methods dense"
    status, _, error = call("Resnet18", flags)
    assert status == 2
    assert "cannot be used: GroupError: cannot trace Sequential: the channels of 0 stay: cannot cut channels" in error


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnet19", "NETWORK: got 'resnet19', takes resnet18, resnet50, vgg16-bn, or module:function of your own"),
        (
            "my_networks:none",
            "NETWORK: got 'my_networks:none', which cannot be imported: AttributeError: module 'my_networks' has",
        ),
        ("no_such:tiny", "NETWORK: got 'no_such:tiny', which cannot be imported: ModuleNotFoundError: No module"),
        ("my_networks:seven", "NETWORK: my_networks:seven gives [1, 7] for one image and 10 classes"),
        ("my_networks:silent", "NETWORK: my_networks:silent cannot be used: ValueError: units cannot be counted in"),
        (
            "my_networks:viewing",
            "NETWORK: my_networks:viewing cannot be used: RuntimeError: view size is not compatible",
        ),
        ("my_networks:number", "NETWORK: got 'my_networks:number', which cannot be imported: TypeError: 3 is not a"),
        ("my_networks:half", "NETWORK: my_networks:half cannot be used: TypeError"),
        ("os.path:join", "NETWORK: os.path:join cannot be used: TypeError"),
        (
            "my_networks:wrong",
            "NETWORK: my_networks:wrong cannot be used: NameError: name 'width' is not defined (my_networks.py, "
            "line 20)",
        ),
    ],
)
def test_a_network_that_cannot_be_used_is_told_before_anything_is_trained(call, own, name, message):
    status, _, error = call("Resnet18", f"{QUICK} --network {name}")
    assert status == 2
    assert error.startswith(f"error: {message}")
    assert error.count("\n") == 1
