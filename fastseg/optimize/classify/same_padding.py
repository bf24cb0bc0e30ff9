"""Convolutions of timm and EfficientNet that pad as TensorFlow does for "SAME".

Where the sum of the padding is odd, the last rows and columns get more of it than the first.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from fastseg._core.conv2d import Conv2d, resolve_padding

_PACKAGES = ("timm", "segmentation_models_pytorch", "efficientnet_pytorch", "geffnet")
_BY_SIZE = ("Conv2dSame", "Conv2dDynamicSamePadding")
_FIXED = "Conv2dStaticSamePadding"


def _kind(cls: type) -> str:
    """How a class pads: "by size" of the map, "fixed" as a child has it, "" if otherwise."""
    cls = getattr(cls, "_base", cls)  # a swapped one has _base
    if cls is nn.Conv2d or cls.__module__.partition(".")[0] not in _PACKAGES:
        return ""
    return "fixed" if cls.__name__ == _FIXED else "by size" if cls.__name__ in _BY_SIZE else ""


def pads_same(conv: nn.Module) -> bool:
    """Whether a convolution, swapped or not, is of such a class."""
    return _kind(type(conv)) != ""


def fixed_padding(conv: nn.Module) -> nn.Module | None:
    """The child of a convolution that pads, if its class has one."""
    return conv._modules.get("static_padding")


def why_not_same(conv: nn.Conv2d) -> str | None:
    """Why a convolution that pads so is to be left, or None."""
    fixed = _kind(type(conv)) == "fixed"
    if not fixed and own_padding(conv) != (0, 0):
        return "pads twice"
    if fixed and type(fixed_padding(conv)) not in (nn.ZeroPad2d, nn.Identity):
        return "pads in a way of its own"
    return None


def own_padding(conv: nn.Conv2d) -> tuple[int, int]:
    """The zeros that torch's Conv2d itself pads with on each side, (vertical, horizontal)."""
    return resolve_padding("fastseg.optimize_", conv.padding, conv.kernel_size, conv.dilation)


def around(conv: nn.Conv2d, x: Tensor) -> tuple[int, int, int, int]:
    """The numbers of zeros left, right, above and below of a map, in pixels."""
    pad = fixed_padding(conv)
    if pad is not None:
        vertical, horizontal = own_padding(conv)
        sides = (0, 0, 0, 0) if type(pad) is nn.Identity else pad.padding
        own = (horizontal, horizontal, vertical, vertical)
        return tuple([a + b for a, b in zip(sides, own, strict=True)])
    sides = []
    for axis in (1, 0):
        size, stride = x.shape[2 + axis], conv.stride[axis]
        reach = conv.dilation[axis] * (conv.kernel_size[axis] - 1) + 1
        total = max((-(-size // stride) - 1) * stride + reach - size, 0)
        sides += [total // 2, total - total // 2]
    return tuple(sides)


def output_size(conv: nn.Conv2d, x: Tensor) -> list[int]:
    """The (h, w) of a convolution's output."""
    left, right, above, below = around(conv, x)
    height, width = x.shape[2:]
    size = (height + above + below, width + left + right)
    return _with_padding(conv, (0, 0)).output_size(size, conv.kernel_size)


def even(conv: nn.Conv2d, x: Tensor) -> Conv2d | None:
    """The convolution with its padding if that is the same on both sides, as for stride 1."""
    left, right, above, below = around(conv, x)
    return _with_padding(conv, (above, left)) if (left, above) == (right, below) else None


def padded(conv: nn.Conv2d, x: Tensor) -> tuple[Tensor, Conv2d]:
    """The map, with its zeros around it unless they are even, and the convolution that is left."""
    geometry = even(conv, x)
    if geometry is not None:
        return x, geometry
    return F.pad(x, around(conv, x)), _with_padding(conv, (0, 0))


def _with_padding(conv: nn.Conv2d, padding: tuple[int, int]) -> Conv2d:
    return Conv2d(tuple(conv.stride), padding, tuple(conv.dilation), conv.groups)
