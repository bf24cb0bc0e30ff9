"""What modules become: the mixins of their new classes, and the calls of rewritten forwards."""

from __future__ import annotations

import functools

import torch
from torch import Tensor, fx, nn

from fastseg import _cpu_conv2d
from fastseg._conv2d import Conv2d, resolve_padding
from fastseg._ordinary_tensors import ordinary_tensors
from fastseg.nn import MaxPool2d, MaxUnpool2d
from fastseg.nn._batch_norm import FoldedBatchNorm, can_fold
from fastseg.nn.atrous_conv_bn_act import geometry
from fastseg.ops import (
    atrous_conv2d,
    batch_norm_relu_max_pool2d,
    fold_batch_norm,
    max_pool2d,
    max_unpool2d,
)
from fastseg.ops._library import gradient_free
from fastseg.optimize.eligible import own_activation
from fastseg.optimize.swap import Swapped
from fastseg.reference import ACTIVATION


class Fused(Swapped):
    """A block whose forward is rewritten.

    Attributes:
        _program: called with the block and its arguments; for other numbers of them, or keywords,
            the block's own forward runs. Slices of a Sequential are of its class, without one.
    """

    _program = None

    @classmethod
    def _forward_for(cls, base):
        @functools.wraps(base.forward)
        def forward(self, *args, **kwargs):
            program = self._program
            if program is None or kwargs or len(args) != program.arguments:
                return base.forward(self, *args, **kwargs)
            return program(self, *args)

        return forward

    def _before_restore(self):
        self.__dict__.pop("_program", None)


class Atrous(Swapped):
    """A Conv2d by :func:`fastseg.atrous_conv2d` where that is faster."""

    def forward(self, x: Tensor) -> Tensor:
        """As torch's."""
        gradient = not gradient_free((x, self.weight, self.bias))
        if x.dim() == 4 and owns(self, x, gradient):
            return atrous_conv2d(x, self.weight, self.bias, **geometry(self))
        return self._base.forward(self, x)


class Frozen(Swapped):
    """A Conv2d of a model for inference: in channels_last."""

    def forward(self, x: Tensor) -> Tensor:
        """As torch's."""
        if is_map(x) and not is_left_to_inductor(self, x):
            return convolve(self, x)
        return self._base.forward(self, x)


class Folding(Swapped):
    """A batch norm that is folded into what is before it while no gradient is needed.

    Attributes:
        _folded: remembers scale and shift.
    """

    def _after_swap(self):
        self._folded = FoldedBatchNorm()

    def fold(self) -> tuple[Tensor, Tensor] | None:
        """Scale and shift, or None where the batch norm is to run on its own."""
        if torch.compiler.is_compiling() or not can_fold(self) or must_be_called(self):
            return None
        return self._folded(self)

    def _before_restore(self):
        del self._folded

    def train(self, mode: bool = True):
        """As torch's; also forgets what evaluation has folded."""
        self._folded.forget()
        return super().train(mode)

    @classmethod
    def _forward_for(cls, base):
        return base.forward


class Folded(Swapped):
    """A batch norm of a model for inference, whose scale and shift are constants."""

    def fold(self) -> tuple[Tensor, Tensor]:
        """Scale and shift."""
        return self.folded_scale, self.folded_shift

    def train(self, mode: bool = True):
        """As torch's for evaluation.

        Raises:
            RuntimeError: mode is True.
        """
        if mode:
            raise RuntimeError(
                "fastseg.optimize_(mode='infer') has folded the model's batch norms: call"
                " fastseg.restore_(model) before model.train()"
            )
        return super().train(mode)

    def _after_swap(self):
        with ordinary_tensors(), torch.no_grad():
            folded = fold_batch_norm(
                *(
                    t if t is None else _whole(t.detach()).to(torch.float32)
                    for t in (self.weight, self.bias, self.running_mean, self.running_var)
                ),
                self.eps,
            )
        for name, t in zip(("folded_scale", "folded_shift"), folded, strict=True):
            self.register_buffer(name, t, persistent=False)

    def _load_from_state_dict(self, *args):
        super()._load_from_state_dict(*args)
        self._after_swap()

    def _before_restore(self):
        del self.folded_scale, self.folded_shift

    @classmethod
    def _forward_for(cls, base):
        return base.forward


class Codes(Swapped):
    """Max-pooling whose indices are byte codes, and the unpooling that takes them."""

    @classmethod
    def _forward_for(cls, base):
        return {nn.MaxPool2d: MaxPool2d, nn.MaxUnpool2d: MaxUnpool2d}[base].forward


def _whole(t: Tensor) -> Tensor:
    """Of a tensor that fully_shard has spread over processes, all of it."""
    return t.full_tensor() if hasattr(t, "full_tensor") else t


def must_be_called(module: nn.Module) -> bool:
    """Whether something is done before its forward, as fully_shard gathers its tensors there."""
    return bool(module._forward_pre_hooks)


def is_map(x: Tensor) -> bool:
    """An image; on GPUs of more than one pixel: for vectors torch's calls are shorter there."""
    return x.dim() == 4 and (x.is_cpu or x.shape[2] > 1 or x.shape[3] > 1)


def is_left_to_inductor(conv: nn.Conv2d, x: Tensor) -> bool:
    """Whether torch.compile with freezing is as fast: it fuses oneDNN's kernels with more around.

    Without freezing it neither prepares weights nor fuses anything into a convolution.
    """
    if not (x.is_cpu and torch.compiler.is_compiling() and _freezes()):
        return False
    return not may_own(conv) or (conv.groups > 1 and max(conv.dilation) == 1)


def _freezes() -> bool:
    # Only the compiler asks, which has it loaded: with fastseg it would come at 1.4 s and 150 MB.
    from torch._inductor import config

    return config.freezing


