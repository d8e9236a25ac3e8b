"""Image folders read by worker processes: what is in a batch, what becomes of damaged images, what is refused."""

import multiprocessing
import shutil
import struct
from itertools import islice
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from common import folders, images
from common.errors import UserError

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


def same(first, second) -> bool:
    return all(
        torch.equal(a, b) for ones, others in zip(first, second, strict=True) for a, b in zip(ones, others, strict=True)
    )


@pytest.fixture(params=multiprocessing.get_all_start_methods())
def started(request):
    """How worker processes are started: each system has a way of its own."""
    before = multiprocessing.get_start_method()
    multiprocessing.set_start_method(request.param, force=True)
    yield
    multiprocessing.set_start_method(before, force=True)


@pytest.mark.usefixtures("started")
def test_workers_change_nothing_about_an_epoch_and_leave_torchs_generator_alone(mixed):
    few, many = load(mixed), load(mixed, workers=2)
    before = torch.get_rng_state()
    first = list(few.batches(4, 0, 5, BOTH))
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(3)
    assert same(first, list(many.batches(4, 0, 5, BOTH)))
    for seed, epoch in ((0, 6), (1, 5)):
        other = list(many.batches(4, seed, epoch, BOTH))
        assert not torch.equal(first[0][0], other[0][0])
    assert same(first, list(many.batches(4, 0, 5, BOTH)))


@pytest.mark.parametrize("workers", [0, 2])
def test_two_processes_see_together_what_one_with_twice_the_batch_sees(mixed, workers):
    dataset = load(mixed, workers=workers)
    parts = [dataset.batches(3, 0, 0, (*BOTH, "cutout"), rank=rank, ranks=2) for rank in (0, 1)]
    joined = [
        tuple(torch.cat(both) for both in zip(one, other, strict=True)) for one, other in zip(*parts, strict=True)
    ]
    assert len(joined) == dataset.steps_per_epoch(6) == 2
    assert same(joined, list(dataset.batches(6, 0, 0, (*BOTH, "cutout"))))


def test_an_epoch_shows_each_image_once_in_full_batches_and_each_process_makes_as_many_steps(plain):
    dataset = load(plain)
    levels, labels = shown(dataset.batches(32, 0, 0, BOTH))
    assert len(levels) == len(set(levels)) == 96  # 24 of 120 are left for another epoch
    assert labels == [level % 3 for level in levels]
    assert levels != sorted(levels)
    for ranks in (2, 3, 7):
        parts = [shown(dataset.batches(8, 0, 0, BOTH, rank=rank, ranks=ranks))[0] for rank in range(ranks)]
        assert {len(part) for part in parts} == {8 * dataset.steps_per_epoch(8 * ranks)}
        assert len(set().union(*parts)) == sum(map(len, parts))


def test_an_epoch_goes_on_in_its_middle_and_what_came_before_is_not_read(plain, monkeypatch):
    dataset = load(plain)
    whole = list(dataset.batches(8, 0, 3, BOTH, rank=1, ranks=2))
    read, decode = [], images.decode
    monkeypatch.setattr(images, "decode", lambda path: read.append(path) or decode(path))
    rest = list(dataset.batches(8, 0, 3, BOTH, first=5, rank=1, ranks=2))
    assert same(whole[5:], rest)
    assert len(read) == 8 * len(rest) == 16


@pytest.mark.parametrize("workers", [0, 2])
def test_an_epoch_survives_one_that_is_read_and_left_in_its_middle(plain, workers):
    dataset = load(plain, workers=workers)
    whole = list(dataset.batches(8, 0, 0, BOTH))
    epoch = dataset.batches(8, 0, 0, BOTH)
    begun = list(islice(epoch, 3))
    left = list(islice(dataset.batches(8, 1, 1, BOTH), 2))
    assert same(left, list(dataset.batches(8, 1, 1, BOTH))[:2])
    assert sorted(shown(dataset.evaluation_batches())[0]) == list(range(PLAIN))
    assert same(begun + list(epoch), whole)
    assert len(dataset.idle) == 2


def pids(dataset) -> list[int]:
    return [worker.pid for worker in dataset.idle[-1]._iterator._workers]


def test_the_workers_of_one_epoch_are_those_of_the_next_and_of_the_evaluation(plain):
    dataset = load(plain, workers=2)
    next(dataset.batches(8, 0, 0, BOTH))
    first = pids(dataset)
    list(dataset.batches(8, 0, 1, BOTH))
    list(dataset.evaluation_batches())
    assert pids(dataset) == first


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_evaluation_shows_each_image_once_over_all_processes(plain, ranks, monkeypatch):
    monkeypatch.setattr(folders, "EVALUATED", 16)
    dataset = load(plain)
    parts = [shown(dataset.evaluation_batches(rank, ranks)) for rank in range(ranks)]
    levels = [level for part in parts for level in part[0]]
    assert sorted(levels) == list(range(PLAIN))
    assert [label for part in parts for label in part[1]] == [level % 3 for level in levels]


