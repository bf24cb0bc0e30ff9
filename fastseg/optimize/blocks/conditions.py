"""The conditions under which a block's new forward does what its own does.

What the Python of its forward has read must be the same. Modules which the new forward no longer
calls must do what they did: their classes, hooks and deciding attributes are compared.
"""

from __future__ import annotations

import functools
import importlib
import sys
import types
from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import torch.nn.modules.module as torch_modules
from torch import nn

from fastseg.optimize.classify.eligible import deciding, is_timm_batch_norm
from fastseg.optimize.classify.same_padding import fixed_padding, pads_same
from fastseg.optimize.trace.contents import attributes, is_constant, is_opaque, snapshot
from fastseg.optimize.trace.origins import is_trusted
from fastseg.optimize.trace.owners import FunctionParts, Globals
from fastseg.optimize.trace.witness import Witness


class Condition(NamedTuple):
    """One comparison of what a block has now with what it had when it was traced.

    Attributes:
        kind: the kind of the comparison; the guard says what each is.
        owner: a module, an object, a class, the name of a module of Python or a cell.
        part: the dictionary of the owner that is looked at, "" for the owner itself.
        key: the key in that dictionary.
        value: the value that was there.
        is_local: whether the owner is part of the block, so that a copy of the block has its own.
    """

    kind: str
    owner: Any
    part: str
    key: str
    value: Any = None
    is_local: bool = True

    def place(self) -> Any:
        """The dictionary, or the owner itself, that is looked at."""
        if isinstance(self.owner, str):
            return vars(importlib.import_module(self.owner))
        if not self.part:
            return self.owner
        if isinstance(self.owner, type):
            return vars(self.owner)
        held = attributes(self.owner)
        return held if self.part == "__dict__" else held[self.part]

    def __str__(self) -> str:
        if self.kind == "global hooks":
            return "there are hooks of all modules"
        owner = self.owner if isinstance(self.owner, str) else f"a {_name(self.owner)}"
        if isinstance(self.owner, type):
            owner = f"class {self.owner.__name__}"
        if isinstance(self.owner, FunctionParts):
            owner = str(self.owner)
        if self.kind == "hooks":
            return f"{owner} has hooks"
        if self.kind == "class":
            return f"{owner} is in the place of a {self.value.__name__}"
        if self.kind == "children":
            parts = "children" if isinstance(self.owner, nn.Module) else "attributes"
            return f"the {parts} of {owner} are others"
        return f"{self.key or 'a variable'} of {owner} is another"


def _name(owner) -> str:
    return base_of(owner).__name__


def base_of(module: nn.Module) -> type:
    """The class that a module had before it was swapped."""
    return getattr(type(module), "_base", type(module))


def conditions_of(
    block: nn.Module, witnesses: list[Witness], replaced: Iterable[nn.Module]
) -> list[Condition]:
    """The conditions of a block as it is now, each once.

    Args:
        block: the block whose forward was traced.
        witnesses: the witnesses of the traces.
        replaced: modules that the new forward does not call, in the block.
    """
    found: dict[tuple, Condition] = {}
    for c in _all(block, witnesses, replaced):
        owner = c.owner if isinstance(c.owner, str) else id(c.owner)
        found.setdefault((c.kind, owner, c.part, c.key), c)
    return list(found.values())


