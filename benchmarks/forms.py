"""Forms of DS-Pruning that ablation.py compares with those that are kept."""

from common.pruning.ds_pruning import Constants, DSPruning
from common.training.gradients import GradientNoise


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
