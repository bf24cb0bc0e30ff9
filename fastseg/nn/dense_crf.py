"""A dense CRF as a layer: CRF as RNN."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from numbers import Integral

import torch
from torch import Tensor, nn

from fastseg._core.lattice_quality import QUALITIES
from fastseg._core.pairwise import Pairwise, PairwiseBilateral, PairwiseGaussian
from fastseg.ops import dense_crf
from fastseg.ops.crf.problem import check_output

TRAINABLE = ("weights", "compatibility", "bandwidths")
"""The names of the parameters that a DenseCRF can train."""


class DenseCRF(nn.Module):
    """Mean-field iterations as a differentiable layer, trained with the network before it.

    Zheng et al., "Conditional Random Fields as Recurrent Neural Networks", 2015:
    ``Q <- softmax(-U - mu sum_m w_m F_m)`` with F_m the normalised filter of Q by term m. With its
    first parameters this is :func:`fastseg.dense_crf` of the same terms (to rounding).

    Three lines add it to any model; the logarithm of Q is what a loss takes::

        crf = fastseg.nn.DenseCRF(num_labels=21, output="log_prob")
        log_q = crf(-model(image), image)
        loss = torch.nn.functional.nll_loss(log_q, labels)

    Logits need no log-softmax before: what is added to all labels of a pixel changes nothing.
    ``output="log_prob"`` is not ``q.log()``: it is finite, with a gradient, where Q underflows.

    Args:
        num_labels: the number of labels L.
        pairwise: terms of positions and of an image. Their numbers are where training starts; a
            term's compatibility is a number w or L of them, the costs of :class:`PairwiseGaussian`
            being negative weights: ``w_m = w`` or ``w_m = -mu``. Features of one's own change with
            the image: for them see :class:`fastseg.PairwiseFeatures` and dense_crf.
        iterations: the number of updates; 5 in training, 10 after, are the paper's.
        quality: "compat", "high" or "exact", with the meanings of :func:`fastseg.dense_crf`.
        trainable: which of "weights", "compatibility" and "bandwidths" get gradients. The others
            are parameters too, with requires_grad off. Bandwidths cost the most: they need the
            gradient of the lattice or of the convolution's taps.
        checkpoints: how many label volumes the gradient keeps; 0: all.
        output: "prob": Q. "log_prob": log Q, the log-softmax of the last update's logits.
        log: True is a shorter word for ``output="log_prob"``.
        align_corners: how a unary of lower resolution is brought to the image's, with the meaning
            of :func:`fastseg.dense_crf`. Default: not at all.

    Attributes:
        weights: (M, L) for M terms: w_m of each label, w before training.
        compatibility: mu, (L, L): what label l pays for l' around it. 1 - identity before training
            (Potts).
        log_sxy: for each term, the logarithm of its bandwidths in pixels, () or (axes,). The
            exponential keeps them positive, and a step changes all of them by a like fraction.
        log_srgb: for each bilateral term, by its position, the same for the image's channels.

    Raises:
        ValueError: num_labels < 1, unknown names, a term with a matrix, of features, or with
            another number of labels.
        TypeError: num_labels is no integer.
    """

    align_corners: bool | None = None  # of modules that were pickled before there was the option

    def __init__(
        self,
        num_labels: int,
        pairwise: Sequence[Pairwise] = (PairwiseGaussian(), PairwiseBilateral()),
        iterations: int = 5,
        quality: str = "high",
        trainable: Iterable[str] = TRAINABLE,
        *,
        checkpoints: int = 3,
        output: str = "prob",
        log: bool = False,
        align_corners: bool | None = None,
    ):
        super().__init__()
        if not isinstance(num_labels, Integral):
            raise TypeError(f"DenseCRF: num_labels must be an integer, got {num_labels!r}")
        if num_labels < 1:
            raise ValueError(f"DenseCRF: num_labels must be positive, got {num_labels}")
        if quality not in QUALITIES:
            raise ValueError(
                f"DenseCRF: quality must be one of {', '.join(QUALITIES)}, got {quality!r}"
            )
        trainable = (trainable,) if isinstance(trainable, str) else tuple(trainable)
        for name in trainable:
            if name not in TRAINABLE:
                raise ValueError(
                    f"DenseCRF: trainable must be of {', '.join(TRAINABLE)}, got {name!r}"
                )
        pairwise = (pairwise,) if isinstance(pairwise, Pairwise) else tuple(pairwise)
        weights = [_weights(i, term, num_labels) for i, term in enumerate(pairwise)]
        self.num_labels, self.iterations = num_labels, iterations
        self.quality, self.checkpoints = quality, checkpoints
        self.log, self.align_corners = check_output("DenseCRF", output, log), align_corners
        self.normalization = tuple(term.normalization for term in pairwise)

        def parameter(t: Tensor, name: str) -> nn.Parameter:
            return nn.Parameter(t, requires_grad=name in trainable)

        weights = torch.stack(weights) if weights else torch.empty(0, num_labels)
        self.weights = parameter(weights, "weights")
        self.compatibility = parameter(1 - torch.eye(num_labels), "compatibility")
        self.log_sxy, self.log_srgb = nn.ParameterDict(), nn.ParameterDict()
        for i, term in enumerate(pairwise):
            self.log_sxy[str(i)] = parameter(_log(term.sxy), "bandwidths")
            if isinstance(term, PairwiseBilateral):
                self.log_srgb[str(i)] = parameter(_log(term.srgb), "bandwidths")

    def forward(
        self,
        unary: Tensor,
        image: Tensor | None = None,
        *,
        output: str | None = None,
        log: bool | None = None,
    ) -> Tensor:
        """Label probabilities Q, or log Q, with the shapes and errors of :func:`fastseg.dense_crf`.

        Args:
            unary: energies (B, L, H, W), (B, L, D, H, W) or (L, H, W): minus the logits.
            image: what :func:`fastseg.dense_crf` takes; needed by bilateral terms.
            output: "prob" or "log_prob". Default: the module's own.
            log: True and False are shorter words for these.
        """
        is_tensor = isinstance(unary, Tensor)  # dense_crf refuses what is not
        axis = 0 if is_tensor and unary.dim() == 3 else 1
        if is_tensor and unary.dim() > 2 and unary.shape[axis] != self.num_labels:
            raise ValueError(
                f"DenseCRF: unary must have {self.num_labels} labels, got shape "
                f"{tuple(unary.shape)}"
            )
        return dense_crf(
            unary,
            image,
            self.pairwise(),
            iterations=self.iterations,
            quality=self.quality,
            checkpoints=self.checkpoints,
            log=self._log(output, log),
            align_corners=self.align_corners,
        )

    def _log(self, output: str | None, log: bool | None) -> bool:
        """Whether a call returns log Q."""
        if output is None:
            return self.log if log is None else log
        return check_output("DenseCRF", output, bool(log))

    def pairwise(self) -> list[Pairwise]:
        """The terms as they are now, for :func:`fastseg.dense_crf`; matrices of compatibility."""
        terms: list[Pairwise] = []
        for i, normalization in enumerate(self.normalization):
            key, mu = str(i), self.compatibility * self.weights[i]
            sxy = self.log_sxy[key].exp()
            if key in self.log_srgb:
                srgb = self.log_srgb[key].exp()
                terms.append(PairwiseBilateral(sxy, srgb, mu, normalization))
            else:
                terms.append(PairwiseGaussian(sxy, mu, normalization))
        return terms

    def extra_repr(self) -> str:
        """The arguments that are not parameters, for the module's repr."""
        return (
            f"num_labels={self.num_labels}, iterations={self.iterations}, "
            f"quality={self.quality!r}, checkpoints={self.checkpoints}, log={self.log}"
        )


def _weights(i: int, term: Pairwise, num_labels: int) -> Tensor:
    """What each label gains from itself, (L,)."""
    if not isinstance(term, PairwiseGaussian | PairwiseBilateral):
        raise ValueError(
            f"DenseCRF: pairwise[{i}] must be a PairwiseGaussian or a PairwiseBilateral, got "
            f"{type(term).__name__}"
        )
    mu = torch.as_tensor(term.compatibility, dtype=torch.float32).detach()
    if mu.dim() == 0:
        return mu.expand(num_labels).clone()
    if mu.shape != (num_labels,):
        raise ValueError(
            f"DenseCRF: pairwise[{i}].compatibility must be a number or ({num_labels},), got shape "
            f"{tuple(mu.shape)}; a matrix goes into the module's parameter compatibility"
        )
    return -mu


def _log(bandwidth) -> Tensor:
    return torch.as_tensor(bandwidth, dtype=torch.float32).detach().clone().log()
