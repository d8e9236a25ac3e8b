"""Image folders read by worker processes: what is in a batch, what becomes of damaged images, what is refused."""

import multiprocessing
import os
import shutil
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from common import folders, images
from common.errors import UserError
from tests.image_folders import BOTH, CLASSES, PLAIN, SIZE, damage, load, shown


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


@pytest.mark.parametrize(
    ("link", "to", "words"),
    [
        ("train/cat/x", "train/dog", "leads to images that are met elsewhere"),
        ("train/cat/x", "val", "leads to images that are met elsewhere"),
        ("val/cat/x", "train", "leads to images that are met elsewhere"),
        ("train/cat/x", "train", "leads back to a folder that it lies in"),
    ],
)
def test_a_link_to_images_that_are_met_elsewhere_is_refused(own, link, to, words):
    (own / link).symlink_to(own / to)
    with pytest.raises(UserError, match=words):
        load(own)


def test_links_to_one_folder_elsewhere_and_splits_that_are_one_folder_are_refused(own, tmp_path):
    outside = tmp_path / "outside"
    shutil.copytree(own / "train" / "cat", outside)
    (own / "train" / "cat" / "more").symlink_to(outside)
    assert len(load(own).train)
    os.mkfifo(own / "train" / "cat" / "pipe.png")
    assert len(load(own).train)
    (own / "train" / "dog" / "more").symlink_to(outside)
    with pytest.raises(UserError, match="met elsewhere"):
        load(own)
    (own / "train" / "dog" / "more").unlink()
    shutil.rmtree(own / "val")
    (own / "val").symlink_to(own / "train")
    with pytest.raises(UserError, match="are one folder"):
        load(own)


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
