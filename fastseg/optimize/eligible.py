"""Which modules fastseg's ops can stand for, and in words why they cannot for others."""

from __future__ import annotations

import operator

import torch
import torch.nn.functional as F
from torch import nn

from fastseg._conv2d import pair, resolve_padding
from fastseg._pool2d import MAX_TAPS

DTYPES = (torch.float32, torch.float16, torch.bfloat16)

ACTIVATION_MODULES = {
    nn.ReLU: "relu",
    nn.ReLU6: "relu6",
    nn.SiLU: "silu",
    nn.Hardswish: "hardswish",
}
ACTIVATION_FUNCTIONS = {
    torch.relu: "relu",
    torch.relu_: "relu",
    F.relu: "relu",
    F.relu_: "relu",
    F.relu6: "relu6",
    F.silu: "silu",
    F.hardswish: "hardswish",
    F.leaky_relu: "leaky_relu",
}
ACTIVATION_METHODS = {"relu": "relu", "relu_": "relu"}
ADDITIONS = (operator.add, operator.iadd, torch.add, "add", "add_")


def has_hooks(module: nn.Module) -> bool:
    """Whether a call of it is anything else than its class's forward."""
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    replaced = "forward" in module.__dict__ or type(module).__call__ is not nn.Module.__call__
    return replaced or any(getattr(module, kind) for kind in kinds)


def why_not_conv(conv: nn.Module) -> str | None:
    """A Conv2d, or what is of one of its subclasses."""
    if type(conv) is not nn.Conv2d:
        return "a class of its own, whose forward may be another"
    if has_hooks(conv):
        return "has hooks or another forward than its class's"
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


def is_batch_norm(module: nn.Module) -> bool:
    """BatchNorm2d, or timm's with an activation in it."""
    return isinstance(module, nn.BatchNorm2d)


def why_not_batch_norm(bn: nn.Module) -> str | None:
    """A batch norm that is to be folded."""
    timm = type(bn).__name__ == "BatchNormAct2d" and type(bn).__module__.startswith("timm.")
    if type(bn) is not nn.BatchNorm2d and not timm:
        return "a class of its own, whose forward may be another"
    if timm and (type(bn.drop) is not nn.Identity or activation_of(bn.act) is None):
        return "has a dropout or an activation that no op ends with"
    if has_hooks(bn):
        return "has hooks or another forward than its class's"
    if bn.running_mean is None:
        return "has no running statistics"
    return None


def activation_of(module: nn.Module) -> str | None:
    """The op's name for it, "" of an Identity, None of any other module."""
    if has_hooks(module):
        return None
    if type(module) is nn.LeakyReLU and module.negative_slope == 0.01:
        return "leaky_relu"
    if type(module).__module__.startswith("timm.layers.activations"):
        return {"Swish": "silu", "HardSwish": "hardswish"}.get(type(module).__name__)
    return "" if type(module) is nn.Identity else ACTIVATION_MODULES.get(type(module))


def own_activation(bn: nn.Module | None) -> str:
    """That of timm's BatchNormAct2d, which is part of it."""
    act = None if bn is None else bn._modules.get("act")
    return "" if act is None else activation_of(act) or ""


def why_not_pool(pool: nn.MaxPool2d) -> str | None:
    """A MaxPool2d(return_indices=True)."""
    if type(pool) is not nn.MaxPool2d:
        return "a class of its own, whose forward may be another"
    if has_hooks(pool):
        return "has hooks or another forward than its class's"
    kernel = pair("", "kernel_size", pool.kernel_size)
    if kernel[0] * kernel[1] > MAX_TAPS:
        return f"more than {MAX_TAPS} positions in a window"
    if pair("", "dilation", pool.dilation) != (1, 1):
        return "is dilated"
    return None
