"""The mixins of the classes that modules become."""

from __future__ import annotations

import functools

import torch
from torch import Tensor, is_grad_enabled, nn
from torch._C import _get_tracing_state
from torch.compiler import is_compiling

from fastseg._core.ordinary_tensors import ordinary_tensors
from fastseg._core.plain_tensors import takes_no_gradient
from fastseg.nn import MaxPool2d, MaxUnpool2d
from fastseg.nn._batch_norm import FoldedBatchNorm, can_fold, fold
from fastseg.optimize.blocks.convolve import (
    apply,
    convolve,
    in_contiguous,
    is_left_to_inductor,
    is_left_to_torch,
    is_map,
    owns,
)
from fastseg.optimize.blocks.convolving import Convolving
from fastseg.optimize.blocks.pairs import Pairs, Scope
from fastseg.optimize.blocks.program import Program
from fastseg.optimize.blocks.swap import Swapped
from fastseg.optimize.blocks.training import RefusesTraining, refuse_training
from fastseg.optimize.blocks.variants import Variants


class Fused(Swapped):
    """A block whose forward is rewritten, or within which poolings hand on byte codes.

    Attributes:
        _program: the new forward, or None. The block's own forward runs where it does not fit.
        _variants: new forwards for other ways to call the block, or None.
        _pairs: the poolings and unpoolings, or None.
    """

    _program: Program | None = None
    _variants: Variants | None = None
    _pairs: Pairs | None = None

    @classmethod
    def _forward_for(cls, base):
        def fused(self, args, kwargs):
            program, values = self._program, args
            if program is None or kwargs or not program.fits(self, args):
                program = None
                if self._variants is not None:
                    program, values = self._variants.of(self, args, kwargs)
            if program is None or is_left_to_torch():
                return base.forward(self, *args, **kwargs)
            return program.function(self, *values)

        @functools.wraps(base.forward)
        def forward(self, *args, **kwargs):
            pairs = self._pairs
            if pairs is None:
                return fused(self, args, kwargs)
            outer = pairs.enter()
            try:
                return fused(self, args, kwargs)
            finally:
                pairs.leave(outer)

        return forward

    def __setstate__(self, state):
        super().__setstate__(state)
        for held in (self._program, self._pairs):
            if held is not None:
                held.guard.compile()
        if self._variants is not None:
            self._variants.compile()

    def why_not_fused(self) -> str | None:
        """Why the block's own forward runs although it was rewritten, or None."""
        held = [h for h in (self._program, self._variants) if h is not None]
        return next((why_not for h in held if (why_not := h.why_not(self)) is not None), None)

    def extra_repr(self) -> str:
        """The block's own text, and that its own forward runs where that is so."""
        lines, why_not = super().extra_repr(), self.why_not_fused()
        if why_not is None:
            return lines
        return "\n".join([*filter(None, [lines]), f"runs its own forward: {why_not}"])

    def _before_restore(self):
        for name in ("_program", "_variants", "_pairs"):
            self.__dict__.pop(name, None)


class Atrous(Convolving):
    """A convolution that fastseg computes where that is faster.

    Attributes:
        _left: shapes for which torch was found to train faster, as an ordered set.
    """

    _left: dict[torch.Size, None]

    def _after_swap(self):
        super()._after_swap()
        self._left = {}

    def _before_restore(self):
        super()._before_restore()
        self.__dict__.pop("_left", None)

    def forward(self, input: Tensor) -> Tensor:
        """Computes what torch's forward does."""
        compiling = is_compiling()
        if (
            not compiling
            and self.training
            and input.shape in self._left
            and is_grad_enabled()
            and _get_tracing_state() is None
        ):
            return self._base.forward(self, input)
        if is_left_to_torch() or input.dim() != 4:
            return self._base.forward(self, input)
        gradient = not takes_no_gradient((input, self.weight, self.bias))
        if owns(self, input, gradient) and self.is_as_it_was():
            return apply(self, input)
        if gradient and self.training and not compiling and len(self._left) < _SHAPES:
            self._left[input.shape] = None
        return self._base.forward(self, input)


_SHAPES = 64


class Frozen(Convolving):
    """A convolution of a model for inference, computed in channels_last."""

    def forward(self, input: Tensor) -> Tensor:
        """Computes what torch's forward does."""
        if (
            is_left_to_torch()
            or not self.is_as_it_was()
            or not is_map(input)
            or is_left_to_inductor(self, input)
        ):
            return self._base.forward(self, input)
        return convolve(self, input)


class Relaid(Swapped):
    """An instance norm, which would itself make a map of a convolution contiguous, but slowly."""

    @classmethod
    def _forward_for(cls, base):
        @functools.wraps(base.forward)
        def forward(self, input):
            return base.forward(self, in_contiguous(input))

        return forward


