"""Gaussian filtering on a permutohedral lattice, and its gradient."""

from __future__ import annotations

import torch
from torch import Tensor

from fastseg import reference
from fastseg._core.library import call, define
from fastseg._core.permutohedral import PermutohedralTensors
from fastseg._core.tensor_checks import check_float32_or_64, check_tensors
from fastseg._core.vmap import by_slices

ops = torch.ops.fastseg


def permutohedral_filter(
    values: Tensor,
    lattice: PermutohedralTensors,
    *,
    passes: int = 1,
    symmetric: bool = False,
    reverse: bool = False,
    gain: float = 1.0,
    side: float = 0.5,
) -> Tensor:
    """The sums of values weighted by a Gaussian of distances: splat onto a lattice, blur, slice.

    Each pass of the blur goes along the d + 1 axes in turn: ``row += side * (back + forward)``.
    Deterministic, for any number of threads. The filter with ``reverse`` flipped is the transpose.

    Args:
        values: (B, C, N), float32 or float64.
        lattice: the lattice of B images of N points, of the values' dtype.
        passes: the number of blurs along each axis.
        symmetric: whether to take the mean of both orders of axes, whose matrix is symmetric.
        reverse: whether the axes go from last to first.
        gain: the factor of the result; 1 / (1 + 2^-d) in Kraehenbuehl & Koltun's program.
        side: the weight of a neighbour in the blur; 1/2 in their program.

    Returns:
        (B, C, N), contiguous; differentiable in values and in the lattice's barycentric weights,
        and twice in values alone.

    Raises:
        RuntimeError: shapes, dtypes or devices that do not belong together.

    Adams, Baek & Davis, "Fast High-Dimensional Filtering Using the Permutohedral Lattice", 2010.
    """
    check_tensors("fastseg::permutohedral_filter", values=values, **lattice._asdict())
    tensors = (values, *lattice[:7])
    return call(_permutohedral_filter, tensors, passes, symmetric, reverse, gain, side)


def _check(op, values, slots, barycentric):
    """Raises RuntimeError for values that do not fit the lattice's slots and weights."""
    check_float32_or_64(op, "values", values)
    torch._check(
        values.dim() == 3,
        lambda: f"{op}: values must have the shape (B, C, N), got {tuple(values.shape)}",
    )
    b, n = slots.shape[:2]
    torch._check(
        values.shape[0] == b and values.shape[2] == n,
        lambda: f"{op}: values must have shape ({b}, C, {n}), got {tuple(values.shape)}",
    )
    torch._check(
        values.dtype == barycentric.dtype,
        lambda: f"{op}: values must be {barycentric.dtype} as barycentric is, got {values.dtype}",
    )


def _fake(
    values,
    slots,
    barycentric,
    tile_starts,
    tile_vertices,
    vertex_rows,
    vertex_starts,
    neighbors,
    passes=1,
    symmetric=False,
    reverse=False,
    gain=1.0,
    side=0.5,
):
    _check("fastseg::permutohedral_filter", values, slots, barycentric)
    return values.new_empty(values.shape)


def _reference(values, slots, barycentric, *others):
    _check("fastseg::permutohedral_filter", values, slots, barycentric)
    return reference.permutohedral_filter(values, slots, barycentric, *others)


def _setup_context(ctx, inputs, output):
    values, *lattice, passes, symmetric, reverse, gain, side = inputs
    ctx.options = passes, symmetric, reverse, gain, side
    needs_values = ctx.needs_input_grad[2]  # for the gradient of barycentric
    ctx.save_for_backward(*lattice, *([values] if needs_values else []))


def _backward(ctx, grad):
    passes, symmetric, reverse, gain, side = ctx.options
    lattice, values = ctx.saved_tensors[:7], ctx.saved_tensors[7:]
    if values:
        op = ops.permutohedral_filter_backward.default
        out = call(op, (grad, *values, *lattice), *ctx.options)
        return out[0], None, out[1], *[None] * 5
    tensors = (grad, *lattice)
    out = call(_permutohedral_filter, tensors, passes, symmetric, not reverse, gain, side)
    return out, *[None] * 7


def _vmap(op, info, in_dims, values, *others):
    """The rule of values alone: vmap's dimension becomes part of C, all channels being alike."""
    if any(d is not None for d in in_dims[1:]):
        return by_slices(op, info, in_dims, values, *others)
    front = values.movedim(in_dims[0], 1)  # (B, vmap's, C, N)
    return op(front.flatten(1, 2), *others).unflatten(1, front.shape[1:3]), 1


_LATTICE = (
    "Tensor slots, Tensor barycentric, Tensor tile_starts, Tensor tile_vertices,"
    " Tensor vertex_rows, Tensor vertex_starts, Tensor neighbors, int passes=1,"
    " bool symmetric=False, bool reverse=False, float gain=1.0,"
    " float side=0.5"
)
define(
    f"permutohedral_filter(Tensor values, {_LATTICE}) -> Tensor",
    reference=_reference,
    fake=_fake,
    setup_context=_setup_context,
    backward=_backward,
    vmap=_vmap,
)
_permutohedral_filter = ops.permutohedral_filter.default


def _fake_backward(grad, values, slots, barycentric, *args):
    return grad.new_empty(grad.shape), barycentric.new_empty(barycentric.shape)


def _refuse(ctx, *grads):
    raise NotImplementedError(
        "permutohedral_filter: the gradient of the lattice's weights has no gradient of its own; "
        "detach the features, or ask for first derivatives alone"
    )


define(
    f"permutohedral_filter_backward(Tensor grad, Tensor values, {_LATTICE}) -> (Tensor, Tensor)",
    reference=reference.permutohedral_filter_backward,
    fake=_fake_backward,
    backward=_refuse,
)
