"""Image files: decoded, and read in batches by worker processes."""

import os
import signal
import stat
import warnings
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from common import images
from common.errors import UserError
from common.machine import seeds

RESIZED = 256 / 224  # the shorter side over the side of the centre crop
DAMAGED = 0.01  # share of a split's images; more of them, and more than one, stop the run
LONGEST = 16  # the longer side of an image over the shorter one; what is longer is cut off
TRIES = 20  # images drawn in the place of a damaged one
SCANNERS = 32  # threads that list folders, which wait for the file system most of the time


@dataclass
class Files:
    """The images of one split, by class and name. names: bytes [N] relative to the folder, one array for all, as a
    million strings would be copied into every worker; labels: int64 [N]; damaged: path -> why, of those met so far."""

    folder: Path
    names: np.ndarray
    labels: np.ndarray
    damaged: dict[str, str] = field(default_factory=dict, repr=False)

    def __len__(self) -> int:
        return len(self.labels)

    def path(self, index: int) -> str:
        return os.path.join(self.folder, os.fsdecode(self.names[index]))

    def note_damaged(self, found: Iterable[tuple[str, str]]) -> None:
        """Remembers (path, why); raises UserError when they have become too many."""
        for path, why in found:
            self.damaged.setdefault(path, why)
        if len(self.damaged) > max(1, DAMAGED * len(self)):
            path, why = next(iter(self.damaged.items()))
            raise UserError(
                f"DATA_DIR: {len(self.damaged):,} of the {len(self):,} images in {self.folder} cannot be read, more "
                f"than {DAMAGED:.0%}; the first: {printable(path)} ({why}); replace or delete them"
            )


@dataclass(frozen=True)
class Job:
    """A batch to be read. indices: int64 [B] into the split; start: the first one's place in the epoch; seed: of what
    is random in the epoch, None when a damaged image is to be left out instead of replaced."""

    split: str
    indices: np.ndarray
    augmentation: tuple[str, ...] = ()
    start: int = 0
    seed: int | None = None


@cache
def transform(size: int, augmentation: tuple[str, ...]) -> Callable[[Image.Image], Image.Image]:
    """PIL image of any size -> PIL image of size x size."""
    from torchvision.transforms import v2

    centre = [v2.Resize(round(size * RESIZED)), v2.CenterCrop(size)]
    steps = [v2.RandomResizedCrop(size)] if "crop" in augmentation else centre
    return v2.Compose([*steps, v2.RandomHorizontalFlip()] if "flip" in augmentation else steps)


class Reader(Dataset):
    """Job -> images uint8 [B, H, W, C], labels int64 [B], and (index, why) of every damaged image met."""

    def __init__(self, train: Files, test: Files, size: int):
        self.splits, self.size = {"train": train, "test": test}, size

    def __getitem__(self, job: Job) -> tuple[Tensor, Tensor, list[tuple[int, str]]]:
        files, damaged, count = self.splits[job.split], [], 0
        images = torch.empty(len(job.indices), self.size, self.size, 3, dtype=torch.uint8)
        labels = torch.empty(len(job.indices), dtype=torch.int64)
        if get_worker_info() is not None:  # now, as an error while a batch is being sent would not reach anybody
            images.share_memory_(), labels.share_memory_()
        with torch.random.fork_rng(devices=[]):  # without workers, this is the training's generator
            for place, index in enumerate(job.indices.tolist(), job.start):
                if job.seed is not None:
                    torch.default_generator.manual_seed(seeds.stream(job.seed, "example", place))
                index, image = self.first_whole(files, index, job, damaged)
                if image is not None:
                    images.numpy()[count], labels[count] = np.asarray(image), int(files.labels[index])
                    count += 1
        return images[:count], labels[:count], damaged

    def first_whole(self, files: Files, index: int, job: Job, damaged: list) -> tuple[int, Image.Image | None]:
        """The image asked for; in training, when it is damaged, the first whole one of others drawn at random."""
        for _ in range(1 if job.seed is None else TRIES):
            try:
                return index, transform(self.size, job.augmentation)(images.decode(files.path(index)))
            except Exception as error:  # a damaged file fails in many ways
                damaged.append((index, " ".join(str(error).split()) or type(error).__name__))
                index = int(torch.randint(len(files), ()))
        return index, None