class Foldable(Swapped):
    """A batch norm that is part of what is before it."""

    def fold(self) -> tuple[Tensor, Tensor] | None:
        """Scale and shift, or None where the batch norm is to run on its own."""
        raise NotImplementedError

    def kept(self) -> tuple[Tensor, Tensor] | None:
        """What :meth:`fold` returns, or None; it is for eager mode without a mode or transform."""
        return self.fold()

    @classmethod
    def _forward_for(cls, base):
        return base.forward


class Folding(Foldable):
    """A batch norm that is folded while no gradient is needed.

    Attributes:
        _folded: the scale and shift that it remembers.
    """

    def _after_swap(self):
        self._folded = FoldedBatchNorm()

    def fold(self) -> tuple[Tensor, Tensor] | None:  # noqa: D102
        return None if is_compiling() or not can_fold(self) else self._folded(self)

    def kept(self) -> tuple[Tensor, Tensor] | None:  # noqa: D102
        return None if self.training else self._folded.kept(self)

    def _before_restore(self):
        self.__dict__.pop("_folded", None)

    def train(self, mode: bool = True):
        """Does what torch's does, and forgets what evaluation has folded."""
        self._folded.forget()
        return super().train(mode)


class Folded(RefusesTraining, Foldable):
    """A batch norm of a model for inference, whose scale and shift are constants.

    Attributes:
        folded_scale: the scale, a buffer.
        folded_shift: the shift, a buffer.
        _folded_of: the tensors and eps that both were made of.
        _folded: both for other tensors, such as torch.func.functional_call brings.
    """

    def _after_swap(self):
        refuse_training()
        self._folded = FoldedBatchNorm()
        self._fold()

    def __setstate__(self, state):
        refuse_training()  # the module may have been read from a file
        super().__setstate__(state)

    def _fold(self):
        tensors = (self.weight, self.bias, self.running_mean, self.running_var)
        self._folded_of = (*tensors, self.eps)
        if self.running_mean is None or self.running_var is None:
            return  # the batch's statistics are taken then, and nothing is folded
        with ordinary_tensors(), torch.no_grad():
            folded = fold([t if t is None else _whole(t.detach()) for t in tensors], self.eps)
            for name, t in zip(_FOLDED, folded, strict=True):
                old = self._buffers.get(name)
                if old is not None and (old.dtype, old.device) == (t.dtype, t.device):
                    old.copy_(t)  # a CUDA graph that was captured before reads these
                else:
                    self.register_buffer(name, t, persistent=False)

    def fold(self) -> tuple[Tensor, Tensor] | None:  # noqa: D102
        held = self.__dict__
        parameters, buffers = held["_parameters"], held["_buffers"]
        mean, variance = buffers.get("running_mean"), buffers.get("running_var")
        if held["training"] or mean is None or variance is None:
            return None
        weight, bias, old_mean, old_variance, eps = held["_folded_of"]
        if is_compiling() or (
            parameters.get("weight") is weight
            and parameters.get("bias") is bias
            and mean is old_mean
            and variance is old_variance
            and held["eps"] == eps
        ):
            return buffers["folded_scale"], buffers["folded_shift"]
        return self._folded(self) if can_fold(self) else None

    def _apply(self, *args, **kwargs):
        super()._apply(*args, **kwargs)
        self._fold()  # the new dtype and device want new constants
        return self

    def _load_from_state_dict(self, *args):
        super()._load_from_state_dict(*args)
        self._fold()

    def _before_restore(self):
        for name in ("_folded", "_folded_of"):
            self.__dict__.pop(name, None)
        for name in _FOLDED:
            self._buffers.pop(name, None)
            self._non_persistent_buffers_set.discard(name)


_FOLDED = ("folded_scale", "folded_shift")


class Codes(Swapped):
    """Max-pooling whose indices are byte codes, and the unpooling that takes them.

    Attributes:
        _scope: tells whether a pooling hands on codes; an unpooling, which has none, takes both.
    """

    _scope: Scope | None = None

    @classmethod
    def _forward_for(cls, base):
        ours = {nn.MaxPool2d: MaxPool2d, nn.MaxUnpool2d: MaxUnpool2d}[base].forward

        @functools.wraps(base.forward)
        def forward(self, *args, **kwargs):
            if (self._scope is None or self._scope.is_open) and not is_left_to_torch():
                return ours(self, *args, **kwargs)
            return base.forward(self, *args, **kwargs)

        return forward

    def hands_on_codes(self) -> bool:
        """Whether its indices are codes here and now."""
        return self._scope is not None and self._scope.is_open

    def _before_restore(self):
        self.__dict__.pop("_scope", None)


def _whole(t: Tensor) -> Tensor:
    """The whole of a tensor, which fully_shard may have spread over processes."""
    return t.full_tensor() if hasattr(t, "full_tensor") else t
