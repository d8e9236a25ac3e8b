"""The pretend accelerator behaves as CUDA does where the scripts and their tests depend on it."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional

from common.models import build
from tests.pretend import counting
from tests.pretend.machine import machine

NETWORK = {"name": "resnet18", "activation": "relu", "width": 4, "channels": 3, "classes": 10}


def on_two_devices(device: torch.device) -> list:
    here, host = torch.ones(3, device=device), torch.ones(3)
    place = torch.tensor([0, 1])
    return [
        lambda: here + host,
        lambda: host * here.sum(),  # one value, but not of the host
        lambda: host.add_(here),
        lambda: torch.ones(()).add_(here.sum()),
        lambda: torch.add(here, here, out=torch.empty(3)),
        lambda: here.index_add_(0, place, host[:2]),
        lambda: host[place.to(device)],
        lambda: here.masked_fill_(host > 0, 1.0),
        lambda: functional.linear(here, torch.ones(2, 3)),
        lambda: torch.where(here > 0, here, host),
        lambda: torch._foreach_add_([here], [host]),
        lambda: torch.cat([here, host]),
        lambda: here + torch.ones(3, device="pretend:1"),
        lambda: here + torch.ones(3, device="meta"),
    ]


@pytest.mark.parametrize("number", range(14))
def test_an_operation_on_tensors_of_two_devices_is_refused(number, pretended):
    operations = on_two_devices(pretended)
    assert len(operations) == 14
    with pytest.raises(RuntimeError, match="Expected all tensors to be on the same device, .* two devices"):
        operations[number]()


def test_single_values_and_indices_of_the_host_are_taken(pretended):
    values = torch.arange(4.0, device=pretended)
    assert (values * torch.tensor(2.0)).tolist() == [0, 2, 4, 6]
    assert values[torch.tensor([3, 1])].tolist() == [3, 1]
    values[torch.tensor([0, 1])] = torch.tensor(9.0)
    assert values.cpu().tolist() == [9, 9, 2, 3]
    assert values.copy_(torch.zeros(4)).device == pretended


def seen_by(work):
    with counting() as seen:
        work()
    return seen


WAITS = {  # and how often each waits
    "item": (lambda x: x.sum().item(), {"item": 1}),
    "bool": (lambda x: bool(x.any()), {"item": 1}),
    "tolist": (lambda x: x.tolist(), {"tolist": 1}),
    "nonzero": (lambda x: x.nonzero(), {"nonzero": 1}),
    "a mask as index": (lambda x: x[x > 0], {"index": 1}),
    "values where a mask says": (lambda x: x.__setitem__(x > 0, x[:1].expand(4)[:4]), {"index_put_": 1}),
    "one value where a mask says": (lambda x: x.__setitem__(x > 0, 0.0), {}),
    "equal": (lambda x: torch.equal(x, x), {"equal": 1}),
    "copy to the host": (lambda x: x.cpu(), {"copy to host": 1}),
    "copy into the host's memory": (lambda x: torch.zeros(4).copy_(x, non_blocking=True), {"copy to host": 1}),
    "copy into pinned memory": (lambda x: torch.zeros(4, pin_memory=True).copy_(x, non_blocking=True), {}),
    "copy to new pinned memory": (lambda x: x.to("cpu", non_blocking=True), {}),
    "awaited copy into pinned memory": (lambda x: torch.zeros(4, pin_memory=True).copy_(x), {"copy to host": 1}),
    "copy to the device": (lambda x: torch.zeros(4).to(x.device), {"copy to device": 1}),
    "a list": (lambda x: torch.tensor([1, 2], device=x.device), {"copy to device": 1}),
    "copy of pinned memory": (lambda x: torch.zeros(4).pin_memory().to(x.device, non_blocking=True), {}),
    "an index of the host": (lambda x: x[torch.tensor([1])], {"copy to device": 1}),
    "synchronize": (lambda x: torch.accelerator.synchronize(), {"synchronize": 1}),
    "arithmetic": (lambda x: ((x + 1).relu_() @ x).sqrt(), {}),
    "another type": (lambda x: x.double().to(torch.bfloat16), {}),
}


@pytest.mark.parametrize("work", WAITS)
def test_every_point_at_which_the_host_waits_is_counted_and_no_other(work, pretended):
    values = torch.ones(4, device=pretended)
    act, waits = WAITS[work]
    assert seen_by(lambda: act(values)).syncs == waits


def test_every_operation_that_computes_is_a_launch_and_no_view_or_allocation_is(pretended):
    values = torch.ones(4, 6, device=pretended)
    seen = seen_by(lambda: values.view(6, 4).t()[1:].unsqueeze(0).expand(2, 3, 6).detach().permute(2, 0, 1).split(2))
    assert seen.launches == {}
    assert seen_by(lambda: (torch.empty(4, device=pretended), torch.empty_like(values))).launches == {}
    assert seen_by(lambda: torch.zeros(4, device=pretended) + 1).launches == {"zero_": 1, "add": 1}
    assert seen_by(lambda: values.exp().sum()).launches.total() == 2


def test_counting_ends_with_its_block(pretended):
    with counting() as seen:
        values = torch.zeros(2, device=pretended)
    before = seen.launches.copy()
    values += 1
    assert seen.launches == before


# Training --------------------------------------------------------------------------------------------------------


def trained(device: torch.device | str, **how) -> tuple[list, dict]:
    """Losses and state of a small network after three steps, from the same beginning."""
    torch.manual_seed(0)
    model = build(NETWORK)
    inputs, labels = torch.randn(8, 3, 8, 8), torch.arange(8)
    model.to(device, memory_format=torch.channels_last)
    inputs, labels = inputs.to(device, memory_format=torch.channels_last), labels.to(device)
    optimizer, losses = torch.optim.SGD(model.parameters(), 0.1, 0.9, weight_decay=1e-3, **how), []
    for _ in range(3):
        loss = functional.cross_entropy(model(inputs), labels)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses, {name: (value.stride(), value.cpu()) for name, value in model.state_dict().items()}


@pytest.mark.parametrize("how", [{}, {"fused": True}, {"foreach": True}, {"foreach": False}])
@pytest.mark.parametrize("device", ["pretend:0", "pretend:1"])
def test_training_gives_the_numbers_and_strides_of_the_cpu_to_the_last_bit(device, how, pretended):
    (losses, state), (their_losses, their_state) = trained(device, **how), trained("cpu")
    assert losses == their_losses
    for name, (strides, value) in state.items():
        assert strides == their_state[name][0]
        assert torch.equal(value, their_state[name][1]), name


@pytest.mark.parametrize(("how", "step"), [({"fused": True}, {"_fused_sgd_": 1}), ({}, {"_foreach_add_": 3})])
def test_one_launch_does_an_optimisers_work_on_all_parameters(how, step, pretended):
    layers = nn.Sequential(*[nn.Linear(3, 3) for _ in range(4)]).to(pretended)
    optimizer = torch.optim.SGD(layers.parameters(), 0.1, 0.9, weight_decay=1e-3, **how)
    for _ in range(2):  # the first step makes the momentum
        layers(torch.ones(2, 3, device=pretended)).sum().backward()
        seen = seen_by(optimizer.step)
    step = step if how else {"_foreach_add": 1, "_foreach_mul_": 1, "_foreach_add_": 2}
    assert seen.launches == step
    assert seen.syncs == {}


def test_the_norm_of_all_gradients_takes_one_launch(pretended):
    parameters = [nn.Parameter(torch.ones(3, device=pretended)) for _ in range(20)]
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    seen = seen_by(lambda: nn.utils.clip_grad_norm_(parameters, 1.0))
    assert seen.launches["_foreach_norm"] == seen.launches["_foreach_mul_"] == 1
    assert seen.launches.total() < 10


def test_autocast_multiplies_in_the_short_type_and_keeps_gradients_and_losses_in_fp32(pretended):
    layer = nn.Linear(3, 2).to(pretended)
    with torch.autocast("pretend", torch.bfloat16):
        logits = layer(torch.ones(4, 3, device=pretended))
        loss = functional.cross_entropy(logits, torch.zeros(4, dtype=torch.int64, device=pretended))
    loss.backward()
    assert (logits.dtype, loss.dtype, layer.weight.grad.dtype) == (torch.bfloat16, torch.float32, torch.float32)
    with torch.autocast("pretend", torch.bfloat16, enabled=False):
        assert layer(torch.ones(4, 3, device=pretended)).dtype == torch.float32


def test_channels_last_memory_stays_so(pretended):
    layer = nn.Conv2d(2, 3, 3, padding=1).to(pretended, memory_format=torch.channels_last)
    put_out = layer(torch.ones(2, 2, 4, 4, device=pretended).to(memory_format=torch.channels_last))
    put_out.sum().backward()
    for tensor in (layer.weight, layer.weight.grad, put_out, torch.zeros_like(put_out), copy.deepcopy(layer).weight):
        assert tensor.is_contiguous(memory_format=torch.channels_last)


# The devices themselves ------------------------------------------------------------------------------------------


def test_there_are_two_devices_and_a_higher_index_is_refused(pretended):
    assert torch.accelerator.is_available()
    assert torch.accelerator.current_accelerator(check_available=True).type == "pretend"
    assert torch.accelerator.device_count() == 2
    torch.accelerator.set_device_index(1)
    made = torch.ones(2, device="pretend")
    assert str(made.device) == "pretend:1"
    assert str(made.to("pretend:0").device) == "pretend:0"
    assert made.to("pretend:1") is made
    assert str(torch.zeros_like(made).device) == str((made + 1).device) == "pretend:1"
    for act in (lambda: torch.ones(1, device="pretend:2"), lambda: torch.accelerator.set_device_index(2)):
        with pytest.raises(RuntimeError, match="invalid device ordinal 2"):
            act()


def test_memory_in_use_and_its_peak_are_known(pretended):
    before = torch.accelerator.memory_allocated()
    torch.accelerator.reset_peak_memory_stats()
    values = torch.zeros(1000, device=pretended)
    view = values[10:]
    del values
    assert torch.accelerator.memory_allocated() == before + 4000
    del view
    assert torch.accelerator.memory_allocated() == before
    assert torch.accelerator.max_memory_allocated() == before + 4000


def test_tensors_without_data_and_exported_networks_are_left_alone(pretended):
    with torch.device("meta"):
        assert build(NETWORK)(torch.zeros(2, 3, 8, 8)).shape == (2, 10)
    layer, example = nn.Sequential(nn.Conv2d(3, 2, 3), nn.ReLU()), torch.randn(1, 3, 8, 8)
    exported = torch.export.export(layer.eval(), (example,)).module()
    assert torch.equal(exported(example), layer(example))


def test_a_test_that_does_not_ask_for_the_device_does_not_find_it():
    """Whether another one before it, in this process, has installed it or not."""
    found = torch.accelerator.is_available()
    assert not found or torch.accelerator.current_accelerator().type != "pretend"
    assert not hasattr(torch, "pretend") or torch.pretend.device_count() == 0
    assert type(torch.Generator()) is torch.Generator
    assert not torch.zeros(2).is_pinned()


def test_switched_off_it_makes_no_tensors(pretended, monkeypatch):
    kept = torch.ones(2, device=pretended)
    monkeypatch.setattr(machine, "on", False)
    with pytest.raises(RuntimeError, match="the pretend accelerator is off"):
        torch.ones(2, device=pretended)
    assert kept.tolist() == [1, 1]


def test_what_is_made_on_another_device_is_made_there_while_it_is_on(pretended):
    with torch.device("meta"):
        assert torch.nn.Linear(2, 2).weight.device.type == torch.empty(2).device.type == "meta"
