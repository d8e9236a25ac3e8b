"""Two controls that only choose a shape: the same random share of every layer, and the shape DS-Pruning ended with."""

import torch
from torch import nn

from common.machine import seeds
from common.pruning.task import Task, spread_order, within_floor
from common.training.loop import Callback, Training


class RandomAtStart(Callback):
    """Removes random groups before the first step, the same share of every coupling: the floor of all methods."""

    def __init__(self, task: Task):
        self.task = task

    def prepare(self, training: Training):
        self.task.check(training.groups)

    def on_start(self, training: Training):
        generator = torch.Generator().manual_seed(seeds.stream(self.task.seed, "random groups", 0))
        order = within_floor(training.groups, spread_order(training.groups, generator), 0.0)
        chosen = self.task.first(training.groups, order, self.task.target)
        training.groups.cut(training.model, training.optimizer, chosen, self.task.multiple)


class ShapeFromScratch(Callback):
    """Trains the widths that DS-Pruning ended with from new random weights, drawn as for any network of that shape."""

    def __init__(self, task: Task):
        self.task = task

    def on_start(self, training: Training):
        groups, final = training.groups, self.task.needs["DSPruning"]
        removed = torch.zeros(len(groups), dtype=torch.bool)
        for coupling, width in zip(groups.couplings, final["widths"], strict=True):
            removed[coupling.start + width : coupling.start + coupling.size] = True
        groups.cut(training.model, training.optimizer, removed)  # no padding: all that is left gets fresh weights
        torch.manual_seed(seeds.stream(self.task.seed, "weights from scratch", 0))
        for module in training.model.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif isinstance(module, nn.Linear):
                module.reset_parameters()
