"""The calls of rewritten forwards: one op where that is faster and nothing is lost."""

from __future__ import annotations

import torch
from torch import Tensor, fx, is_grad_enabled, nn
from torch._C import _get_tracing_state

from fastseg._core.autocast import autocast_dtype
from fastseg._core.float32_precision import reduced_on_cpu
from fastseg._core.formulas import ACTIVATION, ACTIVATION_IN_PLACE
from fastseg._core.library import CPU_PLANS, keep_plan
from fastseg._core.plain_tensors import (
    are_plain_on_cpu,
    needs_gradient,
    outside_modes,
    takes_no_gradient,
)
from fastseg._core.tensor_checks import FLOATS
from fastseg.ops import (
    batch_norm_relu_max_pool2d,
    max_pool2d,
    max_unpool2d,
)
from fastseg.ops.conv.atrous_conv2d import cpu_plan
from fastseg.ops.conv.cpu_onednn import has_onednn
from fastseg.optimize.blocks.convolve import (
    apply,
    convolve,
    has_its_kernel,
    is_channels_last,
    is_left_to_inductor,
    is_map,
    may_own,
    output_size,
    owns,
    pays_in_evaluation,
    tensors_of,
)
from fastseg.optimize.blocks.modules import Codes, Foldable, Frozen
from fastseg.optimize.classify.eligible import own_activation
from fastseg.optimize.classify.same_padding import pads_same


def conv_bn_act(
    conv: nn.Conv2d,
    bn: nn.Module | None,
    activation: str,
    x: Tensor,
    *added,
    in_place: bool = False,
) -> Tensor:
    """The value of ``act(bn(conv(x)) + residual)``, by one op where that is faster.

    Args:
        conv: the convolution.
        bn: its batch norm, or None.
        activation: the op's name for the activation, or "".
        x: its input.
        *added: the residual if there is one, which is what the forward has added, a map or not.
        in_place: whether the forward adds it in place, which keeps the dtype and the shape.
    """
    if isinstance(x, fx.Proxy):
        return traced(conv_bn_act, conv, bn, activation, x, *added, in_place=in_place)
    y = at_once(conv, bn, activation, x, *added, in_place=in_place)
    if y is not None:
        return y
    if fuses(conv, bn, x, *added, in_place=in_place):
        folded = None if bn is None else folded_of(bn)
        if bn is None or folded is not None:
            by = convolve if isinstance(conv, Frozen) else apply
            residual = added[0] if added else None
            return by(conv, x, folded, activation or own_activation(bn), residual)
    return follow(conv(x), bn, activation, *added, in_place=in_place)


def follow(
    y: Tensor, bn: nn.Module | None, activation: str, *added, in_place: bool = False
) -> Tensor:
    """What follows a convolution, by torch."""
    y = y if bn is None else bn(y)
    if in_place:
        y += added[0]
    elif added:
        y = y + added[0]
    if (
        activation
        and (bn is not None or added)
        and not is_grad_enabled()
        and _get_tracing_state() is None  # a traced graph may run with gradients
    ):
        return ACTIVATION_IN_PLACE[activation](y)  # nobody else has this sum or batch norm's map
    return ACTIVATION[activation](y)


def at_once(conv, bn, activation: str, x: Tensor, *added, in_place: bool = False) -> Tensor | None:
    """The value of :func:`conv_bn_act` on plain tensors of the CPU without gradient, or None.

    It asks what `fuses`, the batch norm and the op ask, each question once: on small maps they take
    longer than the kernel.
    """
    held = conv._parameters
    weight, bias = held.get("weight"), held.get("bias")
    if weight is None or conv._forward_pre_hooks or pads_same(conv) or not outside_modes():
        return None
    affine = () if bn is None else (bn._parameters.get("weight"), bn._parameters.get("bias"))
    given = (x, weight, bias, *added)
    if not are_plain_on_cpu(given) or needs_gradient((*given, *affine)):
        return None
    if weight.shape[2:] != conv.kernel_size or x.dim() != 4:
        return None
    if isinstance(conv, Frozen):
        if not is_channels_last(x):
            return None
    elif not _is_known_faster(conv, weight, x):
        # The module's own forward would ask once more whose kernel is the fastest.
        y = conv._conv_forward(x, weight, bias)
        return follow(y, bn, activation, *added, in_place=in_place)
    folded = None, None
    if bn is not None:
        folded = bn.kept() if isinstance(bn, Foldable) and not bn._forward_pre_hooks else None
        if folded is None:
            return None
    if added and not _is_residual(added[0], conv, x):
        return None
    tensors = (x, weight, bias, *folded, added[0] if added else None)
    plan = cpu_plan(
        tensors,
        conv.stride,
        conv.padding,
        conv.dilation,
        conv.groups,
        activation or own_activation(bn),
    )
    return None if plan is None else plan.run(*tensors)


