"""DeepLabv3 on MobileNetV2 for inference, as a function of its weights: real logits for a CRF.

The output stride is 16: the last stride of MobileNetV2 is 1 and the depthwise convolutions after it
are dilated by 2. Chen et al., Rethinking Atrous Convolution for Semantic Image Segmentation, 2017;
Sandler et al., MobileNetV2, CVPR 2018.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

SIDE = 513
STRIDES = {0: 2, 2: 2, 4: 2, 7: 2}
DILATED = (15, 16, 17)
BLOCKS = 17
EPSILON = 1e-5

Weights = dict[str, Tensor]


def deeplab_logits(weights: Weights, image: np.ndarray) -> Tensor:
    """Returns logits (21, H, W) of an RGB image (H, W, 3), uint8.

    The network sees the image with its longer side resized to 513 and the other to the nearest
    16k + 1, so that the corners of image and features coincide; the logits are resized back.
    """
    height, width = image.shape[:2]
    scale = SIDE / max(height, width)
    sides = [min(SIDE, round(side * scale / 16) * 16 + 1) for side in (height, width)]
    x = torch.from_numpy(image).permute(2, 0, 1)[None] / 127.5 - 1
    x = F.interpolate(x, sides, mode="bilinear", align_corners=True)
    logits = _head(weights, _backbone(weights, x))
    return F.interpolate(logits, (height, width), mode="bilinear", align_corners=True)[0]


def _norm(weights: Weights, name: str, x: Tensor) -> Tensor:
    statistics = (weights[f"{name}.{k}"] for k in ("running_mean", "running_var"))
    scale_shift = (weights[f"{name}.{k}"] for k in ("weight", "bias"))
    return F.batch_norm(x, *statistics, *scale_shift, eps=EPSILON)


def _unit(weights: Weights, name: str, x: Tensor, stride=1, dilation=1) -> Tensor:
    """Computes convolution, batch norm and ReLU6, depthwise for weights of one input channel."""
    kernel = weights[f"{name}.0.weight"]
    groups = x.shape[1] if kernel.shape[1] == 1 else 1
    padding = dilation * (kernel.shape[-1] // 2)
    x = F.conv2d(x, kernel, None, stride, padding, dilation, groups)
    return F.relu6(_norm(weights, f"{name}.1", x))


def _backbone(weights: Weights, x: Tensor) -> Tensor:
    features = "backbone.features"
    x = _unit(weights, f"{features}.0", x, STRIDES[0])
    for block in range(1, BLOCKS + 1):
        name, before = f"{features}.{block}.conv", x
        expanded = f"{name}.1.0.weight" in weights
        if expanded:
            x = _unit(weights, f"{name}.0", x)
        depthwise = 1 if expanded else 0
        stride, dilation = STRIDES.get(block, 1), 2 if block in DILATED else 1
        x = _unit(weights, f"{name}.{depthwise}", x, stride, dilation)
        x = F.conv2d(x, weights[f"{name}.{depthwise + 1}.weight"])
        x = _norm(weights, f"{name}.{depthwise + 2}", x)
        if x.shape == before.shape:
            x = x + before
    return x


def _head(weights: Weights, x: Tensor) -> Tensor:
    def unit(name: str, x: Tensor) -> Tensor:
        x = F.conv2d(x, weights[f"classifier.{name}.0.weight"])
        return F.relu(_norm(weights, f"classifier.{name}.1", x))

    pooled = unit("image_pooling", x.mean((2, 3), keepdim=True)).expand(-1, -1, *x.shape[2:])
    x = unit("concat_projection", torch.cat([pooled, unit("aspp0", x)], 1))
    return F.conv2d(x, weights["classifier.logits.weight"], weights["classifier.logits.bias"])
