"""Which units of a ResNet-50 die while it trains on your own images?

    python Imagenet.py --data-dir FOLDER --image-size 64     FOLDER with train/ and val/, one subfolder a class

The images are read once and held in memory at IMAGE_SIZE; a folder that does not fit is refused before it is read.
Every constant below is also a flag, see --help.
"""

from pathlib import Path

from common import accumulation, settings

STUDY = "accumulation"  # what to measure; accumulation: dead and dying units by epoch
DATA_DIR = "imagenet"  # a folder with train/ and val/ (or test/), one subfolder a class
OUTPUT_DIR = "plots"  # figures and tables go to OUTPUT_DIR/Imagenet
RUN_DIR = "runs"  # logs and checkpoints; a run found there is not trained again
DEVICE = "auto"  # auto, cpu, cuda or cuda:N
PRECISION = "auto"  # bf16 or fp32; auto: bf16 where the hardware has it
SEEDS = [0]  # one run each; they set initial weights, order and augmentation

ACTIVATION = "relu"  # relu, leaky-relu or swish
WIDTH = 64  # channels of the first stage's 3x3 convolutions
STEM = "imagenet"  # cifar (3x3) or imagenet (7x7, stride 2, max pool)
EPOCHS = 200  # passes over the training images
BATCH_SIZE = 128  # examples a step
LEARNING_RATES = [0.01]  # one run each; the highest of its schedule
SCHEDULE = "one-cycle"  # constant or one-cycle
MOMENTUM = 0.9  # of SGD
WEIGHT_DECAY = 5e-4  # of SGD, on all parameters
GRADIENT_CLIP = 0.0  # largest gradient norm; 0: no clipping
NOISE_STD = 0.0  # standard deviation of Gaussian noise on every gradient element
REGULARIZATION = [0.0]  # L1 penalty on the batch-norm scales, triangular over training; one run each
AUGMENTATION = ["crop", "flip"]  # any of crop, flip, cutout
IMAGE_SIZE = 224  # pixels a side that the images are resized to
WORKERS = 2  # threads that read the images


def main() -> int:
    constants = settings.read(globals(), studies=("accumulation",))
    if not Path(constants.data_dir).is_dir():
        raise settings.UserError(f"DATA_DIR: got {constants.data_dir!r}, takes a folder with train/ and val/")
    constants.dataset = constants.data_dir
    return accumulation.study(constants, "resnet50")


if __name__ == "__main__":
    raise SystemExit(settings.run(main))
