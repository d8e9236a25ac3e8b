"""Folders of images on the disk."""

import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from common import folders

SIZE, BATCH = 32, 8
BOTH = ("crop", "flip")
CLASSES = ("cat", "dog", "owl")
PLAIN = 120  # images a split of the folder of plain ones, so that one is less than 1 % and two are more


def load(folder, **changes) -> folders.Folder:
    given = {"data_dir": str(folder), "image_size": SIZE, "workers": 0, "batch_size": BATCH}
    return folders.load(SimpleNamespace(**{**given, "device": torch.device("cpu"), **changes}))


def make_mixed(root: Path) -> Path:
    """Images of many sizes and modes, four of each class in either split."""
    draw = np.random.default_rng(0)
    for part in ("train", "val"):
        for number, name in enumerate(CLASSES):
            (root / part / name).mkdir(parents=True)
            for mode in ("RGB", "L", "CMYK", "P"):
                pixels = draw.integers(0, 256, (*draw.integers(20, 90, 2), 3), dtype=np.uint8)
                ending = "png" if mode == "P" else "JPEG"
                Image.fromarray(pixels).convert(mode).save(root / part / name / f"{number}-{mode}.{ending}")
    return root


def make_plain(root: Path) -> Path:
    """Grey images, the n-th of a split of brightness n: known by their colour however they are cropped."""
    for part in ("train", "val"):
        for n in range(PLAIN):
            path = root / part / CLASSES[n % 3] / f"{n}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("L", (9, 12), n).save(path)
    return root


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    return make_mixed(tmp_path_factory.mktemp("mixed"))


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return make_plain(tmp_path_factory.mktemp("plain"))


@pytest.fixture
def own(plain, tmp_path):
    """The plain images, to be spoilt."""
    return Path(shutil.copytree(plain, tmp_path / "images"))


def damage(root: Path, *numbers: int, part="train") -> list[str]:
    paths = [root / part / CLASSES[n % 3] / f"{n}.png" for n in numbers]
    for path in paths:
        path.write_bytes(path.read_bytes()[:40])
    return sorted(map(str, paths))


def shown(batches) -> tuple[list[int], list[int]]:
    """Which of the plain images were in the batches, and their labels."""
    levels, labels = [], []
    for inputs, given in batches:
        value = inputs[:, 0] * folders.DEVIATION[0] + folders.MEAN[0]
        assert torch.allclose(value.amin((1, 2)), value.amax((1, 2)), atol=1e-5)
        levels += (value[:, 0, 0] * 255).round().int().tolist()
        labels += given.tolist()
    return levels, labels
