"""How accurate is a ResNet-50 on ImageNet with 80 or 90 % of its weights removed, by every criterion?

    python Imagenet.py --data-dir /path/to/imagenet
    torchrun --nproc-per-node=8 Imagenet.py --data-dir ...          one machine, a process for each of its 8 GPUs
    torchrun --nnodes=4 --nproc-per-node=8 --rdzv-backend=c10d --rdzv-endpoint=HOST:29500 Imagenet.py --data-dir ...
    python Imagenet.py --data-dir FOLDER --no-pretrained --image-size 64 --epochs 2 --batch-size 16     a rehearsal

The folder has train/ and val/ (or test/), one subfolder of images a class; images are read by worker processes while
the network trains. BATCH_SIZE and the learning rates are those of a whole step over all processes, which share it
equally. Every constant below is also a flag; --help lists them.
"""

from common import settings
from common.machine import process

# The experiment
STUDY = "imagenet"  # imagenet: every method at every sparsity; accumulation: dead and dying units by epoch
METHODS = [
    "dense",
    "snap",
    "cropit-s",
    "earlysnap",
    "earlycrop-s",
    "ds-pruning",
    "magnitude-unstructured",
    "saliency",
    "set",
    "rigl",
]  # the methods of the imagenet study; it also takes random, scratch, magnitude and demp
SPARSITIES = [0.8, 0.9]  # the targets, as shares of all weights
DEMP_STRENGTHS = [0.0003, 0.001]  # strengths of demp, in the place of targets; one run each
PRUNING_LEARNING_RATE = 0.01  # the highest learning rate of the schedule in the imagenet study
WARMUP = 0.2  # share of training after which DS-Pruning begins to remove units
SETTLE = 0.75  # share of training after which DS-Pruning is at its target
PATIENCE = 2  # epochs after which a unit that died by itself is cut out
LEARNING_RATES = [0.01]  # of the accumulation study: the highest learning rate of the schedule; one run each
GRADIENT_CLIP = 0.0  # largest gradient norm in the accumulation study; 0: no clipping
NOISE_STD = 0.0  # standard deviation of Gaussian noise on every gradient element in the accumulation study
REGULARIZATION = [0.0]  # strengths of an L1 penalty on the batch-norm scales, triangular over training; one run each
SEEDS = [0]  # of the initial weights, the order of the images and their augmentation; one run each

# Network and training
ACTIVATION = "relu"  # relu, leaky-relu or swish
WIDTH = 64  # channels of the first stage's 3x3 convolutions
STEM = "imagenet"  # cifar (3x3) or imagenet (7x7, stride 2, max pool)
PRETRAINED = True  # begin with torchvision's weights, from TORCH_HOME or downloaded
EPOCHS = 200  # passes over the training images
BATCH_SIZE = 128  # examples a step, in all processes together
MICRO_BATCH = 0  # examples in one forward pass of a process, whose gradients a step sums up; 0: its whole share
SCHEDULE = "one-cycle"  # constant or one-cycle
LEARNING_RATE_WARMUP = 0.0  # epochs in which the learning rate rises; 0: none, or three tenths of a one-cycle
LABEL_SMOOTHING = 0.0  # share of every label that is spread over all classes
MOMENTUM = 0.9  # the momentum of SGD
WEIGHT_DECAY = 5e-4  # the weight decay of SGD, on all parameters
AUGMENTATION = ["crop", "flip"]  # any of crop (random resized crop), flip, cutout
IMAGE_SIZE = 224  # pixels a side of the crops

# Where, and on what
DATA_DIR = "imagenet"  # a folder with train/ and val/ (or test/), one subfolder a class
OUTPUT_DIR = "plots"  # figures and tables go to OUTPUT_DIR/Imagenet
FORMATS = ["png"]  # of the figures: any of png, pdf, svg
RUN_DIR = "runs"  # logs and checkpoints; a run found there is not trained again
AGAIN = False  # train runs again that another version of the code has made
JOBS = 1  # processes that share the runs, on this machine or as jobs of CLUSTER
CLUSTER = "none"  # none; slurm: JOBS become a job array, through submitit; local: the same on this machine
SLURM = ["time=24:00:00", "gpus-per-node=1", "cpus-per-task=4", "mem=16GB"]  # any options of sbatch, for each job
DEVICE = "auto"  # auto, cpu, cuda, mps or xpu; in a single process also one of several, as cuda:1
PRECISION = "auto"  # auto, bf16 or fp32; auto: bf16 where the hardware has it
WORKERS = 4  # processes that read images, for each training process; 0: it reads them itself
CHECKPOINT_STEPS = 1000  # steps between two checkpoints within an epoch; 0: only after every epoch
SILENCE = 90.0  # seconds without a sign of life after which a process counts as stopped, and the others end


def main() -> int:
    constants = settings.read(globals(), ("imagenet", "accumulation"), processes=True)
    # Not before: they import torch, and --help and wrong constants need none.
    from common.studies.imagenet import Imagenet, ImagenetUnits, load
    from common.training.gradients import changes

    dataset = load(constants)
    if constants.study == "imagenet":
        study = Imagenet(constants, dataset)
        for run in study.plan():  # a method, a target and a seed
            study.train(run)
        return study.save()  # tables and figure: accuracy against the share of weights removed
    study = ImagenetUnits(constants, dataset)
    for run in study.plan():  # a regularization, a learning rate and a seed
        noise = {"noise": constants.noise_std, "seed": run.seed, "device": constants.device}
        study.train(run, changes(pull=run.regularization, clip=constants.gradient_clip, **noise))
    return study.save()  # table and figures: dead and dying units by epoch and layer


if __name__ == "__main__":
    raise SystemExit(process.run(main))
