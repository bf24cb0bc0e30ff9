"""ASPP as torchvision, segmentation_models_pytorch and their like write it, without concatenation.

Found by what the forward does, not by its name: every branch is called with the input, all are
concatenated and projected.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from fastseg.ops import ASPPBranch, aspp
from fastseg.ops._library import gradient_free
from fastseg.optimize.chains import module_of
from fastseg.optimize.eligible import (
    activation_of,
    has_hooks,
    is_batch_norm,
    why_not_batch_norm,
    why_not_conv,
)
from fastseg.optimize.modules import Frozen, must_be_called
from fastseg.optimize.trace import NotTraceable, is_sequential, trace


class ASPPProgram:
    """An ASPP block's forward: one :func:`fastseg.aspp` where no gradient is needed.

    Args:
        branches: the names of the branches in the block.
        pool: the name of the image pooling, the last branch, or None.
        project: the name of the projection.
    """

    arguments = 1

    def __init__(self, branches: tuple[str, ...], pool: str | None, project: str):
        self.branches, self.pool, self.project = branches, pool, project

    def __call__(self, module: nn.Module, x: Tensor) -> Tensor:
        """(N, Co, H, W) of x (N, Ci, H, W)."""
        # With stand-ins for tensors which of the two runs is not known.
        if isinstance(x, fx.Proxy) or _must_call(module):
            return module._base.forward(module, x)
        convs = [_parts(module.get_submodule(name)) for name in self.branches]
        pool = None if self.pool is None else _parts(module.get_submodule(self.pool))[1:]
        project, after = _split(_parts(module.get_submodule(self.project)))
        branches = [_branch(parts) for parts in (*convs, *([pool] if pool else []), project)]
        tensors = [x, *(t for b in branches if b is not None for t in _tensors(b))]
        if any(b is None for b in branches) or x.dim() != 4 or not (
            isinstance(project[0], Frozen) or gradient_free(tensors)
        ):  # fmt: skip
            return module._base.forward(module, x)
        *branches, projection = branches
        pooling = branches.pop() if pool else None
        if isinstance(project[0], Frozen) and x.device.type == "cpu":
            x = x.contiguous(memory_format=torch.channels_last)
        y = aspp(x, branches, projection, pool=pooling)
        for dropout in after:
            y = dropout(y)
        return y


def _must_call(module: nn.Module) -> bool:
    """Whether a module inside has to be called, its tensors are not to be taken from it."""
    return any(must_be_called(m) or _must_call(m) for m in module.children())


def _tensors(branch: ASPPBranch) -> list[Tensor]:
    return [t for t in branch if isinstance(t, Tensor)]


def _parts(module: nn.Module) -> list[nn.Module]:
    """The modules that run one after the other."""
    if isinstance(module, nn.Sequential):
        return [part for child in module for part in _parts(child)]
    return [module]


def _split(parts: list[nn.Module]) -> tuple[list[nn.Module], list[nn.Module]]:
    """Convolution, batch norm and ReLU, and the dropouts after them."""
    return parts[:3], parts[3:]


def _branch(parts: list[nn.Module]) -> ASPPBranch | None:
    *convs, bn, _ = parts
    folded = bn.fold()
    if folded is None:
        return None
    scale, shift = folded
    *depthwise, conv = convs
    if conv.bias is not None:
        shift = shift + conv.bias * scale
    rate = (depthwise or convs)[0].dilation[0]
    weight = depthwise[0].weight if depthwise else None
    return ASPPBranch(conv.weight, scale, shift, rate, weight)


def find_aspp(module: nn.Module) -> ASPPProgram | None:
    """The program of a block that is an ASPP."""
    atrous = (m for m in module.modules() if isinstance(m, nn.Conv2d) and m.dilation[0] > 1)
    if is_sequential(module) or next(atrous, None) is None:
        return None
    try:
        graph = trace(module, lambda m: False)
    except NotTraceable:
        return None
    nodes = list(graph.nodes)
    cats = [n for n in nodes if n.target is torch.cat]
    calls = [n for n in nodes if n.op == "call_module"]
    if len(cats) != 1 or len(nodes) != len(calls) + 3:  # and the placeholder and the output
        return None
    (cat,), x, output = cats, nodes[0], nodes[-1]
    *branches, project = calls
    dim = cat.args[1] if len(cat.args) > 1 else cat.kwargs.get("dim")
    if list(cat.args[0]) != branches or dim != 1 or len(branches) < 3:
        return None
    if any(b.args != (x,) for b in branches) or project.args != (cat,):
        return None
    if output.args[0] is not project or not _is_projection(module_of(module, project)):
        return None
    *maps, last = branches
    pool = last if _is_image_pooling(module_of(module, last)) else None
    maps = maps if pool else branches
    if not all(_is_branch(module_of(module, b)) for b in maps):
        return None
    names = tuple(b.target for b in maps)
    return ASPPProgram(names, pool.target if pool else None, project.target)


def _is_conv_bn_relu(parts: list[nn.Module]) -> bool:
    *convs, bn, relu = parts
    return (
        all(isinstance(c, nn.Conv2d) and why_not_conv(c) is None for c in convs)
        and is_batch_norm(bn)
        and type(bn) is nn.BatchNorm2d
        and why_not_batch_norm(bn) is None
        and activation_of(relu) == "relu"
        and all(_keeps_size(c) for c in convs)
    )


def _keeps_size(conv: nn.Conv2d) -> bool:
    same = [d * (k // 2) for d, k in zip(conv.dilation, conv.kernel_size, strict=True)]
    square = conv.dilation[0] == conv.dilation[1]
    return square and conv.stride == (1, 1) and conv.padding in ("same", tuple(same))


def _is_branch(module: nn.Module) -> bool:
    parts = _parts(module) if _only_sequential(module) else []
    if len(parts) not in (3, 4) or not _is_conv_bn_relu(parts):
        return False
    if len(parts) == 3:
        return parts[0].groups == 1
    depthwise, pointwise = parts[:2]
    return (
        depthwise.groups == depthwise.in_channels == depthwise.out_channels
        and depthwise.bias is None
        and pointwise.kernel_size == (1, 1)
        and pointwise.groups == 1
    )


def _is_projection(module: nn.Module) -> bool:
    parts = _parts(module) if _only_sequential(module) else []
    if len(parts) < 3 or not _is_conv_bn_relu(parts[:3]):
        return False
    dropouts = all(type(m) in (nn.Dropout, nn.Dropout2d, nn.Identity) for m in parts[3:])
    return dropouts and parts[0].kernel_size == (1, 1) and parts[0].groups == 1


def _only_sequential(module: nn.Module) -> bool:
    """Nothing happens but the leaves, one after the other."""
    return all(
        is_sequential(m) and not has_hooks(m)
        for m in module.modules()
        if isinstance(m, nn.Sequential)
    )


def _is_image_pooling(module: nn.Module) -> bool:
    """Its forward averages, convolves and interpolates what is one pixel to the map's size."""
    if not isinstance(module, nn.Sequential) or is_sequential(module) or len(module) != 4:
        return False
    average, *parts = module
    if not isinstance(average, nn.AdaptiveAvgPool2d) or average.output_size not in (1, (1, 1)):
        return False
    if has_hooks(module) or has_hooks(average):
        return False
    if not _is_conv_bn_relu(parts) or parts[0].kernel_size != (1, 1) or parts[0].groups != 1:
        return False
    try:
        graph = trace(module, lambda m: False)
    except NotTraceable:
        return False
    calls = [n for n in graph.nodes if n.op == "call_module"]
    output = list(graph.nodes)[-1].args[0]
    in_order = [module_of(module, n) for n in calls] == list(module)
    return in_order and isinstance(output, fx.Node) and output.target is F.interpolate
