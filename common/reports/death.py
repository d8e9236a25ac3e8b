"""Where units die, whether they come back, and how often each fires at the end: small tables from a run's counts.

A run's counts are what its final.pt holds under `counts`; `run` is the columns that tell the run from others.
"""

import torch
from torch import Tensor

from common import models, units

UNIT = ("fire_rate", "scale", "shift")


def layer_rows(run: dict, counts: dict) -> list[dict]:
    """The share of dead units in [0, 1] by layer, a row an epoch: `run`, epoch, and a column for each layer."""
    rows = []
    for epoch, now in enumerate(units.history(counts), 1):
        shares = units.by_layer(now.dead.double(), counts["layers"])
        rows.append({**run, "epoch": epoch, **{layer: round(share, 6) for layer, share in shares.items()}})
    return rows


def return_rows(run: dict, counts: dict) -> list[dict]:
    """How many dead units come back, by how long they had been dead.

    Returns:
        `run`; dead_for, in epochs; at_risk: how often a unit had been dead for so long with an epoch still to come;
        came_back: how often it fired in the next epoch; came_back_later: in that or any later one. A row for each
        dead_for that occurs.
    """
    dead = torch.stack([epoch.dead for epoch in units.history(counts)])  # [epochs, U]
    longest = len(dead)
    fires_later = torch.stack([~dead[epoch + 1 :].all(0) for epoch in range(longest)])
    found = torch.zeros(3, longest + 1, dtype=torch.int64)
    dead_for = torch.zeros(dead.shape[1], dtype=torch.int64)
    for epoch in range(longest - 1):
        dead_for = torch.where(dead[epoch], dead_for + 1, 0)
        for column, those in enumerate((dead[epoch], dead[epoch] & ~dead[epoch + 1], dead[epoch] & fires_later[epoch])):
            found[column] += torch.bincount(dead_for[those], minlength=longest + 1)
    names = ("at_risk", "came_back", "came_back_later")
    return [
        {**run, "dead_for": length, **dict(zip(names, found[:, length].tolist(), strict=True))}
        for length in range(1, longest)
        if found[0, length]
    ]


def fire_rate_rows(run: dict, counts: dict, weights: dict[str, Tensor]) -> list[dict]:
    """How often every unit fired in the last epoch, and the batch-norm that feeds it at the end of training.

    Args:
        weights: the network's state dict.

    Returns:
        `run`, layer, unit; fire_rate, in [0, 1]; scale and shift of its channel in the batch-norm before it (gamma and
        beta), to five digits.
    """
    rates = units.history(counts)[-1].fire_rate.split(list(counts["layers"].values()))
    rows = []
    for layer, part in zip(counts["layers"], rates, strict=True):
        norm = models.batch_norm_before(layer)
        nothing = [None] * len(part)  # of a layer whose batch-norm is not known by its name
        found = [weights.get(f"{norm}.{name}") for name in ("weight", "bias")]
        columns = [part.tolist(), *(nothing if column is None else column.tolist() for column in found)]
        for unit, values in enumerate(zip(*columns, strict=True)):
            rounded = [value if value is None else float(f"{value:.5g}") for value in values]
            rows.append({**run, "layer": layer, "unit": unit, **dict(zip(UNIT, rounded, strict=True))})
    return rows
