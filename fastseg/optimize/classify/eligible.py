"""Reasons, in words, why fastseg's ops cannot stand for a module.

fastseg.optimize.classify.steps asks these questions once of each module.
"""

from __future__ import annotations

import torch
from torch import nn

from fastseg._core.conv2d import pair, resolve_padding
from fastseg._core.pool2d import MAX_TAPS
from fastseg.optimize.classify.same_padding import fixed_padding, pads_same, why_not_same

DTYPES = (torch.float32, torch.float16, torch.bfloat16)

ACTIVATION_MODULES = {
    nn.ReLU: "relu",
    nn.ReLU6: "relu6",
    nn.SiLU: "silu",
    nn.Hardswish: "hardswish",
    nn.LeakyReLU: "leaky_relu",
}
TIMM_ACTIVATIONS = {"Swish": "silu", "HardSwish": "hardswish"}

UPSAMPLES = (nn.Upsample, nn.UpsamplingBilinear2d)
"""Classes of modules that do no more than ``F.interpolate``."""

HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
"""Names of the attributes of a module that hold what torch calls beside its forward."""

OWN_CLASS = "a class of its own, whose forward may be another"
HOOKED = "has hooks or another forward than its class's"

DECIDING = {
    nn.Conv2d: ("stride", "padding", "dilation", "groups", "padding_mode", "kernel_size"),
    nn.BatchNorm2d: ("eps",),
    nn.LeakyReLU: ("negative_slope",),
    nn.ReLU6: ("min_val", "max_val"),
    nn.AdaptiveAvgPool2d: ("output_size",),
    nn.MaxPool2d: ("kernel_size", "stride", "padding", "dilation", "ceil_mode", "return_indices"),
    nn.MaxUnpool2d: ("kernel_size", "stride", "padding"),
    nn.ZeroPad2d: ("padding",),
}
"""Names of the attributes that decide what a module computes, by its class."""


def deciding(module: nn.Module) -> tuple[str, ...]:
    """The names of the attributes that decide what a module, swapped or not, computes."""
    return next((names for cls, names in DECIDING.items() if isinstance(module, cls)), ())


def has_hooks(module: nn.Module) -> bool:
    """Whether a call of a module is anything else than its class's forward."""
    replaced = "forward" in module.__dict__ or type(module).__call__ is not nn.Module.__call__
    return replaced or any(getattr(module, kind) for kind in HOOKS)


def why_not_conv(conv: nn.Module) -> str | None:
    """Why no op can stand for a Conv2d or a module of one of its subclasses, or None."""
    if pads_same(conv):
        pad = fixed_padding(conv)
        if why_not_same(conv) or (pad is not None and has_hooks(pad)):
            return why_not_same(conv) or HOOKED
    elif type(conv) is not nn.Conv2d:
        return OWN_CLASS
    return HOOKED if has_hooks(conv) else why_not_geometry(conv)


def why_not_geometry(conv: nn.Conv2d) -> str | None:
    """Why no op has the attributes or the weight of a convolution, or None."""
    if conv.padding_mode != "zeros":
        return f"padding_mode {conv.padding_mode!r}"
    if any(k % 2 == 0 for k in conv.kernel_size):
        return f"an even kernel, {conv.kernel_size}"
    if conv.weight.dtype not in DTYPES:
        return f"{conv.weight.dtype}"
    padding = resolve_padding("", conv.padding, conv.kernel_size, conv.dilation)
    reach = [d * (k - 1) for d, k in zip(conv.dilation, conv.kernel_size, strict=True)]
    if any(p > r for p, r in zip(padding, reach, strict=True)):
        return f"padding {padding} beyond the kernel's reach"
    return None


def is_timm_batch_norm(module: nn.Module) -> bool:
    """Whether a module is timm's BatchNormAct2d, which has an activation in it."""
    cls = type(module)
    return cls.__name__ == "BatchNormAct2d" and cls.__module__.startswith("timm.")


def why_not_batch_norm(bn: nn.Module) -> str | None:
    """Why a batch norm cannot be folded, or None."""
    timm = is_timm_batch_norm(bn)
    if type(bn) is not nn.BatchNorm2d and not timm:
        return OWN_CLASS
    if timm and (
        type(bn.drop) is not nn.Identity or has_hooks(bn.drop) or activation_of(bn.act) is None
    ):
        return "has a dropout or an activation that no op ends with"
    if has_hooks(bn):
        return HOOKED
    if any(bn._buffers.get(name) is None for name in ("running_mean", "running_var")):
        return "has no running statistics"
    return None


def activation_of(module: nn.Module) -> str | None:
    """The op's name for an activation, "" for an Identity, None for any other module."""
    if has_hooks(module):
        return None
    if type(module).__module__.startswith("timm.layers.activations"):
        return TIMM_ACTIVATIONS.get(type(module).__name__)
    if type(module) is nn.LeakyReLU and module.negative_slope != 0.01:
        return None
    if type(module) is nn.ReLU6 and (module.min_val, module.max_val) != (0, 6):
        return None
    return "" if type(module) is nn.Identity else ACTIVATION_MODULES.get(type(module))


def own_activation(bn: nn.Module | None) -> str:
    """The activation within timm's BatchNormAct2d; "" for any other batch norm."""
    act = None if bn is None else bn._modules.get("act")
    return "" if act is None else activation_of(act) or ""


def why_not_pool(pool: nn.MaxPool2d) -> str | None:
    """Why the indices of a MaxPool2d cannot be byte codes, or None."""
    if type(pool) is not nn.MaxPool2d:
        return OWN_CLASS
    if has_hooks(pool):
        return HOOKED
    if not pool.return_indices:
        return None
    kernel = pair("", "kernel_size", pool.kernel_size)
    if kernel[0] * kernel[1] > MAX_TAPS:
        return f"more than {MAX_TAPS} positions in a window"
    if pair("", "dilation", pool.dilation) != (1, 1):
        return "is dilated"
    return None


def why_not_unpool(unpool: nn.MaxUnpool2d) -> str | None:
    """Why a MaxUnpool2d cannot take byte codes, or None."""
    if type(unpool) is not nn.MaxUnpool2d or has_hooks(unpool):
        return "a class of its own or has hooks"
    return None
