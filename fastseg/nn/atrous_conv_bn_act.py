"""Atrous convolution, batch norm and activation as modules, one op in evaluation."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from fastseg._core.conv2d import ACTIVATIONS, resolve_padding
from fastseg._core.formulas import ACTIVATION
from fastseg._core.window import Ints, pair
from fastseg.nn._batch_norm import FoldedBatchNorm, can_fold
from fastseg.ops import atrous_conv2d


class ConvBatchNorm(nn.Sequential):
    """A sequence that ends with a convolution and its batch norm, and an activation.

    Args:
        children: the modules; the last is the batch norm, the last but one convolves.
        activation: the activation's name in :func:`fastseg.atrous_conv2d`, or None.

    Raises:
        ValueError: an unknown activation.
    """

    def __init__(self, *children: nn.Module, activation: str | None):
        if (activation or "") not in ACTIVATIONS:
            raise ValueError(
                f"{type(self).__name__}: activation must be None or one of {ACTIVATIONS[1:]}, got"
                f" {activation!r}"
            )
        super().__init__(*children)
        self.activation = activation
        self._folded = FoldedBatchNorm()

    def train(self, mode: bool = True) -> ConvBatchNorm:
        """Sets the mode as torch does, and forgets what evaluation has folded."""
        self._folded.forget()
        return super().train(mode)

    def folded(self) -> tuple[Tensor, Tensor] | None:
        """Returns the batch norm's scale and shift; None where it uses the batch's statistics."""
        return self._folded(self[-1]) if can_fold(self[-1]) else None

    def normalize(self, y: Tensor, residual: Tensor | None = None) -> Tensor:
        """Returns ``act(batch_norm(y) + residual)``, computed by torch."""
        y = self[-1](y)
        return ACTIVATION[self.activation or ""](y if residual is None else y + residual)

    def convolve(self, x: Tensor, conv: nn.Conv2d, residual: Tensor | None) -> Tensor:
        """Returns ``act(batch_norm(conv(x)) + residual)``, one op with a folded batch norm."""
        folded = self.folded()
        if folded is None:
            y = atrous_conv2d(x, conv.weight, conv.bias, **geometry(conv))
            return self.normalize(y, residual)
        return folded_conv(x, conv, folded, self.activation, residual)

    def extra_repr(self) -> str:
        """Returns the activation, which is no child."""
        return f"activation={self.activation!r}"


def conv2d_module(
    in_channels: int,
    out_channels: int,
    kernel_size: Ints,
    stride: Ints,
    padding: Ints | str,
    dilation: Ints,
    groups: int,
    bias: bool,
) -> nn.Conv2d:
    """Returns torch's module with the padding in pixels: its own "same" refuses strides."""
    op = "fastseg.nn"
    padding = resolve_padding(op, padding, pair(op, "kernel_size", kernel_size), dilation)
    return nn.Conv2d(
        in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias
    )


def geometry(conv: nn.Conv2d) -> dict[str, Any]:
    """Returns the geometry of a module as keyword arguments of :func:`fastseg.atrous_conv2d`."""
    return {
        "stride": conv.stride,
        "padding": conv.padding,
        "dilation": conv.dilation,
        "groups": conv.groups,
    }


def folded_conv(
    x: Tensor,
    conv: nn.Conv2d,
    folded: tuple[Tensor, Tensor],
    activation: str | None,
    residual: Tensor | None,
) -> Tensor:
    """Returns ``act(conv(x) * scale + shift + residual)`` by one op.

    Args:
        x: (N, Ci, H, W).
        conv: the convolution.
        folded: scale and shift of the batch norm after it.
        activation: the activation's name in :func:`fastseg.atrous_conv2d`, or None.
        residual: a tensor of the output's shape, or None.
    """
    scale, shift = folded
    return atrous_conv2d(
        x,
        conv.weight,
        conv.bias,
        scale=scale,
        shift=shift,
        activation=activation,
        residual=residual,
        **geometry(conv),
    )


