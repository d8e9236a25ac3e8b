"""A whole run, from first weights to final.pt."""

import sys
import time
from collections.abc import Iterator
from datetime import timedelta
from itertools import islice

import torch
from torch import Tensor
from tqdm import tqdm

from common import data, units
from common.errors import Damaged, told
from common.machine import devices, distributed, environment, workers
from common.models import build
from common.tracing import find_groups
from common.training import code
from common.training.callbacks import Evaluation, Meters, UnitCounts
from common.training.checkpoints import Checkpoints, SameDecisions
from common.training.loop import Callback, Training, memory_watched, sgd, train
from common.training.runs import Run


class Progress(Callback):
    """On a terminal a bar with loss, accuracy, dead units, images/s and the time left; everywhere a line an epoch, and
    elsewhere one at least every half minute."""

    SECONDS = 0.5  # between two looks at the meters
    SILENT = 30  # seconds after which a line is due where there is no bar, as in a pipe

    def __init__(self, label: str, training: Training, meters: Meters, examples: int):
        self.label, self.meters = label, meters
        self.bar = tqdm(
            total=training.epochs * examples,
            initial=round(training.progress * training.epochs * examples),
            unit=" images",
            unit_scale=True,
            leave=False,
            dynamic_ncols=True,
            disable=not sys.stderr.isatty() or environment.rank() > 0 or workers.is_worker(),
        )
        self.dead, self.looked = "?", 0.0
        self.told = time.perf_counter()

    def on_step(self, training: Training):
        self.bar.update(training.examples)
        now = time.perf_counter()
        if now - self.looked < self.SECONDS:
            return
        self.looked = now
        seen = self.meters.glance(training)
        if seen is None:
            return
        where = f"{self.label}, epoch {training.epoch + 1}/{training.epochs}"
        self.bar.set_description(where, refresh=False)
        self.bar.set_postfix(loss=f"{seen[0]:.3f}", accuracy=f"{seen[1]:.1%}", dead=self.dead, refresh=False)
        if self.bar.disable and now - self.told >= self.SILENT:
            done = training.step / training.steps_per_epoch
            self.say(f"{where}, {done:.0%} of it: loss {seen[0]:.3f}, train {seen[1]:.1%}")

    def on_epoch_end(self, training: Training):
        row = training.row
        self.dead = row["dead_units"]
        self.say(
            f"{self.label}, epoch {training.epoch}/{training.epochs}: loss {row['train_loss']:.3f}, "
            f"train {row['train_accuracy']:.1%}, test {row['test_accuracy']:.1%}, {self.state_of_units(training)}, "
            f"{row['seconds']:.1f} s{self.time_left(training)}"
        )

    def say(self, line: str) -> None:
        self.bar.write(line, file=sys.stdout)
        sys.stdout.flush()
        self.told = time.perf_counter()

    @staticmethod
    def state_of_units(training: Training) -> str:
        """Of a network that is cut, how much of it is left; else how many units are dead and dying."""
        row, groups = training.row, training.groups
        if groups is not None and not groups.alive.all():
            units = sum(int(groups.alive_channels(layer).sum()) for layer in groups.layer_units)
            return f"{units} of {row['units']} units left, {row['dead_units']} of them dead"
        dying = "" if row["dying_units"] is None else f", {row['dying_units']} dying"
        return f"{row['dead_units']} of {row['units']} units dead{dying}"

    def time_left(self, training: Training) -> str:
        """Of a run that still takes a minute or more, at the speed of this epoch."""
        seconds = training.row["seconds"] * (training.epochs - training.epoch)
        return f", about {timedelta(seconds=round(seconds))} left" if seconds >= 60 else ""


def start(settings, dataset: data.Dataset, network: dict, learning_rate: float, seed: int, cuts: bool) -> Training:
    """A network with fresh or pretrained weights and its optimiser; with `cuts`, its groups too."""
    torch.manual_seed(seed)
    model = build(network)
    if settings.pretrained:
        from common.training.pretrained import load_weights

        distributed.by_first(lambda: load_weights(model))
    model.to(settings.device, memory_format=torch.channels_last)
    distributed.share_state(model)
    steps = dataset.steps_per_epoch(settings.batch_size)
    optimizer, scheduler = sgd(
        model,
        learning_rate,
        settings.momentum,
        settings.weight_decay,
        settings.schedule,
        settings.epochs * steps,
        round(settings.learning_rate_warmup * steps),
        devices.fuses(settings.device),
    )
    training = Training(model, optimizer, scheduler, settings.epochs, steps, settings.precision, settings.device)
    training.passes, training.label_smoothing = settings.passes, settings.label_smoothing
    training.groups = find_groups(model, dataset.example) if cuts else None
    return training


