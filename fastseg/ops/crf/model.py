"""A dense CRF ready to iterate: its kernels built, its normalisations computed.

One class for all that is done step by step: the update, its gradient, the divergence. The tensors
of a step are label volumes (B, L, *spatial), contiguous.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastseg._core.pairwise import NORMALIZATIONS
from fastseg.ops.crf.gaussians import Kernel, fixed_order_sum, make_kernel

TINY = 1e-20  # pydensecrf's, added to K 1
MATRIX_CHUNK = 4096


class PairwiseTerm:
    """One term of the energy: its message F = n K (n Q), weighed by the compatibility.

    Args:
        kernel: K.
        compatibility: (), (L,) or (L, L).
        normalization: the position in NORMALIZATIONS.
        unary: (B, L, *spatial), for its shape, dtype and device.
    """

    def __init__(self, kernel: Kernel, compatibility: Tensor, normalization: int, unary: Tensor):
        self.kernel, self.compatibility = kernel, compatibility
        self.normalization = NORMALIZATIONS[normalization]
        self.ones = unary.new_ones((kernel.batch, 1, *unary.shape[2:]))
        self.before = self.after = None
        total = self.ones if self.normalization == "none" else kernel.apply(self.ones)
        if self.normalization == "symmetric":
            self.before = self.after = torch.rsqrt(total + TINY)
        elif self.normalization == "before":
            self.before = 1 / (total + TINY)
        elif self.normalization == "after":
            self.after = 1 / (total + TINY)
        self.grad_before = self.grad_after = torch.zeros_like(total, requires_grad=False)
        self.grad_compatibility = torch.zeros_like(compatibility, requires_grad=False)

    def filter(self, q: Tensor) -> Tensor:
        """F = n K (n Q)."""
        return _times(self.after, self.kernel.apply(_times(self.before, q)))

    def logits(self, filtered: Tensor) -> Tensor:
        """What F adds to the logits."""
        mu = self.compatibility
        if mu.dim() == 0:
            return mu * filtered
        if mu.dim() == 1:
            return -_per_label(mu, filtered) * filtered
        return -(mu @ filtered.flatten(2)).view(filtered.shape)

    def backward(self, grad: Tensor, q: Tensor, needs_kernel: bool, needs_mu: bool) -> Tensor:
        """The gradient of Q for the gradient of the logits; adds to those of the parameters."""
        mu = self.compatibility
        if mu.dim() == 0:
            grad_filtered = mu * grad
        elif mu.dim() == 1:
            grad_filtered = -_per_label(mu, grad) * grad
        else:
            grad_filtered = -(mu.mT @ grad.flatten(2)).view(grad.shape)
        v, g = _times(self.before, q), _times(self.after, grad_filtered)
        if needs_mu or (needs_kernel and self.after is not None):
            kernel_v = self.kernel.apply(v)
            if needs_mu:
                self._add_to_grad_compatibility(grad, _times(self.after, kernel_v))
            if needs_kernel and self.after is not None:
                self.grad_after = self.grad_after + self._per_point(grad_filtered * kernel_v)
        if not needs_kernel:
            return _times(self.before, self.kernel.adjoint(g))
        grad_v = self.kernel.backward(g, v)
        if self.before is not None:
            self.grad_before = self.grad_before + self._per_point(grad_v * q)
        return _times(self.before, grad_v)

    def kernel_gradient(self) -> Tensor:
        """The gradient of the kernel's parameter, the normalisation's part included."""
        if self.normalization == "symmetric":
            grad_total = -0.5 * (self.grad_before + self.grad_after) * self.after**3
        elif self.normalization == "before":
            grad_total = -self.grad_before * self.before.square()
        elif self.normalization == "after":
            grad_total = -self.grad_after * self.after.square()
        else:
            return self.kernel.parameter_gradient()
        self.kernel.backward(grad_total.contiguous(), self.ones)
        return self.kernel.parameter_gradient()

    def _add_to_grad_compatibility(self, grad: Tensor, filtered: Tensor) -> None:
        dim = self.compatibility.dim()
        if dim == 0:
            self.grad_compatibility += fixed_order_sum(grad * filtered)
        elif dim == 1:
            self.grad_compatibility -= fixed_order_sum(grad * filtered, keep=1)
        else:  # in chunks of points: a product of long rows is split among threads
            pairs = zip(
                grad.flatten(2).split(MATRIX_CHUNK, 2),
                filtered.flatten(2).split(MATRIX_CHUNK, 2),
                strict=True,
            )
            for a, b in pairs:
                self.grad_compatibility -= (a @ b.mT).sum(0)

    def _per_point(self, product: Tensor) -> Tensor:
        """The sum over labels, and over images that share the kernel: (kernel.batch, 1, ...)."""
        out = product.sum(1, keepdim=True)
        return out.sum(0, keepdim=True) if self.kernel.batch == 1 else out


class DenseCRFModel:
    """The terms of an energy, and one update of its mean field.

    Krähenbühl and Koltun, 2011: Q <- softmax(-U - sum_m mu_m (n_m K_m (n_m Q))). Built by
    differentiable ops, so that autograd can see through; `backward` needs none of it.

    Args:
        unary: (B, L, *spatial), contiguous, float32 or float64; not kept.
        kernels: of each term, bandwidths (axes,) or features (B or 1, d, *spatial).
        compatibility: of each term, (), (L,) or (L, L).
        normalization: of each term, the position in NORMALIZATIONS.
        quality: the position in QUALITIES.

    Attributes:
        unary_logits: -U.
        terms: in the order of the kernels.
    """

    def __init__(
        self,
        unary: Tensor,
        kernels: Sequence[Tensor],
        compatibility: Sequence[Tensor],
        normalization: Sequence[int],
        quality: int,
    ):
        self.unary_logits = -unary
        self.terms = [
            PairwiseTerm(make_kernel(kernel, unary.shape[2:], quality), mu, n, unary)
            for kernel, mu, n in zip(kernels, compatibility, normalization, strict=True)
        ]

    def start(self) -> Tensor:
        """Q before the first update, softmax(-U)."""
        return torch.softmax(self.unary_logits, 1)

    def logits(self, q: Tensor) -> Tensor:
        """What the softmax of an update is taken of, Q being what it begins with."""
        logits = self.unary_logits
        for term in self.terms:
            logits = logits + term.logits(term.filter(q))
        return logits

    def step(self, q: Tensor) -> Tensor:
        """Q after one update."""
        return torch.softmax(self.logits(q), 1)

    def step_backward(
        self, grad_logits: Tensor, q: Tensor, needs: Sequence[tuple[bool, bool]]
    ) -> Tensor:
        """The gradient of the Q that an update began with.

        Args:
            grad_logits: the gradient of what the update's softmax was taken of.
            q: what it began with.
            needs: for each term, whether the gradients of kernel and compatibility are wanted.
        """
        return sum(
            term.backward(grad_logits, q, *wanted)
            for term, wanted in zip(self.terms, needs, strict=True)
        )

    def kl_divergence(self, q: Tensor, logits: Tensor) -> Tensor:
        """Sum Q log Q + sum U Q + sum_m <Q, mu_m F_m> of each image, (B,); Q is of these logits."""
        # An infinite energy times a probability of 0 is 0.
        terms = torch.where(q > 0, torch.log_softmax(logits, 1) - self.unary_logits, 0)
        for term in self.terms:
            terms = terms - term.logits(term.filter(q))
        return fixed_order_sum((q * terms).double(), keep=0)


def softmax_backward(grad: Tensor, q: Tensor) -> Tensor:
    """The gradient of the logits of Q = softmax(logits) over dimension 1."""
    return q * (grad - (grad * q).sum(1, keepdim=True))


def log_softmax_backward(grad: Tensor, log_q: Tensor) -> Tensor:
    """The gradient of the logits of log Q, which does not vanish where Q does."""
    return grad - log_q.exp() * grad.sum(1, keepdim=True)


def _times(n: Tensor | None, values: Tensor) -> Tensor:
    return values if n is None else n * values


def _per_label(mu: Tensor, like: Tensor) -> Tensor:
    return mu.view(-1, *(1,) * (like.dim() - 2))
