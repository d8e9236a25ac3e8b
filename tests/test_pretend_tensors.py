"""Tensors, files, host memory, events and random numbers of the pretend accelerator."""

import copy
import io

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from tests.test_pretend import seen_by


def test_another_tensor_can_become_a_parameters_data(pretended):
    layer = nn.Linear(3, 4).to(pretended)
    weight = layer.weight
    weight.data = torch.full((2, 3), 2.0, device=pretended)
    layer.bias.data = layer.bias.data[:2].clone()
    put_out = layer(torch.ones(1, 3, device=pretended))
    put_out.sum().backward()
    assert layer.weight is weight
    assert weight.grad.shape == (2, 3)
    weight.data += 1
    assert weight.tolist() == [[3.0] * 3] * 2


def test_a_tensor_follows_what_is_done_to_its_shape_in_place(pretended):
    values = torch.arange(6.0, device=pretended)
    assert values.resize_(8).shape == (8,)
    assert values.resize_(2, 3).t_().shape == (3, 2)
    assert torch.add(values, 1, out=torch.empty(0, device=pretended)).tolist() == [[1, 4], [2, 5], [3, 6]]


def test_a_deep_copy_is_of_its_own_and_keeps_what_a_parameter_is(pretended):
    layer = nn.Linear(3, 2).to(pretended)
    layer(torch.ones(1, 3, device=pretended)).sum().backward()
    copied = copy.deepcopy(layer)
    assert isinstance(copied.weight, nn.Parameter)
    assert copied.weight.device == pretended
    before = layer.weight.tolist()
    with torch.no_grad():
        copied.weight.zero_()
    assert layer.weight.tolist() == before


def test_what_is_saved_is_loaded_on_the_host_or_where_it_was(pretended):
    layer, file = nn.Linear(3, 2).to("pretend:1"), io.BytesIO()
    torch.save({"state": layer.state_dict(), "weight": layer.weight}, file)
    for where, device in (("cpu", "cpu"), (None, "pretend:1")):
        file.seek(0)
        loaded = torch.load(file, map_location=where, weights_only=True)
        for weight in (loaded["state"]["weight"], loaded["weight"]):
            assert str(weight.device) == device
            assert type(weight.data) is (torch.Tensor if device == "cpu" else type(layer.weight))
            assert weight.tolist() == layer.weight.tolist()
    assert isinstance(loaded["weight"], nn.Parameter)


def test_numpy_refuses_what_is_on_the_device(pretended):
    values = torch.ones(2, device=pretended)
    with pytest.raises(TypeError, match="can't convert pretend:0 device type tensor to numpy"):
        values.numpy()
    assert seen_by(lambda: values.cpu().numpy()).syncs == {"copy to host": 1}


# Host memory, events, random numbers -----------------------------------------------------------------------------


def test_a_copy_that_nobody_waits_for_is_there_after_an_event_only(pretended):
    target, event, source = torch.zeros(2, pin_memory=True), torch.Event("pretend"), torch.ones(2, device=pretended)
    target.copy_(source, non_blocking=True)
    source += 1  # comes after the copy
    event.record()
    assert target.tolist() == [0, 0]
    assert event.query()
    assert target.tolist() == [1, 1]
    early = torch.Event()
    early.record()
    late = source.to("cpu", non_blocking=True)
    early.query()
    assert late.tolist() == [0, 0]
    torch.accelerator.current_stream().record_event().synchronize()
    assert late.tolist() == [2, 2]


@pytest.mark.parametrize("wait", ["item", "synchronize", "copy", "stream", "module"])
def test_all_copies_have_arrived_after_any_wait(wait, pretended):
    source = torch.ones(2, device=pretended)
    target = source.to("cpu", non_blocking=True)
    {
        "item": source.sum().item,
        "synchronize": torch.accelerator.synchronize,
        "copy": source.cpu,
        "stream": torch.accelerator.current_stream().synchronize,
        "module": torch.get_device_module("pretend").synchronize,
    }[wait]()
    assert target.tolist() == [1, 1]


def test_memory_of_the_host_can_be_pinned(pretended):
    assert torch.zeros(4, pin_memory=True)[1:].is_pinned()
    assert torch.zeros(4).pin_memory().is_pinned()
    assert not torch.zeros(4).is_pinned()
    assert not torch.zeros(4, device=pretended).is_pinned()


@pytest.mark.parametrize("workers", [0, 1])
def test_a_data_loader_pins_its_batches(workers, pretended):
    values = TensorDataset(torch.arange(6), torch.ones(6))
    for numbers, ones in DataLoader(values, 3, pin_memory=True, num_workers=workers):
        assert numbers.is_pinned()
        assert ones.is_pinned()
        assert seen_by(lambda numbers=numbers: numbers.to(pretended, non_blocking=True)).syncs == {}


def test_random_numbers_follow_the_seed_and_their_own_state(pretended):
    torch.manual_seed(3)
    drawn = torch.rand(4, device=pretended)
    of_the_host = torch.rand(4)
    torch.manual_seed(3)
    state = torch.pretend.get_rng_state()
    torch.rand(9)  # of the host's, which the device's know nothing of
    assert torch.equal(torch.rand(4, device=pretended), drawn)
    torch.pretend.set_rng_state(state)
    assert torch.equal(torch.empty(4, device=pretended).uniform_(), drawn)
    torch.pretend.set_rng_state(state)
    dropped = functional.dropout(drawn, 0.5)
    torch.pretend.set_rng_state(state)
    assert torch.equal(functional.dropout(drawn, 0.5), dropped)
    assert of_the_host.tolist() == drawn.tolist()


def test_a_generator_of_the_device_can_be_saved_and_restored_and_one_of_the_host_is_refused(pretended):
    generator = torch.Generator("pretend").manual_seed(5)
    state = generator.get_state()
    drawn = torch.empty(3, device=pretended).normal_(generator=generator)
    generator.set_state(state)
    assert generator.device == pretended
    assert torch.equal(torch.randn(3, generator=generator, device=pretended), drawn)
    with pytest.raises(RuntimeError, match="Expected a 'pretend:0' device type for generator but found 'cpu'"):
        torch.randn(3, generator=torch.Generator().manual_seed(5), device=pretended)
    assert isinstance(torch.Generator(), torch.Generator)
