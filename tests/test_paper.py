"""The paper's numbers are found by what was done."""

import pytest

from common.reports import paper


@pytest.mark.parametrize(("activation", "measure"), paper.ACCURACIES)
def test_every_method_has_an_accuracy_at_every_target(activation, measure):
    found = paper.accuracies(paper.SETUP, activation, measure)
    assert "ds-pruning" in found
    assert all(tuple(line) == paper.TARGETS[measure] for line in found.values())
    assert all(70 < accuracy < 95 for line in found.values() for accuracy in line.values())


def test_what_the_paper_did_not_do_has_no_published_number():
    assert paper.accuracies(paper.SETUP, "gelu", "neuron") == {}
    assert paper.accuracies(("digits", "resnet18"), "relu", "neuron") == {}
    assert paper.accuracies(("cifar10", "vgg16-bn"), "relu", "neuron") == {}
    assert paper.accuracies(paper.SETUP, "relu", "flops") == {}
    assert paper.dying_share(paper.SETUP, "relu", 0.1, 0.01) is None
    assert paper.dying_share(paper.SETUP, "relu", 0.5, 0.02) is None
    assert paper.dead_units(paper.SETUP, "swish", "batch-size") == {}
    assert paper.imagenet(10) == {}


def test_noise_and_not_the_script_decides_what_stands_beside_the_dying_units():
    assert paper.dying_share(paper.SETUP, "relu", 0.0, 0.05) == pytest.approx(64.2, abs=0.1)
    assert paper.dying_share(paper.SETUP, "relu", 0.5, 0.05) == pytest.approx(57.3, abs=0.1)
    assert paper.dead_units(paper.SETUP, "relu", "batch-size")[16] == 3120
    assert paper.imagenet(1000)["ds-pruning", 0.9][0] == 64.42
