"""Forms of DS-Pruning that ablation.py compares with those that are kept."""

from common.pruning.ds_pruning import DSPruning
from common.training.gradients import GradientNoise


class LiveNoise(DSPruning):
    """Gaussian noise on the gradients of units that are not on their way out, of the deviation `noise` of settings."""

    def __init__(self, task):
        super().__init__(task)
        self.noise = GradientNoise(task.settings.noise, task.seed, task.settings.device)

    def on_epoch_start(self, training):
        super().on_epoch_start(training)
        self.noise.on_epoch_start(training)

    def on_gradients(self, training):
        super().on_gradients(training)
        kept = {name: p.grad.clone() for name, p in training.model.named_parameters()}
        self.noise.on_gradients(training)
        leaving = self.press.chosen | ~self.groups.alive
        for name, parameter in training.model.named_parameters():
            layer = name.rpartition(".")[0]
            if layer in self.groups.outputs:
                dead = self.groups.spread(layer, leaving.to(parameter.device))
                parameter.grad[dead] = kept[name][dead]

    def state(self):
        return {**super().state(), "noise": self.noise.state()}

    def restore(self, training, state):
        super().restore(training, state)
        self.noise.restore(training, state["noise"])


class PerWeight(DSPruning):
    """Divides by the weights that a group takes along after layers were made comparable, not before."""

    def cost(self, groups):
        return super().cost(groups) / self.task.price(groups).clamp(min=1)
