import math

import pytest
import torch
from torch import nn

from common.errors import UserError
from common.training import callbacks, gradients, loop


def small(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 3))


def batches(count=4, size=8):
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(count * size, 1, 8, 8, generator=generator)
    labels = torch.randint(3, (count * size,), generator=generator)
    return lambda epoch: zip(images.split(size), labels.split(size), strict=True)


def start(model, epochs=2, steps=4, schedule="constant", rate=0.1):
    optimizer, scheduler = loop.sgd(model, rate, 0.9, 0.0, schedule, epochs * steps)
    return loop.Training(model, optimizer, scheduler, epochs, steps, "fp32", torch.device("cpu"))


class Recorder(loop.Callback):
    """Notes the point, and what the gradients and the learning rate are there."""

    def __init__(self):
        self.points, self.rates, self.gradients = [], [], []

    def on_epoch_start(self, run):
        self.points.append("epoch start")

    def on_gradients(self, run):
        self.points.append("gradients")
        self.rates.append(run.optimizer.param_groups[0]["lr"])
        self.gradients.append([p.grad.clone() for p in run.model.parameters()])

    def on_step(self, run):
        self.points.append("step")

    def on_epoch_end(self, run):
        self.points.append("epoch end")


def record(*callbacks, **options):
    recorder = Recorder()
    run = start(small(), **options)
    loop.train(run, batches(), [*callbacks, recorder])
    return run, recorder


def test_the_loop_calls_every_point_in_order():
    _, recorder = record(epochs=1)
    assert recorder.points == ["epoch start", *["gradients", "step"] * 4, "epoch end"]


def test_training_is_torchs_sgd_with_momentum():
    run, _ = record(epochs=1)
    model = small()
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    for images, labels in batches()(0):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(run.model.parameters(), model.parameters(), strict=True))


def test_one_cycle_rises_to_the_learning_rate_and_ends_near_0():
    _, recorder = record(epochs=10, schedule="one-cycle", rate=0.5)
    peak = recorder.rates.index(max(recorder.rates))
    assert max(recorder.rates) == pytest.approx(0.5, rel=0.02)
    assert recorder.rates[:peak] == sorted(recorder.rates[:peak])
    assert recorder.rates[peak:] == sorted(recorder.rates[peak:], reverse=True)
    assert recorder.rates[-1] < 0.01


