"""The op mean_field: all iterations of a dense CRF, and the op of its gradient.

Both are compositions of the filter ops in Python. Where a fused kernel is compiled, float32 on a
lattice, mean_field runs that instead.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastseg._core.lattice_quality import LATTICE_QUALITY, QUALITIES
from fastseg._core.library import define
from fastseg._core.mean_field_terms import Term, lists_of, terms_of
from fastseg._core.plain_tensors import gradient_free, plain_on_cpu
from fastseg._core.readable import readable
from fastseg.ops.crf.checkpoints import reversed_states
from fastseg.ops.crf.checks import check_terms
from fastseg.ops.crf.lattice_mean_field import lattice_mean_field
from fastseg.ops.crf.model import (
    DenseCRFModel,
    log_softmax_backward,
    softmax,
    softmax_backward,
)
from fastseg.ops.crf.vmap import by_images

ops = torch.ops.fastseg

SCHEMA = (
    "Tensor unary, Tensor[] kernels, Tensor[] compatibility, int[] normalization, int iterations,"
    " int quality, int checkpoints"
)


def memory_format(t: Tensor, log: bool = False) -> torch.memory_format:
    """The layout of Q, or of log Q, for a unary (B, L, *spatial).

    Log Q is always contiguous, as log_softmax's output is: the gradient of nll_loss is refused in
    any other layout (pytorch's "grad_input must be contiguous").
    """
    return torch.contiguous_format if log else torch._prims_common.suggest_memory_format(t)


def mean_field(
    unary: Tensor,
    terms: Sequence[Term],
    iterations: int,
    quality: int,
    checkpoints: int = 3,
    log: bool = False,
) -> Tensor:
    """``torch.ops.fastseg.mean_field`` of arguments that are checked: for the public functions.

    Args:
        unary: (B, L, *spatial) energies, float32 or float64, any strides.
        terms: the terms, in unary's dtype.
        iterations: the number of updates.
        quality: the position in QUALITIES.
        checkpoints: how many label volumes the gradient keeps; 0: all.
        log: whether to return log Q instead.

    Returns:
        Q, of unary's shape and dtype, in its memory format; log Q is contiguous.

    Raises:
        RuntimeError: energies or features that are not finite.
    """
    kernels, compatibility, normalization = lists_of(terms)
    tensors = (unary, *kernels, *compatibility)
    arguments = (kernels, compatibility, normalization, iterations, quality, checkpoints, log)
    if not gradient_free(tensors):
        return ops.mean_field.default(unary, *arguments)
    with torch._C._AutoDispatchBelowAutograd():  # as `call`, for lists of tensors
        if plain_on_cpu(tensors):  # the op would only check everything again
            return _infer(unary, terms, iterations, quality, log)
        return ops.mean_field.default(unary, *arguments)


def _mean_field(
    unary, kernels, compatibility, normalization, iterations, quality, checkpoints=3, log=False
) -> Tensor:
    _check(unary, kernels, compatibility, normalization, iterations, quality, checkpoints)
    return _infer(unary, terms_of(kernels, compatibility, normalization), iterations, quality, log)


def _infer(
    unary: Tensor, terms: Sequence[Term], iterations: int, quality: int, log: bool
) -> Tensor:
    """Q or log Q by the fused kernel, or by the filter ops where there is none."""
    with torch.autocast(unary.device.type, enabled=False):
        if _has_fused_kernel(unary, quality):
            lattice = LATTICE_QUALITY[QUALITIES[quality]]
            return lattice_mean_field(
                unary,
                *lists_of(terms),
                iterations,
                quality,
                lattice.refine,
                lattice.dilation,
                lattice.passes,
                lattice.symmetric,
                lattice.side,
                log,
            )
        check_energies("fastseg::mean_field", unary)
        model = DenseCRFModel(unary.contiguous(), terms, quality)
        logits = model.unary_logits
        for _ in range(iterations):
            logits = model.logits(softmax(logits))
        out = torch.log_softmax(logits, 1) if log else softmax(logits)
        return out.contiguous(memory_format=memory_format(unary, log))


def _has_fused_kernel(unary: Tensor, quality: int) -> bool:
    key = {"cpu": "CPU", "cuda": "CUDA"}.get(unary.device.type)
    return (
        unary.dtype == torch.float32
        and QUALITIES[quality] in LATTICE_QUALITY
        and key is not None
        and torch._C._dispatch_has_kernel_for_dispatch_key("fastseg::lattice_mean_field", key)
    )


def check_energies(op: str, unary: Tensor) -> None:
    """Raises RuntimeError for NaN, -infinity or pixels that no label is left for.

    A GPU would have to be waited for: there the energies are not looked at.
    """
    labels = 1 - unary.dim()  # of vmap's dimensions there may be any number before
    unary = readable(unary)
    if unary is None or unary.numel() == 0:
        return
    low, high = unary.aminmax()
    torch._check(
        bool(low > -torch.inf),  # false for NaN
        lambda: f"{op}: unary must hold no NaN and no -infinity, got {low.item()}",
    )
    if high == torch.inf:
        torch._check(
            bool((unary.amin(labels) < torch.inf).all()),
            lambda: (
                f"{op}: unary must have a finite energy for every pixel, got a pixel whose labels "
                "are all infinite"
            ),
        )


def _check(unary, kernels, compatibility, normalization, iterations, quality, checkpoints):
    """Raises RuntimeError for arguments that do not fit; looks at no values."""
    op = "fastseg::mean_field"
    torch._check(
        unary.dim() in (4, 5),
        lambda: (
            f"{op}: unary must be (B, L, H, W) or (B, L, D, H, W), got shape {tuple(unary.shape)}"
        ),
    )
    for size in unary.shape[1:]:
        torch._check(
            size > 0,
            lambda: (
                f"{op}: unary must not be empty but for the batch, got shape {tuple(unary.shape)}"
            ),
        )
    torch._check(
        unary.dtype in (torch.float32, torch.float64),
        lambda: f"{op}: unary must be float32 or float64, got {unary.dtype}",
    )
    torch._check(
        0 <= quality < len(QUALITIES),
        lambda: f"{op}: quality must be 0 (compat), 1 (high) or 2 (exact), got {quality}",
    )
    for name, number in (("iterations", iterations), ("checkpoints", checkpoints)):
        torch._check(
            number >= 0, lambda n=name, i=number: f"{op}: {n} must not be negative, got {i}"
        )
    check_terms(op, unary, kernels, compatibility, normalization)


def _fake(
    unary, kernels, compatibility, normalization, iterations, quality, checkpoints=3, log=False
):
    _check(unary, kernels, compatibility, normalization, iterations, quality, checkpoints)
    return torch.empty_like(unary, memory_format=memory_format(unary, log))


def _setup_context(ctx, inputs, output):
    unary, kernels, compatibility, *ctx.arguments, ctx.log = inputs
    ctx.terms = len(kernels)
    ctx.save_for_backward(unary, output, *kernels, *compatibility)


def _backward(ctx, grad):
    unary, q, *parameters = ctx.saved_tensors
    kernels, compatibility = parameters[: ctx.terms], parameters[ctx.terms :]
    needs = list(ctx.needs_input_grad[1 : 1 + len(parameters)])
    arguments = (grad, q, unary, kernels, compatibility, *ctx.arguments, needs, ctx.log)
    grads = ops.mean_field_backward(*arguments)
    of_parameters = [g if n else None for g, n in zip(grads[1:], needs, strict=True)]
    return grads[0] if ctx.needs_input_grad[0] else None, *of_parameters


define(
    f"mean_field({SCHEMA}=3, bool log=False) -> Tensor",
    reference=_mean_field,
    fake=_fake,
    setup_context=_setup_context,
    backward=_backward,
    vmap=by_images,
)


def _mean_field_backward(
    grad,
    q,
    unary,
    kernels,
    compatibility,
    normalization,
    iterations,
    quality,
    checkpoints,
    needs,
    log=False,
) -> list[Tensor]:
    """The gradients of unary, kernels and compatibility; empty tensors for those not needed.

    `grad` and `q` are the output's, which is Q or log Q. The updates run backwards. The Q of each
    is computed again, from at most `checkpoints` that are kept (0: all), so memory does not grow
    with the iterations.
    """
    _check(unary, kernels, compatibility, normalization, iterations, quality, checkpoints)
    layout = memory_format(unary)
    terms = terms_of(kernels, compatibility, normalization)
    needs_gaussian, needs_mu = needs[: len(terms)], needs[len(terms) :]
    with torch.autocast(unary.device.type, enabled=False):
        model = DenseCRFModel(unary.contiguous(), terms, quality)
        wanted = list(zip(needs_gaussian, needs_mu, strict=True))
        of_logits = log_softmax_backward if log else softmax_backward
        grad = of_logits(grad.contiguous(), q.contiguous())
        grad_unary = torch.zeros_like(grad)
        for before in reversed_states(
            model.start(), iterations, checkpoints or iterations, model.step
        ):
            grad_unary -= grad
            grad = model.step_backward(grad, before, wanted) if terms else torch.zeros_like(grad)
            grad = softmax_backward(grad, before)
        grad_unary -= grad
        grads = [grad_unary.contiguous(memory_format=layout)]
        for message, needed in zip(model.messages, needs_gaussian, strict=True):
            out = message.gaussian_gradient() if needed else unary.new_empty(0)
            grads.append(out.contiguous(memory_format=torch.contiguous_format))
        for message, needed in zip(model.messages, needs_mu, strict=True):
            grads.append(message.grad_compatibility if needed else unary.new_empty(0))
        return grads


def _fake_mean_field_backward(
    grad,
    q,
    unary,
    kernels,
    compatibility,
    normalization,
    iterations,
    quality,
    checkpoints,
    needs,
    log=False,
):
    grads = [torch.empty_like(unary, memory_format=memory_format(unary))]
    for parameter, needed in zip((*kernels, *compatibility), needs, strict=True):
        shape = parameter.shape if needed else (0,)
        grads.append(parameter.new_empty(shape))
    return grads


def _no_second_derivative(ctx, *grads):
    raise NotImplementedError("fastseg::mean_field has no second derivative")


define(
    f"mean_field_backward(Tensor grad, Tensor q, {SCHEMA}, bool[] needs, bool log=False)"
    " -> Tensor[]",
    reference=_mean_field_backward,
    fake=_fake_mean_field_backward,
    backward=_no_second_derivative,
)