def owns(conv: nn.Conv2d, x: Tensor, gradient: bool) -> bool:
    """Whether fastseg's convolution is the faster one, forward and backward.

    On GPUs only atrous and depthwise convolutions, which cuDNN is known to be slow at. Depthwise
    ones on the CPU, as measured: with gradients only atrous ones, without in channels_last.

    Args:
        conv: the module.
        x: (N, Ci, H, W).
        gradient: whether one may be needed.
    """
    if not may_own(conv):
        return False
    atrous = max(conv.dilation) > 1
    if x.device.type != "cpu":
        return atrous or conv.groups > 1
    if conv.groups > 1:
        return atrous if gradient else x.is_contiguous(memory_format=torch.channels_last)
    return torch.compiler.is_compiling() or _cpu_conv2d.prefers_winograd(
        x, conv.weight, _geometry(conv)
    )


def may_own(conv: nn.Conv2d) -> bool:
    """Whether some map exists for which :func:`owns` is true: depthwise, or for Winograd.

    With fewer channels an op's autograd layer, which is Python, takes what the kernel saves.
    """
    if conv.groups > 1:
        return conv.groups == conv.in_channels == conv.out_channels
    channels = min(conv.in_channels, conv.out_channels)
    same = _geometry(conv).padding == conv.dilation
    return channels >= 32 and conv.kernel_size == (3, 3) and conv.stride == (1, 1) and same


def _geometry(conv: nn.Conv2d) -> Conv2d:
    padding = resolve_padding("fastseg.optimize_", conv.padding, conv.kernel_size, conv.dilation)
    return Conv2d(conv.stride, padding, conv.dilation, conv.groups)


def convolve(
    conv: nn.Conv2d,
    x: Tensor,
    folded: tuple[Tensor, Tensor] | None = None,
    activation: str = "",
    residual: Tensor | None = None,
) -> Tensor:
    """One op; on the CPU in channels_last, in which its kernels are the fastest."""
    scale, shift = folded or (None, None)
    if x.device.type == "cpu":
        x = x.contiguous(memory_format=torch.channels_last)
    return atrous_conv2d(
        x, conv.weight, conv.bias, scale=scale, shift=shift, activation=activation,
        residual=residual, **geometry(conv),
    )  # fmt: skip


def conv_bn_act(
    conv: nn.Conv2d,
    bn: nn.Module | None,
    activation: str,
    x: Tensor,
    residual: Tensor | None = None,
) -> Tensor:
    """``act(bn(conv(x)) + residual)``, one op where that is faster and nothing is lost."""
    if isinstance(x, fx.Proxy):
        return traced(conv_bn_act, conv, bn, activation, x, residual)
    folded = None if bn is None else bn.fold()
    if fuses(conv, bn, folded, x, residual):
        scale, shift = folded or (None, None)
        if isinstance(conv, Frozen):
            return convolve(conv, x, folded, activation or own_activation(bn), residual)
        return atrous_conv2d(
            x, conv.weight, conv.bias, scale=scale, shift=shift,
            activation=activation or own_activation(bn), residual=residual, **geometry(conv),
        )  # fmt: skip
    y = conv(x) if bn is None else bn(conv(x))
    return ACTIVATION[activation](y if residual is None else y + residual)


def traced(function, *arguments) -> fx.Proxy:
    """The function as one call in torch.fx's graph: it decides by its input's shape."""
    proxy = next(a for a in arguments if isinstance(a, fx.Proxy))
    return proxy.tracer.create_proxy("call_function", function, arguments, {})


def fuses(conv, bn, folded, x: Tensor, residual: Tensor | None) -> bool:
    """Whether one op stands for all."""
    if not is_map(x) or (bn is not None and folded is None) or must_be_called(conv):
        return False
    if residual is not None:
        if not isinstance(residual, Tensor):
            return False
        size = _geometry(conv).output_size(x.shape[2:], conv.kernel_size)
        if tuple(residual.shape) != (x.shape[0], conv.out_channels, *size):
            return False  # broadcast
    cpu = x.device.type == "cpu"
    if isinstance(conv, Frozen):
        if is_left_to_inductor(conv, x):
            return False
        return cpu or owns(conv, x, False)
    affine = () if bn is None else (bn.weight, bn.bias)
    if not gradient_free((x, conv.weight, conv.bias, residual, *affine)):
        return False
    depthwise = conv.groups > 1 and may_own(conv)
    return owns(conv, x, False) if depthwise or not cpu else True


def bn_relu_pool(bn: nn.Module, relu, pool: nn.MaxPool2d, x: Tensor):
    """``pool(relu(bn(x)))``, one pass where no gradient is needed."""
    if isinstance(x, fx.Proxy):
        return traced(bn_relu_pool, bn, relu, pool, x)
    folded = bn.fold()
    positions = pool.return_indices and not isinstance(pool, Codes)  # torch's indices
    if folded is None or positions or not gradient_free((x, bn.weight, bn.bias)):
        return pool(relu(bn(x)))
    values, codes = batch_norm_relu_max_pool2d(
        x, *folded, pool.kernel_size, pool.stride, pool.padding, pool.dilation, pool.ceil_mode
    )
    return (values, codes) if pool.return_indices else values


def pool_to_codes(x: Tensor, *arguments):
    """``F.max_pool2d`` with byte codes for its indices."""
    if isinstance(x, fx.Proxy):
        return traced(pool_to_codes, x, *arguments)
    return max_pool2d(x, *arguments)


def unpool_codes(values: Tensor, codes: Tensor, *arguments):
    """``F.max_unpool2d`` of :func:`pool_to_codes`."""
    if isinstance(values, fx.Proxy):
        return traced(unpool_codes, values, codes, *arguments)
    return max_unpool2d(values, codes, *arguments)
