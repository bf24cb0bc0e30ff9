"""Access to a tensor's values, for checks of arguments, where that is possible and free."""

from __future__ import annotations

import torch
from torch import Tensor
from torch._C import _len_torch_dispatch_stack
from torch._C._functorch import get_unwrapped, is_functorch_wrapped_tensor, maybe_get_bdim


def readable(t: Tensor) -> Tensor | None:
    """Returns the values of a tensor on the CPU without its history, or None.

    It is None while a program is traced, for fake tensors, and on a GPU, for which the host would
    have to wait. Inside of torch.func.vmap and grad the values are those of all samples, with
    vmap's dimensions first.
    """
    if torch.compiler.is_compiling() or _len_torch_dispatch_stack():
        return None
    while is_functorch_wrapped_tensor(t):
        dim, t = maybe_get_bdim(t), get_unwrapped(t)
        t = t if dim < 0 else t.movedim(dim, 0)
    if not t.is_cpu or type(t) not in (Tensor, torch.nn.Parameter):
        return None
    return t.detach()
