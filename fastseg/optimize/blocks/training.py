"""A model whose batch norms are folded refuses to be trained, wholly.

nn.Module.train sets the module's own flag, then goes through its children. Were the refusal one of
the folded batch norms, the modules before it and those around the model would be in training by
then. So from the first of them on nn.Module.train looks at all that it would change before it does.
"""

from __future__ import annotations

import functools
import threading

from torch import nn

REFUSED = (
    "fastseg.optimize_(mode='infer') has folded the model's batch norms: call"
    " fastseg.restore_(model) before model.train()"
)

_train = nn.Module.train
_within = threading.local()


class RefusesTraining:
    """A module that cannot be trained."""

    def train(self, mode: bool = True):
        """Does what torch's does for evaluation.

        Raises:
            RuntimeError: mode is True.
        """
        if mode:
            raise RuntimeError(REFUSED)
        return super().train(mode)


@functools.wraps(_train)
def _train_all_or_nothing(self, mode: bool = True):
    if mode is not True or getattr(_within, "is_checked", False):
        return _train(self, mode)
    if any(isinstance(m, RefusesTraining) for m in self.modules()):
        raise RuntimeError(REFUSED)
    _within.is_checked = True
    try:
        return _train(self, mode)
    finally:
        _within.is_checked = False


def refuse_training() -> None:
    """Makes nn.Module.train look for modules that refuse, once one of them exists."""
    if nn.Module.train is _train:
        nn.Module.train = _train_all_or_nothing
