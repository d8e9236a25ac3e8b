"""What is done to the gradients between backward pass and step: callbacks of the loop."""

import torch
from torch import Tensor, nn

from common.machine import seeds
from common.models import batch_norms
from common.training.loop import Callback, Training


def parts_of(flat: Tensor, like: list[Tensor]) -> list[Tensor]:
    """Parts of a flat tensor, one after another, in the shapes of others."""
    parts = flat.split([tensor.numel() for tensor in like])
    return [part.view(tensor.shape) for part, tensor in zip(parts, like, strict=True)]


class BatchNormPull(Callback):
    """An L1 penalty on all batch-norm scales (network slimming, Liu et al. 2017), as its subgradient.

    Its strength rises from 0 to `strength` at half of training and falls back to 0.
    """

    def __init__(self, strength: float):
        self.strength = strength

    def on_gradients(self, training: Training):
        scales = [norm.weight for norm in batch_norms(training.model) if norm.weight.grad is not None]
        if not scales:
            return
        now = self.strength * (1 - abs(2 * training.progress - 1))
        torch._foreach_add_([s.grad for s in scales], torch._foreach_sign([s.detach() for s in scales]), alpha=now)


class GradientClip(Callback):
    """Scales the gradient down to a norm of at most `largest`."""

    def __init__(self, largest: float):
        self.largest = largest

    def on_gradients(self, training: Training):
        nn.utils.clip_grad_norm_(training.model.parameters(), self.largest)


class GradientNoise(Callback):
    """Adds N(0, deviation^2) to every element of the gradient, the same in all processes. The noise depends on seed and
    epoch only."""

    def __init__(self, deviation: float, seed: int, device: torch.device):
        self.deviation, self.seed = deviation, seed
        self.generator = torch.Generator(device)

    def on_epoch_start(self, training: Training):
        self.generator.manual_seed(seeds.stream(self.seed, "gradient noise", training.epoch))

    def on_gradients(self, training: Training):
        gradients = [p.grad for p in training.model.parameters()]
        noise = torch.empty(sum(gradient.numel() for gradient in gradients), device=training.device)
        noise.normal_(0, self.deviation, generator=self.generator)
        torch._foreach_add_(gradients, parts_of(noise, gradients))

    def state(self) -> dict:
        return {"generator": self.generator.get_state()}

    def restore(self, training: Training, state: dict):
        if state:  # a checkpoint of an earlier version has none
            self.generator.set_state(state["generator"].cpu())


def changes(
    pull: float = 0.0, clip: float = 0.0, noise: float = 0.0, seed: int = 0, device: torch.device | None = None
) -> list[Callback]:
    """What is done to the gradients, in this order: an L1 pull on the batch-norm scales of strength `pull`, a norm of
    at most `clip`, and noise of that standard deviation; 0 for none of it."""
    return [
        *([BatchNormPull(pull)] if pull else []),
        *([GradientClip(clip)] if clip else []),
        *([GradientNoise(noise, seed, device)] if noise else []),
    ]
