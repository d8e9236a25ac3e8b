"""On an accelerator every script does what it does on the CPU: on the real one, where there is one, else on a pretend
one, whose kernels are the CPU's, so that both end with the same bits."""

import json
from contextlib import ExitStack
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.nn import functional

from common import data, export, files, pruning, saved, settings
from common.machine import devices
from common.models import build
from common.pruning import scores
from common.pruning.ds_pruning import Constants, DSPruning
from common.pruning.task import Task
from common.studies import sparsity, study
from common.training import callbacks, fit, loop, runs
from common.units import UnitWatch
from tests.pretend import counting
from tests.test_settings import assert_refused

SHORT = "--precision fp32 --epochs 3 --hold-out 900"
SMALL = f"{SHORT} --network tests.small:network"  # layers, where many methods or settings are run
SOME = f"{SHORT} --batch-size 96"
ONE = "--precision fp32 --epochs 2 --batch-size 128 --learning-rates 0.05"
FEW = f"{SMALL} --batch-size 128 --width 8"
NEURON = f"{FEW} --study neuron-sparsity --sparsities 0.6 --demp-strengths 0.05 --methods " + " ".join(
    method for method in pruning.METHODS if pruning.METHODS[method].structured
)
WEIGHT = f"{FEW} --study weight-sparsity --sparsities 0.8 --methods dense ds-pruning " + " ".join(
    name for name, method in pruning.METHODS.items() if not method.structured
)
ROW = ("train_loss", "train_accuracy", "seconds")
PHOTOS = "--no-pretrained --image-size 32 --width 4 --epochs 2 --batch-size 8 --workers 0 --precision fp32"
LIKE_THE_GPU = "--precision fp32 --protocol gpu --epochs 2 --width 8 --batch-size 128"
STUDIES = {  # script and flags
    "neuron-sparsity": ("Resnet18", NEURON),
    "weight-sparsity": ("Resnet18", WEIGHT),
    "flops-sparsity": (
        "Resnet18",
        f"{SOME} --study flops-sparsity --sparsities 0.75 --methods dense ds-pruning random",
    ),
    "accumulation": ("Resnet18", f"{ONE} --regularization 0 0.01"),
    "gpu protocol": ("Resnet18", f"{LIKE_THE_GPU} --learning-rates 0.05"),
    "batch-size": ("Resnet18", f"{SMALL} --study batch-size --batch-sizes 96 192"),
    "learning-rate": ("Resnet18", f"{SMALL} --batch-size 96 --study learning-rate --learning-rates 0.01 0.1"),
    "regularization": ("Resnet18", f"{SMALL} --batch-size 96 --study regularization --regularizations 0 0.03"),
    "Leaky ReLU": ("LeakyReLU", ONE),
    "Leaky ReLU, pruned": ("LeakyReLU", f"{SOME} --study neuron-sparsity --sparsities 0.6 --methods dense ds-pruning"),
    "Swish": ("Swish", ONE),
    "SGD": ("SGD", ONE),
    "SGD with noise": ("SGD_noise", ONE),
    "ImageNet": ("Imagenet", f"{PHOTOS} --sparsities 0.8 --methods dense ds-pruning rigl"),
    "ImageNet, accumulation": ("Imagenet", f"{PHOTOS} --study accumulation --micro-batch 4 --noise-std 0.001"),
}
MEASURED = {"device", "seconds", "training_speedup", "inference_speedup"}  # the columns that are not the same again


@pytest.fixture
def accelerator(call, request, monkeypatch) -> str:
    """The device, as DEVICE takes it. It pads as a CPU does, as other widths would round otherwise."""
    monkeypatch.setattr(devices, "ELSEWHERE", devices.ON_CPU)
    monkeypatch.setattr(scores, "SCORING_BATCHES", 2)
    if torch.accelerator.is_available():
        return torch.accelerator.current_accelerator().type
    return request.getfixturevalue("pretended").type


def assert_same_run(theirs: dict, ours: dict, exact: bool) -> None:
    """What two final.pt hold; of a real device, whose kernels round otherwise, only what one epoch can tell."""
    assert theirs["model"].keys() == ours["model"].keys()
    for one, other in zip(theirs["rows"], ours["rows"] if exact else ours["rows"][:1], strict=exact):
        assert one.keys() == other.keys()
        if exact:
            assert {**one, "seconds": 0} == {**other, "seconds": 0}
        assert abs(one["train_accuracy"] - other["train_accuracy"]) < 0.1
        assert one["units"] == other["units"]
    assert torch.equal(theirs["counts"]["pairs"], ours["counts"]["pairs"])
    if exact:
        for name in ("fired", "silent", "alive"):
            assert torch.equal(theirs["counts"][name], ours["counts"][name]), name
        for name, tensor in theirs["model"].items():
            assert torch.equal(tensor, ours["model"][name]), name


