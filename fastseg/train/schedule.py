"""Learning rates over a run, the optimizer, and the parameters that it moves."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

SCHEDULES = ("constant", "cosine", "onecycle", "poly")
OPTIMIZERS = ("adamw", "sgd")
CLASS_WEIGHTS = ("auto", "inverse-sqrt", "median", "none")

POLY_POWER = 0.9
"""Power of the polynomial schedule, from Chen et al., "DeepLab", PAMI 2018, section 4.1."""

RISE = 0.3
"""Share of a one-cycle run in which the rate rises, as in torch's OneCycleLR."""

START, END = 1 / 25, 1 / 250_000
"""Rates at the ends of a one-cycle run, as shares of the peak, as in torch's OneCycleLR."""


def rate_at(done: float, step: float, schedule: str, warmup: float) -> float:
    """Returns the learning rate of a step as a share of the peak.

    Args:
        done: the finished share of the run, 0 to 1.
        step: the share of the run that is one step.
        schedule: one of SCHEDULES.
        warmup: the share of the run in which the rate rises linearly, except in "onecycle", which
            rises by itself.
    """
    if schedule == "onecycle":
        if done < RISE:
            return START + (1 - START) * _half_cosine(1 - done / RISE)
        return END + (1 - END) * _half_cosine((done - RISE) / (1 - RISE))
    if done < warmup:
        return (done + step) / warmup
    rest = (done - warmup) / (1 - warmup)
    if schedule == "cosine":
        return _half_cosine(rest)
    return (1 - rest) ** POLY_POWER if schedule == "poly" else 1.0


def _half_cosine(x: float) -> float:
    """Returns 1 at 0, 0 at 1, and a half cosine between."""
    return 0.5 * (1 + math.cos(math.pi * x))


def parameter_groups(model: nn.Module, backbone_lr: float) -> list[dict[str, Any]]:
    """Returns the optimizer's groups: all parameters, or the backbone's apart from the others.

    Args:
        model: the model.
        backbone_lr: learning rate of ``model.backbone`` as a share of that of the rest.

    Raises:
        ValueError: backbone_lr is not 1, and the model has no backbone.
    """
    if backbone_lr == 1:
        return [{"params": list(model.parameters()), "lr_factor": 1.0}]
    if not hasattr(model, "backbone"):
        raise ValueError(f"backbone_lr must be 1: a {type(model).__name__} has no backbone")
    backbone = list(model.backbone.parameters())
    known = set(map(id, backbone))
    others = [parameter for parameter in model.parameters() if id(parameter) not in known]
    return [
        {"params": backbone, "lr_factor": backbone_lr},
        {"params": others, "lr_factor": 1.0},
    ]


def build_optimizer(
    name: str, groups: list[dict[str, Any]], lr: float, weight_decay: float, momentum: float
) -> torch.optim.Optimizer:
    """Returns AdamW or SGD with Nesterov's momentum."""
    if name == "sgd":
        return torch.optim.SGD(
            groups, lr, momentum=momentum, weight_decay=weight_decay, nesterov=momentum > 0
        )
    return torch.optim.AdamW(groups, lr, weight_decay=weight_decay)


def inverse_square_root_weights(pixels: Tensor) -> Tensor:
    """Returns class weights ``1 / sqrt(frequency)``, of mean 1 over the classes that occur.

    Args:
        pixels: (C,), the number of pixels of each class.

    Returns:
        The weights, float32 (C,); 0 for a class that never occurs.

    Raises:
        ValueError: no class occurs.
    """
    occurs = pixels > 0
    if not occurs.any():
        raise ValueError("pixels must have a class that occurs, got zeros only")
    weights = torch.zeros(len(pixels), dtype=torch.float64)
    weights[occurs] = pixels[occurs].double().rsqrt()
    return (weights * (occurs.sum() / weights.sum())).float()
