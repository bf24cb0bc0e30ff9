"""Atrous convolution, batch norm and activation, one op in evaluation."""

from __future__ import annotations

from torch import Tensor, nn

from fastseg._core.conv2d import ACTIVATIONS, resolve_padding
from fastseg._core.formulas import ACTIVATION
from fastseg._core.window import Ints, pair
from fastseg.nn._batch_norm import FoldedBatchNorm, can_fold
from fastseg.ops import atrous_conv2d


class ConvBatchNorm(nn.Sequential):
    """The last child but one convolves, the last is the batch norm after it."""

    def __init__(self, *children: nn.Module, activation: str | None):
        if (activation or "") not in ACTIVATIONS:
            raise ValueError(
                f"{type(self).__name__}: activation must be None or one of {ACTIVATIONS[1:]}, got"
                f" {activation!r}"
            )
        super().__init__(*children)
        self.activation = activation
        self._folded = FoldedBatchNorm()

    def train(self, mode: bool = True):
        """As torch's; also forgets what evaluation has folded."""
        self._folded.forget()
        return super().train(mode)

    def folded(self) -> tuple[Tensor, Tensor] | None:
        """The batch norm's scale and shift; None where it takes the batch's statistics."""
        return self._folded(self[-1]) if can_fold(self[-1]) else None

    def normalize(self, y: Tensor, residual: Tensor | None = None) -> Tensor:
        """``act(batch_norm(y) + residual)`` with the batch norm as it is, by torch."""
        y = self[-1](y)
        return ACTIVATION[self.activation or ""](y if residual is None else y + residual)

    def extra_repr(self) -> str:
        """The activation, which is no child."""
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
    """torch's, with the padding in pixels: its own "same" refuses strides."""
    op = "fastseg.nn"
    padding = resolve_padding(op, padding, pair(op, "kernel_size", kernel_size), dilation)
    return nn.Conv2d(
        in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias
    )


def geometry(conv: nn.Conv2d) -> dict:
    """What :func:`fastseg.atrous_conv2d` takes of a module."""
    return {
        "stride": conv.stride,
        "padding": conv.padding,
        "dilation": conv.dilation,
        "groups": conv.groups,
    }


class AtrousConvBNAct(ConvBatchNorm):
    """Conv2d, BatchNorm2d, an optional residual and an activation.

    The state_dict is that of ``nn.Sequential(nn.Conv2d(...), nn.BatchNorm2d(...))``: ``0.weight``
    (``0.bias``), ``1.weight``, ``1.bias``, ``1.running_mean``, ``1.running_var``,
    ``1.num_batches_tracked``; so are initialisation and training, where the convolution is
    :func:`fastseg.atrous_conv2d`. Where the batch norm is in evaluation all is one op, with scale
    and shift folded from the statistics. They are kept while no gradient is needed, until a tensor
    of the batch norm changes or the mode is set; on a GPU, writes in place to ``tensor.data`` go
    unseen: call ``eval()`` after them.

    Args:
        in_channels: Ci.
        out_channels: Co.
        kernel_size: odd; one integer or (vertical, horizontal), like stride, padding and dilation.
        stride: default 1.
        padding: "same" by default, as in :func:`fastseg.atrous_conv2d`.
        dilation: the rate.
        groups: as in :func:`fastseg.atrous_conv2d`.
        bias: of the convolution.
        activation: None, "relu", "relu6", "leaky_relu" (slope 0.01), "silu" or "hardswish".
        eps: batch norm's.
        momentum: batch norm's.

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
        """(N, Co, h, w) of x (N, Ci, H, W) and a residual like the output."""
        conv, folded = self[0], self.folded()
        if folded is None:
            y = atrous_conv2d(x, conv.weight, conv.bias, **geometry(conv))
            return self.normalize(y, residual)
        scale, shift = folded
        return atrous_conv2d(
            x, conv.weight, conv.bias, scale=scale, shift=shift, activation=self.activation,
            residual=residual, **geometry(conv),
        )  # fmt: skip


class SeparableAtrousConvBNAct(ConvBatchNorm):
    """A depthwise atrous convolution, a pointwise one, BatchNorm2d, a residual, an activation.

    Child 0 holds both convolutions. As segmentation_models_pytorch has them, the keys are
    ``0.0.weight`` (Ci, 1, kh, kw), ``0.1.weight`` (Co, Ci, 1, 1) and the batch norm's ``1.*``. With
    `depthwise_batch_norm`, as in TensorFlow's DeepLab v3+ and mmsegmentation, the first of them is
    an :class:`AtrousConvBNAct`: ``0.0.0.weight``, ``0.0.1.*``. Otherwise as that class; in
    evaluation each convolution is one op.

    Args:
        in_channels: Ci.
        out_channels: Co.
        kernel_size: of the depthwise convolution, like stride, padding and dilation.
        stride: default 1.
        padding: "same" by default.
        dilation: the rate.
        depthwise_batch_norm: whether batch norm and the activation follow the depthwise
            convolution too.
        activation: as in :class:`AtrousConvBNAct`.
        eps: batch norm's.
        momentum: batch norm's.

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
                in_channels, in_channels, kernel_size, stride=stride, padding=padding,
                dilation=dilation, groups=in_channels, activation=activation, eps=eps,
                momentum=momentum,
            )  # fmt: skip
        else:
            depthwise = conv2d_module(
                in_channels, in_channels, kernel_size, stride, padding, dilation, in_channels, False
            )
        pointwise = nn.Conv2d(in_channels, out_channels, 1, bias=False)
        bn = nn.BatchNorm2d(out_channels, eps, momentum)
        super().__init__(nn.Sequential(depthwise, pointwise), bn, activation=activation)

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """(N, Co, h, w) of x (N, Ci, H, W) and a residual like the output."""
        (depthwise, pointwise), folded = self[0], self.folded()
        if isinstance(depthwise, AtrousConvBNAct):
            h = depthwise(x)
        else:
            h = atrous_conv2d(x, depthwise.weight, **geometry(depthwise))
        if folded is None:
            return self.normalize(atrous_conv2d(h, pointwise.weight), residual)
        scale, shift = folded
        return atrous_conv2d(
            h, pointwise.weight, scale=scale, shift=shift, activation=self.activation,
            residual=residual,
        )  # fmt: skip
