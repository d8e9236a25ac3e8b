"""Which units of a ResNet-18 die when its activation is Leaky ReLU, which lets a gradient through below 0?

    python LeakyReLU.py --dataset digits          the embedded digits: seconds, no download
    python LeakyReLU.py                           CIFAR-10, 10 epochs at width 16 on a CPU, 30 at width 64 on a GPU
    python LeakyReLU.py --protocol published      the paper's settings: a day on a GPU

Every constant below is also a flag: --learning-rates 0.05 0.1; --help lists them.
"""

from common import names, settings
from common.machine import process

# The experiment
STUDY = "accumulation"  # accumulation: dead and dying units; neuron-, weight- or flops-sparsity: accuracy
ACTIVATION = "leaky-relu"  # relu, leaky-relu (slope 0.05) or swish
LEARNING_RATES = [0.01, 0.05]  # of the accumulation study: the highest learning rate of the schedule; one run each
REGULARIZATION = [0.0]  # strengths of an L1 penalty on the batch-norm scales, triangular over training; one run each
SEEDS = [0]  # of the initial weights, the order of the images and their augmentation; one run each

# Pruning; None: as BY_STUDY has it
METHODS = [
    "dense",
    "random",
    "scratch",
    "ds-pruning",
    "magnitude",
    "snap",
    "cropit-s",
    "earlysnap",
    "earlycrop-s",
    "demp",
]  # the methods of the sparsity studies; weight-sparsity also takes magnitude-unstructured, saliency, set, rigl
SPARSITIES = None  # the targets of the sparsity studies, as shares of all units, weights or FLOPs
DEMP_STRENGTHS = [0.003, 0.01, 0.02, 0.03, 0.05, 0.1]  # strengths of demp, in the place of targets; one run each
PRUNING_LEARNING_RATE = 0.1  # the highest learning rate of the schedule in the sparsity studies
WARMUP = 0.2  # share of training after which DS-Pruning begins to remove units
SETTLE = 0.75  # share of training after which DS-Pruning is at its target
PATIENCE = 2  # epochs after which a unit that died by itself is cut out
EXTEND = False  # keep the rows that a study's table has, and train only what it lacks
HOLD_OUT = 0  # training images set aside and tested on instead of the test images: for tuning

# Network and training; None: as PROTOCOL has it
PROTOCOL = "auto"  # whose defaults hold: published, gpu, cpu or quick; auto: quick for the digits, else by the device
NETWORK = "resnet18"  # resnet18, resnet50, vgg16-bn, or module:function of your own
WIDTH = None  # channels of the first stage
STEM = None  # cifar (3x3) or imagenet (7x7, stride 2, max pool)
EPOCHS = None  # passes over the training images
BATCH_SIZE = None  # examples a step
SCHEDULE = None  # constant or one-cycle
MOMENTUM = 0.9  # the momentum of SGD
WEIGHT_DECAY = None  # the weight decay of SGD, on all parameters
GRADIENT_CLIP = 1.0  # largest gradient norm; 0: no clipping; not in the sparsity studies
AUGMENTATION = None  # any of crop, flip, cutout

# Where, and on what
DATASET = "cifar10"  # cifar10, digits, or the path of a folder with train/ and test/ or val/, one subfolder a class
DATA_DIR = "data"  # where CIFAR-10 is, or is downloaded to
OUTPUT_DIR = "plots"  # figures and tables go to OUTPUT_DIR/LeakyReLU
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

BY_STUDY = {  # what a constant that is None becomes
    "neuron-sparsity": {"SPARSITIES": [0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9]},
    "weight-sparsity": {"SPARSITIES": [0.75, 0.8, 0.85, 0.9, 0.95, 0.97, 0.98]},
    "flops-sparsity": {"SPARSITIES": [0.5, 0.75, 0.9]},
}
STUDIES = ("accumulation", *names.SPARSITY)


def main() -> int:
    constants = settings.read(globals(), STUDIES)
    # Not before: they import torch, and --help and wrong constants need none.
    from common import data
    from common.studies.accumulation import Accumulation
    from common.studies.sparsity import Sparsity
    from common.training.gradients import changes

    dataset = data.load(constants)
    if constants.study in names.SPARSITY:
        study = Sparsity(constants, dataset)
        for run in study.plan():  # a method, a target and a seed
            study.train(run)
        return study.save()  # table and figures: accuracy against what was removed
    study = Accumulation(constants, dataset)
    for run in study.plan():  # a regularization, a learning rate and a seed
        study.train(run, changes(pull=run.regularization, clip=constants.gradient_clip))
    return study.save()  # table and figures: dead and dying units by epoch and layer


if __name__ == "__main__":
    raise SystemExit(process.run(main))
