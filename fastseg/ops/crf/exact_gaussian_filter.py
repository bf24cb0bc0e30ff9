"""The exact Gaussian filter over points in feature space, and the op of its gradient."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastseg import reference
from fastseg._core.library import call, define, define_triton
from fastseg._core.tensor_checks import check_device, check_float, check_tensors
from fastseg._core.vmap import in_front
from fastseg.ops.crf.exact_gaussian_blocks import DEFAULT_CUTOFF, check_blocks, check_features

ops = torch.ops.fastseg


def exact_gaussian_filter(
    values: Tensor, features: Tensor, cutoff: float = DEFAULT_CUTOFF
) -> Tensor:
    """The exact sums of all points' values, weighted by a Gaussian of their features.

    ``out_i = sum_j exp(-|f_i - f_j|^2 / 2) v_j`` over all points j, i included; not normalised. The
    exact pairwise term of a dense CRF (Kraehenbuehl and Koltun 2011, arXiv 1210.5644), which
    the permutohedral lattice approximates. Its cost grows with N^2: points are sorted into blocks
    of neighbours in feature space, and pairs of blocks that are too far apart for any weight to
    reach `cutoff` are left out. Deterministic on every device, for any number of threads.

    Args:
        values: v, (B, C, N); float32 or float64, and float16 or bfloat16, which are summed in
            float32.
        features: f, (B, d, N), of any d >= 1, divided by the standard deviations, finite; float64
            for values of float64, float32 for all others.
        cutoff: pairs whose weights are certainly below it may be left out, 0 <= cutoff < 1; 0
            sums all pairs. Default 3e-5, with which results are within 1e-5 (relative L2).

    Returns:
        (B, C, N), values' dtype, contiguous. A NaN or an infinity in the values reaches every
        point where it has a weight, and may reach points where its weight is 0.

    Raises:
        RuntimeError: wrong shapes, dtypes or cutoff; on the CPU also features that are not finite
            (on a GPU the results at such points are undefined).
        NotImplementedError: a second derivative of the features.
    """
    check_tensors("fastseg::exact_gaussian_filter", values=values, features=features)
    return call(_exact_gaussian_filter, (values, features), cutoff)


def _check(
    op: str, values: Tensor, features: Tensor, cutoff: float, blocks: Sequence[Tensor] | None
) -> None:
    check_float(op, "values", values)
    torch._check(
        values.dim() == 3,
        lambda: f"{op}: values must have the shape (B, C, N), got {tuple(values.shape)}",
    )
    check_features(op, features, cutoff)
    b, _, n = features.shape
    torch._check(
        b == values.shape[0],
        lambda: f"{op}: features must have the batch size {values.shape[0]} of values, got {b}",
    )
    torch._check(
        n == values.shape[2],
        lambda: f"{op}: features must have the {values.shape[2]} points of values, got {n}",
    )
    expected = torch.float64 if values.dtype == torch.float64 else torch.float32
    torch._check(
        features.dtype == expected,
        lambda: (
            f"{op}: features must be {expected} for values of {values.dtype}, got {features.dtype}"
        ),
    )
    check_device(op, "features", features, "values", values)
    if blocks is not None:
        check_blocks(op, features, blocks)


def _fake(values, features, cutoff=DEFAULT_CUTOFF, blocks=None):
    _check("fastseg::exact_gaussian_filter", values, features, cutoff, blocks)
    return values.new_empty(values.shape)


def _reference(values, features, cutoff=DEFAULT_CUTOFF, blocks=None):
    _check("fastseg::exact_gaussian_filter", values, features, cutoff, blocks)
    return reference.exact_gaussian_filter(values, features, cutoff)


def _triton(values, features, cutoff=DEFAULT_CUTOFF, blocks=None):
    from fastseg.kernels.crf import exact_gaussian_filter as kernels

    _check("fastseg::exact_gaussian_filter", values, features, cutoff, blocks)
    return kernels.exact_gaussian_filter(values, features, cutoff, blocks)


def _setup_context(ctx, inputs, output):
    values, features, ctx.cutoff, blocks = inputs
    ctx.has_blocks = blocks is not None
    # The values matter to the gradient of the features only.
    values = values if ctx.needs_input_grad[1] else None
    ctx.save_for_backward(values, features, *(blocks or ()))


def _backward(ctx, grad):
    values, features, *blocks = ctx.saved_tensors
    blocks = blocks if ctx.has_blocks else None
    if not ctx.needs_input_grad[1]:  # linear, and its own adjoint
        return call(_exact_gaussian_filter, (grad, features), ctx.cutoff, blocks), None
    op = ops.exact_gaussian_filter_backward.default
    return call(op, (grad, values, features), ctx.cutoff, blocks)


def _vmap(op, info, in_dims, values, features, cutoff, blocks):
    tensors, blocks, unfold = _fold(info, in_dims, (values, features), blocks)
    return unfold(op(*tensors, cutoff, blocks)), 0


define(
    "exact_gaussian_filter(Tensor values, Tensor features, float cutoff=3e-5,"
    " Tensor[]? blocks=None) -> Tensor",
    reference=_reference,
    fake=_fake,
    setup_context=_setup_context,
    backward=_backward,
    vmap=_vmap,
)
define_triton("exact_gaussian_filter", _triton)
_exact_gaussian_filter = ops.exact_gaussian_filter.default


def _check_backward(grad, values, features, cutoff, blocks):
    op = "fastseg::exact_gaussian_filter_backward"
    _check(op, values, features, cutoff, blocks)
    torch._check(
        grad.shape == values.shape and grad.dtype == values.dtype,
        lambda: (
            f"{op}: grad must have the shape {tuple(values.shape)} and dtype {values.dtype} "
            f"of values, got {tuple(grad.shape)} and {grad.dtype}"
        ),
    )


def _fake_backward(grad, values, features, cutoff, blocks=None):
    _check_backward(grad, values, features, cutoff, blocks)
    return values.new_empty(values.shape), features.new_empty(features.shape)


def _reference_backward(grad, values, features, cutoff, blocks=None):
    _check_backward(grad, values, features, cutoff, blocks)
    return reference.exact_gaussian_filter_backward(grad, values, features, cutoff)


def _triton_backward(grad, values, features, cutoff, blocks=None):
    from fastseg.kernels.crf import exact_gaussian_filter as kernels

    _check_backward(grad, values, features, cutoff, blocks)
    return kernels.exact_gaussian_filter_backward(grad, values, features, cutoff, blocks)


def _backward_backward(ctx, *grads):
    raise NotImplementedError(
        "fastseg::exact_gaussian_filter_backward: the features have no second derivative"
    )


def _vmap_backward(op, info, in_dims, grad, values, features, cutoff, blocks):
    tensors, blocks, unfold = _fold(info, in_dims, (grad, values, features), blocks)
    grads = op(*tensors, cutoff, blocks)
    return tuple(map(unfold, grads)), (0, 0)


def _fold(info, in_dims, tensors, blocks):
    """The tensors and the blocks with vmap's dimension in B, and what takes it out of an output."""

    def folded(tensors, dims):
        pairs = zip(tensors, dims, strict=True)
        return [in_front(info.batch_size, d, t).flatten(0, 1) for t, d in pairs]

    lead = in_front(info.batch_size, in_dims[0], tensors[0]).shape[:2]
    return (
        folded(tensors, in_dims[: len(tensors)]),
        None if blocks is None else folded(blocks, in_dims[-1]),
        lambda out: out.unflatten(0, lead),
    )


define(
    "exact_gaussian_filter_backward(Tensor grad, Tensor values, Tensor features, float cutoff,"
    " Tensor[]? blocks=None) -> (Tensor, Tensor)",
    reference=_reference_backward,
    fake=_fake_backward,
    backward=_backward_backward,
    vmap=_vmap_backward,
)
define_triton("exact_gaussian_filter_backward", _triton_backward)
