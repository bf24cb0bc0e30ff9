"""The processes of a distributed run, which torchrun starts: one for each GPU, or on CPUs.

Without torchrun there is one process, and everything here is trivial.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import os
import sys
import threading
from collections.abc import Callable
from types import MethodType
from typing import Any, NoReturn

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

LOST = ("gloo", "connection", "socket", "nccl", "timed out")
"""Words in the errors of torch.distributed when another process has ended."""


def _has_group() -> bool:
    """Whether this process has joined a group, of one or more."""
    return dist.is_available() and dist.is_initialized()


def is_distributed() -> bool:
    """Whether this process is one of several that train together."""
    return _has_group() and dist.get_world_size() > 1


def world_size() -> int:
    """Returns the number of processes."""
    return dist.get_world_size() if is_distributed() else 1


def rank() -> int:
    """Returns this process's number; 0 writes the files."""
    return dist.get_rank() if is_distributed() else 0


def join(device: torch.device) -> torch.device:
    """Joins the processes that torchrun has started; returns this one's device.

    Args:
        device: that of the command; each process takes the GPU of its number.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) < 2 or "RANK" not in os.environ:
        return device
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(device)
    if not dist.is_initialized():
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
        if device.type == "cpu":
            keep(dist.group.WORLD)
    return device


def keep(group: object) -> None:
    """Keeps a group of gloo's to the end of the process.

    Its destructor waits for its threads and holds Python's lock meanwhile, which one of them may
    need to let the tensors of the last exchange go: on busy processors a run would never end.
    """
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(group))


def leave() -> None:
    """Ends this process's part in the others' communication."""
    if _has_group() and dist.get_backend() != "gloo":
        dist.destroy_process_group()


def end(status: int) -> NoReturn:
    """Ends this process with an exit status.

    With gloo it ends as multiprocessing's children do, without Python's own end: a thread of gloo's
    that needs Python's lock then, to let the tensors of the last exchange go, would abort it.
    """
    if _has_group() and dist.get_backend() == "gloo":
        threading._shutdown()  # type: ignore[attr-defined] # waits for threads, as Python does
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)


def global_sum(value: Tensor) -> Tensor:
    """Returns the sum of a value, which needs no gradient, over all processes."""
    if not is_distributed():
        return value
    value = value.detach().clone()
    dist.all_reduce(value)
    return value


class _Sum(torch.autograd.Function):
    """The sum of a value over all processes, and of its gradient."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        """Returns the sum."""
        return global_sum(value)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        """Returns the sum of what all processes' results make of this one's value."""
        return global_sum(gradient)


def any_of_all(flag: bool, device: torch.device) -> bool:
    """Whether a flag is set in any process."""
    return bool(global_sum(torch.tensor(float(flag), device=device)).item())


def is_loss_of_a_process(error: RuntimeError) -> bool:
    """Whether an error says that another process has ended."""
    text = str(error).lower()
    return is_distributed() and any(word in text for word in LOST)


def synchronise_batch_norms(model: nn.Module) -> None:
    """Lets batch norms in training use the mean and variance of all processes' batches.

    torch's own SyncBatchNorm runs on GPUs alone, and is another class than the one that fastseg's
    modules fold in evaluation. What a batch norm of another project does around its normalisation,
    such as an activation, stays as it is.
    """
    if not is_distributed():
        return
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.forward = MethodType(_synchronised, module)


def _synchronised(bn: nn.modules.batchnorm._BatchNorm, *inputs: Any, **named: Any) -> Any:
    """Calls a batch norm, in training with the statistics of all processes."""
    with _OfAllProcesses() if bn.training else contextlib.nullcontext():
        return type(bn).forward(bn, *inputs, **named)


class _OfAllProcesses(TorchFunctionMode):
    """A context in which F.batch_norm takes the statistics of all processes."""

    def __torch_function__(
        self, function: Callable, types: Any, arguments: tuple = (), named: dict | None = None
    ) -> Any:
        """Calls the function, or what stands in for it."""
        if function is F.batch_norm:
            function = _batch_norm
        return function(*arguments, **(named or {}))


def _batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """F.batch_norm of (N, C, ...) by the statistics of all processes."""
    if not training:
        return F.batch_norm(input, running_mean, running_var, weight, bias, training, momentum, eps)
    x = input.to(torch.promote_types(input.dtype, torch.float32))
    others = [axis for axis in range(x.dim()) if axis != 1]

    def by_channel(vector: Tensor) -> Tensor:
        return vector.reshape(-1, *[1] * (x.dim() - 2))

    count = x.new_full((1,), x.numel() / x.shape[1])
    total = _Sum.apply(torch.cat((x.sum(others), count)))
    mean = total[:-1] / total[-1]
    centred = x - by_channel(mean)
    variance = _Sum.apply(centred.square().sum(others)) / total[-1]
    if running_mean is not None and running_var is not None:
        with torch.no_grad():
            unbiased = variance * total[-1] / (total[-1] - 1).clamp_min(1)
            running_mean.lerp_(mean.to(running_mean.dtype), momentum)
            running_var.lerp_(unbiased.to(running_var.dtype), momentum)
    scale = (variance + eps).rsqrt()
    y = centred * by_channel(scale if weight is None else scale * weight)
    return (y if bias is None else y + by_channel(bias)).to(input.dtype)
