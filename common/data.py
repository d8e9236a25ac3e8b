"""Images and labels as tensors on the training device, and batches of them.

A whole split is one uint8 tensor. Augmentation is one gather for a whole batch (crop and flip are index arithmetic)
and one mask (Cutout). Order and augmentation of an epoch depend on the seed and the epoch only, never on what was
drawn before, so a resumed run sees the same batches on any device.
"""

import hashlib
import os
import socket
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from functools import cached_property
from io import StringIO
from pathlib import Path

import numpy as np
import psutil
import torch
from torch import Tensor
from torch.nn import functional

from common.errors import UserError
from common.images import DAMAGED, Files, files_of, printable, read_image, splits_of
from common.machine import devices
from common.machine.seeds import stream

AT_ONCE = 2**25  # bytes of the batches that an accelerator makes at once


@dataclass
class Split:
    """images: uint8 [N, H, W, C]; labels: int64 [N]; both on the training device."""

    images: Tensor
    labels: Tensor
    padded: dict[int, Tensor] = field(default_factory=dict, repr=False)  # border width -> images with a black border

    def __len__(self) -> int:
        return len(self.labels)

    def with_border(self, width: int) -> Tensor:
        if width not in self.padded:
            self.padded[width] = functional.pad(self.images, (0, 0, width, width, width, width)).contiguous()
        return self.padded[width]


