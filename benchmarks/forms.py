"""Forms of DS-Pruning and its rivals that ablation.py compares with those that are kept."""

from common.gradients import GradientNoise
from common.pruning.ds_pruning import Constants, DSPruning
from common.pruning.scores import AtEarlyEpoch, lowest_first, snap
from common.pruning.task import within_floor


class LiveNoise(GradientNoise):
    """Gaussian noise on the gradients of units that are not on their way out."""

    def on_gradients(self, training):
        kept = {name: p.grad.clone() for name, p in training.model.named_parameters()}
        super().on_gradients(training)
        groups = training.groups
        leaving = self.pruning.press.chosen | ~groups.alive
        for name, parameter in training.model.named_parameters():
            layer = name.rpartition(".")[0]
            if layer in groups.outputs:
                dead = groups.spread(layer, leaving.to(parameter.device))
                parameter.grad[dead] = kept[name][dead]


def with_noise(deviation: float):
    def method(task):
        pruning = DSPruning(task, Constants.of(task.settings, task.measure))
        noise = LiveNoise(deviation, task.seed, task.settings.device)
        noise.pruning = pruning
        return [pruning, noise]

    return method


class PerWeight(DSPruning):
    """Divides by the weights that a group takes along after layers were made comparable, not before."""

    def cost(self, groups):
        return super().cost(groups) / self.task.price(groups).clamp(min=1)


def per_weight(task):
    return [PerWeight(task, Constants.of(task.settings, task.measure))]


class WithFloor(AtEarlyEpoch):
    """Early pruning that leaves every layer as much as DS-Pruning does."""

    def order(self, groups, score):
        return within_floor(groups, lowest_first(groups, score), self.task.floor(groups, Constants().floor))


def floored(task):
    return [WithFloor(task, snap)]
