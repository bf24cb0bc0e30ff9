"""Tensors that an object keeps for later calls, in a form that autograd can use."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def ordinary_tensors() -> Iterator[None]:
    """Makes new tensors in the block ordinary ones, without history, even in inference mode.

    A tensor that is made under ``torch.inference_mode`` can never be saved for a backward pass, so
    that what an object keeps from one call to the next is made in here.
    """
    if torch.compiler.is_compiling() or not torch.is_inference_mode_enabled():
        yield
        return
    with torch.inference_mode(False), torch.no_grad():
        yield
