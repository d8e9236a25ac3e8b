"""Names that constants take, apart from the code behind them: they are checked before torch is imported."""

from typing import NamedTuple

ACTIVATIONS = {  # name -> its class in torch.nn, and what that is called with
    "relu": ("ReLU", {}),
    "leaky-relu": ("LeakyReLU", {"negative_slope": 0.05}),  # the paper's
    "swish": ("SiLU", {}),
}
DATASETS = ("cifar10", "digits")  # any other is the path of a folder of images
NETWORKS = {"resnet18": "ResNet-18", "resnet50": "ResNet-50", "vgg16-bn": "VGG-16-BN"}  # name -> label
STEMS = ("cifar", "imagenet")  # 3x3 convolution; 7x7 convolution of stride 2 and a max pool of stride 2


# What tells the runs of a sweep apart, beside what is swept; footing: at equal `epochs` or at equal `steps`.
OF_SWEEPS = ("footing", "batch_size", "learning_rate", "regularization", "seed")
SWEPT_TABLES = ("", "-layers", "-returns")  # how the names of a sweep's tables end


class Sweep(NamedTuple):
    """A study in which one quantity takes several values.

    column: of its table, and where it is a constant as well, that constant in lower case. constant: the one that lists
    the values, in lower case. axis: the name of the quantity in figures. short: before a value. scale: of the axis.
    """

    column: str
    constant: str
    axis: str
    short: str
    scale: str = "linear"  # linear, log2 or log10

    @property
    def identity(self) -> list[str]:
        """The columns that tell the runs of its table apart."""
        return list(dict.fromkeys([*OF_SWEEPS, self.column]))


SWEEPS = {
    "batch-size": Sweep("batch_size", "batch_sizes", "Batch size", "batch size", "log2"),
    "learning-rate": Sweep("learning_rate", "learning_rates", "Learning rate", "lr"),
    "regularization": Sweep("regularization", "regularizations", "L1 strength λ", "λ", "log10"),
}
# study -> what is to be sparse
SPARSITY = {"neuron-sparsity": "neuron", "weight-sparsity": "weight", "flops-sparsity": "flops"}
STRUCTURED = ("neuron-sparsity", "flops-sparsity")  # studies in which only whole channels count
MEASURES = {**SPARSITY, "imagenet": "weight"}


def condition(learning_rate: float, regularization: float, sign: str = " lambda") -> str:
    """What tells lines of a figure apart, and runs of an accumulation study."""
    return f"lr {learning_rate:g}" + (f"{sign} {regularization:g}" if regularization else "")


def short(value: float) -> str:
    """A number as it is read best: 0.01, but 9e-4."""
    mantissa, exponent = f"{value:e}".split("e")
    return f"{float(mantissa):g}e{int(exponent)}" if 0 < value < 0.001 else f"{value:g}"


ACTIVATION_LABELS = {"relu": "ReLU", "leaky-relu": "Leaky ReLU", "swish": "Swish"}
SPARSITY_LABELS = {
    "neuron-sparsity": "Neuron sparsity",
    "weight-sparsity": "Weight sparsity",
    "flops-sparsity": "FLOPs removed",
}
COLUMN_LABELS = {
    "footing": "at equal",
    "batch_size": "batch size",
    "learning_rate": "learning rate",
    "regularization": "λ",
}