def _all(block, witnesses: list[Witness], replaced) -> Iterator[Condition]:
    yield Condition("global hooks", torch_modules.__name__, "__dict__", "", None, False)
    call = nn.Module.__dict__["__call__"]
    yield Condition("call", nn.Module, "__dict__", "__call__", call, False)
    objects: dict[int, tuple[Any, bool]] = {}
    yield from _found(base_of(block), "forward", objects)
    unnamed: dict[int, Globals] = {}
    for witness in witnesses:
        for module, name in witness.reads.values():
            yield from _read(block, module, name, objects)
        for mapping, name in witness.items.values():
            owner = mapping.get("__name__")
            if not _is_module(owner, mapping):
                if str(owner).startswith("namedtuple_"):
                    continue  # They are of a class by collections, and nobody has a name for them.
                owner = unnamed.setdefault(id(mapping), Globals(mapping))
            if name in mapping:
                yield from _item(owner, mapping, name, False, objects)
            elif isinstance(owner, Globals):
                yield Condition("absent", owner, "__dict__", name, None, False)
        for cell, name in witness.cells.values():
            yield Condition("cell", cell, "", name, snapshot(cell.cell_contents), False)
            _note_objects(cell.cell_contents, False, objects)
        for value in witness.objects.values():
            objects.setdefault(id(value), (value, False))
    for module in replaced:
        yield from _of_replaced(module, objects)
    ran = _Ran(
        set().union(*(w.names for w in witnesses)),
        any(w.computes_names for w in witnesses),
        set().union(*(w.codes for w in witnesses)),
    )
    yield from _of_objects(objects, ran)


class _Ran(NamedTuple):
    """The code that ran.

    Attributes:
        names: the names in it.
        computes_names: whether it may have read attributes that it has no names of.
        codes: the code of each function.
    """

    names: set[str]
    computes_names: bool
    codes: set[types.CodeType]

    def reads_in(self, held) -> list[str]:
        """The names in a dictionary of attributes under which it may have read something."""
        names = (n for n in held if isinstance(n, str))
        return sorted(n for n in names if self.computes_names or n in self.names)


def _of_replaced(module: nn.Module, objects: dict) -> Iterator[Condition]:
    """The conditions under which a module would do what it did."""
    held = attributes(module)
    yield Condition("class", module, "", "", type(module))
    yield Condition("absent", module, "__dict__", "forward")
    yield Condition("hooks", module, "__dict__", "")
    yield from _found(base_of(module), "forward", objects)
    if isinstance(module, nn.Conv2d):
        yield from _found(nn.Conv2d, "_conv_forward", objects)
    for name in deciding(module):
        yield Condition("equals", module, "__dict__", name, held[name])
    if "inplace" in held:
        yield Condition("equals", module, "__dict__", "inplace", held["inplace"])
    if pads_same(module) and fixed_padding(module) is not None:
        yield Condition("is", module, "_modules", "static_padding", fixed_padding(module))
        yield from _of_replaced(fixed_padding(module), objects)
    if is_timm_batch_norm(module):
        for name in ("act", "drop"):
            child = held["_modules"][name]
            yield Condition("is", module, "_modules", name, child)
            yield from _of_replaced(child, objects)


def _found(cls: type, name: str, objects: dict) -> Iterator[Condition]:
    """The condition that an attribute stays what it is where a class finds it."""
    owner = next((c for c in cls.__mro__ if name in vars(c)), None)
    if owner is not None:
        yield Condition("is", owner, "__dict__", name, vars(owner)[name], False)
        _note_objects(vars(owner)[name], False, objects)


def _read(block, module: nn.Module, name: str, objects: dict) -> Iterator[Condition]:
    """The conditions of what was read of a module, wherever the module has it."""
    held = attributes(module)
    if name == "training":
        if module is not block:
            yield Condition("training", module, "__dict__", name, block)
    elif name == "_modules":
        children = held["_modules"]
        yield Condition("is", module, "__dict__", "_modules", children)
        yield Condition("children", module, "_modules", "", ([*children], [*children.values()]))
    elif name in held:
        yield from _item(module, held, name, True, objects)
    elif part := next((p for p in _PARTS if name in held[p]), None):
        value = held[part][name]
        yield Condition("is", module, "__dict__", part, held[part])
        if part == "_modules":
            yield Condition("is", module, part, name, value)
        else:  # a graph leaves open which tensor it is
            yield Condition("is none", module, part, name, value is None)
    elif cls := next((c for c in base_of(module).__mro__ if name in vars(c)), None):
        yield Condition("absent", module, "__dict__", name)
        if not is_trusted(cls):
            yield from _item(cls, vars(cls), name, False, objects)
    else:
        for part in ("__dict__", *_PARTS):
            yield Condition("absent", module, part, name)


