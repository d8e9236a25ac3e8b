"""What watching the units costs: the time of a training step with the hooks, over one without.

    python benchmarks/watching.py --width 16 --steps 40

Steps of both kinds alternate in one process, so that a machine that slows down slows both. Prints one JSON line.
"""

import copy
import json
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))
from common import settings
from common.machine import process


def measured(options) -> dict:
    """What is printed."""
    # Not before: they import torch, and --help and wrong values need none.
    import torch
    from torch.nn import functional

    from common import models, units
    from common.machine import devices

    device = devices.pick(options.device)
    precision = devices.pick_precision("auto", device)

    torch.manual_seed(0)
    plain = models.resnet18(10, width=options.width).to(device, memory_format=torch.channels_last)
    watched = copy.deepcopy(plain)
    inputs = torch.randn(options.batch_size, 3, 32, 32, device=device).to(memory_format=torch.channels_last)
    labels = torch.randint(10, (options.batch_size,), device=device)
    units.UnitWatch(watched, inputs[:1])
    optimizers = {model: torch.optim.SGD(model.parameters(), 0.01, momentum=0.9) for model in (plain, watched)}

    def seconds(model) -> float:
        devices.synchronize(device)
        start = time.perf_counter()
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
            loss = functional.cross_entropy(model(inputs), labels)
        loss.backward()
        optimizers[model].step()
        optimizers[model].zero_grad()
        devices.synchronize(device)
        return time.perf_counter() - start

    times = [(seconds(plain), seconds(watched)) for _ in range(options.steps + 3)][3:]  # three to warm up
    plain_time, watched_time = (statistics.median(column) for column in zip(*times, strict=True))
    images = options.batch_size / plain_time
    facts = {"device": device.type, "precision": precision, "width": options.width, "threads": torch.get_num_threads()}
    return {
        **facts,
        "watched_over_plain": round(watched_time / plain_time, 3),
        "plain_images_per_second": round(images),
    }


def main():
    parser = settings.Parser(__doc__)
    parser.add_argument("--width", type=settings.reader("WIDTH"), default=16)
    parser.add_argument("--batch-size", type=settings.reader("BATCH_SIZE"), default=128)
    steps = settings.reader("STEPS", settings.COUNT)
    parser.add_argument("--steps", type=steps, default=40, help="pairs of steps")
    parser.add_argument("--device", default="auto")
    print(json.dumps(measured(parser.parse_args())))


if __name__ == "__main__":
    raise SystemExit(process.run(main))
