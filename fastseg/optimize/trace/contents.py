"""Mutable objects as they were, to see whether a trace has changed them, and to put them back."""

from __future__ import annotations

import types
from collections import OrderedDict, deque
from collections.abc import Collection

import torch
from torch import nn

CONTAINERS = (list, dict, set, deque, bytearray)


def is_opaque(value) -> bool:
    """Whether a value is an object of a Python class, with attributes that may decide something."""
    cls = type(value)
    in_python = cls.__flags__ & _HEAP_TYPE != 0 or cls is types.SimpleNamespace
    return (
        in_python
        and not isinstance(value, (type, types.FunctionType, types.MethodType, nn.Module))
        and hasattr(value, "__dict__")
    )


_HEAP_TYPE = 1 << 9  # Py_TPFLAGS_HEAPTYPE


def attributes(value) -> dict:
    """The attributes of an object, whatever its class makes of ``__dict__``."""
    return object.__getattribute__(value, "__dict__")


class Contents:
    """The contents of objects, each as it was when it was first seen."""

    def __init__(self):
        self._kept: dict[int, tuple] = {}

    def keep_module(self, module: nn.Module) -> None:
        """Keeps a module's attributes, and what is in those that are containers."""
        self._keep_attributes(module)
        for value in attributes(module).values():
            self.keep(value, ())

    def keep(self, value, names: Collection[str]) -> None:
        """Keeps a value, the attributes of these names of objects in it, and so on."""
        pending = [value]
        while pending:
            value = pending.pop()
            if id(value) in self._kept:
                continue
            if isinstance(value, CONTAINERS):
                content = _content(value)
                self._kept[id(value)] = value, content
                pending += _inner(content)
            elif isinstance(value, (tuple, frozenset)):
                pending += value
            elif names and is_opaque(value):
                held = self._keep_attributes(value)
                pending += [v for k, v in held.items() if k in names]

    def _keep_attributes(self, value) -> dict:
        held = dict(attributes(value))
        self._kept.setdefault(id(value), (value, held))
        return held

    def keep_class(self, cls: type) -> None:
        """Keeps the attributes of a class."""
        self._kept.setdefault(id(cls), (cls, dict(vars(cls))))

    def keep_items(self, mapping: dict, names: Collection[str]) -> None:
        """Keeps some of a dict's items, or that it has none of a name."""
        key = id(mapping), "items"
        held = self._kept.setdefault(key, (mapping, _Items()))[1]
        for name in names:
            held.setdefault(name, mapping.get(name, _NONE))

    def restore(self) -> bool:
        """Undoes what was changed since, and tells whether anything was."""
        changed = [(value, then) for value, then in self._kept.values() if not _is_as(value, then)]
        for value, then in changed:
            _put_back(value, then)
        return bool(changed)


class _Items(dict):
    """Some items of a dict."""


_NONE = object()


def _content(value):
    if isinstance(value, dict):
        return list(value.items())
    return set(value) if isinstance(value, set) else list(value)


def _inner(content) -> list:
    return [part for item in content for part in (item if type(item) is tuple else (item,))]


def _is_as(value, then) -> bool:
    """Whether a value holds the objects that it held, in the same order where there is one."""
    if isinstance(then, _Items):
        return all(value.get(name, _NONE) is old for name, old in then.items())
    if isinstance(then, dict):
        now = vars(value) if isinstance(value, type) else attributes(value)
        return now.keys() == then.keys() and all(now[k] is v for k, v in then.items())
    now = _content(value)
    if isinstance(now, set):
        return now == then
    return len(now) == len(then) and all(_same(a, b) for a, b in zip(now, then, strict=True))


def _same(a, b) -> bool:
    if type(a) is type(b) is tuple and len(a) == len(b) == 2:  # an item of a dict
        return a[0] is b[0] and a[1] is b[1]
    return a is b


def _put_back(value, then) -> None:
    if isinstance(then, _Items):
        for name, old in then.items():
            if old is _NONE:
                value.pop(name, None)
            else:
                value[name] = old
        return
    if isinstance(value, type):
        for name in vars(value).keys() - then.keys():
            delattr(value, name)
        for name, old in then.items():
            if vars(value).get(name, _NONE) is not old:
                setattr(value, name, old)
        return
    value = attributes(value) if isinstance(then, dict) else value
    value.clear()
    if isinstance(value, (dict, set)):
        value.update(then)
    else:
        value.extend(then)


def snapshot(value, around: tuple = ()):
    """A copy to compare a value with later if it is a container, any other value itself.

    The copy is of the class of Python that the container's own class is or derives from, with
    which it compares as with its own. So nothing of the container's own class runs here.

    Args:
        value: the value.
        around: the containers that it is in; one of them is itself.
    """
    base = next((b for b in _BASES if isinstance(value, b)), None)
    if base is None or any(value is v for v in around):
        return value
    if base in (set, bytearray):
        return base(value)
    around = (*around, value)
    if base in (dict, OrderedDict):
        return base((k, snapshot(v, around)) for k, v in base.items(value))
    parts = base(snapshot(v, around) for v in base.__iter__(value))
    if base is not tuple:
        return parts
    # Comparing one object with itself takes no time.
    same = all(a is b for a, b in zip(parts, tuple.__iter__(value), strict=True))
    return value if same else parts


_BASES = (OrderedDict, *CONTAINERS, tuple)


def is_constant(value) -> bool:
    """Whether equal values are as good as the same one."""
    if isinstance(value, (*CONTAINERS, tuple, frozenset)):
        return True
    plain = (int, float, complex, str, bytes, range, slice, torch.device)
    return type(value) in plain and value == value