class Fitting:
    """One network that is ready to train, or to go on where its run stopped.

    Args:
        settings: what all runs of the script have in common.
        network: the arguments of `models.build`.
        extra: callbacks that act on the gradients or prune, in their order.
        cuts: whether channels may be cut out.
    """

    def __init__(
        self,
        settings,
        dataset: data.Dataset,
        run: Run,
        network: dict,
        learning_rate: float,
        seed: int,
        extra: list[Callback],
        cuts: bool = False,
    ):
        self.settings, self.dataset, self.run, self.network = settings, dataset, run, network
        self.seed, self.extra = seed, extra
        self.training = start(settings, dataset, network, learning_rate, seed, cuts)
        self.meters = Meters(settings.device)
        self.counts = UnitCounts(self.training.model, dataset.example.to(settings.device), self.training.passes)
        self.training.watch = self.counts.watch
        self.checkpoints = Checkpoints(run, [*extra, self.counts], self.meters, settings.checkpoint_steps)
        for callback in extra:
            callback.prepare(self.training)
        state = run.checkpoint()
        if state and is_kept(state.get("code"), settings.again, f"{run.label}: goes on from a checkpoint", run):
            self.checkpoints.resume(self.training, state)
        examples = min(len(dataset.train), self.training.steps_per_epoch * settings.batch_size)
        self.progress = Progress(run.label, self.training, self.meters, examples)

    @property
    def callbacks(self) -> list[Callback]:
        last = [self.counts, SameDecisions(), Evaluation(self.dataset), self.checkpoints, self.progress]
        return [self.meters, *self.extra, *last]

    def batches(self, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        settings, training = self.settings, self.training
        done, whole = (steps * training.passes for steps in (training.step, training.steps_per_epoch))
        process = environment.rank(), environment.ranks()
        rest = self.dataset.batches(settings.per_pass, self.seed, epoch, settings.augmentation, done, *process)
        return distributed.together(islice(rest, whole - done))

    def train(self) -> None:
        try:
            train(self.training, self.batches, self.callbacks)
        finally:
            self.progress.bar.close()
            self.counts.watch.close()

    def result(self) -> dict:
        """What final.pt holds; see `fit`."""
        training = self.training
        model = training.groups.compact(training.model) if training.groups else training.model
        return {
            "config": self.run.config,
            "code": self.checkpoints.made_by,
            "threads": torch.get_num_threads(),  # on which the last bits depend, on a CPU
            "network": self.network,
            "image": list(self.dataset.example.shape[1:]),
            "mean": self.dataset.mean.tolist(),
            "deviation": self.dataset.deviation.tolist(),
            "classes": list(self.dataset.classes),
            "model": model.state_dict(),
            "rows": self.checkpoints.rows,
            "counts": self.counts.counts(),
            **{type(callback).__name__: callback.state() for callback in self.extra},
        }


def fit(settings, dataset: data.Dataset, run: Run, *arguments, **options) -> dict:
    """Trains one network, or goes on where it stopped, or reads what it left: the content of the run's final.pt.

    The arguments are those of `Fitting`.

    Returns:
        config; code (the digest of what made it); threads (of a CPU, on which the last bits depend); network; image
        [C, H, W]; mean and deviation [C] of pixels in [0, 1]; classes (their names); model (the state dict, without
        padding); rows (a dict an epoch); counts (of every unit and epoch); and the state of every callback in `extra`
        under its class's name.

    Raises:
        RunFailed: when the loss is not finite, memory runs out, another process trains this run, or what it left is
            damaged.
    """
    run.agree()
    final = run.final()
    if final is not None and is_kept(final.get("code"), settings.again, f"{run.label}: finished before", run):
        distributed.by_first(run.tidy)  # a process that was killed when it had finished has not
        return with_units(final)
    with run.locked(), memory_watched():
        fitting = Fitting(settings, dataset, run, *arguments, **options)
        fitting.train()
        run.save_final(fitting.result())
    # Not what was just saved: what a caller gets is the same, on the host, whether the run was trained now or before.
    return with_units(run.final())


def is_kept(made_by: str | None, again: bool, what: str, run: Run) -> bool:
    """Whether a run goes by what it left; says so, and whether other code left it."""
    same = made_by == code.digest()
    if environment.rank() == 0:
        others = "" if same else f" by other code ({made_by or 'unknown'}, now {code.digest()})"
        choice = "" if same else "; trained again" if again else "; --again trains it again"
        print(f"{what}{others}, in {run.folder}{choice}")
    return same or not again


def finished(run: Run) -> dict | None:
    """What `fit` returns of a run that is finished, read by this process alone; None of any other."""
    try:
        final = run.finished()
        return final and with_units(final)
    except Damaged:
        return None


def with_units(final: dict) -> dict:
    """What final.pt holds; the units of its rows are counted anew, as today's definitions have them.

    Raises:
        Damaged: when it does not hold the counts of its epochs.
    """
    try:
        history = units.history(final["counts"])
        for row, now, before in zip(final["rows"], history, [None, *history[:-1]], strict=True):
            row |= units.totals(units.measures(now, before))
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, RuntimeError) as error:
        raise Damaged(f"a final.pt without the counts of its epochs ({told(error)}); delete it") from None
    return final
