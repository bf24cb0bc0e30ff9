"""Weights in the form that a kernel wants, kept for as long as the weights live and do not change.

To prepare weights can take as long as to use them once. What was prepared is found again by the
weights' place in memory; torch counts their changes (tensor._version), and a fingerprint catches
most of those that it does not count, through ``tensor.data``.
"""

from __future__ import annotations

import ctypes
import functools
import threading
from collections.abc import Callable, Hashable, Sequence
from typing import Any

from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

MOST_FORMS = 8
"""Of one weight, for inputs of several sizes; the oldest goes."""

_forms: WeakTensorKeyDictionary = WeakTensorKeyDictionary()
_lock = threading.Lock()


def prepared(
    weight: Tensor,
    folded: Sequence[Tensor | None],
    form: Hashable,
    prepare: Callable[[], Any],
) -> Any:
    """``prepare()``, or what it returned before for these tensors and this form.

    Args:
        weight: on the CPU; what is prepared lives as long as it does.
        folded: other tensors that prepare() reads, or None.
        form: names what prepare() makes.
        prepare: reads these tensors alone.
    """
    state = (state_of(weight), *(None if t is None else state_of(t) for t in folded))
    owner = weight if weight._base is None else weight._base
    key = (form, weight.storage_offset(), weight.shape, weight.stride())
    with _lock:
        forms = _forms.get(owner)
        if forms is None:
            forms = _forms[owner] = {}
        found = forms.get(key)
    if found is not None and found[0] == state:
        return found[1]
    made = prepare()
    with _lock:
        forms.pop(key, None)
        forms[key] = (state, made)
        if len(forms) > MOST_FORMS:
            del forms[next(iter(forms))]
    return made


def state_of(t: Tensor) -> tuple:
    """Differs when the values do; on a GPU, writes through ``t.data`` go unseen."""
    version = -1 if t.is_inference() else t._version
    if t.device.type != "cpu":
        return t.data_ptr(), version
    size = t.numel() * t.element_size()
    if not t.is_contiguous():  # expanded tensors have less memory than elements
        room = t.untyped_storage().nbytes() - t.storage_offset() * t.element_size()
        size = min(size, room)
    return t.data_ptr(), version, _fingerprint()(t.data_ptr(), size)


@functools.cache
def _fingerprint() -> Callable[[int, int], int]:
    from fastseg import _extension

    if _extension.CPU_MISSING:
        return lambda pointer, size: 0
    function = _extension._cpu.fastseg_fingerprint
    function.argtypes, function.restype = (ctypes.c_void_p, ctypes.c_int64), ctypes.c_uint64
    return function


def forget() -> None:
    """Drops all that is prepared."""
    with _lock:
        for forms in list(_forms.values()):
            forms.clear()
