"""Augmentation against torchvision's transforms, and epochs that depend on seed and epoch only."""

import os
import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import chisquare
from torchvision.transforms import functional as reference

from common import data, images
from common.errors import UserError

SIZE, BORDER = 8, 1
LIKELY = 1e-4  # a right sampler fails one test in ten thousand, and these have fixed seeds


def one_image() -> torch.Tensor:
    """uint8 [H, W, C] of pixels that differ, none of them black."""
    return torch.arange(1, 1 + SIZE * SIZE * 3, dtype=torch.uint8).view(SIZE, SIZE, 3)


def dataset(count: int, image: torch.Tensor | None = None) -> data.Dataset:
    images = torch.randint(256, (count, SIZE, SIZE, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(3))
    if image is not None:
        images = image.expand(count, -1, -1, -1).contiguous()
    split = data.Split(images, torch.arange(count))
    mean, deviation = data.statistics(images.numpy())
    return data.Dataset("test", split, split, ["a", "b"], mean, deviation, "")


def drawn(augmentation, count=20000):
    """What one epoch makes of `count` copies of one image: float32 [count, C, H, W]."""
    made = dataset(count, one_image())
    return made, torch.cat([inputs for inputs, _ in made.batches(5000, 0, 0, augmentation)])


def frequencies(outputs: torch.Tensor, reachable: list[torch.Tensor]) -> list[int]:
    """How often each reachable output occurs; fails on an output that is none of them."""
    keys = {output.numpy().tobytes(): index for index, output in enumerate(reachable)}
    assert len(keys) == len(reachable)
    found = [0] * len(reachable)
    for output in outputs:
        found[keys[output.contiguous().numpy().tobytes()]] += 1
    return found


@pytest.mark.parametrize("flip", [False, True])
def test_crop_and_flip_reach_what_torchvision_reaches_equally_often(flip):
    made, outputs = drawn(("crop", "flip") if flip else ("crop",))
    padded = reference.pad(one_image().permute(2, 0, 1), BORDER)
    reachable = []
    for top in range(2 * BORDER + 1):
        for left in range(2 * BORDER + 1):
            crop = reference.crop(padded, top, left, SIZE, SIZE)
            reachable += [crop, reference.hflip(crop)] if flip else [crop]
    reachable = [data.normalise(image.permute(1, 2, 0)[None], made)[0] for image in reachable]
    assert chisquare(frequencies(outputs, reachable)).pvalue > LIKELY


def test_cutout_erases_torchvisions_squares_around_every_pixel_equally_often():
    made, outputs = drawn(("cutout",))
    half, side = SIZE // 4, SIZE // 2
    normal = data.normalise(one_image()[None], made)[0]
    weights: dict[bytes, int] = {}
    kept = {}
    for y in range(SIZE):
        for x in range(SIZE):
            padded = reference.pad(normal, half)  # the square may reach over the edge
            erased = reference.erase(padded, y, x, side, side, torch.zeros(()))[:, half:-half, half:-half].contiguous()
            key = erased.numpy().tobytes()
            weights[key] = weights.get(key, 0) + 1
            kept[key] = erased
    found = frequencies(outputs, list(kept.values()))
    expected = np.array(list(weights.values())) / SIZE**2 * len(outputs)
    assert chisquare(found, expected).pvalue > LIKELY


def test_no_augmentation_gives_the_images_normalised_to_mean_0_and_variance_1():
    made = dataset(512)
    inputs = torch.cat([x for x, _ in made.batches(100, 0, 0, ())])
    assert inputs.mean((0, 2, 3)).abs().max() < 1e-5
    assert (inputs.std((0, 2, 3), unbiased=False) - 1).abs().max() < 1e-5


def test_examples_of_a_batch_are_augmented_independently():
    _, outputs = drawn(("crop", "flip", "cutout"), 200)
    assert len({output.contiguous().numpy().tobytes() for output in outputs}) > 150


def epoch(made, seed, number, augmentation=("crop", "flip", "cutout")):
    return list(made.batches(32, seed, number, augmentation))


def test_an_epoch_depends_on_seed_and_number_only():
    made = dataset(100)
    first = epoch(made, 0, 5)
    torch.rand(7)  # whatever else was drawn meanwhile
    epoch(made, 0, 4)
    again = epoch(dataset(100), 0, 5)
    assert all(torch.equal(a[0], b[0]) and torch.equal(a[1], b[1]) for a, b in zip(first, again, strict=True))
    for other in (epoch(made, 0, 6), epoch(made, 1, 5)):
        assert not torch.equal(first[0][1], other[0][1])


@pytest.mark.parametrize(("count", "sizes"), [(96, [32] * 3), (100, [32, 32, 32, 4]), (97, [32] * 3)])
def test_an_epoch_shows_every_example_once_and_never_one_alone(count, sizes):
    made = dataset(count)
    batches = epoch(made, 0, 0)
    assert [len(labels) for _, labels in batches] == sizes
    assert len(batches) == made.steps_per_epoch(32)
    labels = torch.cat([labels for _, labels in batches])
    assert len(labels.unique()) == sum(sizes)


def test_evaluation_shows_every_test_image_once_in_order_and_as_it_is():
    made = dataset(25)
    batches = list(made.evaluation_batches(batch_size=10))
    assert torch.equal(torch.cat([labels for _, labels in batches]), made.test.labels)
    assert torch.equal(torch.cat([inputs for inputs, _ in batches]), data.normalise(made.test.images, made))


def test_batches_come_in_channels_last_memory():
    (inputs, _), *_ = epoch(dataset(64), 0, 0)
    assert inputs.is_contiguous(memory_format=torch.channels_last)


def test_real_cifar10_has_its_published_size_mean_and_deviation(cifar10):
    assert cifar10.train.images.shape == (50000, 32, 32, 3)
    assert cifar10.test.images.shape == (10000, 32, 32, 3)
    assert cifar10.mean.tolist() == pytest.approx([0.4914, 0.4822, 0.4465], abs=1e-4)
    assert cifar10.deviation.tolist() == pytest.approx([0.2470, 0.2435, 0.2616], abs=1e-4)
    assert cifar10.train.labels.bincount().tolist() == [5000] * 10


def place(dataset, **changes):
    given = {"data_dir": "data", "device": torch.device("cpu"), "batch_size": 2, "image_size": 16, "workers": 2}
    return SimpleNamespace(dataset=str(dataset), **{**given, **changes})


def save_images(root, parts=("train", "test"), classes=("cat", "dog"), count=3):
    for part in parts:
        for index, name in enumerate(classes):
            (root / part / name).mkdir(parents=True)
            for number in range(count):
                pixels = np.full((20, 30, 3), 40 * index + 10 * number, np.uint8)
                Image.fromarray(pixels).save(root / part / name / f"{number}.png")
    return root


@pytest.mark.parametrize("test_part", ["test", "val"])
def test_an_image_folder_is_read_resized_and_labelled_by_subfolder(tmp_path, test_part):
    made = data.load(place(save_images(tmp_path, ("train", test_part))))
    assert made.train.images.shape == (6, 16, 16, 3)
    assert made.classes == ["cat", "dog"]
    assert made.train.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert made.train.images[4].unique().tolist() == [50]


def test_images_of_every_mode_become_rgb(tmp_path):
    grey = np.arange(256, dtype=np.uint8).reshape(16, 16)
    Image.fromarray(grey).save(tmp_path / "grey.png")
    Image.fromarray(grey).convert("P").save(tmp_path / "palette.png")
    Image.fromarray(grey.astype(np.uint16) * 257).save(tmp_path / "deep.png")
    for name in ("grey", "palette", "deep"):
        read = images.read_image(str(tmp_path / f"{name}.png"), 16)
        assert np.array_equal(read, np.repeat(grey[..., None], 3, 2)), name
    upright = Image.fromarray(np.stack([grey] * 3, -1))
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned by a quarter
    upright.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "turned.png", exif=exif)
    assert np.array_equal(images.read_image(str(tmp_path / "turned.png"), 16), np.asarray(upright))
    upright.convert("CMYK").save(tmp_path / "cmyk.jpg")
    assert images.read_image(str(tmp_path / "cmyk.jpg"), 16).shape == (16, 16, 3)


