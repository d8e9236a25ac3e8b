"""Which of torchvision's classification networks are watched and cut, and what of them stays whole.

    python benchmarks/networks.py                        all of them, into docs/networks.md; 10 minutes on two cores
    python benchmarks/networks.py --networks resnet50    some of them, printed only

Each is built without weights, its activations are told apart (`own_activations`), its units are watched, its groups
are found, and half of what can go of each coupling is cut out. It must then compute what it computes with those
channels at 0; `exact` is the largest difference of the logits, relative to their size.
"""

import sys
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))
from common import settings
from common.files import write
from common.machine import process

SIDE = 64  # pixels; what torchvision's networks take at least is often more
SIDES = {"alexnet": 96, "vgg11": 64, "inception_v3": 96, "vit_b_16": 224}
OPTIONS = {"googlenet": {"init_weights": False, "aux_logits": False}, "inception_v3": {"init_weights": False}}
NETWORKS = (
    *("alexnet", "vgg11", "vgg16_bn", "resnet18", "resnet50", "resnext50_32x4d", "wide_resnet50_2", "densenet121"),
    *("squeezenet1_1", "googlenet", "inception_v3", "mobilenet_v2", "mobilenet_v3_small", "mnasnet1_0"),
    *("shufflenet_v2_x1_0", "efficientnet_b0", "efficientnet_v2_s", "regnet_y_400mf", "convnext_tiny", "vit_b_16"),
)
HEAD = """# Torchvision's networks

Written by `python benchmarks/networks.py`, with torch {torch} and torchvision {torchvision}: each network as
torchvision builds it, its activations told apart by `own_activations`. A unit is one channel of one activation layer.
Units that can go are in a group that is silent when they are. Weights gone: when half of those groups are cut out.
Exact: the largest difference between the logits after that cut and those with the same channels at 0.

| network | units | of these can go | weights gone | exact | stays whole |
| --- | --- | --- | --- | --- | --- |
"""


def tried(name: str) -> dict:
    """What becomes of one network."""
    import copy

    import torch
    import torchvision

    from common import UnitWatch, find_groups, own_activations
    from common.tracing import redraw, silence

    torch.manual_seed(0)
    model = getattr(torchvision.models, name)(**OPTIONS.get(name, {})).eval()
    side = SIDES.get(name, SIDE)
    image = torch.randn(1, 3, side, side)
    own_activations(model, image)
    watch = UnitWatch(model, image)
    units = sum(watch.layers.values())
    watch.close()
    groups = find_groups(model, image)
    model.double()
    redraw(model)  # some begin with zeros, which would hide what is wrong
    can_go = groups.candidates
    removed = can_go & (torch.rand(len(groups)) < 0.5)
    removed[[coupling.start for coupling in groups.couplings]] = False
    small, before = copy.deepcopy(model), sum(p.numel() for p in model.parameters())
    with torch.no_grad():
        silence(model, groups, removed)
        movable = int(groups.units[can_go].sum())
        groups.cut(small, None, removed)
        expected, found = model(image.double()), small(image.double())
    off = ((expected - found).abs().max() / expected.abs().max()).item()
    gone = 1 - sum(p.numel() for p in small.parameters()) / before
    return {"units": units, "movable": movable, "gone": gone, "off": off, "kept": groups.kept}


def line(name: str) -> str:
    try:
        found = tried(name)
    except ValueError as error:
        return f"| {name} | - | - | - | - | refused: {error} |"
    why = Counter(reason.rpartition(", ")[2] for reason in found["kept"].values())
    kept = ", ".join(f"{count} coupling{'s' * (count > 1)} (with {kind})" for kind, count in why.items())
    share = f"{100 * found['movable'] / found['units']:.0f} %"
    return f"| {name} | {found['units']:,} | {share} | {100 * found['gone']:.0f} % | {found['off']:.0e} | {kept} |"


def main() -> int:
    parser = settings.Parser(__doc__)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=NETWORKS, metavar="NAME")
    options = parser.parse_args()
    import torch
    import torchvision

    lines = []
    for name in options.networks:
        started = time.perf_counter()
        lines.append(line(name))
        print(lines[-1], f"{time.perf_counter() - started:.0f} s", flush=True)
    if tuple(options.networks) == NETWORKS:
        head = HEAD.format(torch=torch.__version__, torchvision=torchvision.__version__)
        text = head + "\n".join(lines) + "\n"
        write(Path("docs/networks.md"), lambda file: file.write(text.encode()))
    return 0


if __name__ == "__main__":
    raise SystemExit(process.run(main))