def test_evaluation_sees_torchvisions_centre_crop_with_imagenets_mean_and_deviation(mixed):
    ((inputs, labels),) = load(mixed, workers=2).evaluation_batches()
    reference = v2.Compose(
        [
            v2.Resize(round(SIZE * 256 / 224)),
            v2.CenterCrop(SIZE),
            v2.ToImage(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ]
    )
    paths = sorted((mixed / "val").rglob("*.*"))
    expected = torch.stack([reference(Image.open(path).convert("RGB")) for path in paths])
    assert torch.allclose(inputs, expected, atol=1e-5)
    assert inputs.is_contiguous(memory_format=torch.channels_last)
    assert labels.tolist() == [CLASSES.index(path.parent.name) for path in paths]


def test_flips_are_drawn_for_each_image_and_without_crop_the_centre_is_taken(tmp_path):
    half = np.zeros((SIZE, SIZE), np.uint8)
    half[:, SIZE // 2 :] = 255
    for part in ("train", "val"):
        for n in range(200):
            (tmp_path / part / CLASSES[n % 2]).mkdir(parents=True, exist_ok=True)
            Image.fromarray(half).save(tmp_path / part / CLASSES[n % 2] / f"{n}.png")
    dataset = load(tmp_path)
    ((flipped, _),) = dataset.batches(200, 0, 0, ("flip",))
    bright_left = flipped[:, 0, 0, 0] > flipped[:, 0, 0, -1]
    assert 70 < bright_left.sum() < 130
    ((cropped, _),) = dataset.batches(200, 0, 0, ("crop",))
    assert not (cropped[:, 0, 0, 0] > cropped[:, 0, 0, -1]).any()
    assert len({image.contiguous().numpy().tobytes() for image in cropped}) > 20
    ((neither, _),) = dataset.batches(200, 0, 0, ())
    ((centre, _), *_) = dataset.evaluation_batches()
    assert torch.equal(neither[:128], centre)
    ((hidden, _),) = dataset.batches(200, 0, 0, ("cutout",))
    assert (hidden == 0).all(1).flatten(1).any(1).all()


# Modes -----------------------------------------------------------------------------------------------------------


def quarters(*colours) -> Image.Image:
    """Four fields of 64 x 64 pixels: top left, top right, bottom left, bottom right."""
    fields = np.array(colours, dtype=np.uint8).reshape(2, 2, 3)
    return Image.fromarray(fields.repeat(64, 0).repeat(64, 1))


RED, GREEN, BLUE, GREY = (250, 10, 10), (10, 240, 10), (10, 10, 230), (128, 128, 128)
FOUR = quarters(RED, GREEN, BLUE, GREY)
LIGHTNESS = quarters((0,) * 3, (80,) * 3, (160,) * 3, (255,) * 3)


def saved(kind: str, path: Path) -> Image.Image:
    """Saves an image of some kind at `path` (without ending) and returns what is to be seen on it."""
    if kind == "greyscale":
        LIGHTNESS.convert("L").save(f"{path}.JPEG")
    elif kind == "one bit":
        quarters((0,) * 3, (255,) * 3, (255,) * 3, (0,) * 3).convert("1").save(f"{path}.png")
        return quarters((0,) * 3, (255,) * 3, (255,) * 3, (0,) * 3)
    elif kind == "CMYK":
        inks = [tuple(255 - c for c in colour) + (0,) for colour in (RED, GREEN, BLUE, GREY)]
        fields = np.array(inks, dtype=np.uint8).reshape(2, 2, 4).repeat(64, 0).repeat(64, 1)
        Image.frombytes("CMYK", (128, 128), fields.tobytes()).save(f"{path}.jpg", quality=95)
    elif kind == "palette":
        FOUR.convert("P", palette=Image.Palette.ADAPTIVE, colors=4).save(f"{path}.png")
    elif kind == "transparent palette":
        image = FOUR.convert("P", palette=Image.Palette.ADAPTIVE, colors=4)
        image.save(f"{path}.png", transparency=bytes([255, 128, 255, 7]))
    elif kind == "RGBA":
        FOUR.convert("RGBA").save(f"{path}.png")
    elif kind == "16 bit":
        Image.fromarray(np.asarray(LIGHTNESS.convert("L")).astype(np.uint16) * 257).save(f"{path}.png")
    elif kind == "16 bit TIFF":
        Image.fromarray(np.asarray(LIGHTNESS.convert("L")).astype(np.uint16) * 257).save(f"{path}.tiff")
    elif kind == "turned":
        exif = Image.Exif()
        exif[0x0112] = 6  # the camera was turned by a quarter
        FOUR.transpose(Image.Transpose.ROTATE_90).save(f"{path}.JPG", exif=exif, quality=95)
    elif kind == "turned, EXIF damaged":  # the same, and a unit of resolution that PIL cannot write again
        entries = struct.pack("<HHHIIHHI4s", 2, 0x0112, 3, 1, 6, 0x0128, 7, 1, b"\x9b\x91\xff\xc9")
        exif = b"Exif\0\0II*\0\x08\0\0\0" + entries + bytes(4)
        FOUR.transpose(Image.Transpose.ROTATE_90).save(f"{path}.JPG", exif=exif, quality=95)
    return LIGHTNESS if kind in ("greyscale", "16 bit", "16 bit TIFF") else FOUR


@pytest.mark.parametrize(
    "kind",
    [
        "greyscale",
        "one bit",
        "CMYK",
        "palette",
        "transparent palette",
        "RGBA",
        "16 bit",
        "16 bit TIFF",
        "turned",
        "turned, EXIF damaged",
    ],
)
@pytest.mark.filterwarnings("error")
def test_an_image_of_any_kind_is_seen_as_it_looks(tmp_path, kind):
    for part in ("train", "val"):
        for name in CLASSES:
            (tmp_path / part / name).mkdir(parents=True)
            looks = saved(kind, tmp_path / part / name / "image")
    dataset = load(tmp_path, batch_size=2)
    ((inputs, _),) = dataset.evaluation_batches()
    seen = (inputs * dataset.deviation[:, None, None] + dataset.mean[:, None, None]) * 255
    quarter = SIZE // 4
    expected = np.asarray(looks)[32::64, 32::64].reshape(4, 3)
    places = [(y, x) for y in (quarter, 3 * quarter) for x in (quarter, 3 * quarter)]
    for (y, x), colour in zip(places, expected.tolist(), strict=True):
        assert seen[0, :, y, x].tolist() == pytest.approx(colour, abs=6), (y, x)


# Damage ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 2])
def test_another_image_takes_the_place_of_a_damaged_one_and_it_is_listed(own, plain, workers):
    bad = damage(own, 77)
    dataset, whole = load(own, workers=workers), load(plain)
    levels, labels = shown(dataset.batches(8, 0, 0, BOTH))
    before, _ = shown(whole.batches(8, 0, 0, BOTH))
    assert [level for level, was in zip(levels, before, strict=True) if was != 77] == [n for n in before if n != 77]
    assert 77 in before
    assert 77 not in levels
    assert labels == [level % 3 for level in levels]
    assert dataset.damaged == bad
    assert levels == shown(load(own).batches(8, 0, 0, BOTH))[0]
    halves = [shown(dataset.batches(4, 0, 0, BOTH, rank=rank, ranks=2))[0] for rank in (0, 1)]
    assert [len(half) for half in halves] == [PLAIN // 2] * 2
    assert sorted(halves[0] + halves[1]) == sorted(levels)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_damaged_image_is_left_out_of_evaluation_and_listed(own, workers, monkeypatch):
    monkeypatch.setattr(folders, "EVALUATED", 1)
    bad = damage(own, 5, part="val")
    dataset = load(own, workers=workers)
    batches = list(dataset.evaluation_batches())
    assert {len(labels) for _, labels in batches} == {1}  # none is empty
    assert sorted(shown(batches)[0]) == [n for n in range(PLAIN) if n != 5]
    assert dataset.damaged == bad


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("part", ["train", "val"])
def test_more_than_one_per_cent_of_damaged_images_stop_the_run(own, part, workers):
    damage(own, 5, 6, part=part)
    dataset = load(own, workers=workers)
    with pytest.raises(UserError, match=r"DATA_DIR: 2 of the 120 images in .* more than 1%; the first: .*png") as error:
        list(dataset.batches(8, 0, 0, BOTH) if part == "train" else dataset.evaluation_batches())
    assert "\n" not in str(error.value)
    assert str(own / part) in str(error.value)


def test_what_two_processes_found_damaged_counts_together(own):
    one, other = damage(own, 5, 6)
    dataset = load(own)
    dataset.note_damaged([one])
    dataset.note_damaged([one])
    assert dataset.damaged == [one]
    with pytest.raises(UserError, match="2 of the 120 images"):
        dataset.note_damaged([one, other])


def test_a_folder_of_damaged_images_only_stops_at_the_first_batch(own):
    damage(own, *range(PLAIN))
    with pytest.raises(UserError, match="of the 120 images") as error:
        next(load(own, workers=2).batches(8, 0, 0, BOTH))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "content", [b"", b"no image", b"\xff\xd8\xff\xe0\x00\x10JFIF", b"\x89PNG\r\n\x1a\n" + bytes(9)]
)
def test_files_that_are_no_images_are_damaged_images(own, content):
    path = own / "train" / "cat" / "0.png"
    path.write_bytes(content)
    dataset = load(own)
    assert len(shown(dataset.batches(8, 0, 0, BOTH))[0]) == PLAIN
    assert dataset.damaged == [str(path)]


def test_a_worker_that_is_killed_is_told_in_one_line_where_batches_are_read(plain):
    dataset = load(plain, workers=2)
    next(dataset.batches(2, 0, 0, BOTH))
    epoch = dataset.batches(2, 0, 1, BOTH)
    next(epoch)
    killed = multiprocessing.active_children()[0]
    killed.kill()
    killed.join()
    with pytest.raises(UserError, match=rf"WORKERS: a process .*{killed.pid}.*lower WORKERS") as error:
        list(epoch)
    assert "\n" not in str(error.value)
    assert sorted(shown(dataset.evaluation_batches())[0]) == list(range(PLAIN))  # by new workers


def test_an_error_in_a_worker_is_told_in_one_line(plain, monkeypatch):
    monkeypatch.setattr(images.Reader, "first_whole", lambda *_: 1 / 0)
    with pytest.raises(UserError, match="WORKERS: a process .*ZeroDivisionError: division by zero") as error:
        next(load(plain, workers=1).batches(2, 0, 0, BOTH))
    assert "\n" not in str(error.value)


# Bad input -------------------------------------------------------------------------------------------------------


def spoilt(own: Path, what: str) -> Path:
    if what == "absent":
        return own / "nowhere"
    if what in ("no train", "no val"):
        shutil.rmtree(own / what[3:])
    if what == "flat val":
        for name in CLASSES:
            for path in list((own / "val" / name).iterdir()):
                path.rename(own / "val" / path.name)
            (own / "val" / name).rmdir()
    if what == "other classes":
        (own / "val" / "dog").rename(own / "val" / "mouse")
    if what == "one class":
        for part in ("train", "val"):
            for name in CLASSES[1:]:
                shutil.rmtree(own / part / name)
    if what.startswith("empty class"):
        shutil.rmtree(own / what.split()[-1] / "dog")
        (own / what.split()[-1] / "dog").mkdir()
    return own


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("absent", "nowhere', which is no folder"),
        ("no train", "has no train/"),
        ("no val", r"has no val/ \(nor test/\)"),
        ("flat val", "val has no subfolders"),
        ("other classes", "differ in 2: dog, mouse"),
        ("one class", "has one class, cat"),
        ("empty class in train", "train/dog holds no images"),
        ("empty class in val", "val/dog holds no images"),
    ],
)
def test_a_folder_that_cannot_be_used_is_told_in_one_line(own, what, words):
    with pytest.raises(UserError, match=words) as error:
        load(spoilt(own, what))
    assert str(error.value).startswith("DATA_DIR: ")
    assert "\n" not in str(error.value)