def broken(tmp_path, what):
    if what == "absent":
        return tmp_path / "nowhere"
    if what == "one class":
        return save_images(tmp_path, classes=("cat",))
    if what == "no test":
        return save_images(tmp_path, ("train",))
    root = save_images(tmp_path)
    if what == "empty class":
        for path in (root / "train" / "cat").iterdir():
            path.unlink()
    if what == "other classes":
        (root / "test" / "dog").rename(root / "test" / "mouse")
    if what in ("floats", "32 bits"):
        values = np.linspace(0, 1, 600).reshape(20, 30).astype(np.float32 if what == "floats" else np.int32)
        for number in (1, 2):
            (root / "train" / "dog" / f"{number}.png").unlink()
            Image.fromarray(values).save(root / "train" / "dog" / f"{number}.tif")
    if what == "alike":
        for path in (root / "test").rglob("*.png"):
            Image.new("RGB", (20, 30), (9, 9, 9)).save(path)
    if what == "damaged":
        for number in (1, 2):
            cut(root / "train" / "dog" / f"{number}.png")
    if what == "loop":
        (root / "train" / "cat" / "loop").symlink_to("..")
    return root


def cut(path):
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("floats", r"2 of 6 images cannot be read; .*dog.1\.tif \(floats and 32-bit integers have no known white"),
        ("32 bits", r"2 of 6 images cannot be read; .*dog.1\.tif \(floats and 32-bit integers have no known white"),
        ("alike", "all 6 images in .*test are alike"),
        ("absent", "nowhere"),
        ("one class", "one class, cat"),
        ("no test", r"has no test/ \(nor val/\)"),
        ("empty class", "train.cat holds no images"),
        ("other classes", "differ in 2: dog, mouse"),
        ("damaged", r"2 of 6 images cannot be read; replace or delete them: .*dog.1\.png \(.*dog.2\.png \("),
        ("loop", "cat.loop leads back to a folder that it lies in; delete it"),
    ],
)
def test_a_folder_that_cannot_be_used_is_named_in_one_line(tmp_path, what, words):
    with pytest.raises(UserError, match=words) as error:
        data.load(place(broken(tmp_path, what)))
    assert str(error.value).startswith("DATASET: ")
    assert "\n" not in str(error.value)