def folded_of(bn: nn.Module) -> tuple[Tensor, Tensor] | None:
    """A batch norm's scale and shift, or None where it is to be called.

    It is called if something is done before its forward: fully_shard gathers its tensors there.
    """
    return bn.fold() if isinstance(bn, Foldable) and not must_be_called(bn) else None


def must_be_called(module: nn.Module) -> bool:
    """Whether something is done before a module's forward."""
    return bool(module._forward_pre_hooks)


def traced(function, *arguments, **options) -> fx.Proxy:
    """The function as one call in torch.fx's graph: it decides by its input's shape."""
    proxy = next(a for a in arguments if isinstance(a, fx.Proxy))
    return proxy.tracer.create_proxy("call_function", function, arguments, options)


def fuses(conv, bn, x: Tensor, *added, in_place: bool = False) -> bool:
    """Whether one op stands for a convolution and what follows it, if the batch norm is folded."""
    if not is_map(x) or must_be_called(conv):
        return False
    if not has_its_kernel(conv):
        return False
    if added and not _is_residual(added[0], conv, x):
        return False
    if in_place and added[0].dtype != _dtype_of_convolution(x):
        return False  # the op returns the wider dtype of both
    cpu = x.device.type == "cpu"
    if isinstance(conv, Frozen):
        if is_left_to_inductor(conv, x):
            return False
        return cpu or owns(conv, x, False)
    affine = () if bn is None else (bn._parameters.get("weight"), bn._parameters.get("bias"))
    if not takes_no_gradient((x, *tensors_of(conv), *added, *affine)):
        return False
    return is_faster(conv, x)


def is_faster(conv: nn.Conv2d, x: Tensor) -> bool:
    """Whether one op is faster than the modules, for a map without gradient as it lies."""
    depthwise = conv.groups > 1 and may_own(conv)
    return owns(conv, x, False) if depthwise or not x.is_cpu else pays_in_evaluation(conv, x)


def _is_known_faster(conv: nn.Conv2d, weight: Tensor, x: Tensor) -> bool:
    """The answer of :func:`is_faster`, to find which takes as long as a small convolution.

    It is for eager mode without autocast and for a convolution that pads as torch's does.
    """
    key = (
        "is_faster",
        x.shape,
        x.dtype,
        x.is_contiguous(memory_format=torch.channels_last),
        weight.shape,
        conv.stride,
        conv.padding,
        conv.dilation,
        conv.groups,
        reduced_on_cpu(),
        has_onednn(),
    )
    try:
        known = CPU_PLANS.get(key)
    except TypeError:  # a list has no hash
        return is_faster(conv, x)
    if known is None:
        known = is_faster(conv, x)
        keep_plan(key, known)
    return known


def _is_residual(added, conv: nn.Conv2d, x: Tensor) -> bool:
    """Whether what is added is a map like the output, which nothing broadcasts or promotes."""
    if not isinstance(added, Tensor) or added.device != x.device:
        return False
    if added.dtype != x.dtype and not (
        torch.is_autocast_enabled(x.device.type) and added.dtype in FLOATS
    ):
        return False
    return tuple(added.shape) == (x.shape[0], conv.out_channels, *output_size(conv, x))


def _dtype_of_convolution(x: Tensor) -> torch.dtype:
    """The dtype of what a convolution makes of x; autocast leaves float64 alone."""
    lower = autocast_dtype(x)
    return x.dtype if lower is None or x.dtype == torch.float64 else lower


def bn_relu_pool(bn: nn.Module, relu, pool: nn.MaxPool2d, x: Tensor):
    """The value of ``pool(relu(bn(x)))``, by one pass where no gradient is needed."""
    if isinstance(x, fx.Proxy):
        return traced(bn_relu_pool, bn, relu, pool, x)
    folded = folded_of(bn)
    positions = pool.return_indices and not hands_on_codes(pool)
    if folded is None or positions or not takes_no_gradient((x, bn.weight, bn.bias)):
        return pool(relu(bn(x)))
    values, codes = batch_norm_relu_max_pool2d(
        x, *folded, pool.kernel_size, pool.stride, pool.padding, pool.dilation, pool.ceil_mode
    )
    return (values, codes) if pool.return_indices else values


def hands_on_codes(pool: nn.MaxPool2d) -> bool:
    """Whether a pooling's indices are byte codes."""
    return isinstance(pool, Codes) and pool.hands_on_codes()


def pool_to_codes(x: Tensor, *arguments):
    """The values of ``F.max_pool2d``, with byte codes in the place of indices."""
    if isinstance(x, fx.Proxy):
        return traced(pool_to_codes, x, *arguments)
    return max_pool2d(x, *arguments)


def unpool_codes(values: Tensor, codes: Tensor, *arguments):
    """The map that ``F.max_unpool2d`` makes, of the codes of :func:`pool_to_codes`."""
    if isinstance(values, fx.Proxy):
        return traced(unpool_codes, values, codes, *arguments)
    return max_unpool2d(values, codes, *arguments)
