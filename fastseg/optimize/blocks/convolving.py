"""The base of the mixins of convolutions."""

from __future__ import annotations

import functools
import inspect

from torch import nn

from fastseg.optimize.blocks.convolve import has_its_kernel
from fastseg.optimize.blocks.swap import Swapped
from fastseg.optimize.classify.eligible import deciding


class Convolving(Swapped):
    """A Conv2d that :func:`fastseg.atrous_conv2d` computes.

    Attributes:
        _was: the attributes that decide what it computes, as they were.
    """

    @classmethod
    def _forward_for(cls, base):
        name = [*inspect.signature(base.forward).parameters][1]
        if name == "input":  # as in torch's own, which needs no call around the call
            return cls.forward

        @functools.wraps(base.forward)
        def forward(self, *args, **kwargs):
            if name in kwargs and not args:
                args = (kwargs.pop(name),)
            return cls.forward(self, *args, **kwargs)

        return forward

    def _after_swap(self):
        self._was = _deciding(self)

    def _before_restore(self):
        self.__dict__.pop("_was", None)

    def is_as_it_was(self) -> bool:
        """Whether the module computes what it did, and torch's Conv2d too."""
        return (
            self._was == _deciding(self)
            and has_its_kernel(self)
            and self._base.forward is self._base_forward
            and nn.Conv2d._conv_forward is _CONV_FORWARD
        )


_CONV_FORWARD = nn.Conv2d._conv_forward


def _deciding(conv: nn.Conv2d) -> tuple:
    held = conv.__dict__
    pad = held["_modules"].get("static_padding")  # same_padding.py says what this child is
    if pad is not None:
        return *[held.get(name) for name in _NAMES], pad, pad.__dict__.get("padding")
    return tuple([held.get(name) for name in _NAMES])


_NAMES = deciding(nn.Conv2d(1, 1, 1))