@dataclass
class Dataset:
    """mean, deviation: float32 [C] of the training pixels in [0, 1]; fingerprint: of every image and label."""

    name: str
    train: Split
    test: Split
    classes: list[str]
    mean: Tensor
    deviation: Tensor
    fingerprint: str

    @cached_property
    def scale(self) -> tuple[Tensor, Tensor]:
        """What `normalise` takes."""
        return at_every_pixel(self.mean, self.deviation, *self.train.images.shape[1:3])

    @property
    def example(self) -> Tensor:
        """One black image as the network sees it, float32 [1, C, H, W], on the CPU."""
        _, height, width, channels = self.train.images.shape
        return torch.zeros(1, channels, height, width)

    def steps_per_epoch(self, batch_size: int) -> int:
        return -(-(len(self.train) - 1) // batch_size)

    def batches(
        self,
        batch_size: int,
        seed: int,
        epoch: int,
        augmentation: tuple[str, ...],
        first: int = 0,
        rank: int = 0,
        ranks: int = 1,
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """One epoch of the training split, shuffled and augmented: inputs float32 [B, C, H, W], labels int64 [B].

        Crops move by up to an eighth of the image, Cutout's side is half of it (4 and 16 at 32 pixels). The last batch
        holds what is left; an example left alone is left out, since batch norm needs two. Of several processes, each
        takes its turn in whole rounds; `first` is the first batch of its own that is wanted. An accelerator, for which
        a launch costs as much as its work, makes several batches at once: AT_ONCE bytes of them.
        """
        count, height, width, channels = self.train.images.shape
        border = height // 8 if "crop" in augmentation else 0
        bordered = self.train.with_border(border)
        draws = Draws.of(count, height, width, border, seed, epoch, bordered.device)
        starts = range(0, count - 1, batch_size)
        starts = starts[: len(starts) // ranks * ranks][rank::ranks][first:]
        several = bordered.device.type != "cpu" and ranks == 1
        at_once = max(1, AT_ONCE // (4 * batch_size * height * width * channels)) if several else 1
        for number in range(0, len(starts), at_once):
            these = starts[number : number + at_once]
            part = draws.part(these[0], these[-1] + batch_size)
            inputs = normalise(crop_and_flip(bordered, part, height, width, "flip" in augmentation), self)
            if "cutout" in augmentation:
                inputs = cutout(inputs, part, height // 2)
            yield from zip(inputs.split(batch_size), self.train.labels[part.order].split(batch_size), strict=True)

    def evaluation_batches(
        self, rank: int = 0, ranks: int = 1, batch_size: int = 250
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """The test split in order, not augmented: inputs float32 [B, C, H, W], labels int64 [B].

        On a CPU 10,000 images take 1.6 times as long in batches of 1,000, whose activations leave the cache.
        """
        for start in range(0, len(self.test), batch_size)[rank::ranks]:
            images = self.test.images[start : start + batch_size]
            yield normalise(images, self), self.test.labels[start : start + batch_size]


# Reading ---------------------------------------------------------------------------------------------------------


def cifar10(folder: Path) -> tuple:
    from torchvision.datasets import CIFAR10

    timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(30)
    try:
        try:
            splits = [CIFAR10(folder, train) for train in (True, False)]
        except RuntimeError:  # absent or damaged
            print(f"downloading CIFAR-10 into {folder}")
            with redirect_stdout(StringIO()):
                splits = [CIFAR10(folder, train, download=True) for train in (True, False)]
    except (OSError, RuntimeError) as error:
        raise UserError(
            f"DATASET: cifar10 is not in {str(folder)!r} and could not be downloaded ({error}); unpack "
            f"cifar-10-python.tar.gz there, as {folder}/cifar-10-batches-py, or use --dataset digits"
        ) from None
    finally:
        socket.setdefaulttimeout(timeout)
    arrays = [(split.data, np.asarray(split.targets)) for split in splits]
    return *arrays, splits[0].classes


def digits() -> tuple:
    """scikit-learn's 1,797 embedded 8x8 digits, a fifth of each class for testing."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    images, labels = load_digits(return_X_y=True)
    images = np.rint(images.reshape(-1, 8, 8, 1) * (255 / 16)).astype(np.uint8)
    split = train_test_split(images, labels, test_size=0.2, stratify=labels, random_state=0)
    return (split[0], split[2]), (split[1], split[3]), [str(digit) for digit in range(10)]


def image_folder(folder: Path, size: int, workers: int) -> tuple:
    if not folder.is_dir():
        raise UserError(f"DATASET: got {str(folder)!r}; takes cifar10, digits or the path of a folder that exists")
    classes, parts = splits_of(folder, "DATASET", ("test", "val"))
    splits = [files_of(part, classes, "DATASET")[0] for part in parts]
    fit_in_memory(sum(map(len, splits)), size)
    warnings.filterwarnings("ignore", module="PIL")  # of odd files, which are named
    with ThreadPoolExecutor(max(1, workers)) as pool:
        return *(read_images(files, size, pool) for files in splits), classes


def fit_in_memory(count: int, size: int) -> None:
    memory = psutil.virtual_memory().total
    if count * size * size * 3 > 0.8 * memory:
        takes = int((0.8 * memory / count / 3) ** 0.5)
        raise UserError(
            f"IMAGE_SIZE: got {size}, but {count:,} such images do not fit into {memory / 2**30:.0f} GiB of memory; "
            f"takes at most {takes} here"
        )


def read_images(files: Files, size: int, pool: ThreadPoolExecutor) -> tuple:
    """All images of a split, uint8 [N, size, size, 3], and their labels; those that cannot be read are named and left
    out.

    Raises:
        UserError: where more of them are damaged than DAMAGED says, or all are alike.
    """
    from tqdm import tqdm  # here, so that a notebook that has its images already needs none

    def read(path: str):
        try:
            return read_image(path, size)
        except Exception as error:  # a damaged file fails in many ways
            return " ".join(str(error).split()) or type(error).__name__

    paths, labels = [files.path(index) for index in range(len(files))], files.labels
    images, damaged = np.empty((len(paths), size, size, 3), np.uint8), {}
    where = os.path.commonpath(paths)
    for index, found in enumerate(tqdm(pool.map(read, paths), where, len(paths), disable=None)):
        if isinstance(found, str):
            damaged[index] = f"{printable(paths[index])} ({found})"
        else:
            images[index] = found
    if len(damaged) > max(1, DAMAGED * len(paths)):
        more = f" and {len(damaged) - 5} more" if len(damaged) > 5 else ""
        raise UserError(
            f"DATASET: {len(damaged)} of {len(paths)} images cannot be read; replace or delete them: "
            f"{', '.join(list(damaged.values())[:5])}{more}"
        )
    for line in damaged.values():
        print(f"left out, as it cannot be read: {line}")
    whole = [index for index in range(len(paths)) if index not in damaged]
    images, labels = (images, labels) if not damaged else (images[whole], labels[whole])
    if len(images) > 1 and all(np.array_equal(images[0], image) for image in images[1:]):
        raise UserError(f"DATASET: all {len(images)} images in {where} are alike; look at {paths[whole[0]]}")
    return images, labels


def hold_out(arrays: tuple, count: int) -> tuple[tuple, tuple]:
    """The training images without `count` of them, and those: what constants are tuned on, never on test images."""
    images, labels = arrays
    order = np.random.default_rng(stream(0, "held out", 0)).permutation(len(labels))
    kept, held = order[count:], order[:count]
    return (images[kept], labels[kept]), (images[held], labels[held])


def load(settings) -> Dataset:
    """The dataset that `settings.dataset` names, as tensors on `settings.device`.

    Raises:
        UserError: unknown or absent dataset, missing, empty or one-class folder, damaged image (named), or a training
            set smaller than one batch.
    """
    if settings.dataset == "cifar10":
        train, test, classes = cifar10(Path(settings.data_dir))
    elif settings.dataset == "digits":
        train, test, classes = digits()
    else:
        train, test, classes = image_folder(Path(settings.dataset), settings.image_size, settings.workers)
    if getattr(settings, "hold_out", 0):
        if settings.hold_out >= len(train[1]):
            raise UserError(f"HOLD_OUT: got {settings.hold_out}, takes fewer than the {len(train[1])} training images")
        train, test = hold_out(train, settings.hold_out)
    if len(train[1]) < settings.batch_size:
        raise UserError(f"BATCH_SIZE: got {settings.batch_size}, takes at most the {len(train[1])} training images")
    digest = hashlib.sha256()
    for array in (*train, *test):
        digest.update(np.ascontiguousarray(array).view(np.uint8))
    mean, deviation = statistics(train[0])
    splits = []
    for images, labels in (train, test):
        images, labels = torch.from_numpy(np.ascontiguousarray(images)), torch.from_numpy(labels).long()
        splits.append(Split(images.to(settings.device), labels.to(settings.device)))
    mean, deviation = mean.to(settings.device), deviation.to(settings.device)
    return Dataset(settings.dataset, *splits, classes, mean, deviation, digest.hexdigest()[:16])


def statistics(images: np.ndarray) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each channel of uint8 [N, H, W, C], on the scale [0, 1]: float32 [C] each."""
    values = np.arange(256) / 255
    counts = [np.bincount(images[..., channel].ravel(), minlength=256) for channel in range(images.shape[-1])]
    shares = np.stack(counts) / images[..., 0].size
    mean = shares @ values
    deviation = np.sqrt(np.maximum(shares @ values**2 - mean**2, 1e-12))
    return torch.from_numpy(mean).float(), torch.from_numpy(deviation).float()


# Batches ---------------------------------------------------------------------------------------------------------


def at_every_pixel(mean: Tensor, deviation: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Mean and deviation, [C] in [0, 1], on the scale of the bytes: float32 [H, W, C] each. (As [C] a CPU broadcasts
    them one value at a time.)"""
    return tuple((255 * values).expand(height, width, -1).contiguous() for values in (mean, deviation))


def normalise(images: Tensor, dataset: Dataset) -> Tensor:
    """uint8 [B, H, W, C] -> float32 [B, C, H, W] in channels-last memory, zero mean and unit variance."""
    mean, deviation = dataset.scale
    return images.float().sub_(mean).div_(deviation).permute(0, 3, 1, 2)


@dataclass
class Draws:
    """What is random in one epoch, drawn at once on the CPU and moved once: int64 [N] each, in training order."""

    order: Tensor
    top: Tensor
    left: Tensor
    flipped: Tensor
    centre_y: Tensor
    centre_x: Tensor

    @classmethod
    def of(cls, count: int, height: int, width: int, border: int, seed: int, epoch: int, device: torch.device):
        generator = torch.Generator().manual_seed(stream(seed, "batches", epoch))
        draws = [torch.randperm(count, generator=generator)]
        for values in (2 * border + 1, 2 * border + 1, 2, height, width):
            draws.append(torch.randint(values, (count,), generator=generator))
        return cls(*devices.send(torch.stack(draws), device))

    def part(self, start: int, stop: int) -> "Draws":
        return Draws(*(getattr(self, name)[start:stop] for name in self.__dataclass_fields__))


def crop_and_flip(bordered: Tensor, draws: Draws, height: int, width: int, flip: bool) -> Tensor:
    """Images [N, H + 2 border, W + 2 border, C] -> [B, H, W, C]: torchvision's RandomCrop(padding=border), then
    RandomHorizontalFlip where `flip`, drawn for each example."""
    rows = draws.top[:, None] + torch.arange(height, device=draws.top.device)
    columns = torch.arange(width, device=draws.top.device).expand(len(draws.top), width)
    if flip:
        columns = torch.where(draws.flipped[:, None] == 1, width - 1 - columns, columns)
    # One number a pixel: where it lies among those of all images. (As three it takes a CPU three times as long.)
    count, whole_height, whole_width, channels = bordered.shape
    lines = draws.order[:, None] * whole_height + rows
    pixels = lines[:, :, None] * whole_width + (draws.left[:, None] + columns)[:, None, :]
    found = bordered.view(count * whole_height * whole_width, channels).index_select(0, pixels.flatten())
    return found.view(len(pixels), height, width, channels)


def cutout(inputs: Tensor, draws: Draws, size: int) -> Tensor:
    """Zeroes a square of side `size` in each of [B, C, H, W], in place; its centre is any pixel, so that it may reach
    over the edge (DeVries & Taylor 2017, arXiv 1708.04552)."""

    def inside(centre: Tensor, length: int) -> Tensor:
        start = centre[:, None] - size // 2
        pixel = torch.arange(length, device=centre.device)
        return (pixel >= start) & (pixel < start + size)

    rows, columns = inside(draws.centre_y, inputs.shape[2]), inside(draws.centre_x, inputs.shape[3])
    return inputs.masked_fill_((rows[:, :, None] & columns[:, None, :])[:, None], 0.0)
