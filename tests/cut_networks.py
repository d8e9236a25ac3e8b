"""Real networks that are small, and what is compared when something is cut out of them."""

import copy
from functools import partial

import torch
import torchvision
from torch import Tensor, nn

from common.groups import Groups
from common.models import batch_norms, resnet18, resnet50
from common.tracing import find_groups

IMAGE = torch.zeros(1, 3, 32, 32)


def narrow_vgg16_bn() -> nn.Module:
    """Torchvision's VGG-16-BN, layer by layer, at a sixteenth of its width."""
    with torch.device("meta"):
        network = torchvision.models.vgg16_bn(num_classes=10)
    plan = [size if size == "M" else size // 16 for size in torchvision.models.vgg.cfgs["D"]]
    network.features = torchvision.models.vgg.make_layers(plan, batch_norm=True)
    head = [nn.Linear(32 * 49, 24), nn.ReLU(True), nn.Dropout(), nn.Linear(24, 24), nn.ReLU(True), nn.Dropout()]
    network.classifier = nn.Sequential(*head, nn.Linear(24, 10))
    return network


NETWORKS = {
    "resnet18-cifar": lambda: resnet18(10, width=8),
    "resnet18-imagenet": lambda: resnet18(10, width=8, stem="imagenet"),
    "resnet50": lambda: resnet50(10, width=4),
    "vgg16_bn": narrow_vgg16_bn,
    "mobilenet_v2": lambda: torchvision.models.mobilenet_v2(num_classes=10, width_mult=0.35),
}
OPTIMIZERS = {
    "sgd": lambda parameters: torch.optim.SGD(parameters, lr=0.005, momentum=0.9, weight_decay=5e-4),
    "adam": lambda parameters: torch.optim.Adam(parameters, lr=0.001, weight_decay=5e-4, amsgrad=True),
}


def make(name: str, dtype: torch.dtype = torch.float64) -> tuple[nn.Module, Groups]:
    """A network in evaluation mode whose logits depend on the image, as a trained one's do, and its groups."""
    torch.manual_seed(7)
    network = NETWORKS[name]().to(dtype)
    for module in network.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0  # two networks are to be compared
        elif isinstance(module, nn.Linear):
            nn.init.kaiming_normal_(module.weight)
    for norm in batch_norms(network):
        nn.init.uniform_(norm.weight, 0.5, 1.5)
        nn.init.normal_(norm.bias, std=0.3)
        norm.momentum = 1.0
    network.train()(images(dtype=dtype))
    for norm in batch_norms(network):
        norm.momentum = 0.1
    return network.eval(), find_groups(network, IMAGE)


def some(groups: Groups, share: float = 0.4, seed: int = 0) -> Tensor:
    """bool [G]: a random share of the groups, never all of a coupling."""
    mask = torch.rand(len(groups), generator=torch.Generator().manual_seed(seed)) < share
    mask[[coupling.start for coupling in groups.couplings]] = False
    return mask & groups.alive


def images(count: int = 8, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(1)).to(dtype)


def step(network: nn.Module, optimizer: torch.optim.Optimizer, autocast: bool = False) -> Tensor:
    """One training step on eight images; returns the loss, whose graph lives as long as the caller keeps it."""
    network.train()
    x = images(dtype=next(network.parameters()).dtype)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        logits = network(x)
    loss = nn.functional.cross_entropy(logits, torch.arange(len(x)))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss


def trained(name: str, optimizer: str = "sgd", dtype: torch.dtype = torch.float64):
    """A network after two training steps, its optimiser and its groups."""
    network, groups = make(name, dtype)
    optimizer = OPTIMIZERS[optimizer](network.parameters())
    step(network, optimizer)
    step(network, optimizer)
    return network, optimizer, groups


def tensors(network: nn.Module, optimizer: torch.optim.Optimizer | None = None) -> dict[str, Tensor]:
    """Every tensor of a network and its optimiser, by name."""
    found = dict(network.state_dict())
    for name, parameter in network.named_parameters() if optimizer else ():
        for key, value in optimizer.state[parameter].items():
            found[f"{name}.{key}"] = value
    return found


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float = 0.0) -> None:
    assert found.keys() == expected.keys()
    for name, value in found.items():
        message = partial("{}: {}".format, name)
        torch.testing.assert_close(value, expected[name], rtol=tolerance, atol=tolerance, msg=message)


def assert_logits(network: nn.Module, expected: Tensor) -> None:
    assert expected.std(0).min() > 1e-5  # they do depend on the image
    torch.testing.assert_close(network(images()), expected, rtol=0, atol=1e-10)


def copies(network: nn.Module, optimizer: torch.optim.Optimizer, groups: Groups):
    """Independent copies that belong together."""
    return copy.deepcopy((network, optimizer, groups))
