"""What a command leaves, in a form that can be compared."""

import random
from pathlib import Path

import torch
from matplotlib.figure import Figure
from PIL import Image

from common import files

MEASURED = ("seconds", "training_speedup", "inference_speedup")  # another number each time


def plain(value):
    """Nested values with every tensor as its bytes, without what is measured."""
    if isinstance(value, torch.Tensor):
        return str(value.dtype), tuple(value.shape), value.contiguous().view(-1).view(torch.uint8).numpy().tobytes()
    if isinstance(value, dict):
        return {name: plain(inner) for name, inner in value.items() if name not in MEASURED}
    return [plain(inner) for inner in value] if isinstance(value, (list, tuple)) else value


def content(path: Path):
    if path.suffix == ".csv":
        return plain(files.read_csv(path))
    return plain(files.load(path)) if path.suffix == ".pt" else path.read_bytes()


def left(place: Path) -> dict[str, object]:
    """What is in the folders of results and of runs: path -> content, to be compared."""
    found = (path for name in ("out", "runs") for path in (place / name).rglob("*") if path.is_file())
    return {str(path.relative_to(place)): content(path) for path in found if "lock" not in path.name}


def save_data(figure: Figure, file, **_) -> None:
    """In the place of drawing a figure, which takes longer than its runs: what it shows."""
    for axes in figure.axes:
        shown = [axes.get_title(), axes.get_xlabel(), axes.get_ylabel(), *(text.get_text() for text in axes.texts)]
        shown += [line.get_xydata().tolist() for line in axes.lines]
        shown += [[part.get_offsets().tolist(), part.get_array()] for part in axes.collections]
        shown += [patch.get_path().vertices.tolist() for patch in axes.patches]
        shown += [image.get_array().tolist() for image in axes.images]
        file.write(f"{shown}\n".encode())


def make_images(folder: Path) -> None:
    chance = random.Random(0)
    for part, count in (("train", 12), ("val", 4)):
        for name in ("ant", "bee", "cat"):
            (folder / part / name).mkdir(parents=True)
            for number in range(count):
                Image.frombytes("RGB", (20, 20), chance.randbytes(1200)).save(folder / part / name / f"{number}.png")


def different(found: dict, expected: dict) -> list[str]:
    return sorted(name for name in {*found, *expected} if found.get(name, 0) != expected.get(name, 0))
