"""Random numbers that depend on a run's seed and position alone, not on what was drawn before."""

from __future__ import annotations

import random

import numpy as np
import torch


def seed_at(*position: int) -> None:
    """Seed the default generators of torch, on all devices, of NumPy and of Python.

    With this before each step a run that was stopped after any step, and one that evaluated or
    loaded its data otherwise in between, draws the same numbers as one that went through.

    Args:
        *position: such as the seed of the run, the epoch and the step; at least 0.
    """
    first, second = np.random.SeedSequence(position).generate_state(2, np.uint64).tolist()
    torch.manual_seed(first)
    random.seed(second)
    np.random.seed(second % 2**32)
