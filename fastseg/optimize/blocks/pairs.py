"""Poolings and unpoolings that may hand on byte codes as long as the model is what it was."""

from __future__ import annotations

import threading

from torch import nn

from fastseg.optimize.blocks.guard import Guard


class Scope(threading.local):
    """Tells whether code runs within a forward of the model that its poolings' codes stay in.

    Each thread has its own answer: another one may call a part of the model alone meanwhile.

    Attributes:
        is_open: whether that is so, and the model is what it was.
    """

    def __init__(self):
        self.is_open = False

    def __reduce__(self):
        return Scope, ()  # what is copied or read from a file runs in no forward


class Pairs:
    """The poolings of a model that hand on byte codes, held by the model itself.

    Whoever calls a part of the model alone may do with the indices whatever they like, so that the
    poolings hand on codes within the model's own forward only.

    Args:
        guard: the guard of the model.
        poolings: the poolings that hand on codes.
    """

    def __init__(self, guard: Guard, poolings: list[nn.Module]):
        self.guard, self.scope = guard, Scope()
        for pooling in poolings:
            pooling._scope = self.scope

    def enter(self) -> bool:
        """Begins a forward of the model; codes become indices if it has changed.

        Returns:
            What :meth:`leave` is to be given.
        """
        outer = self.scope.is_open
        self.scope.is_open = self.guard.holds()
        return outer

    def leave(self, outer: bool) -> None:
        """Ends a forward of the model, which may have run within another of the same model."""
        self.scope.is_open = outer