def finals(folder) -> dict[str, dict]:
    """What the runs in a folder ended with, each by what it is a run of, but for the device."""
    found = [files.load(path) for path in folder.rglob("final.pt")]
    return {json.dumps({**final["config"], "device": ""}, sort_keys=True): final for final in found}


@pytest.mark.parametrize("study", STUDIES)
def test_every_script_and_study_does_what_it_does_on_the_cpu(study, call, photos, accelerator, tmp_path):
    script, flags = STUDIES[study]
    images = {"data_dir": photos} if script == "Imagenet" else {}
    for device in ("cpu", accelerator):
        places = {"output_dir": tmp_path / device / "out", "run_dir": tmp_path / device / "state"}
        status, _, error = call(script, f"{flags} --device {device}", **images, **places)
        assert (status, error) == (0, "")
    exact = accelerator == "pretend"
    theirs, ours = (finals(tmp_path / device / "state") for device in ("cpu", accelerator))
    assert theirs.keys() == ours.keys() != set()
    for config in theirs:
        assert_same_run(theirs[config], ours[config], exact)
    made = [{path.name for path in (tmp_path / device / "out").rglob("*.*")} for device in ("cpu", accelerator)]
    assert made[0] == made[1]
    for theirs in (tmp_path / "cpu" / "out").rglob("*.csv") if exact else ():
        ours = tmp_path / accelerator / theirs.relative_to(tmp_path / "cpu")
        rows = zip(files.read_csv(theirs), files.read_csv(ours), strict=True)
        assert all(a[name] == b[name] for a, b in rows for name in a.keys() - MEASURED), theirs.name


def test_a_study_on_the_device_has_every_method():
    named = f"{NEURON} {WEIGHT}".split()
    assert set(pruning.METHODS) <= set(named)


# One run ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def train(accelerator, tmp_path, monkeypatch):
    """train(method, folder) -> what `sparsity.train` returns, and settings and dataset."""
    import Resnet18

    def run(method: str, folder: str = "state", target: float = 0.6, flags: str = "", device: str = accelerator):
        flags = f"--dataset digits --study neuron-sparsity {SHORT} --device {device} {flags}".split()
        flags += ["--run-dir", str(tmp_path / folder), "--output-dir", str(tmp_path / "out")]
        constants = settings.read(vars(Resnet18), Resnet18.STUDIES, flags)
        dataset = data.load(constants)
        shared = study.conditions(constants, dataset, "resnet18")
        own = method == "dense" or not pruning.METHODS[method].targeted
        point = sparsity.points(constants, method)[0] if own else sparsity.Point(target)
        final = sparsity.train(constants, dataset, shared, sparsity.Trial(method, point, 0))
        return final, constants, dataset

    return run


def assert_same_values(one, other, where: str = "") -> None:
    """Of two nested results: types, tensors with their bits, strides, device and kind, and all else."""
    assert type(one) is type(other), where
    if isinstance(one, dict):
        assert one.keys() == other.keys(), where
        for key in one:
            assert_same_values(one[key], other[key], f"{where}/{key}")
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(other), where
        for place, pair in enumerate(zip(one, other, strict=True)):
            assert_same_values(*pair, f"{where}/{place}")
    elif isinstance(one, torch.Tensor):
        for fact in ("dtype", "device", "requires_grad"):
            assert getattr(one, fact) == getattr(other, fact), f"{where}: {fact}"
        assert one.stride() == other.stride(), where
        assert torch.equal(one, other), where
    else:
        assert one == other or (one != one and other != other), where


@pytest.mark.parametrize("method", ["dense", "ds-pruning", "set"])
def test_a_run_that_was_just_trained_returns_what_is_read_from_disk(method, train, accelerator, tmp_path):
    flags = "--study weight-sparsity" if method == "set" else ""
    trained, constants, dataset = train(method, flags=flags)
    first = sparsity.row_of(constants, dataset, trained, tmp_path)
    logits = saved.rebuild(trained, "it")(torch.ones(1, dataset.example.shape[1], 8, 8))
    found, *_ = train(method, flags=flags)
    assert_same_values(trained, found)
    second = sparsity.row_of(constants, dataset, found, tmp_path)
    assert {name: first[name] for name in first.keys() - MEASURED} == {n: second[n] for n in second.keys() - MEASURED}
    assert torch.equal(logits, saved.rebuild(found, "it")(torch.ones(1, dataset.example.shape[1], 8, 8)))
    assert all(tensor.device.type == "cpu" for tensor in found["model"].values())


