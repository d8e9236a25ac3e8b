"""torchvision's weights in our ResNet-50, from files of the right name made here: nothing is downloaded."""

from pathlib import Path

import pytest
import torch
import torchvision

from common import models
from common.errors import UserError
from common.training import pretrained

NAME = "resnet50-0676ba61.pth"
IMAGES = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def file_in(home: Path) -> Path:
    return home / "hub" / "checkpoints" / NAME


@pytest.fixture(scope="module")
def reference():
    """torchvision's network, with batch-norm statistics that are not those of a new one."""
    torch.manual_seed(1)
    network = torchvision.models.resnet50(weights=None)
    for module in models.batch_norms(network):
        module.running_mean.normal_(std=0.1)
        module.running_var.uniform_(0.5, 2)
    return network.eval()


@pytest.fixture(scope="module")
def home(reference, tmp_path_factory):
    folder = tmp_path_factory.mktemp("torch-home")
    file_in(folder).parent.mkdir(parents=True)
    torch.save(reference.state_dict(), file_in(folder))
    return folder


@pytest.fixture
def own_home(tmp_path, monkeypatch):
    """An empty TORCH_HOME, and no way to the network."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")  # nothing listens there
    file_in(tmp_path).parent.mkdir(parents=True)
    return tmp_path


def fresh(classes: int, **options) -> models.ResNet:
    torch.manual_seed(0)
    return models.resnet50(classes, **{"stem": "imagenet", **options})


@pytest.fixture(scope="module")
def network():
    return fresh(7)


def test_with_torchvisions_weights_the_logits_are_torchvisions(reference, home, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(home))
    network = fresh(1000)
    pretrained.load_weights(network)
    with torch.no_grad():
        assert torch.allclose(network.eval()(IMAGES), reference(IMAGES), atol=1e-5)


def test_with_other_classes_the_last_layer_is_new_and_the_seeds_and_the_rest_pretrained(reference, home, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(home))
    network, as_new = fresh(7), fresh(7)
    pretrained.load_weights(network)
    theirs, ours = reference.state_dict(), network.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours if not name.startswith("fc."))
    assert torch.equal(network.fc.weight, as_new.fc.weight)
    assert torch.equal(network.fc.bias, as_new.fc.bias)


def refused(network) -> str:
    with pytest.raises(UserError) as error:
        pretrained.load_weights(network)
    text = str(error.value)
    assert text.startswith("PRETRAINED: ")
    assert "\n" not in text
    assert "--no-pretrained" in text
    return text


def test_weights_that_are_neither_there_nor_to_be_downloaded_name_torch_home(own_home, network):
    text = refused(network)
    assert "TORCH_HOME" in text
    assert str(file_in(own_home)) in text
    assert not file_in(own_home).exists()


@pytest.mark.parametrize("damage", ["truncated", "empty", "a flipped bit", "of another network"])
def test_a_damaged_file_of_weights_is_named_in_one_line_and_nothing_is_loaded(home, own_home, damage, network):
    first = network.conv1.weight.detach().clone()
    content = bytearray(file_in(home).read_bytes())
    if damage == "truncated":
        del content[len(content) // 2 :]
    elif damage == "empty":
        content.clear()
    elif damage == "a flipped bit":
        content[len(content) // 2] ^= 1
    file_in(own_home).write_bytes(content)
    if damage == "of another network":
        torch.save(torchvision.models.resnet18().state_dict(), file_in(own_home))
    assert str(file_in(own_home)) in refused(network)
    assert torch.equal(network.conv1.weight, first)


@pytest.mark.parametrize("options", [{"width": 8}, {"stem": "cifar"}])
def test_a_network_that_the_weights_do_not_fit_is_refused_before_any_download(own_home, options):
    assert "WIDTH 64 and STEM imagenet" in refused(fresh(7, **options))
