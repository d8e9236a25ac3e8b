"""Writes the network of a finished run as a torch.export program, which runs without this repository.

    python -m common.export runs/.../final.pt network.pt2

and then, anywhere:

    network = torch.export.load("network.pt2").module()
    logits = network(images)  # fp32 [B, channels, H, W], any B, normalised as for training -> [B, classes]
"""

import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from common import settings
from common.errors import UserError
from common.machine import process

if TYPE_CHECKING:  # --help and mistyped flags need no torch
    import torch
    from torch import nn


def program(network: "nn.Module", image: tuple[int, int, int]) -> "torch.export.ExportedProgram":
    """The network as a program for fp32 images of one size [C, H, W], in batches of any size."""
    import torch

    example = torch.zeros(2, *image)  # two, as a batch of one would be taken for a constant
    batch = torch.export.Dim("batch")
    return torch.export.export(network.eval().requires_grad_(False), (example,), dynamic_shapes=({0: batch},))


def image_shape(final: dict, path: Path, side: int | None) -> tuple[int, int, int]:
    """[C, H, W] of the images: square ones of the size asked for, or those of the run."""
    channels = final["network"]["channels"]
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
    parser.add_argument("output", type=Path, help="the program to write, a .pt2 file")
    side = settings.reader("IMAGE_SIZE")
    parser.add_argument("--image-size", type=side, metavar="SIDE", help="pixels a side of the images [the run's]")
    parser.add_argument("--force", action="store_true", help="replace the output if it exists")
    given = parser.parse_args(arguments)
    if given.output.suffix != ".pt2":
        raise UserError(f"{given.output}: the output takes a name that ends in .pt2")
    if not given.output.parent.is_dir():
        raise UserError(f"{given.output}: there is no folder {given.output.parent}")
    if given.output.exists() and not given.force:
        raise UserError(f"{given.output} exists; --force replaces it")
    try:
        given.final.open("rb").close()
    except OSError as error:
        raise UserError(f"could not read {given.final} ({error.strerror})") from None
    # Not before: torch takes longer than all of the above.
    import torch

    from common import saved
    from common.files import write

    final = saved.read(given.final)
    network = saved.rebuild(final, given.final)
    image = image_shape(final, given.final, given.image_size)
    exported = program(network, image)
    with warnings.catch_warnings():
        # Of weights in channels-last, which are the faster ones; it means those that are not on the CPU.
        warnings.filterwarnings("ignore", "No complete tensor found")
        write(given.output, lambda file: torch.export.save(exported, file))
    weights = sum(parameter.numel() for parameter in network.parameters())
    shape = " x ".join(map(str, image))
    print(f"{given.output}: images {shape}, {final['network']['classes']} classes, {weights:,} parameters")
    return 0


if __name__ == "__main__":
    raise SystemExit(process.run(main))
