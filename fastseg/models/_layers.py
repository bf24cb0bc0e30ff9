"""Layers of which all networks are built, on either backend.

The backends run the same weights. "fastseg" runs convolution, batch norm, residual and activation
as one op in evaluation; "torch" is plain PyTorch. A layer begins on "fastseg"; :func:`use_backend`
switches all layers of a model.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastseg import nn as fnn
from fastseg._core.formulas import ACTIVATION
from fastseg.nn._batch_norm import FoldedBatchNorm, can_fold
from fastseg.nn.atrous_conv_bn_act import ConvBatchNorm, folded_conv, geometry
from fastseg.ops import atrous_conv2d

BACKENDS = ("fastseg", "torch")


class _Switchable:
    """A layer that :func:`use_backend` switches."""

    backend = "fastseg"


def use_backend(model: nn.Module, backend: str) -> None:
    """Runs all layers of the model on "fastseg" or on "torch".

    Raises:
        ValueError: another backend.
    """
    if backend not in BACKENDS:
        raise ValueError(f"backend must be one of {BACKENDS}, got {backend!r}")
    for module in model.modules():
        if isinstance(module, _Switchable):
            module.backend = backend


class Conv2d(_Switchable, nn.Conv2d):
    """The module torch.nn.Conv2d, with an activation in the same op."""

    def forward(self, x: Tensor, activation: str | None = None) -> Tensor:
        """Returns (N, Co, h, w) for x (N, Ci, H, W)."""
        # fastseg's kernels have odd sides, so that the padding is the same on both.
        if self.backend == "fastseg" and all(side % 2 for side in self.kernel_size):
            return atrous_conv2d(x, self.weight, self.bias, activation=activation, **geometry(self))
        return ACTIVATION[activation or ""](super().forward(x))


class BatchNorm2d(nn.BatchNorm2d):
    """The module torch.nn.BatchNorm2d with a cache of what it folds to, for :func:`conv_bn_act`."""

    def __init__(self, num_features: int, eps: float = 1e-5, momentum: float | None = 0.1):
        super().__init__(num_features, eps, momentum)
        self._folded = FoldedBatchNorm()

    def train(self, mode: bool = True) -> BatchNorm2d:
        """Sets the mode as torch does, and forgets what evaluation has folded."""
        self._folded.forget()
        return super().train(mode)

    def folded(self) -> tuple[Tensor, Tensor] | None:
        """Returns the scale and the shift; None where it uses the batch's statistics."""
        return self._folded(self) if can_fold(self) else None


def conv_bn_act(
    x: Tensor,
    conv: Conv2d,
    bn: BatchNorm2d,
    activation: str | None = None,
    residual: Tensor | None = None,
) -> Tensor:
    """Returns ``act(bn(conv(x)) + residual)``: one op in evaluation on "fastseg", else torch's.

    It is for networks whose convolutions and batch norms have names of their own, such as ``conv1``
    and ``bn1``. Where they are children 0 and 1 of a module, :class:`ConvBNAct` is that module.
    """
    folded = bn.folded() if conv.backend == "fastseg" else None
    if folded is None:
        y = bn(conv(x))
        return ACTIVATION[activation or ""](y if residual is None else y + residual)
    return folded_conv(x, conv, folded, activation, residual)


class ConvBNAct(_Switchable, fnn.AtrousConvBNAct):
    """:class:`fastseg.nn.AtrousConvBNAct` on either backend."""

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """Returns (N, Co, h, w) for x (N, Ci, H, W) and a residual of the output's shape."""
        if self.backend == "torch":
            return _by_torch(self, x, residual)
        return super().forward(x, residual)


class SeparableConvBNAct(_Switchable, fnn.SeparableAtrousConvBNAct):
    """:class:`fastseg.nn.SeparableAtrousConvBNAct` on either backend."""

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """Returns (N, Co, h, w) for x (N, Ci, H, W) and a residual of the output's shape."""
        if self.backend == "torch":
            return _by_torch(self, x, residual)
        return super().forward(x, residual)


class ASPP(_Switchable, fnn.ASPP):
    """:class:`fastseg.nn.ASPP` on either backend."""

    def forward(self, x: Tensor) -> Tensor:
        """Returns (N, out_channels, H, W) for x (N, Ci, H, W)."""
        if self.backend != "torch":
            return super().forward(x)
        maps = [_by_torch(branch, x).expand(-1, -1, *x.shape[-2:]) for branch in self.convs]
        return self.dropout(_by_torch(self.project, torch.cat(maps, 1)))


class ASPPSum(_Switchable, fnn.ASPPSum):
    """:class:`fastseg.nn.ASPPSum` on either backend."""

    def forward(self, x: Tensor) -> Tensor:
        """Returns (N, Co, H, W) for x (N, Ci, H, W)."""
        if self.backend != "torch":
            return super().forward(x)
        return sum(conv(x) for conv in self.children())


def _by_torch(module: nn.Module, x: Tensor, residual: Tensor | None = None) -> Tensor:
    """Runs the children of a module one after the other, with torch's ops."""
    if not isinstance(module, nn.Sequential):
        return module(x)
    *before, last = module
    for child in before:
        x = _by_torch(child, x)
    if isinstance(module, ConvBatchNorm):
        return module.normalize(x, residual)
    return last(x)


def resize(x: Tensor, size: Sequence[int], align_corners: bool) -> Tensor:
    """Interpolates x (N, C, h, w) bilinearly to the size (H, W)."""
    if x.shape[-2:] == torch.Size(size):
        return x
    return F.interpolate(x, tuple(size), mode="bilinear", align_corners=align_corners)


def rescale(x: Tensor, factor: float, align_corners: bool) -> Tensor:
    """Interpolates x (N, C, h, w) bilinearly to its size times the factor, rounded down.

    Pixels lie as far apart as the factor says, not as the rounded sizes do.
    """
    if factor == 1:
        return x
    return F.interpolate(x, scale_factor=factor, mode="bilinear", align_corners=align_corners)


def he_init(model: nn.Module) -> None:
    """Initialises convolutions by fan-out (He et al. 2015), like torchvision; biases are 0."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
