"""The fused mean field of a dense CRF on permutohedral lattices."""

from __future__ import annotations

import torch

from fastseg import reference
from fastseg._core.library import define
from fastseg.ops.crf.checks import check_terms
from fastseg.ops.crf.vmap import by_images

OP = "fastseg::lattice_mean_field"


def _fake(
    unary,
    kernels,
    compatibility,
    normalization,
    iterations,
    quality,
    refine=1.0,
    dilation=0,
    passes=1,
    symmetric=False,
    side=0.5,
    log=False,
):
    torch._check(
        3 <= unary.dim() <= 5,
        lambda: (
            f"{OP}: unary must be (B, L, *spatial) of one to three axes, got shape "
            f"{tuple(unary.shape)}"
        ),
    )
    torch._check(
        unary.dtype == torch.float32, lambda: f"{OP}: unary must be float32, got {unary.dtype}"
    )
    check_terms(OP, unary, kernels, compatibility, normalization)
    layout = torch._prims_common.suggest_memory_format(unary)
    return torch.empty_like(unary, memory_format=torch.contiguous_format if log else layout)


def _refuse(ctx, grad):
    raise NotImplementedError(
        "lattice_mean_field has no gradient of its own: fastseg.dense_crf and "
        "torch.ops.fastseg.mean_field have"
    )


# Q <- softmax(-U - sum_m mu_m (n_m K_m (n_m Q))), from softmax(-U).
#
# unary: (B, L, *spatial) energies, float32, any strides; +infinity rules a label out.
# kernels: of each term the Gaussian: bandwidths (axes,) in pixels in the order of the axes, or
#   features (B or 1, d, *spatial) in units of their bandwidths; float32.
# compatibility: of each term, () w for logits += w F, (L,) or (L, L) mu for logits -= mu F.
# normalization: of each term, 0 none, 1 before, 2 after, 3 symmetric.
# quality: 0 "compat": Gaussians of positions are on a lattice, as in pydensecrf; 1 "high": they are
#   exact separable convolutions.
# refine, dilation, passes, symmetric, side: of the lattices, see permutohedral_lattice and
#   permutohedral_filter.
# log: returns log Q instead, contiguous, -infinity where a label is ruled out.
# Q is float32, of unary's shape and memory format. Deterministic for any number of threads.
#
# Kraehenbuehl and Koltun, "Efficient Inference in Fully Connected CRFs with Gaussian Edge
# Potentials", NIPS 2011.
lattice_mean_field = define(
    "lattice_mean_field(Tensor unary, Tensor[] kernels, Tensor[] compatibility,"
    " int[] normalization, int iterations, int quality, float refine=1.0, int dilation=0,"
    " int passes=1, bool symmetric=False, float side=0.5, bool log=False) -> Tensor",
    reference=reference.lattice_mean_field,
    fake=_fake,
    backward=_refuse,
    vmap=by_images,
)