def quiet(_worker: int = 0) -> None:
    """In a worker: Ctrl-C is the training process's to handle, and PIL's remarks on odd files are nobody's."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    warnings.filterwarnings("ignore", module="PIL")


class Jobs:
    """What a loader reads next; set anew before each use, as its workers outlive an epoch."""

    jobs: Iterable[Job] = ()

    def __iter__(self) -> Iterator[Job]:
        return iter(self.jobs)


def begin(loader: DataLoader) -> Iterator:
    """iter(loader) without torch's signal handler, which would raise a worker's death in the midst of anything, a
    checkpoint being written, say. The iterator notices it too, within seconds."""
    child = getattr(signal, "SIGCHLD", None)
    if child is None:  # on Windows, where torch sets none
        return iter(loader)
    before = signal.getsignal(child)
    batches = iter(loader)
    if signal.getsignal(child) is not before:
        signal.signal(child, before)
    return batches


def worker_died(error: Exception) -> UserError | None:
    """A worker's end as one line; None when `error` is something else."""
    text = str(error)
    if not text.startswith("DataLoader worker") and "in DataLoader worker process" not in text:
        return None
    why = text.strip().splitlines()[-1]
    return UserError(
        f"WORKERS: a process that decodes images failed ({why}); when memory or shared memory (/dev/shm) is short, "
        "lower WORKERS or BATCH_SIZE"
    )


def printable(path: str) -> str:
    """A path as one line that any terminal takes, whatever bytes the name is of."""
    return os.fsencode(path).decode("utf-8", "backslashreplace").replace("\n", "\\n")


def subfolders(folder: Path) -> list[str]:
    """Their names, sorted; hidden ones, as notebooks leave them, are none."""
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))


def images_in(folder: Path, constant: str, seen: dict[str, str]) -> list[tuple[bytes, int]]:
    """(path relative to the folder's parent, size in bytes) of every image in it, at any depth, sorted; hidden files
    and folders, which some systems leave beside images, hold none.

    Args:
        constant: the one that names the images, for the error.
        seen: where links have led so far, to be completed: real path -> link.

    Raises:
        UserError: for a link to a folder among the images, or that another one leads to as well: images would be met
            again, in other classes.
    """
    from torchvision.datasets.folder import IMG_EXTENSIONS

    def stop(error: OSError):
        raise error

    found, start = [], len(os.path.join(folder.parent, ""))
    splits = [os.path.realpath(folder.parents[1] / name) for name in ("train", "val", "test")]
    for where, inside, names in os.walk(folder, onerror=stop, followlinks=True):
        inside[:] = [name for name in inside if not name.startswith(".")]
        for name in inside:
            link = os.path.join(where, name)
            if not os.path.islink(link):
                continue
            to = os.path.realpath(link)
            if Path(os.path.realpath(where)).is_relative_to(to):
                raise UserError(f"{constant}: {printable(link)} leads back to a folder that it lies in; delete it")
            if any(map(Path(to).is_relative_to, splits)) or seen.setdefault(to, link) != link:
                raise UserError(f"{constant}: {printable(link)} leads to images that are met elsewhere; delete it")
        for name in names:
            if name.lower().endswith(IMG_EXTENSIONS) and not name.startswith("."):
                path = os.path.join(where, name)
                try:
                    known = os.stat(path)
                    if not stat.S_ISREG(known.st_mode):  # a pipe, say, would be waited for
                        continue
                    size = known.st_size
                except OSError:  # a link to nothing, to be met as a damaged image
                    size = 0
                found.append((os.fsencode(path[start:]), size))
    return sorted(found)