def test_passes_of_half_a_batch_add_up_to_the_gradient_of_the_whole():
    def trained(passes):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 3)).double()
        run, recorder = start(model, epochs=1), Recorder()
        run.passes = passes
        halves = [(x.double(), y) for x, y in batches(count=4 * passes, size=8 // passes)(0)]
        loop.train(run, lambda epoch: halves, [recorder])
        return recorder

    whole, halves = trained(1), trained(2)
    assert halves.points == whole.points
    for ours, theirs in zip(halves.gradients, whole.gradients, strict=True):
        assert all(torch.allclose(a, b, rtol=1e-10) for a, b in zip(ours, theirs, strict=True))


def test_label_smoothing_is_torchs():
    model = small()
    run = start(model, epochs=1, steps=1)
    run.label_smoothing = 0.1
    ((images, labels),) = batches(count=1)(0)
    expected = nn.functional.cross_entropy(small()(images), labels, label_smoothing=0.1)
    loop.train(run, batches(count=1), [])
    assert torch.equal(run.loss, expected)


@pytest.mark.parametrize("schedule", ["constant", "one-cycle"])
def test_the_learning_rate_rises_over_the_warm_up(schedule):
    optimizer, scheduler = loop.sgd(small(), 0.5, 0.9, 0.0, schedule, 40, warmup=10)
    rates = []
    for _ in range(40):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert rates[:11] == sorted(rates[:11])
    assert rates[0] < 0.1
    assert rates[10] == pytest.approx(0.5, rel=0.01)
    assert all(rate == pytest.approx(0.5) for rate in rates[10:]) == (schedule == "constant")


def test_top_5_counts_a_label_among_the_five_highest_logits():
    class Fixed:
        def evaluation_batches(self, rank, ranks):
            return zip(logits.split(30), labels.split(30), strict=True)

    generator = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(100, 20, generator=generator), torch.randint(20, (100,), generator=generator)
    model = nn.Linear(20, 20, bias=False)
    model.weight.data = torch.eye(20)
    scores = callbacks.evaluate(start(model), Fixed())
    places = [(row > row[label]).sum().item() for row, label in zip(logits, labels, strict=True)]
    assert scores.top1 == pytest.approx(sum(place == 0 for place in places) / 100)
    assert scores.top5 == pytest.approx(sum(place < 5 for place in places) / 100)
    assert 0.1 < scores.top5 < 0.5


def test_a_one_step_one_cycle_run_works():
    run = start(small(), epochs=1, steps=1, schedule="one-cycle")
    loop.train(run, batches(count=1), [])


def test_the_pull_adds_the_sign_of_every_scale_and_peaks_at_half_of_training():
    _, plain = record()
    _, pulled = record(gradients.BatchNormPull(1e-3))
    scale = [name for name, _ in small().named_parameters()].index("1.weight")
    first = pulled.gradients[0][scale] - plain.gradients[0][scale]
    assert first.abs().max() == 0  # the one-cycle begins at 0
    norm = nn.BatchNorm2d(3)
    run = start(norm, epochs=2, steps=4)
    for epoch, step, share in ((0, 0, 0), (0, 2, 0.5), (1, 0, 1), (1, 2, 0.5)):
        run.epoch, run.step = epoch, step
        norm.weight.data = torch.tensor([0.5, -0.5, 0.0])
        norm.weight.grad, norm.bias.grad = torch.zeros(3), torch.zeros(3)
        gradients.BatchNormPull(1e-3).on_gradients(run)
        assert norm.weight.grad.tolist() == pytest.approx([share * 1e-3, -share * 1e-3, 0])
        assert norm.bias.grad.tolist() == [0, 0, 0]


def test_clipping_bounds_the_norm_of_the_whole_gradient():
    _, free = record()
    _, clipped = record(gradients.GradientClip(0.05))

    def norms(recorder):
        return [math.sqrt(sum(g.square().sum() for g in step)) for step in recorder.gradients]

    assert max(norms(free)) > 0.05
    assert max(norms(clipped)) <= 0.05 * 1.001


def test_noise_has_its_deviation_on_every_element_and_depends_on_seed_and_epoch_only():
    def noise(seed, epoch):
        run = start(small())
        run.epoch = epoch
        for p in run.model.parameters():
            p.grad = torch.zeros_like(p)
        callback = gradients.GradientNoise(0.5, seed, torch.device("cpu"))
        callback.on_epoch_start(run)
        callback.on_gradients(run)
        return torch.cat([p.grad.flatten() for p in run.model.parameters()])

    sample = torch.cat([noise(seed, 0) for seed in range(40)])
    assert sample.std() == pytest.approx(0.5, rel=0.02)
    assert sample.mean().abs() < 0.02
    assert noise(0, 0).ne(0).all()
    assert torch.equal(noise(3, 2), noise(3, 2))
    assert not torch.equal(noise(3, 2), noise(3, 1))
    assert not torch.equal(noise(3, 2), noise(4, 2))


def test_the_meters_give_the_mean_over_examples_not_over_batches():
    meters = callbacks.Meters(torch.device("cpu"))
    run = start(small(), epochs=1)
    losses, correct, examples = 0.0, 0, 0

    class Brute(loop.Callback):
        def on_gradients(self, run):
            nonlocal losses, correct, examples
            losses += nn.functional.cross_entropy(run.logits, run.labels, reduction="sum").item()
            correct += (run.logits.argmax(1) == run.labels).sum().item()
            examples += len(run.labels)

    images, labels = torch.randn(20, 1, 8, 8), torch.randint(3, (20,))
    loop.train(run, lambda epoch: zip(images.split(8), labels.split(8), strict=True), [meters, Brute()])
    assert examples == 20
    assert run.row["train_loss"] == pytest.approx(losses / 20, rel=1e-6)
    assert run.row["train_accuracy"] == correct / 20


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_names_its_epoch_and_step(poison):
    def poisoned(epoch):
        for step, (images, labels) in enumerate(batches()(epoch)):
            yield images * (poison if (epoch, step) == (1, 2) else 1), labels

    with pytest.raises(loop.Diverged, match="epoch 2, step 3") as error:
        loop.train(start(small(), epochs=3), poisoned, [callbacks.Meters(torch.device("cpu"))])
    assert isinstance(error.value, UserError)
    assert "\n" not in str(error.value)
