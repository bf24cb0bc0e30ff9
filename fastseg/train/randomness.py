"""Random numbers that depend on a run's seed and position alone, not on what was drawn before."""

from __future__ import annotations

import random

import numpy as np
import torch


def seed_at(*position: int) -> None:
    """Seeds the default generators of torch, on all devices, of NumPy and of Python.

    With this before each step, a run that was stopped after any step, or that evaluated or loaded
    its data otherwise in between, draws the same numbers as one that ran through.

    Args:
        *position: numbers of at least 0, such as the run's seed, the epoch and the step.
    """
    first, second = np.random.SeedSequence(position).generate_state(2, np.uint64).tolist()
    torch.manual_seed(first)
    random.seed(second)
    np.random.seed(second % 2**32)
