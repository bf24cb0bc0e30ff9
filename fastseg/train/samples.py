"""A picture of what a network makes of a few validation pictures."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torch import nn

from fastseg.data.channel_image import preview
from fastseg.data.folder import PictureFolder
from fastseg.data.sheets import comparison_sheet
from fastseg.models import main_logits
from fastseg.ops import upsample_argmax

SAMPLES = 4
"""Number of pictures that are shown."""


@torch.inference_mode()
def sample_sheet(model: nn.Module, dataset: PictureFolder, device: torch.device) -> Image.Image:
    """Returns rows of picture, truth, prediction and error of evenly chosen pictures.

    Args:
        model: the network, on the device.
        dataset: the validation pictures, with the transform that the network asks for.
        device: where the network is.
    """
    model.eval()
    rows = []
    count = min(SAMPLES, len(dataset))
    for index in np.linspace(0, len(dataset) - 1, count).astype(int).tolist():
        image, label = dataset.load(index)
        x, truth = dataset.transform(image, label, np.random.default_rng(0))
        logits = main_logits(model(x[None].to(device)))
        predicted = upsample_argmax(logits, tuple(truth.shape))[0].cpu().numpy()
        rows.append((preview(image), truth.numpy().astype(np.uint8), predicted.astype(np.uint8)))
    return comparison_sheet(rows, dataset.classes)
