"""A dense CRF ready to iterate: its filters built, its normalisations computed.

One class has all that is done step by step: the update, its gradient, the divergence. The tensors
of a step are label volumes (B, L, *spatial), contiguous.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastseg._core.mean_field_terms import Term
from fastseg.ops.crf.filters import Filter, fixed_order_sum, make_filter

TINY = 1e-20
"""The number that is added to K 1 before it divides: pydensecrf's."""

MATRIX_CHUNK = 4096
"""The number of points whose products of labels are summed at once."""


class Message:
    """What one term of the energy tells the pixels: F = n K (n Q), weighed by the compatibility.

    Args:
        term: the term.
        gaussian_filter: the filter K by the term's Gaussian.
        unary: (B, L, *spatial), for its shape, dtype and device.
    """

    def __init__(self, term: Term, gaussian_filter: Filter, unary: Tensor):
        self.gaussian_filter = gaussian_filter
        _, self.compatibility, self.normalization = term
        self.ones = unary.new_ones((gaussian_filter.batch, 1, *unary.shape[2:]))
        self.before = self.after = None
        total = self.ones if self.normalization == "none" else gaussian_filter.apply(self.ones)
        if self.normalization == "symmetric":
            self.before = self.after = torch.rsqrt(total + TINY)
        elif self.normalization == "before":
            self.before = 1 / (total + TINY)
        elif self.normalization == "after":
            self.after = 1 / (total + TINY)
        self.grad_before = self.grad_after = torch.zeros_like(total, requires_grad=False)
        self.grad_compatibility = torch.zeros_like(self.compatibility, requires_grad=False)

    def filter(self, q: Tensor) -> Tensor:
        """The filter's response F = n K (n Q)."""
        return _times(self.after, self.gaussian_filter.apply(_times(self.before, q)))

    def logits(self, filtered: Tensor) -> Tensor:
        """The part of the logits that F = `filtered` makes: -mu F."""
        mu = self.compatibility
        if mu.dim() == 0:
            return mu * filtered
        if mu.dim() == 1:
            return -_per_label(mu, filtered) * filtered
        return -(mu @ filtered.flatten(2)).view(filtered.shape)

    def backward(self, grad: Tensor, q: Tensor, needs_gaussian: bool, needs_mu: bool) -> Tensor:
        """The gradient of Q for the gradient of the logits; those of the term are added up."""
        mu = self.compatibility
        if mu.dim() == 0:
            grad_filtered = mu * grad
        elif mu.dim() == 1:
            grad_filtered = -_per_label(mu, grad) * grad
        else:
            grad_filtered = -(mu.mT @ grad.flatten(2)).view(grad.shape)
        v, g = _times(self.before, q), _times(self.after, grad_filtered)
        if needs_mu or (needs_gaussian and self.after is not None):
            filtered_v = self.gaussian_filter.apply(v)
            if needs_mu:
                self._add_to_grad_compatibility(grad, _times(self.after, filtered_v))
            if needs_gaussian and self.after is not None:
                self.grad_after = self.grad_after + self._per_point(grad_filtered * filtered_v)
        if not needs_gaussian:
            return _times(self.before, self.gaussian_filter.adjoint(g))
        grad_v = self.gaussian_filter.backward(g, v)
        if self.before is not None:
            self.grad_before = self.grad_before + self._per_point(grad_v * q)
        return _times(self.before, grad_v)

    def gaussian_gradient(self) -> Tensor:
        """The gradient of the Gaussian's tensor, the normalisation's part included."""
        if self.normalization == "symmetric":
            grad_total = -0.5 * (self.grad_before + self.grad_after) * self.after**3
        elif self.normalization == "before":
            grad_total = -self.grad_before * self.before.square()
        elif self.normalization == "after":
            grad_total = -self.grad_after * self.after.square()
        else:
            return self.gaussian_filter.gaussian_gradient()
        self.gaussian_filter.backward(grad_total.contiguous(), self.ones)
        return self.gaussian_filter.gaussian_gradient()

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
        """The sum over labels, and over images that share the filter: (B or 1, 1, *spatial)."""
        out = product.sum(1, keepdim=True)
        return out.sum(0, keepdim=True) if self.gaussian_filter.batch == 1 else out


class DenseCRFModel:
    """The messages of an energy's terms, and one update of its mean field.

    Krähenbühl and Koltun, 2011: Q <- softmax(-U - sum_m mu_m (n_m K_m (n_m Q))). Built by
    differentiable ops, so that autograd can see through; `backward` needs none of it.

    Args:
        unary: (B, L, *spatial), contiguous, float32 or float64; not kept.
        terms: the terms, in unary's dtype.
        quality: the position in QUALITIES.

    Attributes:
        unary_logits: the energies' part of the logits, -U.
        messages: a Message for each term, in their order.
    """

    def __init__(self, unary: Tensor, terms: Sequence[Term], quality: int):
        self.unary_logits = -unary
        self.messages = [
            Message(term, make_filter(term.gaussian, unary.shape[2:], quality), unary)
            for term in terms
        ]

    def start(self) -> Tensor:
        """Q before the first update, softmax(-U)."""
        return softmax(self.unary_logits)

    def logits(self, q: Tensor) -> Tensor:
        """The logits of an update that begins with Q: its softmax is the next Q."""
        logits = self.unary_logits
        for message in self.messages:
            logits = logits + message.logits(message.filter(q))
        return logits

    def step(self, q: Tensor) -> Tensor:
        """Q after one update."""
        return softmax(self.logits(q))

    def step_backward(
        self, grad_logits: Tensor, q: Tensor, needs: Sequence[tuple[bool, bool]]
    ) -> Tensor:
        """The gradient of the Q that an update began with.

        Args:
            grad_logits: the gradient of the update's logits.
            q: the Q that it began with.
            needs: for each term, whether the gradients of Gaussian and compatibility are wanted.
        """
        return sum(
            message.backward(grad_logits, q, *wanted)
            for message, wanted in zip(self.messages, needs, strict=True)
        )

    def kl_divergence(self, q: Tensor, logits: Tensor) -> Tensor:
        """The sums Q log Q + U Q + sum_m <Q, mu_m F_m> of each image, (B,), for Q of the logits."""
        # An infinite energy times a probability of 0 is 0.
        energies = torch.where(q > 0, torch.log_softmax(logits, 1) - self.unary_logits, 0)
        for message in self.messages:
            energies = energies - message.logits(message.filter(q))
        return fixed_order_sum((q * energies).double(), keep=0)


def softmax(logits: Tensor) -> Tensor:
    """Q of the logits over dimension 1, the same bits for any number of threads.

    On the CPU torch's softmax over a dimension that is not the last takes another exponential for
    what a thread's share leaves over from whole vectors; its log-softmax has shares of sizes alone.
    """
    return torch.log_softmax(logits, 1).exp() if logits.is_cpu else torch.softmax(logits, 1)


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
