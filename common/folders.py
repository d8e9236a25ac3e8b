"""Image folders that stay on the disk: decoded and augmented by worker processes, normalised on the device.

What a batch holds depends on the seed, the epoch and its place in the epoch only, not on the number of workers or of
training processes: a worker is told which examples to read and draws each one's crop and flip from a generator of
its own. It sends bytes, a quarter of what floats would take. They are normalised with ImageNet's mean and deviation,
as the pretrained weights expect, whatever the images are.
"""

import hashlib
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from common import data
from common.errors import UserError
from common.images import TRIES, Files, Job, Jobs, Reader, begin, files_of, printable, quiet, splits_of, worker_died
from common.machine import devices, seeds
from common.machine.process import Interrupts

MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's, of pixels in [0, 1]
EVALUATED = 128  # images an evaluation batch


# Scanning --------------------------------------------------------------------------------------------------------


def load(settings) -> "Folder":
    """The folder `settings.data_dir`: train/, and val/ or test/ (the first that is there), one subfolder a class.

    Args:
        settings: data_dir, image_size, workers (of this process), device, and batch_size (of all processes).

    Raises:
        UserError: absent folder or split, fewer than two classes, an empty class, classes that differ, or fewer
            training images than one batch. No image has been read then.
    """
    folder = Path(settings.data_dir)
    if not folder.is_dir():
        raise UserError(f"DATA_DIR: got {str(folder)!r}, which is no folder; takes that of the images")
    classes, parts = splits_of(folder, "DATA_DIR", ("val", "test"))
    splits, digest = [], hashlib.sha256()
    for part in parts:
        files, sizes = files_of(part, classes, "DATA_DIR")  # a folder that is made anew has others
        for content in (str(len(sizes)).encode(), b"\0".join(files.names), sizes.tobytes()):
            digest.update(content)
        splits.append(files)
    if len(splits[0]) < settings.batch_size:
        raise UserError(f"BATCH_SIZE: got {settings.batch_size}, takes at most the {len(splits[0])} training images")
    sizes = settings.image_size, settings.workers, settings.device
    return Folder(str(folder), *splits, classes, digest.hexdigest()[:16], *sizes)


# Batches ---------------------------------------------------------------------------------------------------------


@dataclass
class Folder:
    """An image folder as training takes it; images of `size` x `size`, read by `workers` processes (0: by this one).

    A damaged image is in no batch. In training, another one drawn at random takes its place: every batch is full and
    all processes make the same number of steps. In evaluation it is left out.
    """

    name: str
    train: Files
    test: Files
    classes: list[str]
    fingerprint: str
    size: int
    workers: int
    device: torch.device
    idle: list[DataLoader] = field(default_factory=list, repr=False)

    def __post_init__(self):
        self.mean, self.deviation = torch.tensor(MEAN).to(self.device), torch.tensor(DEVIATION).to(self.device)
        self.scale = data.at_every_pixel(self.mean, self.deviation, self.size, self.size)

    @property
    def example(self) -> Tensor:
        """One image as the network sees it, float32 [1, 3, H, W] of zeros, on the CPU."""
        return torch.zeros(1, 3, self.size, self.size)

    @property
    def damaged(self) -> list[str]:
        """Paths of the images that this process could not read so far, and of those it was told of."""
        return sorted([*self.train.damaged, *self.test.damaged])

    def note_damaged(self, paths: Iterable[str]) -> None:
        """Adds what other processes, or an interrupted run, found. Raises UserError when they are too many."""
        for files in (self.train, self.test):
            own = [path for path in paths if Path(path).is_relative_to(files.folder)]
            files.note_damaged((path, "found before or by another process") for path in own)

    def steps_per_epoch(self, batch_size: int) -> int:
        """Full batches of all processes together."""
        return len(self.train) // batch_size

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
        """One epoch of the training split, shuffled and augmented: inputs float32 [B, 3, H, W] in channels-last
        memory, labels int64 [B], both on the device.

        The epoch's order is cut into batches; of each `ranks` consecutive ones, process `rank` takes one. So two
        processes see in a step what one with twice the batch sees. What fills no round over all is left out.

        Args:
            augmentation: any of crop (RandomResizedCrop, instead of the centre), flip, cutout.
            first: this process's batches to leave out, at the epoch's beginning.
        """
        generator = torch.Generator().manual_seed(seeds.stream(seed, "batches", epoch))
        order = torch.randperm(len(self.train), generator=generator).numpy()
        if "cutout" in augmentation:
            centres = torch.randint(self.size, (2, len(self.train)), generator=generator)
        drawn, rounds = seeds.stream(seed, "augmentation", epoch), self.steps_per_epoch(batch_size * ranks)
        starts = [(number * ranks + rank) * batch_size for number in range(first, rounds)]
        jobs = [Job("train", order[s : s + batch_size], tuple(augmentation), s, drawn) for s in starts]
        for start, (inputs, labels) in zip(starts, self.read(self.train, jobs), strict=True):
            if len(labels) < batch_size:
                raise UserError(
                    f"DATA_DIR: {TRIES} images in a row cannot be read, {printable(self.damaged[0])} among them"
                )
            if "cutout" in augmentation:
                y, x = centres[:, start : start + batch_size].to(self.device)
                inputs = data.cutout(inputs, SimpleNamespace(centre_y=y, centre_x=x), self.size // 2)
            yield inputs, labels

    def evaluation_batches(self, rank: int = 0, ranks: int = 1) -> Iterator[tuple[Tensor, Tensor]]:
        """The test split in order, its centre crops; over all `ranks` processes every image once. As above."""
        starts = range(rank * EVALUATED, len(self.test), ranks * EVALUATED)
        jobs = (Job("test", np.arange(start, min(start + EVALUATED, len(self.test)))) for start in starts)
        yield from (batch for batch in self.read(self.test, jobs) if len(batch[1]))

    def read(self, files: Files, jobs: Iterable[Job]) -> Iterator[tuple[Tensor, Tensor]]:
        """What the workers make of each job, on the device. They live on for the next epoch; while one epoch is being
        read another may be too (a score is taken in the middle of it, say), by workers of its own."""
        loader = self.idle.pop() if self.idle else self.new_loader()
        loader.sampler.jobs = jobs
        try:
            for images, labels, damaged in begin(loader):
                files.note_damaged((files.path(index), why) for index, why in damaged)
                images, labels = (part.to(self.device, non_blocking=True) for part in (images, labels))
                yield data.normalise(images, self), labels
        except GeneratorExit:  # stopped half-way; what is still on its way is thrown away at the next use
            self.idle.append(loader)
            raise
        except Exception as error:
            Interrupts.check()
            if (died := worker_died(error)) is None:
                raise
            error.__traceback__ = None  # it holds the loader
        else:
            self.idle.append(loader)
            return
        finally:
            del loader  # its workers end with it: now, not when a traceback is thrown away
        raise died

    def new_loader(self) -> DataLoader:
        if self.workers == 0:
            warnings.filterwarnings("ignore", module="PIL")
        warnings.filterwarnings("ignore", "This DataLoader will create")  # more workers than cores: the user's choice
        return DataLoader(
            Reader(self.train, self.test, self.size),
            batch_size=None,
            sampler=Jobs(),
            num_workers=self.workers,
            persistent_workers=self.workers > 0,
            pin_memory=devices.pins(self.device),
            worker_init_fn=quiet,
            generator=torch.Generator(),  # torch's own is the training's
        )