@pytest.mark.parametrize("method", ["ds-pruning", "rigl"])
def test_an_interrupted_run_ends_as_if_untouched(method, train, accelerator, monkeypatch):
    flags = "--study weight-sparsity" if method == "rigl" else ""
    whole, *_ = train(method, "whole", flags=flags)
    honest = callbacks.Evaluation.on_epoch_end

    def interrupted(self, run):
        if run.epoch == 2:
            raise KeyboardInterrupt
        honest(self, run)

    with monkeypatch.context() as patch:
        patch.setattr(callbacks.Evaluation, "on_epoch_end", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train(method, flags=flags)
    pieces, *_ = train(method, flags=flags)
    assert_same_run(whole, pieces, accelerator == "pretend")


def test_a_network_trained_on_the_device_is_loaded_and_exported_as_any_other(train, tmp_path):
    train("ds-pruning")
    final = next((tmp_path / "state").rglob("ds-pruning*/final.pt"))
    network, images = saved.load_network(final), torch.ones(3, 1, 8, 8)
    assert all(tensor.device.type == "cpu" for tensor in network.state_dict().values())
    assert export.main([str(final), str(tmp_path / "network.pt2"), "--normalised"]) == 0
    exported = torch.export.load(tmp_path / "network.pt2").module()
    with torch.no_grad():
        assert torch.allclose(exported(images), network(images), atol=1e-5)


def test_auto_takes_the_accelerator_and_its_protocol(call, accelerator, tmp_path):
    import Resnet18

    given = ["--output-dir", str(tmp_path), "--run-dir", str(tmp_path)]
    found = settings.read(vars(Resnet18), Resnet18.STUDIES, given)
    assert found.device.type == accelerator
    assert (found.protocol, found.width, found.epochs) == ("gpu", 64, 30)


def test_a_second_device_is_taken_when_it_is_named(call, pretended, tmp_path):
    memory = torch.get_device_module("pretend")
    for ordinal in range(2):
        memory.reset_peak_memory_stats(ordinal)
    before = memory.max_memory_allocated(0)
    status, _, error = call("SGD_noise", f"{ONE} --device pretend:1")
    assert (status, error) == (0, "")
    assert memory.max_memory_allocated(0) == before
    assert memory.max_memory_allocated(1) > 2**20


@pytest.mark.parametrize(
    ("device", "words"),
    [
        ("pretend:2", ("'pretend:2'", "torch sees 2", "pretend:0 to pretend:1")),
        ("cuda", ("'cuda'", "auto, cpu, pretend")),
        ("cpu:1", ("'cpu:1'", "auto, cpu, pretend")),
        ("meta", ("'meta'", "auto, cpu, pretend")),
        ("vulkan", ("'vulkan'", "auto, cpu, pretend")),
        ("pretend:x", ("'pretend:x'", "auto, cpu, pretend")),
    ],
)
def test_a_device_that_is_not_there_is_named(device, words, call, pretended):
    assert_refused(call("Resnet18", f"--device {device}"), "DEVICE", *words)


@pytest.mark.skipif(torch.accelerator.is_available(), reason="there is an accelerator")
@pytest.mark.parametrize("device", ["cuda", "mps", "xpu:1", "meta", "vulkan", "cpu:1"])
def test_without_an_accelerator_only_the_cpu_is_taken(device, call):
    assert_refused(call("Resnet18", f"--device {device}"), "DEVICE", repr(device), "auto or cpu")


# Launches and waits ----------------------------------------------------------------------------------------------

STEPS, BATCH = 16, 16  # a step launches the same whatever its batch
NETWORK = {"name": "resnet18", "classes": 10, "channels": 3, "width": 2, "stem": "cifar", "activation": "relu"}
ALL = ("crop", "flip", "cutout")


def noise(device: torch.device) -> data.Dataset:
    """Images of CIFAR-10's shape, as many as STEPS steps take."""
    random = np.random.default_rng(0)
    split = data.Split(
        torch.from_numpy(random.integers(0, 256, (STEPS * BATCH, 32, 32, 3), dtype=np.uint8)).to(device),
        torch.from_numpy(random.integers(0, 10, STEPS * BATCH)).to(device),
    )
    test = data.Split(split.images[:BATCH], split.labels[:BATCH])
    mean = torch.full((3,), 0.5, device=device)
    return data.Dataset("noise", split, test, list("0123456789"), mean, mean / 2, "")


def bare_step(device: torch.device) -> int:
    """The launches of forward, backward and a fused SGD on a batch that is there."""
    model = build(NETWORK).to(device, memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, 0.9, weight_decay=5e-4, fused=True)
    inputs, labels = torch.ones(BATCH, 3, 32, 32, device=device), torch.zeros(BATCH, dtype=torch.int64, device=device)
    with counting() as seen:
        with torch.autocast(device.type, torch.bfloat16):
            loss = functional.cross_entropy(model(inputs), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return seen.launches.total()


class Probe(loop.Callback):
    """Counts over the second epoch."""

    def __init__(self):
        self.seen, self.open = None, ExitStack()

    def on_epoch_start(self, run):
        if run.epoch == 1:
            self.seen = self.open.enter_context(counting())

    def on_epoch_end(self, run):
        self.open.close()

    def leaving_out(self, act):
        """`act`, uncounted."""

        def acted(*arguments):
            with counting() as own:
                act(*arguments)
            if self.seen:
                self.seen.launches -= own.launches
                self.seen.syncs -= own.syncs

        return acted


def one_epoch(device: torch.device, tmp_path, monkeypatch, augmentation=ALL, target=0.0, glances=float("inf")):
    """What the second of three epochs of a whole run launched and waited for; the looks of DS-Pruning left out.

    glances: seconds between two of the progress bar, of which a slow machine would have one a step.
    """
    monkeypatch.setattr(fit.Progress, "SECONDS", glances)
    constants = SimpleNamespace(
        **settings.ABSENT,
        **{"epochs": 3, "batch_size": BATCH, "per_pass": BATCH, "passes": 1, "momentum": 0.9, "weight_decay": 5e-4},
        **{"schedule": "one-cycle", "precision": "bf16", "device": device, "augmentation": augmentation},
        activation="relu",
    )
    honest, probe = fit.train, Probe()
    monkeypatch.setattr(fit, "train", lambda run, batches, those: honest(run, batches, [probe, *those]))
    # A look ends where the units are followed that were cut.
    for owner, name in ((DSPruning, "look"), (UnitWatch, "follow")):
        monkeypatch.setattr(owner, name, probe.leaving_out(getattr(owner, name)))
    extra = [DSPruning(Task(target, "neuron", 0, 8, constants), Constants())] if target else []
    run = runs.Run(tmp_path, "run", {})
    final = fit.fit(constants, noise(device), run, NETWORK, 0.1, 0, extra, cuts=bool(target))
    if target:
        assert final["rows"][0]["groups_cut"] < final["rows"][1]["groups_cut"]
    return probe.seen


@pytest.mark.parametrize("augmentation", [(), ("crop",), ALL])
def test_training_launches_at_most_30_operations_more_than_a_bare_step(augmentation, pretended, tmp_path, monkeypatch):
    seen = one_epoch(pretended, tmp_path, monkeypatch, augmentation)
    assert 0 < seen.launches.total() / STEPS - bare_step(pretended) <= 30


def test_ds_pruning_launches_at_most_40_more_between_two_looks(pretended, tmp_path, monkeypatch):
    seen = one_epoch(pretended, tmp_path, monkeypatch, target=0.8)
    assert 0 < seen.launches.total() / STEPS - bare_step(pretended) <= 40


@pytest.mark.parametrize("target", [0.0, 0.8])
def test_within_an_epoch_the_host_waits_at_the_looks_only(target, pretended, tmp_path, monkeypatch):
    assert one_epoch(pretended, tmp_path, monkeypatch, target=target, glances=0.0).syncs == {}


def test_the_probe_would_see_a_wait(pretended, tmp_path, monkeypatch):
    monkeypatch.setattr(callbacks.Meters, "on_pass", lambda self, run: run.loss.item())
    monkeypatch.setattr(callbacks.Meters, "on_epoch_end", lambda self, run: run.row.update(dict.fromkeys(ROW, 0.0)))
    assert one_epoch(pretended, tmp_path, monkeypatch).syncs == {"item": STEPS}
