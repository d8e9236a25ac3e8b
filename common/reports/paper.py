"""The numbers that the paper reports, read off its figures; found by what was done, never by a script's name.

The paper: DS-Pruning: Leveraging Dying Neurons for Sparsity-Aware Pruning in CNNs. All but the last table are for a
ResNet-18 on CIFAR-10. What the paper does not report is absent here.
"""

# Test accuracy in per cent: (activation, measure of sparsity) -> method -> target -> accuracy.
TARGETS = {
    "neuron": (0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9),
    "weight": (0.75, 0.8, 0.85, 0.9, 0.95, 0.97, 0.98),
}
ACCURACIES = {
    ("relu", "neuron"): {
        "ds-pruning": (92.8, 92.5, 91.8, 91.4, 90.8, 89.2, 86.3),
        "earlycrop-s": (92.3, 92.2, 91.8, 91.4, 90.8, 87.8, 84.2),
        "earlysnap": (92.1, 92.4, 92.0, 91.2, 90.4, 88.6, 83.5),
        "snap": (91.9, 91.5, 91.2, 90.5, 89.4, 87.5, 85.5),
        "cropit-s": (92.1, 91.2, 91.0, 90.0, 88.9, 88.1, 85.1),
    },
    ("relu", "weight"): {
        "ds-pruning": (93.0, 92.6, 92.1, 91.6, 91.4, 90.7, 88.5),
        "earlycrop-s": (92.5, 92.4, 92.3, 92.2, 91.3, 90.5, 88.6),
        "earlysnap": (92.4, 92.2, 92.1, 92.2, 91.2, 90.3, 89.0),
        "snap": (92.2, 92.0, 91.7, 91.4, 90.8, 89.9, 88.8),
        "cropit-s": (92.7, 92.2, 91.6, 91.0, 90.4, 89.2, 88.5),
    },
    ("leaky-relu", "neuron"): {
        "ds-pruning": (90.7, 90.0, 88.5, 88.0, 86.4, 83.8, 82.0),
        "earlycrop-s": (88.9, 89.0, 88.1, 87.1, 86.0, 84.7, 80.7),
        "earlysnap": (89.4, 87.8, 87.0, 86.0, 85.0, 84.3, 80.0),
        "snap": (88.2, 87.6, 86.7, 86.0, 85.5, 81.7, 78.3),
    },
    ("leaky-relu", "weight"): {
        "ds-pruning": (91.4, 90.9, 90.2, 91.0, 88.9, 86.4, 84.9),
        "earlycrop-s": (88.9, 88.9, 88.9, 88.8, 87.5, 86.3, 85.5),
        "earlysnap": (89.3, 89.4, 88.8, 87.7, 86.6, 85.6, 84.8),
        "snap": (88.3, 88.2, 87.8, 87.3, 86.2, 85.4, 83.3),
    },
}

# "Pruned neurons" an epoch, of the units of the four convolutions that the paper watches:
# (activation, noise on the gradients) -> learning rate -> units.
WATCHED = 576
QUIET = {0.01: 300, 0.025: 340, 0.05: 370}
DYING = {
    ("relu", 0.0): QUIET,
    ("leaky-relu", 0.0): QUIET,
    ("swish", 0.0): QUIET,
    ("relu", 0.5): {0.01: 290, 0.025: 310, 0.05: 330},
}

# Dead units (bars): study -> swept value -> count.
DEAD = {
    "batch-size": {16: 3120, 32: 1570, 64: 785, 128: 395, 256: 200},
    "learning-rate": {0.01: 1960, 0.025: 1890, 0.05: 1800, 0.075: 1740, 0.1: 1680},
    "regularization": {0.0: 0, 9e-8: 4800, 9e-7: 5200, 9e-6: 8300, 9e-5: 40200},
}

# ResNet-50 on ImageNet: (method, target) -> accuracy, neuron and weight sparsity in per cent; training time, training
# FLOPs and inference FLOPs as shares of the dense network's; None where the paper has no number.
IMAGENET_CLASSES = 1000
IMAGENET = {
    ("dense", 0.0): (74.98, None, None, 1.0, 1.0, 1.0),
    ("snap", 0.8): (28.28, 36.9, 81.4, 0.51, 0.32, 0.32),
    ("snap", 0.9): (27.17, 56.0, 90.1, 0.48, 0.25, 0.25),
    ("cropit-s", 0.8): (28.34, 36.9, 81.4, 0.52, 0.32, 0.32),
    ("cropit-s", 0.9): (27.36, 53.2, 89.9, 0.47, 0.27, 0.27),
    ("earlysnap", 0.8): (68.67, 51.7, 80.4, 0.95, 0.63, 0.63),
    ("earlysnap", 0.9): (63.80, 66.6, 90.1, 0.75, 0.46, 0.45),
    ("earlycrop-s", 0.8): (68.26, 51.6, 80.0, 0.94, 0.66, 0.66),
    ("earlycrop-s", 0.9): (64.20, 66.6, 90.4, 0.82, 0.51, 0.50),
    ("ds-pruning", 0.8): (69.98, 55.8, 80.0, 0.81, 0.57, 0.53),
    ("ds-pruning", 0.9): (64.42, 68.1, 90.0, 0.61, 0.42, 0.34),
    ("magnitude-unstructured", 0.8): (75.53, None, 80.0, None, None, None),
    ("saliency", 0.8): (74.93, None, 80.0, None, None, None),
    ("set", 0.8): (72.9, None, 80.0, None, 0.23, 0.23),
    ("set", 0.9): (69.6, None, 90.0, None, 0.10, 0.10),
    ("rigl", 0.8): (75.10, None, 80.0, None, 0.42, 0.42),
    ("rigl", 0.9): (73.00, None, 90.0, None, 0.25, 0.24),
}


SETUP = ("cifar10", "resnet18")
WIDTH = 64  # of the paper's network: an accuracy is compared in a figure where ours is as wide


def accuracies(setup: tuple[str, str], activation: str, measure: str) -> dict[str, dict[float, float]]:
    """Method -> target -> test accuracy in per cent; {} where nothing is reported.

    Args:
        setup: dataset and network, as a script names them.
        measure: of sparsity, `neuron` or `weight`.
    """
    found = ACCURACIES.get((activation, measure), {}) if setup == SETUP else {}
    return {method: dict(zip(TARGETS[measure], line, strict=True)) for method, line in found.items()}


def dying_share(setup: tuple[str, str], activation: str, noise: float, rate: float) -> float | None:
    """The "pruned neurons" of an epoch in per cent of the units watched, at a learning rate; None where not reported.

    Args:
        noise: standard deviation of the Gaussian noise on the gradients.
    """
    count = DYING.get((activation, noise), {}).get(rate) if setup == SETUP else None
    return None if count is None else 100 * count / WATCHED


def dead_units(setup: tuple[str, str], activation: str, study: str) -> dict[float, int]:
    """Swept value -> the bar; {} where nothing is reported."""
    return DEAD.get(study, {}) if (setup, activation) == (SETUP, "relu") else {}


def imagenet(classes: int) -> dict[tuple[str, float], tuple]:
    """`IMAGENET` for a dataset of so many classes; {} for any other than ImageNet's."""
    return IMAGENET if classes == IMAGENET_CLASSES else {}
