"""An image of any kind is seen as it looks."""

import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.image_folders import CLASSES, SIZE, load


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
