"""Does noise added to the gradient kill units? SGD.py with N(0, 0.5^2) on every element before each step.

    python SGD_noise.py --dataset digits          the embedded digits: seconds, no download
    python SGD_noise.py                           CIFAR-10, 10 epochs at width 16 on a CPU, 30 at width 64 on a GPU
    python SGD_noise.py --protocol published      the paper's settings: a day on a GPU

Every constant below is also a flag: --learning-rates 0.05 0.1; --help lists them.
"""

from common import settings
from common.machine import process

# The experiment
STUDY = "accumulation"  # accumulation, the only one: dead and dying units by epoch
NOISE_STD = 0.5  # standard deviation of Gaussian noise on every gradient element
LEARNING_RATES = [0.01, 0.025, 0.05]  # the highest learning rate of the schedule; one run each
SEEDS = [0]  # of the initial weights, the order of the images and their augmentation; one run each

# Network and training; None: as PROTOCOL has it
PROTOCOL = "auto"  # whose defaults hold: published, gpu, cpu or quick; auto: quick for the digits, else by the device
ACTIVATION = "relu"  # relu, leaky-relu or swish
NETWORK = "resnet18"  # resnet18, resnet50, vgg16-bn, or module:function of your own
WIDTH = None  # channels of the first stage
STEM = None  # cifar (3x3) or imagenet (7x7, stride 2, max pool)
EPOCHS = None  # passes over the training images
BATCH_SIZE = None  # examples a step
SCHEDULE = None  # constant or one-cycle
MOMENTUM = 0.9  # the momentum of SGD
WEIGHT_DECAY = None  # the weight decay of SGD, on all parameters
AUGMENTATION = None  # any of crop, flip, cutout

# Where, and on what
DATASET = "cifar10"  # cifar10, digits, or the path of a folder with train/ and test/ or val/, one subfolder a class
DATA_DIR = "data"  # where CIFAR-10 is, or is downloaded to
OUTPUT_DIR = "plots"  # figures and tables go to OUTPUT_DIR/SGD_noise
FORMATS = ["png"]  # of the figures: any of png, pdf, svg
RUN_DIR = "runs"  # logs and checkpoints; a run found there is not trained again
AGAIN = False  # train runs again that another version of the code has made
JOBS = 1  # processes that share the runs, on this machine or as jobs of CLUSTER
CLUSTER = "none"  # none; slurm: JOBS become a job array, through submitit; local: the same on this machine
SLURM = ["time=24:00:00", "gpus-per-node=1", "cpus-per-task=4", "mem=16GB"]  # any options of sbatch, for each job
DEVICE = "auto"  # auto, cpu, or an accelerator: cuda, mps or xpu, with a number where there are several (cuda:1)
PRECISION = "auto"  # auto, bf16 or fp32; auto: bf16 where the hardware has it
IMAGE_SIZE = 32  # pixels a side that the images of a folder are resized to
WORKERS = 2  # threads that read the images of a folder


def main() -> int:
    constants = settings.read(globals(), studies=("accumulation",))
    # Not before: they import torch, and --help and wrong constants need none.
    from common import data
    from common.studies.accumulation import Accumulation
    from common.training.gradients import GradientNoise

    study = Accumulation(constants, data.load(constants))
    for run in study.plan():  # a learning rate and a seed
        noise = GradientNoise(constants.noise_std, run.seed, constants.device)
        study.train(run, [noise])
    return study.save()  # table and figures: dead and dying units by epoch and layer


if __name__ == "__main__":
    raise SystemExit(process.run(main))