def test_a_batch_larger_than_the_training_split_is_refused(plain):
    with pytest.raises(UserError, match="BATCH_SIZE: got 121, takes at most the 120 training images"):
        load(plain, batch_size=121)


def test_val_is_taken_before_test_which_has_no_labels_in_imagenet(own):
    (own / "test").mkdir()
    assert len(load(own).test) == PLAIN
    shutil.rmtree(own / "test")
    (own / "val").rename(own / "test")
    assert len(load(own).test) == PLAIN


def test_hidden_files_and_folders_are_no_images_and_no_classes(own):
    (own / "train" / ".thumbnails").mkdir()
    (own / "train" / "cat" / "._0.png").write_bytes(b"left by a system")
    dataset = load(own)
    assert dataset.classes == list(CLASSES)
    assert len(dataset.train) == PLAIN


def test_the_fingerprint_is_that_of_the_files_and_not_of_their_place(own, plain):
    first = load(plain)
    assert load(own).fingerprint == first.fingerprint
    (own / "val" / "cat" / "0.png").rename(own / "val" / "cat" / "zero.png")
    assert load(own).fingerprint != first.fingerprint
    (own / "val" / "cat" / "zero.png").rename(own / "val" / "cat" / "0.png")
    damage(own, 0)
    assert load(own).fingerprint != first.fingerprint


def test_the_example_is_one_image_as_the_network_sees_it(plain):
    example = load(plain).example
    assert example.shape == (1, 3, SIZE, SIZE)
    assert example.dtype == torch.float32
