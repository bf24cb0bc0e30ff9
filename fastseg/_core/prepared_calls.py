"""Prepared calls: what an op does on a GPU for tensors of one kind, found by a single look-up.

A kernel of a small batch takes tens of microseconds, and Python that checks, chooses, plans and
binds arguments takes longer. So the first call for tensors of one kind, of the same shapes,
strides, dtypes, device and alignment, is recorded (:mod:`fastseg.kernels.conv.recording`), and
later ones only put new addresses into what was recorded. Values and addresses of tensors are no
part of the kind: a weight is read where it lies at each call, so that whatever changes it is seen.

Where the compiled module is missing, or anything is unknown, nothing is recorded, and every call
takes the ordinary way.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Hashable, Sequence

from torch import Tensor
from torch._C._autograd import _profiler_enabled
from torch.autograd.profiler import record_function
from torch.nn import Parameter

from fastseg._core.float32_precision import tf32_in_convolutions

MOST_PREPARED = 1024
"""Number of prepared calls that are kept; all are dropped beyond that."""

MOST_BYTES = 1 << 27
"""Bytes of a GPU's memory that prepared calls may hold, in their plans; all are dropped beyond
that, and a call that needs more alone is not kept."""

CALLS: dict[tuple, Callable[[Sequence[Tensor | None]], Tensor | None]] = {}
"""Prepared calls by their keys. None as a result says that the ordinary way must be taken."""

OF_PARENT: list[dict] = []
"""In a forked child, the parent's calls."""


def _leave_to_parent() -> None:
    """Makes a forked child find none of its parent's calls, whose GPU it must not use.

    They stay: CUDA, of which a child can ask nothing, would end it where their memory is freed.
    """
    OF_PARENT.append(CALLS.copy())
    CALLS.clear()


os.register_at_fork(after_in_child=_leave_to_parent)


def _load():
    """The compiled module, or None."""
    package = __package__.rpartition(".")[0]  # a copy of another name must not load fastseg itself
    try:
        module = importlib.import_module(f"{package}._launch")
        module.set_up(Tensor.__dlpack_c_exchange_api__, (Tensor, Parameter), Tensor.is_neg)
    except (ImportError, AttributeError, RuntimeError):
        return None
    return module


launcher = _load()
"""The compiled module fastseg._launch, or None where it is missing or torch is unknown to it."""


DEVICE = "cuda"
"""The type of the devices whose calls are prepared."""


def are_on_gpu(tensors: Sequence[Tensor | None]) -> bool:
    """Whether kernels may read these tensors where they lie: plain ones, the first on a GPU."""
    on_gpu = launcher is not None and tensors[0].device.type == DEVICE
    return on_gpu and launcher.describe(*tensors) is not None


def key_of(
    op: str, tensors: Sequence[Tensor | None], options: tuple[Hashable, ...]
) -> tuple | None:
    """All that the choices of a call depend on, or None if the tensors are no plain ones.

    Args:
        op: the op's name.
        tensors: all tensors of the call.
        options: its other arguments.
    """
    description = launcher.describe(*tensors)
    if description is None:
        return None
    return (op, description, tf32_in_convolutions(), options)


def find(op: str, tensors: Sequence[Tensor | None], options: tuple[Hashable, ...]):
    """The prepared call for these arguments, or None."""
    if not CALLS:
        return None
    try:
        return CALLS.get(key_of(op, tensors, options))
    except TypeError:  # an option without a hash
        return None


def run(op: str, tensors: Sequence[Tensor | None], options: tuple[Hashable, ...]) -> Tensor | None:
    """The result of the prepared call for these arguments, or None if there is none."""
    call = find(op, tensors, options)
    if call is None:
        return None
    if _profiler_enabled():
        with record_function(f"fastseg::{op}"):
            return call(tensors)
    return call(tensors)


def keep(op: str, tensors: Sequence[Tensor | None], options: tuple, call: Callable) -> None:
    """Keeps a prepared call for arguments of this kind."""
    key = key_of(op, tensors, options)
    if key is None:
        return
    if len(CALLS) >= MOST_PREPARED or _held_bytes([*CALLS.values(), call]) > MOST_BYTES:
        CALLS.clear()
        if _held_bytes([call]) > MOST_BYTES:
            return
    CALLS[key] = call


def _held_bytes(calls: Sequence[Callable]) -> int:
    """The bytes of the plans of these calls, some of which may share one."""
    plans = {id(plan): plan for call in calls for plan in call.plans}
    return sum(plan.buffer.nbytes for plan in plans.values())


def keep_as_well(op: str, tensors: Sequence[Tensor | None], options: tuple, others: tuple) -> None:
    """Lets a call with `options` find what is prepared for `others`, which mean the same."""
    call = find(op, tensors, others)
    if call is not None and find(op, tensors, options) is not call:
        try:
            keep(op, tensors, options, call)
        except TypeError:  # an option without a hash
            return


def forget() -> None:
    """Drops all prepared calls, because what they were chosen by has changed."""
    CALLS.clear()
