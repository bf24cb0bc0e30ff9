"""What a forward may do with logits as the names in its code tell, without a trace of it."""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Callable
from types import CodeType, FunctionType

from torch import nn

from fastseg.optimize.blocks.conditions import base_of
from fastseg.optimize.classify.eligible import UPSAMPLES
from fastseg.optimize.trace.bytecode import codes_in
from fastseg.optimize.trace.origins import is_trusted
from fastseg.optimize.trace.trace import has_own_forward, is_sequential

_READERS = ("argmax", "max", "cross_entropy", "CrossEntropyLoss")
_UPSAMPLING = {"interpolate", "upsample", "Upsample", "UpsamplingBilinear2d"}


def may_read_logits(block: nn.Module) -> bool:
    """Whether something in a block may reduce logits to classes or to their cross-entropy."""
    return any(
        isinstance(m, nn.CrossEntropyLoss) or not _names(m).isdisjoint(_READERS)
        for m in block.modules()
    )


def names_of_readers(block: nn.Module) -> list[str]:
    """What seems to read upsampled logits in the forward of a block itself; it may be nothing."""
    if not any(type(m) in UPSAMPLES or _names(m) & _UPSAMPLING for m in block.modules()):
        return []
    names = _names(block)
    children = block.named_children()
    if any(name in names for name, m in children if type(m) is nn.CrossEntropyLoss):
        names |= {"CrossEntropyLoss"}
    # max() is Python's too, and says little.
    return [name for name in _READERS if name in names and name != "max"]


def _names(module: nn.Module) -> frozenset[str]:
    """The names in the code of a forward that is its author's, and in what it may call."""
    if not has_own_forward(module) or is_sequential(module):
        return frozenset()
    cls = base_of(module)
    if cls not in _names_by_class:
        _names_by_class[cls] = _names_of_class(cls)
    return _names_by_class[cls]


_names_by_class: weakref.WeakKeyDictionary[type, frozenset[str]] = weakref.WeakKeyDictionary()


def _names_of_class(cls: type) -> frozenset[str]:
    own = [c for c in cls.__mro__ if not is_trusted(c)]
    pending: list[Callable] = [f for c in own for f in vars(c).values() if callable(f)]
    seen: set[CodeType] = set()
    names: set[str] = set()
    while pending:
        function = inspect.unwrap(pending.pop())
        if not isinstance(function, FunctionType) or is_trusted(function):
            continue
        for code in codes_in(function.__code__):
            if code not in seen:
                seen.add(code)
                names |= {*code.co_names}
                found = (function.__globals__.get(name) for name in code.co_names)
                pending += [f for f in found if isinstance(f, FunctionType)]
    return frozenset(names)
