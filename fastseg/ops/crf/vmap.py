"""Mean fields under torch.vmap: the images of all slices become one batch."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from fastseg._core.vmap import by_slices, in_front


def by_images(op, info, in_dims, unary: Tensor, kernels, compatibility, *others):
    """The rule of ops that take a unary (B, L, *spatial), kernels and compatibilities.

    An op has one set of bandwidths and of compatibilities: where slices have their own, each is a
    call.
    """
    of_unary, of_kernels, of_compatibility = in_dims[:3]
    bandwidths = [d is not None and k.dim() == 2 for k, d in zip(kernels, of_kernels, strict=True)]
    if any(bandwidths) or any(d is not None for d in of_compatibility):
        return by_slices(op, info, in_dims, unary, kernels, compatibility, *others)
    unary = in_front(info.batch_size, of_unary, unary)
    slices, batch = unary.shape[:2]
    kernels = [_of_images(k, d, slices, batch) for k, d in zip(kernels, of_kernels, strict=True)]
    out = op(unary.flatten(0, 1), kernels, compatibility, *others)
    return out.unflatten(0, (slices, batch)), 0


def _of_images(kernel: Tensor, dim: int | None, slices: int, batch: int) -> Tensor:
    """Features of every image of every slice; what serves all of them as it is."""
    if dim is None and (kernel.dim() == 1 or kernel.shape[0] == 1):
        return kernel
    front = in_front(slices, dim, kernel)
    sizes: Sequence[int] = (slices, batch, *front.shape[2:])
    return front.expand(sizes).flatten(0, 1)
