"""Images that cannot be read, and workers that end."""

import multiprocessing

import pytest

from common import folders, images
from common.errors import UserError
from tests.image_folders import BOTH, PLAIN, damage, load, shown


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