def splits_of(folder: Path, constant: str, tests: tuple[str, str]) -> tuple[list[str], list[Path]]:
    """The classes of an image folder, and the folders of its training and test images.

    Args:
        constant: the one that names the folder, for the error.
        tests: what the folder of test images may be called; the first that is there is taken.

    Raises:
        UserError: absent split, fewer than two classes, classes that differ, or one folder under two names.
    """
    takes = f"takes a folder with train/ and {tests[0]}/ (or {tests[1]}/), one subfolder of images a class"
    test = next((folder / name for name in tests if (folder / name).is_dir()), None)
    if not (folder / "train").is_dir() or test is None:
        absent = f"{tests[0]}/ (nor {tests[1]}/)" if (folder / "train").is_dir() else "train/"
        raise UserError(f"{constant}: {folder} has no {absent}; {takes}")
    parts = [folder / "train", test]
    classes, others = found = [subfolders(part) for part in parts]
    for part, names in zip(parts, found, strict=True):
        if not names:
            raise UserError(f"{constant}: {part} has no subfolders; {takes}")
    if classes != others:
        odd = sorted(set(classes) ^ set(others))
        raise UserError(f"{constant}: the classes of {parts[0]} and {test} differ in {len(odd)}: {', '.join(odd[:5])}")
    if len(classes) < 2:
        raise UserError(f"{constant}: {parts[0]} has one class, {classes[0]}; takes two or more")
    places: dict[str, Path] = {}
    for place in (part / name for part in parts for name in classes):
        if (other := places.setdefault(os.path.realpath(place), place)) != place:
            raise UserError(f"{constant}: {printable(str(other))} and {printable(str(place))} are one folder")
    return classes, parts


def files_of(folder: Path, classes: list[str], constant: str) -> tuple[Files, np.ndarray]:
    """The images of one split, and the size of each in bytes, int64 [N].

    Raises:
        UserError: for a class without images; and as `images_in`.
    """
    with ThreadPoolExecutor(SCANNERS) as pool:
        look = partial(images_in, constant=constant, seen={})
        found = list(pool.map(look, (folder / name for name in classes)))
    for name, own in zip(classes, found, strict=True):
        if not own:
            what = f"the class {printable(str(folder / name))} holds no images"
            raise UserError(f"{constant}: {what}; fill or delete it in every split")
    names = np.array([name for own in found for name, _ in own])
    sizes = np.array([size for own in found for _, size in own], dtype=np.int64)
    return Files(folder, names, np.repeat(np.arange(len(classes)), list(map(len, found)))), sizes


def too_long(image: Image.Image) -> Image.Image:
    """The middle of an image that is more than LONGEST times as long as wide, which would be huge when resized."""
    least = min(image.size) * LONGEST
    if max(image.size) <= least:
        return image
    width, height = (min(side, least) for side in image.size)
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))


def decode(path: str) -> Image.Image:
    """One image file, upright and in RGB; transparency is dropped. Raises what PIL raises, which may be anything when
    the file is damaged; and ValueError for floats and 32-bit integers, of which nobody can tell what is white."""
    with Image.open(path) as image:
        image.load()
        with suppress(Exception):  # of an image that is whole but for the rest of its EXIF
            ImageOps.exif_transpose(image, in_place=True)
        if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG"):  # 16 bits: PIL would clip
            image = Image.fromarray(np.uint8(np.asarray(image) // 257))
        if image.mode in ("I", "F"):
            raise ValueError("floats and 32-bit integers have no known white; save it with 8 or 16 bits a value")
        if image.mode == "P" and "transparency" in image.info:  # PIL would warn
            image = image.convert("RGBA")
        return too_long(image).convert("RGB")


def read_image(path: str, size: int) -> np.ndarray:
    """One image file as uint8 [size, size, 3]: the shorter side resized, the centre cut out. Raises as `decode`."""
    return np.asarray(ImageOps.fit(decode(path), (size, size), Image.Resampling.BILINEAR))
