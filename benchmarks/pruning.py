"""What pruning pays: the time of a whole DS-Pruning run and of inference, over those of the dense network.

    python benchmarks/pruning.py --width 64                    CIFAR-10 in data/; 40 minutes on two cores
    python benchmarks/pruning.py --width 64 --images 2560      a part of the images: 3 minutes, but another shape
    python benchmarks/pruning.py --dataset digits --width 16   seconds, for a look

A pruned run by the `cpu` protocol, between two dense ones of the same examples, in one process; dense epochs all take
as long, so that one of each is timed and counted for all. Then inference is timed, and one training step of the cut
network with its padding and without. Prints one JSON line of ratios, and what the network has left of every coupling.
"""

import json
import statistics
import sys
import time
from pathlib import Path
from types import SimpleNamespace

sys.path.insert(0, str(Path(__file__).parent.parent))
from common import settings
from common.machine import process

# The functions import what they use: --help and wrong values need no torch.


def train(constants, dataset, network: dict, target: float) -> tuple:
    """Seconds of an epoch's training steps, the mean over all, and the run: dense, or pruned to `target` on the way."""
    from common.machine import devices
    from common.pruning.ds_pruning import Constants, DSPruning
    from common.pruning.task import Task
    from common.training import callbacks, fit, loop

    run = fit.start(constants, dataset, network, 0.1, 0, cuts=True)
    meters, watching = callbacks.Meters(run.device), callbacks.UnitCounts(run.model, dataset.example.to(run.device))
    run.watch = watching.watch
    task = Task(target, "neuron", 0, devices.width_multiple(run.device), SimpleNamespace(activation="relu"))
    pruning = [DSPruning(task, Constants())] if target else []
    for callback in pruning:
        callback.prepare(run)
    seconds = []

    class Clock(loop.Callback):
        def on_epoch_end(self, run):
            seconds.append(run.row["seconds"])

    augmentation = settings.PROTOCOLS["cpu"]["augmentation"]
    loop.train(
        run,
        lambda epoch: dataset.batches(constants.batch_size, 0, epoch, augmentation),
        [meters, *pruning, watching, Clock()],
    )
    return statistics.mean(seconds), run


def step_seconds(run, model, inputs, labels, steps: int = 5) -> float:
    from torch.nn import functional

    from common.machine import devices

    times = []
    for _ in range(steps + 1):
        start = time.perf_counter()
        with run.autocast():
            loss = functional.cross_entropy(model(inputs), labels)
        loss.backward()
        devices.synchronize(run.device)
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


def constants_of(options) -> SimpleNamespace:
    from common.machine import devices

    device = devices.pick(options.device)
    return SimpleNamespace(
        dataset=options.dataset,
        data_dir=options.data_dir,
        device=device,
        precision=devices.pick_precision("auto", device),
        batch_size=128,
        epochs=options.epochs,
        momentum=0.9,
        weight_decay=5e-4,
        schedule="one-cycle",
        passes=1,
        per_pass=128,
        **settings.ABSENT,
    )


def measured(constants, options) -> dict:
    """What is printed."""
    import torch

    from common import data, sparsity
    from common.studies.sparsity import inference_speedup

    dataset = data.load(constants)
    images, labels = dataset.train.images[: options.images], dataset.train.labels[: options.images]
    channels = dataset.example.shape[1]
    network = {"name": "resnet18", "classes": len(dataset.classes), "channels": channels, "width": options.width}
    one_epoch = SimpleNamespace(**vars(constants) | {"epochs": 1})
    dataset.train = data.Split(images[:256], labels[:256])
    train(one_epoch, dataset, network, 0.0)  # the first steps of a process are slow
    dataset.train = data.Split(images, labels)
    before, dense = train(one_epoch, dataset, network, 0.0)
    pruned_seconds, pruned = train(constants, dataset, network, options.sparsity)
    after, _ = train(one_epoch, dataset, network, 0.0)

    small = pruned.groups.compact(pruned.model)
    inputs, labels = next(dataset.batches(128, 0, 0, ()))
    padded_step = step_seconds(pruned, pruned.model.train(), inputs, labels)
    compact_step = step_seconds(pruned, small.train(), inputs, labels)
    dense_step = step_seconds(dense, dense.model.train(), inputs, labels)
    size, full = sparsity.measure(small, dataset.example), sparsity.measure(dense.model, dataset.example)
    return {
        "device": constants.device.type,
        "precision": constants.precision,
        "threads": torch.get_num_threads(),
        "width": options.width,
        "neuron_sparsity": size.neuron_sparsity(full),
        "flops_over_dense": size.flops / full.flops,
        "training_time_over_dense": 2 * pruned_seconds / (before + after),
        "dense_runs_ratio": after / before,
        "step_padded_over_dense": padded_step / dense_step,
        "step_unpadded_over_dense": compact_step / dense_step,
        "inference_speedup": inference_speedup(dense.model.eval(), small.eval(), constants, dataset.example),
        "widths": pruned.groups.widths.tolist(),
    }


def main():
    parser = settings.Parser(__doc__)
    parser.add_argument("--dataset", default="cifar10")
    parser.add_argument("--data-dir", default="data")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--width", type=settings.reader("WIDTH"), default=64)
    parser.add_argument("--epochs", type=settings.reader("EPOCHS"), default=10)
    images = settings.reader("IMAGES", settings.COUNT)
    parser.add_argument("--images", type=images, help="training images used [all]")
    parser.add_argument("--sparsity", type=settings.reader("SPARSITIES"), default=0.8, help="neuron sparsity")
    options = parser.parse_args()
    facts = measured(constants_of(options), options)
    print(json.dumps({name: round(value, 3) if isinstance(value, float) else value for name, value in facts.items()}))


if __name__ == "__main__":
    raise SystemExit(process.run(main))