_PARTS = ("_parameters", "_buffers", "_modules")


def _item(owner, mapping, name: str, is_local: bool, objects: dict) -> Iterator[Condition]:
    """The condition of a value that was read, and notes the objects in it that may decide."""
    value = mapping[name]
    constant = is_constant(value)
    kept = snapshot(value) if constant else value
    yield Condition("equals" if constant else "is", owner, "__dict__", name, kept, is_local)
    _note_objects(value, is_local, objects)


def _note_objects(value, is_local: bool, objects: dict) -> None:
    """Notes the functions in a value and the objects that have attributes."""
    parts, seen = [value], set()
    while parts:
        value = parts.pop()
        if id(value) in seen:
            continue
        if isinstance(value, dict):
            parts += dict.values(value)
        elif isinstance(value, (list, tuple, set, frozenset, deque)):
            parts += value
        elif isinstance(value, property):
            parts += (value.fget,)
        elif isinstance(value, (staticmethod, classmethod, types.MethodType)):
            parts += (value.__func__,)
        elif isinstance(value, functools.partial):
            parts += (value.func,)
        elif isinstance(value, types.FunctionType):
            objects.setdefault(id(value), (value, False))
        # An object of a subclass of dict may have attributes besides its items.
        if is_opaque(value) or isinstance(value, (type, types.ModuleType)):
            objects.setdefault(id(value), (value, is_local))
        seen.add(id(value))


def _of_objects(objects: dict[int, tuple[Any, bool]], ran: _Ran) -> Iterator[Condition]:
    """The conditions of functions that ran, and of what may have been read in objects.

    Objects are classes and modules of Python too.
    """
    seen: set[int] = set()
    while pending := [entry for key, entry in objects.items() if key not in seen]:
        for value, is_local in pending:
            seen.add(id(value))
            if is_opaque(value):
                yield from _of_object(value, is_local, ran, objects)
            elif isinstance(value, types.FunctionType):
                if value.__code__ in ran.codes:
                    yield from _of_function(value, objects)
            elif not is_trusted(value):
                module = isinstance(value, types.ModuleType)
                owner = value.__name__ if module else value
                if module and not _is_module(owner, vars(value)):
                    owner = Globals(vars(value))
                for name in ran.reads_in(vars(value)):
                    # What code has no name of may be read there, but leads to nothing else.
                    found = objects if name in ran.names else {}
                    yield from _item(owner, vars(value), name, False, found)


def _of_function(function: types.FunctionType, objects: dict) -> Iterator[Condition]:
    """The conditions that a function does what it did; without defaults none is read."""
    owner = FunctionParts(function)
    yield Condition("is", owner, "", "__code__", function.__code__, False)
    for name in ("__defaults__", "__kwdefaults__"):
        if owner[name]:
            yield Condition("equals", owner, "", name, snapshot(owner[name]), False)
            _note_objects(owner[name], False, objects)


def _of_object(value, is_local: bool, ran: _Ran, objects: dict) -> Iterator[Condition]:
    held = attributes(value)
    if ran.computes_names:
        kept = [snapshot(v) if is_constant(v) else v for v in held.values()]
        yield Condition("children", value, "__dict__", "", ([*held], kept), is_local)
    for name in ran.reads_in(held):
        yield from _item(value, held, name, is_local, objects)
    for cls in (c for c in type(value).__mro__ if not is_trusted(c)):
        for name in ran.reads_in(vars(cls)):
            if name in held or name in _OF_ANY_CLASS:
                continue
            yield Condition("absent", value, "__dict__", name, None, is_local)
            yield from _item(cls, vars(cls), name, False, objects)


_OF_ANY_CLASS = ("__dict__", "__weakref__")


def _is_module(name: str | None, mapping: dict) -> bool:
    """Whether a dictionary is the globals of the module of that name."""
    module = sys.modules.get(name or "")
    return module is not None and vars(module) is mapping
