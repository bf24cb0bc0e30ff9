"""Unary energies of a dense CRF: of logits, of probabilities, of labels.

The formulas are those of pydensecrf's utils, for tensors of any device with batches and gradients.
"""

from __future__ import annotations

import math
from numbers import Integral, Real

import torch
from torch import Tensor

from fastseg._core.formulas import compute_dtype
from fastseg._core.readable import readable


def unary_from_logits(
    logits: Tensor, scale: float | None = None, clip: float | None = None
) -> Tensor:
    """Energies -log(probability), of a network's logits.

    Without options -log_softmax, which is exact where probabilities underflow, and has a gradient
    there. :func:`fastseg.dense_crf` takes ``-logits`` as well: what is added to all labels of a
    pixel changes nothing.

    Args:
        logits: (L, H, W), (B, L, H, W) or (B, L, D, H, W), floating point.
        scale: the share of the softmax, in (0, 1], in a mixture with the uniform distribution.
            Default: no mixture.
        clip: the value in (0, 1] to which smaller probabilities are raised; there the gradient
            is 0. Default: they are not.

    Returns:
        The energies, of the shape and dtype of `logits`.

    Raises:
        TypeError: logits that are not a tensor.
        ValueError: a wrong shape or dtype, no label; scale or clip out of range.
    """
    axis = _labels_axis("unary_from_logits: logits", logits)
    _check_options("unary_from_logits", scale, clip)
    log_p = torch.log_softmax(logits, axis)
    if scale is not None and scale < 1:
        uniform = log_p.new_full((), math.log((1 - scale) / logits.shape[axis]))
        log_p = torch.logaddexp(log_p + math.log(scale), uniform)
    if clip is not None:
        log_p = log_p.clamp(math.log(clip), 0.0)
    return -log_p


def unary_from_softmax(
    probabilities: Tensor, scale: float | None = None, clip: float | None = 1e-5
) -> Tensor:
    """Energies -log(probability), of a softmax.

    Args:
        probabilities: (L, H, W), (B, L, H, W) or (B, L, D, H, W), floating point.
        scale: the share of the probabilities, in (0, 1], in a mixture with the uniform
            distribution, ``scale * p + (1 - scale) / L``. Default: no mixture.
        clip: the value in (0, 1] to which smaller probabilities are raised, so that no energy is
            infinite; there the gradient is 0. None: they are not.

    Returns:
        The energies, of the shape and dtype of `probabilities`. Differentiable: but a loss behind a
        network should come by :func:`fastseg.unary_from_logits`, whose gradient nothing clips.

    Raises:
        TypeError: probabilities that are not a tensor.
        ValueError: a wrong shape or dtype, no label; scale or clip out of range.
    """
    axis = _labels_axis("unary_from_softmax: probabilities", probabilities)
    _check_options("unary_from_softmax", scale, clip)
    # Computed in float32 at least: a small clip is 0 in float16.
    p = probabilities.to(compute_dtype(probabilities.dtype))
    if scale is not None:
        p = scale * p + (1 - scale) / p.shape[axis]
    if clip is not None:
        p = p.clamp(clip, 1.0)
    return -p.log().to(probabilities.dtype)


def unary_from_labels(
    labels: Tensor, n_labels: int, gt_prob: float, zero_unsure: bool = True
) -> Tensor:
    """Energies of an annotation that is right with probability `gt_prob`.

    A labelled pixel has energy -log(gt_prob) at its label and -log((1 - gt_prob) / (L - 1)) at
    every other.

    Args:
        labels: the annotation, integers or booleans, (H, W), (B, H, W) or (B, D, H, W). On a GPU
            their values are not checked: a pixel of another label has no label of its own.
        n_labels: the number of labels L, the unsure one not counted.
        gt_prob: the probability that a label is right, between 0 and 1, exclusive.
        zero_unsure: if True, labels are 1 to L and 0 means unsure: energy -log(1 / L) for all. If
            False, labels are 0 to L - 1.

    Returns:
        The energies, float32 (L, H, W), (B, L, H, W) or (B, L, D, H, W), on labels' device.

    Raises:
        TypeError: labels that are not a tensor of integers; n_labels that is no integer.
        ValueError: a wrong shape, a label out of range, n_labels below 1, gt_prob out of (0, 1).
    """
    name = "unary_from_labels"
    if not isinstance(labels, Tensor):
        raise TypeError(f"{name}: labels must be a tensor, got {type(labels).__name__}")
    if labels.is_floating_point() or labels.is_complex():
        raise TypeError(f"{name}: labels must hold integers, got {labels.dtype}")
    if labels.dim() not in (2, 3, 4):
        raise ValueError(
            f"{name}: labels must be (H, W), (B, H, W) or (B, D, H, W), got shape "
            f"{tuple(labels.shape)}"
        )
    if not isinstance(n_labels, Integral) or isinstance(n_labels, bool):
        raise TypeError(f"{name}: n_labels must be an integer, got {n_labels!r}")
    if n_labels < 1:
        raise ValueError(f"{name}: n_labels must be at least 1, got {n_labels}")
    if not isinstance(gt_prob, Real) or not 0 < gt_prob < 1:
        raise ValueError(f"{name}: gt_prob must be in (0, 1), got {gt_prob!r}")
    first, last = (1, n_labels) if zero_unsure else (0, n_labels - 1)
    values = readable(labels)
    if values is not None and values.numel():
        low, high = (v.item() for v in values.long().aminmax())
        if low < (0 if zero_unsure else first) or high > last:
            raise ValueError(
                f"{name}: labels must be {0 if zero_unsure else first} to {last} with "
                f"n_labels={n_labels} and zero_unsure={zero_unsure}, got {low} to {high}"
            )
    axis = 0 if labels.dim() == 2 else 1
    each = torch.arange(first, last + 1, device=labels.device)
    each = each.view(-1, *(1,) * (labels.dim() - axis))
    labels = labels.unsqueeze(axis).long()
    here = -math.log(gt_prob)
    others = -math.log((1 - gt_prob) / (n_labels - 1)) if n_labels > 1 else math.inf
    energies = torch.where(labels == each, here, others)
    if zero_unsure:
        energies = torch.where(labels == 0, math.log(n_labels), energies)
    return energies.to(torch.float32)


def _labels_axis(where: str, t: Tensor) -> int:
    """The axis of labels of a tensor that is checked."""
    if not isinstance(t, Tensor):
        raise TypeError(f"{where} must be a tensor, got {type(t).__name__}")
    shape = tuple(t.shape)
    if t.dim() not in (3, 4, 5):
        raise ValueError(
            f"{where} must be (L, H, W), (B, L, H, W) or (B, L, D, H, W), got shape {shape}"
        )
    if not t.dtype.is_floating_point or t.dtype.itemsize < 2:
        raise ValueError(f"{where} must be float32, float64, float16 or bfloat16, got {t.dtype}")
    axis = 0 if t.dim() == 3 else 1
    if shape[axis] == 0:
        raise ValueError(f"{where} must have a label, got shape {shape}")
    return axis


def _check_options(name: str, scale: float | None, clip: float | None) -> None:
    for option, value in (("scale", scale), ("clip", clip)):
        if value is None:
            continue
        if not isinstance(value, Real) or not 0 < value <= 1:
            raise ValueError(f"{name}: {option} must be in (0, 1] or None, got {value!r}")
