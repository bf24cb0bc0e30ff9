"""Dense atrous convolution on NVIDIA GPUs, forward and the gradient of the input.

:mod:`fastseg.kernels.conv.forward` says what the kernels compute and what they cost at
least. Work is laid out in channels_last: an x or a weight that is not is copied once, and an output
that must not be is copied back.

Depthwise convolutions have ops of their own, in CUDA C++ or, where that is not built, in Triton
(:mod:`fastseg.kernels.conv.depthwise_conv2d`).
torch's convolution comes first where :mod:`fastseg.kernels.conv.choice` finds it faster: where
skipping gains little (rate 1, small rates on large maps, 1x1 kernels); and in other grouped
convolutions and in strided gradients. The epilogue is then one more kernel, over a convolution
rounded to x's dtype. float64 takes the reference: GPUs have few float64 units.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastseg._core import prepared_calls
from fastseg import reference
from fastseg._core.conv2d import in_layout_of
from fastseg.kernels.conv import few_outputs
from fastseg.kernels.conv.choice import FEW_OUTPUTS, TORCH, choose_form
from fastseg.kernels.conv.epilogue import Operands, apply_epilogue
from fastseg.kernels.conv.geometry import Branch
from fastseg.kernels.conv.launch import Epilogue, launch_of, run
from fastseg.kernels.conv.layouts import channels_last, empty_channels_last
from fastseg.kernels.conv.recording import Recording
from fastseg.kernels.conv.torch_conv2d import torch_input_grad

ops = torch.ops.fastseg


def atrous_conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
    residual: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    activation: str,
) -> Tensor:
    """See :func:`fastseg.ops.atrous_conv2d`; its arguments are checked."""
    geometry = (tuple(stride), tuple(padding), tuple(dilation))
    tensors = (x, weight, bias, scale, shift, residual)
    out = prepared_calls.run("atrous_conv2d", tensors, (*geometry, groups, activation))
    if out is not None:  # as of a branch of an ASPP that is launched by itself
        return out
    if x.dtype == torch.float64:
        return in_layout_of(x, reference.atrous_conv2d(*tensors, *geometry, groups, activation))
    if groups == x.shape[1] == weight.shape[0]:
        vectors = (bias, scale, shift)
        return ops.depthwise_conv2d(x, weight, *vectors, residual, *geometry, activation)
    launch = launch_of(x, weight.shape[0], [Branch(tuple(weight.shape[2:]), *geometry)])
    followed = activation != "" or any(t is not None for t in tensors[2:])
    form = choose_form(launch, followed) if groups == 1 else TORCH
    if form == TORCH:
        return _by_torch(x, weight, Operands(*tensors[2:]), geometry, groups, activation)
    recording = Recording(tensors)
    out = empty_channels_last(x, (x.shape[0], weight.shape[0], *launch.sizes[3:]))
    out = recording.output(out)
    vectors = (None if t is None else (t,) for t in (bias, scale, shift))
    residual = None if residual is None else recording.derive(channels_last, residual)
    ending = Epilogue(*vectors, residual, activation)
    weights = [recording.derive(channels_last, weight)]
    compute = few_outputs.run if form == FEW_OUTPUTS else run
    compute(launch, recording.derive(channels_last, x), weights, out, ending, recording=recording)
    result = recording.derive(in_layout_of, x, out)
    return recording.keep("atrous_conv2d", (*geometry, groups, activation), result)


def _by_torch(x, weight, operands, geometry, groups, activation):
    """`atrous_conv2d` by torch's convolution and the kernel that follows it."""
    recording = Recording((x, weight, *operands))

    def convolve(x: Tensor, weight: Tensor) -> Tensor:
        return in_layout_of(x, torch.conv2d(x, weight, None, *geometry, groups))

    out = recording.derive(convolve, x, weight)
    apply_epilogue(out, operands, activation, recording)
    return recording.keep("atrous_conv2d", (*geometry, groups, activation), out)


def atrous_conv2d_input_grad(
    grad: Tensor,
    weight: Tensor,
    input_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> Tensor:
    """See :func:`fastseg.reference.atrous_conv2d_input_grad`; its arguments are checked.

    At stride 1 a convolution of grad with the weight's taps reversed and its channels exchanged,
    padded by ``dilation * (kernel - 1) - padding``.
    """
    geometry = (tuple(stride), tuple(padding), tuple(dilation))
    if grad.dtype == torch.float64:
        arguments = (grad, weight, input_size, *geometry, groups)
        return in_layout_of(grad, reference.atrous_conv2d_input_grad(*arguments))
    if groups == grad.shape[1] == weight.shape[1] * groups:
        return ops.depthwise_conv2d_input_grad(grad, weight, input_size, *geometry)
    kernel = tuple(weight.shape[2:])
    reach = tuple(d * (k - 1) - p for d, k, p in zip(dilation, kernel, padding, strict=True))
    branch = Branch(kernel, (1, 1), reach, tuple(dilation))
    launch = launch_of(grad, weight.shape[1], [branch], transposed=True)
    if tuple(stride) != (1, 1) or groups != 1 or choose_form(launch, followed=False) == TORCH:
        return torch_input_grad(grad, weight, input_size, geometry, groups)
    recording = Recording((grad, weight))
    out = empty_channels_last(grad, (grad.shape[0], weight.shape[1], *input_size))
    out = recording.output(out)
    weights = [recording.derive(channels_last, weight)]
    factor = recording.derive(channels_last, grad)
    run(launch, factor, weights, out, Epilogue(), recording=recording)
    result = recording.derive(in_layout_of, grad, out)
    options = (tuple(input_size), *geometry, groups)
    return recording.keep("atrous_conv2d_input_grad", options, result)
