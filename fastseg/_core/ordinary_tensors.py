"""Tensors that are kept for later: made so that autograd can use them whatever made them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def ordinary_tensors() -> Iterator[None]:
    """Inside, new tensors are no inference tensors; gradients are as outside.

    What is made under ``torch.inference_mode`` cannot be saved for a backward pass, ever. So what
    an object keeps from one call to the next is made in here.
    """
    if torch.compiler.is_compiling() or not torch.is_inference_mode_enabled():
        yield
        return
    with torch.inference_mode(False), torch.no_grad():
        yield
