"""The network of a run, as its settings say: built, asked for its crops, shared by processes."""

from __future__ import annotations

import inspect

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from fastseg.models import build_model, main_logits
from fastseg.train.config import Config
from fastseg.train.processes import is_distributed, synchronise_batch_norms

_SYNC_BUFFERS = "forward_sync_buffers"  # torch 2.13's name
if _SYNC_BUFFERS not in inspect.signature(DistributedDataParallel).parameters:
    _SYNC_BUFFERS = "broadcast_buffers"


def build_network(config: Config, num_classes: int) -> nn.Module:
    """Builds the model of the settings.

    Raises:
        ValueError: the model does not have an option.
        ImportError: it is one of a package that is not installed.
    """
    options = {"backend": config.backend, **config.model_options}
    try:
        return build_model(config.model, num_classes, **options)
    except TypeError as error:  # the model does not have the option
        raise ValueError(error) from error


def check_crop(config: Config, num_classes: int, batch: int) -> None:
    """Raises a ValueError unless the model gives scores for every pixel of a batch of crops."""
    (height, width), images = config.crop, -(-batch // config.accumulate)
    problem = None
    with torch.device("meta"):  # only shapes count
        model = build_network(config, num_classes).train()
        pixels = torch.empty(images, getattr(model, "in_channels", 3), height, width)
    if config.freeze_bn:
        frozen_batch_norms(model)
    try:
        scores = main_logits(model(pixels))
        if scores.shape[-2:] != pixels.shape[-2:]:
            problem = f"its scores are {scores.shape[-2]}x{scores.shape[-1]}"
        elif config.form is None and pixels.shape[1] != 3:
            problem = (
                f"it takes {pixels.shape[1]} channels, and pictures are read as 3; --channels "
                "reads them as they are stored"
            )
    except (RuntimeError, ValueError) as error:  # the crop is too small
        problem = str(error).partition("\n")[0]
    if problem is not None:
        raise ValueError(
            f"{config.model} cannot be trained on {images} crops of {height}x{width}: {problem}"
        )


def frozen_batch_norms(model: nn.Module) -> None:
    """Puts batch norms in evaluation, and keeps the optimizer from their scales and shifts."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval().requires_grad_(False)


def trained_by_all(model: nn.Module, config: Config, device: torch.device) -> nn.Module:
    """Returns what a training step calls: the model, compiled and distributed where that is so.

    Buffers are not sent around in each step: the batch norms of all processes have the same.
    """
    if config.compile:
        model.compile()
    if not is_distributed():
        return model
    if config.freeze_bn:  # what needs no gradient is none that the processes wait for
        frozen_batch_norms(model)
    synchronise_batch_norms(model)
    gpus = [device.index] if device.type == "cuda" else None
    return DistributedDataParallel(model, gpus, **{_SYNC_BUFFERS: False})
