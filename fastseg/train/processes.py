"""The processes of a distributed run, which torchrun starts: one for each GPU, or on CPUs.

Without torchrun there is one process, and everything here is trivial.
"""

from __future__ import annotations

import atexit
import ctypes
import os
import sys
import threading
from types import MethodType
from typing import NoReturn

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.nn.functional import all_reduce

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
    modules fold in evaluation.
    """
    if not is_distributed():
        return
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.forward = MethodType(_synchronised, module)


def _synchronised(bn: nn.BatchNorm2d, x: Tensor) -> Tensor:
    """Normalises x (N, C, H, W) by the statistics of all processes."""
    if not bn.training:
        return F.batch_norm(
            x, bn.running_mean, bn.running_var, bn.weight, bn.bias, False, 0.0, bn.eps
        )
    wide = x.float()
    count = x.new_full((1,), x.numel() / x.shape[1], dtype=torch.float32)
    total = all_reduce(torch.cat((wide.sum((0, 2, 3)), count)))
    mean = total[:-1] / total[-1]
    centred = wide - mean[:, None, None]
    variance = all_reduce(centred.square().sum((0, 2, 3))) / total[-1]
    if bn.track_running_stats:
        with torch.no_grad():
            bn.num_batches_tracked += 1
            momentum = bn.momentum if bn.momentum is not None else 1 / bn.num_batches_tracked
            unbiased = variance * total[-1] / (total[-1] - 1).clamp_min(1)
            bn.running_mean.lerp_(mean.to(bn.running_mean.dtype), momentum)
            bn.running_var.lerp_(unbiased.to(bn.running_var.dtype), momentum)
    scale = (variance + bn.eps).rsqrt()
    if bn.weight is not None:
        scale = scale * bn.weight
    y = centred * scale[:, None, None]
    return (y if bn.bias is None else y + bn.bias[:, None, None]).to(x.dtype)
