"""The call that an ASPP becomes in its block's graph: one op, or the modules one by one."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch._C import _get_tracing_state

from fastseg._core.plain_tensors import gradient_free
from fastseg.ops import ASPPBranch, aspp
from fastseg.optimize.blocks.calls import conv_bn_act, folded_of, must_be_called, traced
from fastseg.optimize.blocks.convolve import in_channels_last
from fastseg.optimize.blocks.modules import Frozen
from fastseg.optimize.classify.eligible import own_activation


class Branch(NamedTuple):
    """A branch, the image pooling or the projection: its module, and what is in it.

    In a graph its modules are the nodes that get them.

    Attributes:
        module: the module, or None where the block itself calls conv, bn and the activation.
        conv: the convolution of one group.
        bn: the batch norm of conv, or None.
        depthwise: the depthwise convolution before conv, or None.
        depthwise_bn: the batch norm of the depthwise convolution, or None.
        depthwise_activation: the op's name for the activation between the two, or "".
        dropouts: the dropouts after all of these.
    """

    module: nn.Module | None
    conv: nn.Conv2d
    bn: nn.Module | None
    depthwise: nn.Conv2d | None = None
    depthwise_bn: nn.Module | None = None
    depthwise_activation: str = ""
    dropouts: tuple[nn.Module, ...] = ()

    def folded(self) -> ASPPBranch | None:
        """Its tensors for :func:`fastseg.aspp`, or None where a batch norm is to run on its own."""
        affine = _affine(self.conv, self.bn)
        if self.depthwise is None:
            return None if affine is None else ASPPBranch(self.conv.weight, *affine, self.rate)
        depthwise = _affine(self.depthwise, self.depthwise_bn)
        if affine is None or depthwise is None:
            return None
        return ASPPBranch(
            self.conv.weight, *affine, self.rate,
            self.depthwise.weight, *depthwise, self.depthwise_activation or None,
        )  # fmt: skip

    @property
    def rate(self) -> int:
        """The dilation of its convolution, the depthwise one if it has one."""
        return (self.depthwise or self.conv).dilation[0]

    def must_be_called(self) -> bool:
        """Whether its modules must be called, and tensors not taken from them."""
        modules = (self.conv, self.bn) if self.module is None else (self.module,)
        return any(m is not None and _must_be_called(m) for m in modules)


def _must_be_called(module: nn.Module) -> bool:
    return must_be_called(module) or any(map(_must_be_called, module.children()))


def _affine(conv: nn.Conv2d, bn: nn.Module | None) -> tuple[Tensor | None, Tensor | None] | None:
    """Scale and shift, which contains the convolution's bias, or None: the batch norm must run."""
    if bn is None:
        return None, conv.bias
    folded = folded_of(bn)
    if folded is None or conv.bias is None:
        return folded
    scale, shift = folded
    return scale, shift + conv.bias * scale


class Form(NamedTuple):
    """How a block writes its ASPP.

    Attributes:
        activation: the op's name for the activation of all its parts, or "".
        pool_first: whether the image pooling is concatenated before the maps.
        interpolation: the mode if it is the block that interpolates what is pooled, else "".
    """

    activation: str
    pool_first: bool
    interpolation: str = ""


def aspp_call(
    x: Tensor, branches: tuple[Branch, ...], pool: Branch | None, project: Branch, form: Form
) -> Tensor:
    """The ASPP (N, Co, H, W) of x (N, Ci, H, W), by one op where no gradient is needed."""
    if isinstance(x, fx.Proxy):
        return traced(aspp_call, x, branches, pool, project, form)
    parts = (*branches, project) if pool is None else (*branches, pool, project)
    by_module = _get_tracing_state() is not None or any(part.must_be_called() for part in parts)
    folded = [None] if by_module else [part.folded() for part in parts]
    if x.dim() != 4 or any(b is None for b in folded) or not (
        isinstance(project.conv, Frozen)
        or gradient_free([x, *(t for b in folded for t in b if isinstance(t, Tensor))])
    ):  # fmt: skip
        return _by_module(x, branches, pool, project, form)
    *maps, projection = folded
    pooling = None if pool is None else maps.pop()
    if isinstance(project.conv, Frozen):
        x = in_channels_last(x)
    y = aspp(
        x, maps, projection, pool=pooling, pool_first=form.pool_first,
        activation=form.activation or None,
    )  # fmt: skip
    for dropout in project.dropouts:
        y = dropout(y)
    return y


def _by_module(x, branches, pool, project, form: Form) -> Tensor:
    maps = [branch.module(x) for branch in branches]
    if pool is not None:
        pooled = pool.module(x)
        if form.interpolation:  # every mode gives one pixel's value to all pixels
            pooled = F.interpolate(pooled, x.shape[2:], mode=form.interpolation)
        maps.insert(0 if form.pool_first else len(maps), pooled)
    y = torch.cat(maps, 1)
    if project.module is not None:
        return project.module(y)
    activation = "" if own_activation(project.bn) else form.activation
    return conv_bn_act(project.conv, project.bn, activation, y)
