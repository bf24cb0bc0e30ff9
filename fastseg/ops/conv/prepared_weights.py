"""Weights in the form that a kernel needs, kept as long as the weights live and do not change.

Preparing a weight can take as long as using it once. The prepared form is found by the weight's
storage and its place in it. torch counts changes (tensor._version), but not those through
``tensor.data``, numpy or shared memory, so that every call also compares a fingerprint of all
bytes. That costs one reading of the weight; a kernel reads as much or more.

There are no locks, which a fork could leave locked for ever in the child. Data that several threads
read are never changed but replaced, and two threads may prepare the same weight at once.
"""

from __future__ import annotations

import ctypes
import functools
import itertools
import math
import weakref
from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple

from torch import Tensor, UntypedStorage

from fastseg._core import extension

MOST_FORMS = 8
"""Number of forms kept per weight, for inputs of several sizes; the oldest goes first."""

MOST_PIECES = 4096
"""Number of pieces of a weight with gaps that are read one by one."""

MOST_WEIGHTS = 1024
"""Number of weights per storage whose forms are kept; the oldest goes first."""


class _Kept(NamedTuple):
    """A storage, and the prepared forms of the weights in it."""

    storage: weakref.ref[UntypedStorage]
    weights: dict[Hashable, dict[Hashable, tuple[State, Any]]]


_kept: dict[int, _Kept] = {}
"""Prepared forms by the id of the weight's storage. There are no weak references to the tensors
themselves: torch's swap_tensors, and with it Module.double() and load_state_dict(), refuses tensors
that have one."""


def prepared(
    weight: Tensor,
    folded: Sequence[Tensor | None],
    form: Hashable,
    prepare: Callable[[], Any],
) -> Any:
    """Returns ``prepare()``, or its earlier result for these tensors and this form.

    Args:
        weight: a tensor on the CPU; the result lives as long as its storage does.
        folded: the other tensors that prepare() reads; some may be None.
        form: a name for the form that prepare() makes.
        prepare: makes the form, and reads no other tensors.
    """
    tensors = (weight, *folded)
    weights = _weights_in(weight.untyped_storage())
    place = (weight.storage_offset(), weight.shape, weight.stride(), weight.dtype)
    forms = weights.get(place, {})
    found = forms.get(form)
    if found is not None and found[0].still_of(tensors):
        return found[1]
    state = State(tensors)
    made = prepare()
    weights.pop(place, None)
    weights[place] = _with(forms, form, (state, made))
    if len(weights) > MOST_WEIGHTS:
        weights.pop(next(iter(tuple(weights))), None)
    return made


def _weights_in(storage: UntypedStorage) -> dict[Hashable, dict[Hashable, tuple[State, Any]]]:
    key = id(storage)
    kept = _kept.get(key)
    if kept is None or kept.storage() is not storage:

        def forget_storage(reference: weakref.ref) -> None:
            if (dead := _kept.get(key)) is not None and dead.storage is reference:
                del _kept[key]

        kept = _kept[key] = _Kept(weakref.ref(storage, forget_storage), {})
    return kept.weights


def _with(forms: dict, form: Hashable, entry: tuple[State, Any]) -> dict:
    """Returns a new dictionary with one form more, and at most the newest MOST_FORMS."""
    others = [(f, e) for f, e in forms.items() if f != form]
    return dict([*others[1 - MOST_FORMS :], (form, entry)])


class State:
    """The state of some tensors, by which a change of their values is seen.

    On a GPU, writes through ``t.data`` go unseen.

    Attributes:
        places: each tensor's place in memory and its version.
        memory: arguments of the fingerprint: the places and sizes of the tensors on the CPU, in
            pieces where there are gaps.
        fingerprint: a hash of the values of the tensors on the CPU.
    """

    __slots__ = ("fingerprint", "memory", "places")

    def __init__(self, tensors: Sequence[Tensor | None]):
        self.places = _places(tensors)
        pieces = [p for t in tensors if t is not None and t.is_cpu for p in _pieces(t)]
        count = len(pieces)
        pointers, sizes = zip(*pieces, strict=True) if pieces else ((), ())
        arrays = (ctypes.c_void_p * count)(*pointers), (ctypes.c_int64 * count)(*sizes)
        self.memory = (*arrays, count)
        self.fingerprint = _fingerprint()(*self.memory)

    def still_of(self, tensors: Sequence[Tensor | None]) -> bool:
        """Whether these are the same tensors with the same values."""
        return self.places == _places(tensors) and self._has_same_values()

    def still_of_same(self, tensors: Sequence[Tensor | None]) -> bool:
        """Whether the very tensors on the CPU that it was made of have the same values.

        It asks less than `still_of`, which takes long beside a small map's convolution: such
        tensors keep their dtype, and their values tell of writes as versions do.
        """
        for t, place in zip(tensors, self.places, strict=True):
            if t is not None and (
                t.data_ptr() != place[0] or t.shape != place[2] or t.stride() != place[3]
            ):
                return False
        return self._has_same_values()

    def _has_same_values(self) -> bool:
        return self.fingerprint == _fingerprint()(*self.memory)


def _places(tensors: Sequence[Tensor | None]) -> list:
    return [
        t
        if t is None
        else (t.data_ptr(), -1 if t.is_inference() else t._version, t.shape, t.stride(), t.dtype)
        for t in tensors
    ]


def _pieces(t: Tensor) -> list[tuple[int, int]]:
    """Returns the address and bytes of each piece of memory that a tensor's elements fill.

    A tensor with small or very many gaps is one piece, with the gaps.
    """
    if t.numel() == 0:
        return []
    axes = sorted((step, n) for n, step in zip(t.shape, t.stride(), strict=True) if step and n > 1)
    dense, size = 1, t.element_size()
    while axes and axes[0][0] == dense:
        dense *= axes.pop(0)[1]
    count = math.prod(n for _, n in axes)
    reach = dense + sum((n - 1) * step for step, n in axes)
    if count > MOST_PIECES or 2 * count * dense > reach:
        return [(t.data_ptr(), reach * size)]
    starts = (sum(at) for at in itertools.product(*(range(0, n * s, s) for s, n in axes)))
    return [(t.data_ptr() + start * size, dense * size) for start in starts]


@functools.cache
def _fingerprint() -> Callable[[ctypes.Array, ctypes.Array, int], int]:
    if extension.CPU_MISSING:
        return lambda pointers, sizes, count: 0
    function = extension._cpu.fastseg_fingerprint
    function.argtypes = (
        ctypes.POINTER(ctypes.c_void_p),
        ctypes.POINTER(ctypes.c_int64),
        ctypes.c_int64,
    )
    function.restype = ctypes.c_uint64
    return function


def forget() -> None:
    """Drops all prepared forms."""
    _kept.clear()