class AtrousConvBNAct(ConvBatchNorm):
    """Conv2d, BatchNorm2d, an optional residual and an activation.

    The state_dict is that of ``nn.Sequential(nn.Conv2d(...), nn.BatchNorm2d(...))``: ``0.weight``
    (``0.bias``), ``1.weight``, ``1.bias``, ``1.running_mean``, ``1.running_var``,
    ``1.num_batches_tracked``. Initialisation is torch's too. The convolution is
    :func:`fastseg.atrous_conv2d`; with the batch norm in evaluation the whole module is one call of
    it, with scale and shift folded from the statistics. These are kept while no gradient is needed,
    until a tensor of the batch norm changes or the mode is set. On a GPU, writes in place to
    ``tensor.data`` go unseen: call ``eval()`` after them.

    Args:
        in_channels: number of input channels.
        out_channels: number of output channels.
        kernel_size: one odd integer or (vertical, horizontal).
        stride: one integer or (vertical, horizontal).
        padding: one integer or (vertical, horizontal), at most ``dilation * (kernel_size - 1)``;
            "same" keeps the size at stride 1; "valid" is none.
        dilation: the rate, one integer or (vertical, horizontal).
        groups: number of groups, a divisor of both numbers of channels.
        bias: whether the convolution has a bias.
        activation: None, "relu", "relu6", "leaky_relu" (slope 0.01), "silu" or "hardswish".
        eps: number added to the variance in the batch norm.
        momentum: weight of a new batch in the batch norm's running statistics; None for their
            plain average.

    Raises:
        ValueError: an unknown activation.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Ints = 3,
        *,
        stride: Ints = 1,
        padding: Ints | str = "same",
        dilation: Ints = 1,
        groups: int = 1,
        bias: bool = False,
        activation: str | None = "relu",
        eps: float = 1e-5,
        momentum: float | None = 0.1,
    ):
        conv = conv2d_module(
            in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias
        )
        super().__init__(conv, nn.BatchNorm2d(out_channels, eps, momentum), activation=activation)

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """Returns (N, Co, h, w) for x (N, Ci, H, W) and a residual of the output's shape."""
        return self.convolve(x, self[0], residual)


class SeparableAtrousConvBNAct(ConvBatchNorm):
    """A depthwise atrous convolution, a pointwise one, BatchNorm2d, a residual, an activation.

    Child 0 holds both convolutions. The keys are those of segmentation_models_pytorch:
    ``0.0.weight`` (Ci, 1, kh, kw), ``0.1.weight`` (Co, Ci, 1, 1) and the batch norm's ``1.*``. With
    `depthwise_batch_norm`, as in TensorFlow's DeepLab v3+ and mmsegmentation, the depthwise
    convolution is an :class:`AtrousConvBNAct`: ``0.0.0.weight``, ``0.0.1.*``. In evaluation each
    convolution is one op, with its batch norm folded.

    Args:
        in_channels: number of input channels.
        out_channels: number of output channels.
        kernel_size: kernel size of the depthwise convolution, one odd integer or (vertical,
            horizontal).
        stride: stride of the depthwise convolution, one integer or (vertical, horizontal).
        padding: padding of the depthwise convolution: integers, "same" or "valid".
        dilation: rate of the depthwise convolution, one integer or (vertical, horizontal).
        depthwise_batch_norm: whether batch norm and the activation follow the depthwise
            convolution too.
        activation: None, "relu", "relu6", "leaky_relu" (slope 0.01), "silu" or "hardswish".
        eps: number added to the variance in each batch norm.
        momentum: weight of a new batch in the running statistics; None for their plain average.

    Raises:
        ValueError: an unknown activation.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Ints = 3,
        *,
        stride: Ints = 1,
        padding: Ints | str = "same",
        dilation: Ints = 1,
        depthwise_batch_norm: bool = False,
        activation: str | None = "relu",
        eps: float = 1e-5,
        momentum: float | None = 0.1,
    ):
        if depthwise_batch_norm:
            depthwise = AtrousConvBNAct(
                in_channels,
                in_channels,
                kernel_size,
                stride=stride,
                padding=padding,
                dilation=dilation,
                groups=in_channels,
                activation=activation,
                eps=eps,
                momentum=momentum,
            )
        else:
            depthwise = conv2d_module(
                in_channels, in_channels, kernel_size, stride, padding, dilation, in_channels, False
            )
        pointwise = nn.Conv2d(in_channels, out_channels, 1, bias=False)
        bn = nn.BatchNorm2d(out_channels, eps, momentum)
        super().__init__(nn.Sequential(depthwise, pointwise), bn, activation=activation)

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """Returns (N, Co, h, w) for x (N, Ci, H, W) and a residual of the output's shape."""
        depthwise, pointwise = self[0]
        if isinstance(depthwise, AtrousConvBNAct):
            h = depthwise(x)
        else:
            h = atrous_conv2d(x, depthwise.weight, **geometry(depthwise))
        return self.convolve(h, pointwise, residual)
