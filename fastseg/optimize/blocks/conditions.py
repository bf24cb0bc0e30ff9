"""The conditions under which a block's new forward does what its own does.

What the Python of its forward has read must be the same. Modules which the new forward no longer
calls must do what they did: their classes, hooks and deciding attributes are compared.
"""

from __future__ import annotations

import copy
import importlib
import sys
import types
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.modules.module as torch_modules
from torch import nn

from fastseg.optimize.classify.eligible import deciding, is_timm_batch_norm
from fastseg.optimize.classify.same_padding import fixed_padding, pads_same
from fastseg.optimize.trace.contents import CONTAINERS, attributes, is_opaque
from fastseg.optimize.trace.origins import is_trusted
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
        if self.kind == "hooks":
            return f"{owner} has hooks"
        if self.kind == "class":
            return f"{owner} is in the place of a {self.value.__name__}"
        if self.kind == "children":
            return f"the children of {owner} are others"
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
    yield from _found(base_of(block), "forward")
    objects: dict[int, tuple[Any, bool]] = {}
    for witness in witnesses:
        for module, name in witness.reads.values():
            yield from _read(block, module, name, objects)
        for mapping, name in witness.items.values():
            owner = mapping.get("__name__")
            if _is_module(owner, mapping) and name in mapping:
                yield from _item(owner, mapping, name, False, objects)
        for cell, name in witness.cells.values():
            yield Condition("cell", cell, "", name, snapshot(cell.cell_contents), False)
            _note_objects(cell.cell_contents, False, objects)
        for value in witness.objects.values():
            objects.setdefault(id(value), (value, False))
    yield from _of_objects(objects, set().union(*(w.names for w in witnesses)))
    for module in replaced:
        yield from _of_replaced(module)


def _of_replaced(module: nn.Module) -> Iterator[Condition]:
    """The conditions under which a module would do what it did."""
    held = attributes(module)
    yield Condition("class", module, "", "", type(module))
    yield Condition("absent", module, "__dict__", "forward")
    yield Condition("hooks", module, "__dict__", "")
    yield from _found(base_of(module), "forward")
    if isinstance(module, nn.Conv2d):
        yield from _found(nn.Conv2d, "_conv_forward")
    for name in deciding(module):
        yield Condition("equals", module, "__dict__", name, held[name])
    if "inplace" in held:
        yield Condition("equals", module, "__dict__", "inplace", held["inplace"])
    if pads_same(module) and fixed_padding(module) is not None:
        yield Condition("is", module, "_modules", "static_padding", fixed_padding(module))
        yield from _of_replaced(fixed_padding(module))
    if is_timm_batch_norm(module):
        for name in ("act", "drop"):
            child = held["_modules"][name]
            yield Condition("is", module, "_modules", name, child)
            yield from _of_replaced(child)


def _found(cls: type, name: str) -> Iterator[Condition]:
    """The condition that an attribute stays what it is where a class finds it."""
    owner = next((c for c in cls.__mro__ if name in vars(c)), None)
    if owner is not None:
        yield Condition("is", owner, "__dict__", name, vars(owner)[name], False)


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
    """Notes the objects in a value that have attributes."""
    parts = [value]
    while parts:
        value = parts.pop()
        if isinstance(value, dict):
            parts += value.values()
        elif isinstance(value, (list, tuple, set, frozenset)):
            parts += value
        elif is_opaque(value) or isinstance(value, (type, types.ModuleType)):
            objects.setdefault(id(value), (value, is_local))


def _of_objects(objects: dict[int, tuple[Any, bool]], names: set[str]) -> Iterator[Condition]:
    """The conditions of what code has the names of in objects, classes and modules of Python."""
    seen: set[int] = set()
    while pending := [entry for key, entry in objects.items() if key not in seen]:
        for value, is_local in pending:
            seen.add(id(value))
            if is_opaque(value):
                yield from _of_object(value, is_local, names, objects)
            elif not is_trusted(value):
                module = isinstance(value, types.ModuleType)
                owner = value.__name__ if module else value
                if not module or _is_module(owner, vars(value)):
                    for name in sorted(names & vars(value).keys()):
                        yield from _item(owner, vars(value), name, False, objects)


def _of_object(value, is_local: bool, names: set[str], objects: dict) -> Iterator[Condition]:
    held = attributes(value)
    for name in sorted(names & held.keys()):
        yield from _item(value, held, name, is_local, objects)
    for cls in (c for c in type(value).__mro__ if not is_trusted(c)):
        for name in sorted((names & vars(cls).keys()) - held.keys()):
            yield Condition("absent", value, "__dict__", name, None, is_local)
            yield from _item(cls, vars(cls), name, False, objects)


def _is_module(name: str | None, mapping: dict) -> bool:
    """Whether a dictionary is the globals of the module of that name."""
    module = sys.modules.get(name or "")
    return module is not None and vars(module) is mapping


def snapshot(value):
    """A copy to compare a value with later if it is a container, any other value itself."""
    if type(value) is dict:
        return {k: snapshot(v) for k, v in value.items()}
    if type(value) is list:
        return [*map(snapshot, value)]
    if type(value) is tuple:
        parts = tuple(map(snapshot, value))
        # Comparing one object with itself takes no time.
        return value if all(a is b for a, b in zip(parts, value, strict=True)) else parts
    return copy.copy(value) if isinstance(value, CONTAINERS) else value


def is_constant(value) -> bool:
    """Whether equal values are as good as the same one."""
    if isinstance(value, (*CONTAINERS, tuple, frozenset)):
        return True
    plain = (int, float, complex, str, bytes, range, slice, torch.device)
    return type(value) in plain and value == value