def test_one_damaged_image_is_named_and_left_out(tmp_path, capsys):
    root = save_images(tmp_path)
    cut(root / "train" / "dog" / "1.png")
    made = data.load(place(root))
    assert made.train.labels.tolist() == [0, 0, 0, 1, 1]
    assert re.match(r"left out, as it cannot be read: .*dog.1\.png \(.*\)\n$", capsys.readouterr().out)


def test_hidden_files_and_folders_are_no_images_and_no_classes(tmp_path):
    root = save_images(tmp_path)
    before = data.load(place(root))
    for folder in (root / "train" / ".ipynb_checkpoints", root / "train" / "cat" / ".ipynb_checkpoints"):
        folder.mkdir()
        (folder / "0.png").write_bytes((root / "train" / "cat" / "0.png").read_bytes())
    (root / "train" / "dog" / "._1.png").write_bytes(b"left by another system")
    after = data.load(place(root))
    assert after.classes == ["cat", "dog"]
    assert after.fingerprint == before.fingerprint


def test_names_of_any_bytes_are_read(tmp_path):
    root = save_images(tmp_path)
    for name in (b"caf\xe9.png", b"two\nlines.png"):
        try:
            os.rename(root / "train" / "dog" / "1.png", os.path.join(os.fsencode(root / "train" / "dog"), name))
        except OSError:
            pytest.skip("this file system takes names of text only")
        assert len(data.load(place(root)).train.labels) == 6
        (damaged,) = (
            images.printable(os.fsdecode(path))
            for path, _ in images.images_in(root / "train" / "dog", "DATASET", {})[-1:]
        )
        assert damaged.isprintable() or damaged.isascii()
        os.rename(os.path.join(os.fsencode(root / "train" / "dog"), name), root / "train" / "dog" / "1.png")


def test_an_image_of_a_line_is_cut_before_it_is_resized(tmp_path):
    Image.new("RGB", (40_000, 2), (9, 9, 9)).save(tmp_path / "line.png")
    assert images.decode(str(tmp_path / "line.png")).size == (32, 2)


def test_images_that_do_not_fit_into_memory_are_refused_before_they_are_read(tmp_path):
    with pytest.raises(UserError, match="IMAGE_SIZE: got 10000000.*takes at most") as error:
        data.load(place(save_images(tmp_path), image_size=10_000_000))
    assert "\n" not in str(error.value)


def test_a_batch_larger_than_the_training_set_is_refused(tmp_path):
    with pytest.raises(UserError, match="BATCH_SIZE: got 7, takes at most the 6 training images"):
        data.load(place(save_images(tmp_path), batch_size=7))


def test_absent_cifar10_says_where_to_put_it_and_names_the_digits(tmp_path, monkeypatch):
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")  # nothing listens there: no download
    with pytest.raises(UserError, match="--dataset digits") as error:
        data.load(place("cifar10", data_dir=tmp_path / "here"))
    assert f"{tmp_path}/here/cifar-10-batches-py" in str(error.value)
    assert "\n" not in str(error.value)
