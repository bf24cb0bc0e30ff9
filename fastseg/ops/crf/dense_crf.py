"""The public functions of mean-field inference: dense_crf and, step by step, MeanField."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor
from torch._C._functorch import is_functorch_wrapped_tensor

from fastseg._core.mean_field_terms import Term
from fastseg._core.ordinary_tensors import ordinary_tensors
from fastseg._core.pairwise import Pairwise
from fastseg.ops.crf.mean_field import check_energies, mean_field, memory_format
from fastseg.ops.crf.model import DenseCRFModel, softmax
from fastseg.ops.crf.problem import check_count, check_output, make_problem


def dense_crf(
    unary: Tensor,
    image: Tensor | None = None,
    pairwise: Sequence[Pairwise] | None = None,
    *,
    iterations: int = 10,
    quality: str = "high",
    checkpoints: int = 3,
    output: str = "prob",
    log: bool = False,
    align_corners: bool | None = None,
) -> Tensor:
    """Mean-field inference in a fully connected CRF: label probabilities that respect the image.

    ``Q <- softmax(-U - sum_m mu_m (n_m K_m (n_m Q)))`` from ``Q = softmax(-U)``, K_m being the
    Gaussians of the pairwise terms, n_m their normalisations and mu_m their label
    compatibilities; a pixel's own term is part of K_m, as in pydensecrf. Krähenbühl and Koltun,
    "Efficient Inference in Fully Connected CRFs with Gaussian Edge Potentials", 2011.

    A network's logits make a unary in one step: ``dense_crf(-logits, image)``. Whatever is added to
    all labels of a pixel, such as log-softmax adds, changes nothing.

    Logits of lower resolution than the image are upsampled inside, where `align_corners` says how:
    ``dense_crf(-logits, image, align_corners=False)``. The energies of the image's size are the
    only copy that is made of them.

    A loss takes ``output="log_prob"``:
    ``nll_loss(dense_crf(-logits, image, output="log_prob"), labels)``. The logarithm of Q itself is
    -infinity where Q underflows, and clamped it has no gradient there, at the pixels that are wrong
    with confidence.

    float32 on a lattice ("compat", "high") runs as one fused C++ kernel on the CPU and one of CUDA
    C++ on a GPU, where these are compiled. Everything else (float64, "exact", a gradient) is a
    composition of the ops permutohedral_filter, spatial_gaussian_filter and exact_gaussian_filter,
    each of which has kernels of its own; without any, plain PyTorch. Deterministic, for any number
    of threads; the last bits of a composition with a matrix of compatibilities, which torch
    multiplies, depend on that number.

    Differentiable in the unary, in a floating-point image, and in the tensors among the terms'
    bandwidths, features and compatibilities; once. The gradient computes the iterations again
    rather than keep them: its memory does not grow with their number.

    Args:
        unary: U, energies, the negative logarithms of probabilities: (B, L, H, W), (B, L, D, H, W)
            or (L, H, W); float32, float64 (computed in float64), float16 or bfloat16 (computed in
            float32). +infinity forbids a label. On a GPU the values are not checked: NaN spreads.
        image: (B, C, H, W), (B, C, D, H, W) or (C, H, W), as the unary; batch 1 serves all. Any
            number of channels, any integer or floating-point dtype, in the units of srgb. Or a
            uint8 array (H, W, C), (H, W) or (B, H, W, C), or a picture of PIL of mode RGB or L.
            Only bilateral terms need it.
        pairwise: the terms. Default: what pydensecrf's README uses, ``PairwiseGaussian(3, 3)`` and,
            with an image, ``PairwiseBilateral(80, 13, 10)``.
        iterations: the number of updates, 0 or more. 5 to 10 suffice.
        quality: "compat": the lattice of Krähenbühl and Koltun, what pydensecrf computes. "high": a
            lattice with smaller errors; spatial terms are exact. "exact": sums over all pairs of
            pixels, O(N^2).
        checkpoints: the gradient's compromise: how many label volumes it keeps; 10 iterations are
            repeated at most twice with 3. 0: keep all, repeat none.
        output: "prob": Q. "log_prob": log Q, the log-softmax of the last update's logits.
        log: True is a shorter word for ``output="log_prob"``.
        align_corners: how a unary of lower resolution is brought to the image's: bilinearly, in a
            volume trilinearly, with :func:`torch.nn.functional.interpolate`'s meaning of True and
            False; +infinity stays so wherever it has a share. Default: not at all, both must have
            one size.

    Returns:
        Q, of unary's dtype and memory format, and of its shape or, upsampled, the image's; the
        labels of a pixel sum to 1. log Q is contiguous, as torch.log_softmax's is: nll_loss has no
        gradient in another format.

    Warns:
        UserWarning: an image of values from 0 to 1 beside an srgb of 1 or more; on the CPU alone.

    Raises:
        ValueError: wrong shapes, dtypes or devices; an image missing; unknown names; an array that
            may be (C, H, W) as well as (H, W, C).
        TypeError: arguments of wrong types.
        RuntimeError: NaN or infinities in unary or features; features too large for the lattice;
            more than 8 features in a term, unless "exact".
    """
    log = check_output("dense_crf", output, log)
    problem = make_problem("dense_crf", unary, image, pairwise, quality, align_corners)
    iterations = check_count("dense_crf: iterations", iterations)
    checkpoints = check_count("dense_crf: checkpoints", checkpoints)
    q = mean_field(problem.unary, problem.terms, iterations, problem.quality, checkpoints, log)
    return problem.form.restore(q)


class MeanField:
    """Mean-field inference step by step; the lattices are built once.

    The steps are those of :func:`fastseg.dense_crf`, to rounding. In grad mode autograd keeps
    every step; dense_crf's gradient needs less memory. Where gradients are off, a step's Q is a
    constant for all that follows; where they are off as the object is made, all its arguments are.
    Of the arguments copies are kept: what happens to them later changes nothing.

    Args:
        unary: U, energies: (B, L, H, W), (B, L, D, H, W) or (L, H, W); float32, float64, float16 or
            bfloat16. The values that :func:`fastseg.dense_crf` takes.
        image: what :func:`fastseg.dense_crf` takes; only bilateral terms need it.
        pairwise: the terms. Default: those of :func:`fastseg.dense_crf`.
        quality: "compat", "high" or "exact".
        output: what `step` returns, "prob" or "log_prob".
        log: True is a shorter word for ``output="log_prob"``.
        align_corners: how a unary of lower resolution is brought to the image's. Default: not at
            all.

    Raises:
        ValueError: wrong shapes, dtypes or devices; an image missing; unknown names.
        TypeError: arguments of wrong types.
        RuntimeError: NaN or infinities in unary or features; features too large for the lattice;
            more than 8 features in a term, unless "exact".
    """

    def __init__(
        self,
        unary: Tensor,
        image: Tensor | None = None,
        pairwise: Sequence[Pairwise] | None = None,
        *,
        quality: str = "high",
        output: str = "prob",
        log: bool = False,
        align_corners: bool | None = None,
    ):
        self.log = check_output("MeanField", output, log)
        problem = make_problem("MeanField", unary, image, pairwise, quality, align_corners)
        energies = problem.unary
        self._form = problem.form
        check_energies("MeanField", energies)
        self._layout = memory_format(energies)
        with _uncast(energies):
            self._model = DenseCRFModel(
                _or_constant(energies.contiguous()),
                [_kept(term) for term in problem.terms],
                problem.quality,
            )
            self._logits = self._model.unary_logits
            self._q = self._model.start()

    @property
    def q(self) -> Tensor:
        """Q after the steps so far, of unary's shape, dtype and memory format."""
        layout = self._layout
        if not torch.compiler.is_compiling() and is_functorch_wrapped_tensor(self._q):
            layout = torch.contiguous_format  # vmap knows of no other
        return self._form.restore(self._q.clone(memory_format=layout))

    @property
    def log_q(self) -> Tensor:
        """Log Q after the steps so far, of unary's shape and dtype, contiguous."""
        return self._form.restore(torch.log_softmax(self._logits, 1))

    def step(self, n: int = 1) -> Tensor:
        """Makes n updates; returns Q, or log Q if the object was made with ``output="log_prob"``.

        Raises:
            ValueError: a negative n.
            TypeError: n is no integer.
        """
        with _uncast(self._logits):
            for _ in range(check_count("MeanField.step: n", n)):
                self._logits = self._model.logits(self._q)
                self._q = softmax(self._logits)
        return self.log_q if self.log else self.q

    def kl_divergence(self) -> Tensor:
        """The divergence of Q from the CRF's distribution, up to a constant: (B,), unbatched ().

        ``sum Q log Q + sum U Q + sum_m <Q, mu_m F_m>`` in float64, with F_m the normalised filter
        of Q and mu = -w for Potts: pydensecrf's function, whose pairwise part has no factor 1/2.
        """
        with _uncast(self._logits):
            divergence = self._model.kl_divergence(self._q, self._logits)
        return divergence if self._form.batched else divergence[0]


@contextmanager
def _uncast(t: Tensor) -> Iterator[None]:
    """A context in which autocast is off for t's device, and new tensors are ordinary ones."""
    with torch.autocast(t.device.type, enabled=False), ordinary_tensors():
        yield


def _kept(term: Term) -> Term:
    """A copy of a term, whose tensors nobody changes."""
    gaussian = type(term.gaussian)(_or_constant(term.gaussian.tensor).clone())
    return term._replace(gaussian=gaussian, compatibility=_or_constant(term.compatibility).clone())


def _or_constant(t: Tensor) -> Tensor:
    """An argument of a MeanField, as a constant where gradients are off.

    Else steps in grad mode would have the part of its gradient that does not go through what was
    computed of it without.
    """
    return t if torch.is_grad_enabled() else t.detach()
