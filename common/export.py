"""Writes the network of a finished run as a program that runs without this repository: of torch.export, or ONNX.

    python -m common.export runs/.../final.pt network.pt2
    python -m common.export runs/.../final.pt network.onnx    (pip install onnx onnxscript onnxruntime)

and then, anywhere:

    names = {"classes.json": ""}
    network = torch.export.load("network.pt2", extra_files=names).module()
    logits = network(images)  # uint8 [B, channels, H, W], any B -> float32 [B, classes]
    classes = json.loads(names["classes.json"])  # the name of each logit

    session = onnxruntime.InferenceSession("network.onnx")
    (logits,) = session.run(None, {"images": images})
    classes = json.loads(session.get_modelmeta().custom_metadata_map["classes"])

The program normalises its images itself, with the mean and deviation that the network was trained with. With
--normalised it takes them as the network does: float32, and normalised.
"""

import json
import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from common import settings
from common.errors import UserError
from common.machine import process

if TYPE_CHECKING:  # --help and mistyped flags need no torch
    import torch
    from torch import Tensor, nn

AGREEMENT = 1e-4  # largest difference from the network's logits, as a share of the largest of these (of 1, at least)
ONNX = ("onnx", "onnxscript", "onnxruntime")


def program(network: "nn.Module", example: "Tensor | tuple[Tensor, ...]") -> "torch.export.ExportedProgram":
    """The network in evaluation mode as a program, for inputs of the size and type of `example`, one [1, ...] or a
    tuple of them, in batches of any size. The network stays as it is."""
    import torch

    from common.cutting import bare_copy
    from common.models import check_example

    check_example(example)
    inputs = example if isinstance(example, tuple) else (example,)
    if any(len(part) != 1 for part in inputs):
        raise ValueError(f"example: got {[list(part.shape) for part in inputs]}, takes one of each input, [1, ...]")
    twice = tuple(torch.cat([part, part]) for part in inputs)  # as a batch of one would be taken for a constant
    shapes = tuple({0: torch.export.Dim("batch")} for _ in inputs)
    return torch.export.export(bare_copy(network).eval().requires_grad_(False), twice, dynamic_shapes=shapes)


def as_onnx(exported: "torch.export.ExportedProgram", classes: list[str] | None) -> bytes:
    """The program as an ONNX file: `images` -> `logits`, and the names of the classes in its metadata."""
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what the exporter itself calls
        made = torch.onnx.export(exported, dynamo=True, verbose=False, input_names=["images"], output_names=["logits"])
    if classes is not None:
        made.model.metadata_props["classes"] = json.dumps(classes)
    return made.model_proto.SerializeToString()


def check(output: Path, network: "nn.Module", logits, images: "Tensor") -> None:
    """Raises UserError where what is to be written gives other logits than the network for the same images."""
    import torch

    with torch.no_grad():
        ours = network(images)
    off = (torch.as_tensor(logits(images)) - ours).abs().max().item()
    if not off <= AGREEMENT * max(1.0, ours.abs().max().item()):  # NaN agrees with nothing
        raise UserError(f"{output}: the program's logits are off by {off:.2g}; it was not written")


def image_shape(final: dict, path: Path, side: int | None) -> tuple[int, int, int]:
    """[C, H, W] of the images: square ones of the size asked for, or those of the run."""
    channels = final["network"].get("channels") or final["image"][0]  # one's own network may not say
    if side is not None:
        return channels, side, side
    image = final.get("image")
    if image is None:
        raise UserError(f"{path} does not say how large its images are; add --image-size")
    if len(image) != 3 or image[0] != channels:
        raise UserError(f"{path}: images {list(image)} do not fit its network, which takes {channels} channels")
    return tuple(image)


def main(arguments: list[str] | None = None) -> int:
    parser = settings.Parser(__doc__, "python -m common.export")
    parser.add_argument("final", type=Path, help="the final.pt of a finished run")
    parser.add_argument("output", type=Path, help="the program to write, a .pt2 or .onnx file")
    side = settings.reader("IMAGE_SIZE")
    parser.add_argument("--image-size", type=side, metavar="SIDE", help="pixels a side of the images [the run's]")
    parser.add_argument(
        "--normalised", action="store_true", help="takes images that are normalised already, as float32"
    )
    own = settings.reader("NETWORK")
    parser.add_argument("--network", type=own, metavar="MODULE:FUNCTION", help="the run's, where it is of your own")
    parser.add_argument("--force", action="store_true", help="replace the output if it exists")
    given = parser.parse_args(arguments)
    if given.output.suffix not in (".pt2", ".onnx"):
        raise UserError(f"{given.output}: the output takes a name that ends in .pt2 or .onnx")
    if given.output.suffix == ".onnx" and not all(map(find_spec, ONNX)):
        raise UserError(f"{given.output}: ONNX takes packages that are not here; pip install {' '.join(ONNX)}")
    if not given.output.parent.is_dir():
        raise UserError(f"{given.output}: there is no folder {given.output.parent}")
    if given.output.exists() and not given.force:
        raise UserError(f"{given.output} exists; --force replaces it")
    try:
        given.final.open("rb").close()
    except OSError as error:
        raise UserError(f"could not read {given.final} ({error.strerror})") from None
    # Not before: torch takes longer than all of the above.
    from common import models, saved

    models.include(given.network or "")
    final = saved.read(given.final)
    network = saved.rebuild(final, given.final)
    weights = sum(parameter.numel() for parameter in network.parameters())
    image = image_shape(final, given.final, given.image_size)
    if not given.normalised:
        network = saved.with_pixels(network, final, given.final)
    save(network, image, final.get("classes"), given)
    shape = " x ".join(map(str, image))
    print(f"{given.output}: images {shape}, {final['network']['classes']} classes, {weights:,} parameters")
    return 0


def save(network: "nn.Module", image: tuple[int, int, int], classes: list[str] | None, given) -> None:
    """Writes the program, when it agrees with the network."""
    import torch

    from common.files import write

    images = torch.randint(0, 256, (3, *image), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    images = images / 64 - 2 if given.normalised else images
    exported = program(network, images[:1])
    if given.output.suffix == ".onnx":
        import onnxruntime

        content = as_onnx(exported, classes)
        session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
        check(given.output, network, lambda images: session.run(None, {"images": images.numpy()})[0], images)
        write(given.output, lambda file: file.write(content))
        return
    check(given.output, network, exported.module(), images)
    names = {} if classes is None else {"classes.json": json.dumps(classes)}
    with warnings.catch_warnings():
        # Of weights in channels-last, which are the faster ones; it means those that are not on the CPU.
        warnings.filterwarnings("ignore", "No complete tensor found")
        write(given.output, lambda file: torch.export.save(exported, file, extra_files=names))


if __name__ == "__main__":
    raise SystemExit(process.run(main))
