"""Poolings and unpoolings that may hand on byte codes as long as the model is what it was."""

from __future__ import annotations

from torch import nn

from fastseg.optimize.blocks.guard import Guard


class Pairs:
    """The poolings of a model that hand on byte codes, held by the model itself.

    Args:
        guard: the guard of the model.
        poolings: the poolings that hand on codes.
    """

    def __init__(self, guard: Guard, poolings: list[nn.Module]):
        self.guard, self.poolings = guard, poolings

    def look(self) -> None:
        """Turns codes into indices where the model has changed, for they may go elsewhere now."""
        holds = self.guard.holds()
        for pooling in self.poolings:
            if pooling._hands_on_codes is not holds:
                pooling._hands_on_codes = holds
