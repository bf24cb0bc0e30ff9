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

import torch
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
    tensors = (weight, *folded)
    owner = weight if weight._base is None else weight._base
    key = (form, weight.storage_offset(), weight.shape, weight.stride())
    with _lock:
        forms = _forms.get(owner)
        if forms is None:
            forms = _forms[owner] = {}
        found = forms.get(key)
    if found is not None and found[0].still_of(tensors):
        return found[1]
    state = State(tensors)
    made = prepare()
    with _lock:
        forms.pop(key, None)
        forms[key] = (state, made)
        if len(forms) > MOST_FORMS:
            del forms[next(iter(forms))]
    return made


class State:
    """Of tensors, or None: another when values are; on a GPU writes through ``t.data`` go unseen.

    Attributes:
        places: each tensor's place in memory and its version.
        memory: the places and sizes of those on the CPU, as the fingerprint takes them.
        fingerprint: of their values.
    """

    __slots__ = ("fingerprint", "memory", "places")

    def __init__(self, tensors: Sequence[Tensor | None]):
        self.places = _places(tensors)
        pieces = [(t.data_ptr(), _size(t)) for t in tensors if t is not None and t.is_cpu]
        count = len(pieces)
        pointers, sizes = zip(*pieces, strict=True) if pieces else ((), ())
        arrays = (ctypes.c_void_p * count)(*pointers), (ctypes.c_int64 * count)(*sizes)
        self.memory = (*arrays, count)
        self.fingerprint = _fingerprint()(*self.memory)

    def still_of(self, tensors: Sequence[Tensor | None]) -> bool:
        """Whether these are the same tensors, unchanged."""
        return self.places == _places(tensors) and (
            self.fingerprint == _fingerprint()(*self.memory)
        )


def _places(tensors: Sequence[Tensor | None]) -> list:
    return [
        t if t is None else (t.data_ptr(), -1 if t.is_inference() else t._version) for t in tensors
    ]


def _size(t: Tensor) -> int:
    """Bytes that a tensor reaches over."""
    if t.is_contiguous() or t.is_contiguous(memory_format=torch.channels_last):
        return t.nbytes
    # Expanded tensors have less memory than elements.
    room = t.untyped_storage().nbytes() - t.storage_offset() * t.element_size()
    return min(t.nbytes, room)


@functools.cache
def _fingerprint() -> Callable[[ctypes.Array, ctypes.Array, int], int]:
    from fastseg import _extension

    if _extension.CPU_MISSING:
        return lambda pointers, sizes, count: 0
    function = _extension._cpu.fastseg_fingerprint
    function.argtypes = (
        ctypes.POINTER(ctypes.c_void_p),
        ctypes.POINTER(ctypes.c_int64),
        ctypes.c_int64,
    )
    function.restype = ctypes.c_uint64
    return function


def forget() -> None:
    """Drops all that is prepared."""
    with _lock:
        for forms in list(_forms.values()):
            forms.clear()
