"""The exact Gaussian filter of the pixel grid, and its gradients."""

from __future__ import annotations

import torch
from torch import Tensor

from fastseg import reference
from fastseg._core.library import call, define
from fastseg._core.tensor_checks import check_device, check_float32_or_64, check_tensors
from fastseg._core.vmap import in_front

ops = torch.ops.fastseg


def spatial_gaussian_filter(values: Tensor, sigma: Tensor, derivative: int = -1) -> Tensor:
    """The exact sums of every pixel's neighbours, weighted by a Gaussian of their distance.

    ``out_i = sum_j exp(-1/2 sum_a ((x_i - x_j)_a / sigma_a)^2) values_j`` over all pixels j of the
    image, outside of which are zeros: one convolution along each axis, not normalised. Taps below
    eight epsilons of the dtype (5.3 sigma in float32) are left out. The filter is its own
    transpose. Deterministic, for any number of threads.

    Args:
        values: (B, C, W), (B, C, H, W) or (B, C, D, H, W), float32 or float64.
        sigma: bandwidths in pixels, positive, one for each spatial axis in order; float32 or
            float64, on the values' device.
        derivative: -1, or the spatial axis by whose bandwidth the filter is differentiated.

    Returns:
        The sums, of the values' shape and dtype, contiguous (4-D values that are channels_last keep
        that); differentiable in values any number of times, and once in sigma.

    Raises:
        RuntimeError: other shapes or dtypes, bandwidths that are not positive and finite (on a GPU
            a device-side assert that names the op).
    """
    check_tensors("fastseg::spatial_gaussian_filter", values=values, sigma=sigma)
    return call(_spatial_gaussian_filter, (values, sigma), derivative)


def _channels_last(x: Tensor) -> bool:
    return (
        x.dim() == 4
        and not x.is_contiguous()
        and x.is_contiguous(memory_format=torch.channels_last)
    )


def _fake(values, sigma, derivative=-1):
    op = "fastseg::spatial_gaussian_filter"
    for name, x in (("values", values), ("sigma", sigma)):
        check_float32_or_64(op, name, x)
    axes = values.dim() - 2
    torch._check(
        1 <= axes <= 3,
        lambda: (
            f"{op}: values must have shape (B, C, W), (B, C, H, W) or (B, C, D, H, W), "
            f"got {tuple(values.shape)}"
        ),
    )
    torch._check(
        sigma.dim() == 1 and sigma.shape[0] == axes,
        lambda: f"{op}: sigma must have shape ({axes},), got {tuple(sigma.shape)}",
    )
    check_device(op, "sigma", sigma, "values", values)
    torch._check(
        -1 <= derivative < axes,
        lambda: f"{op}: derivative must be -1 or one of {axes} axes, got {derivative}",
    )
    layout = torch.channels_last if _channels_last(values) else torch.contiguous_format
    return torch.empty_like(values, memory_format=layout)


def _reference(values, sigma, derivative=-1):
    out = _fake(values, sigma, derivative)
    return out.copy_(reference.spatial_gaussian_filter(values, sigma, derivative))


def _setup_context(ctx, inputs, output):
    values, sigma, ctx.derivative = inputs
    ctx.save_for_backward(sigma, *([values] if ctx.needs_input_grad[1] else []))


def _backward(ctx, grad):
    sigma, *values = ctx.saved_tensors
    of_values = of_sigma = None
    if ctx.needs_input_grad[0]:
        of_values = call(_spatial_gaussian_filter, (grad, sigma), ctx.derivative)
    if ctx.needs_input_grad[1]:
        if ctx.derivative >= 0:
            raise NotImplementedError(
                "fastseg::spatial_gaussian_filter: there is no second derivative by sigma"
            )
        tensors = (values[0], sigma)
        of_sigma = torch.stack(
            [
                (grad * call(_spatial_gaussian_filter, tensors, axis)).sum().to(sigma)
                for axis in range(len(sigma))
            ]
        )
    return of_values, of_sigma


def _vmap(op, info, in_dims, values, sigma, derivative=-1):
    values = in_front(info.batch_size, in_dims[0], values)
    if in_dims[1] is None:
        out = op(values.flatten(0, 1), sigma, derivative)
        return out.unflatten(0, values.shape[:2]), 0
    pairs = zip(values, sigma.movedim(in_dims[1], 0), strict=True)
    return torch.stack([op(v, s, derivative) for v, s in pairs]), 0


define(
    "spatial_gaussian_filter(Tensor values, Tensor sigma, int derivative=-1) -> Tensor",
    reference=_reference,
    fake=_fake,
    setup_context=_setup_context,
    backward=_backward,
    vmap=_vmap,
)
_spatial_gaussian_filter = ops.spatial_gaussian_filter.default
