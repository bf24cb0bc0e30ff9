"""Whether a block still is what its new forward was made from.

A trace's witnesses say what the forward's Python has read. The guard compares all of it with what
is there now, and that modules which the new forward no longer calls would do what they did: their
classes, hooks and deciding attributes. The comparisons are one expression of dictionary look-ups,
compiled once, for they run in each call.
"""

from __future__ import annotations

import contextlib
import copy
import importlib
import sys
import types
from collections.abc import Collection, Iterable
from typing import Any, NamedTuple

import torch
import torch.nn.modules.module as torch_modules
from torch import nn

from fastseg.optimize.contents import CONTAINERS, attributes, is_opaque
from fastseg.optimize.eligible import HOOKS, deciding, is_timm_batch_norm
from fastseg.optimize.witness import Witness, is_trusted

_SHAPES = {
    "is": "{o}[{k}] is {v}",
    "equals": "({o}[{k}] is {v} or {o}[{k}] == {v})",
    "absent": "{k} not in {o}",
    "is none": "({o}[{k}] is None) is {v}",
    "children": "[*{o}] == {v}[0] and [*{o}.values()] == {v}[1]",
    "class": "type({o}) is {v}",
    "hooks": "not (" + " or ".join(f"{{o}}[{kind!r}]" for kind in HOOKS) + ")",
    "global hooks": "not (" + " or ".join(f"{{o}}['_global{kind}']" for kind in HOOKS) + ")",
    "cell": "({o}.cell_contents is {v} or {o}.cell_contents == {v})",
    "training": "{o}['training'] is {v}['training']",
}
"""By kind of condition, the expression over its owner, key and value."""


class Condition(NamedTuple):
    """One comparison.

    Attributes:
        kind: of the comparison.
        owner: a module, an object, a class, the name of a module of Python or a cell.
        part: the dictionary of the owner that is looked at, "" for the owner itself.
        key: in it.
        value: what was there.
    """

    kind: str
    owner: Any
    part: str
    key: str
    value: Any

    @property
    def is_local(self) -> bool:
        """Whether it is of the model, so that a copy of the model has its own."""
        return not isinstance(self.owner, (type, str, types.CellType))

    def place(self):
        """What the expression looks at."""
        if isinstance(self.owner, type):
            return vars(self.owner) if self.part else self.owner
        if isinstance(self.owner, str):
            return vars(importlib.import_module(self.owner))
        if not self.part:
            return self.owner
        held = attributes(self.owner)
        return held if self.part == "__dict__" else held[self.part]

    def __str__(self) -> str:
        if self.kind == "hooks":
            return f"a {_name(self.owner)} has hooks"
        if self.kind == "global hooks":
            return "there are hooks of all modules"
        if self.kind == "class":
            return f"a {self.value.__name__} is a {_name(self.owner)} now"
        if self.kind == "children":
            return f"the children of a {_name(self.owner)} are others"
        if self.kind == "absent" and self.key == "forward":
            return f"the forward of a {_name(self.owner)} was replaced"
        return f"{self.key} of {_article(self.owner)} is another"


def _name(owner) -> str:
    return base_of(owner).__name__


def _article(owner) -> str:
    if isinstance(owner, type):
        return f"class {owner.__name__}"
    return owner if isinstance(owner, str) else f"a {_name(owner)}"


class Guard:
    """Conditions that hold as long as a block is what it was.

    Attributes:
        conditions: all.
    """

    def __init__(self, conditions: Iterable[Condition]):
        self.conditions = list(conditions)
        self._compiled = None

    def holds(self) -> bool:
        """Whether all conditions do."""
        return _holds(self) if self._compiled is None else self._compiled()

    def compile(self) -> None:
        """Of conditions on what is all there, which it is not while a model is copied."""
        with contextlib.suppress(KeyError):
            self._compiled = _compiled(self.conditions)

    def broken(self) -> str | None:
        """The first condition that does not hold, in words, or None."""
        for condition in self.conditions:
            try:
                if not _compiled([condition])():
                    return str(condition)
            except (KeyError, ImportError):
                return str(condition)
        return None

    def __deepcopy__(self, memo) -> Guard:
        return Guard([
            Condition(c.kind, *(copy.deepcopy(part, memo) for part in c[1:])) if c.is_local else c
            for c in self.conditions
        ])  # fmt: skip

    def __reduce__(self):
        if self.broken() is not None:
            return _broken_guard, ()
        return _thawed, ([_frozen(c) for c in self.conditions if not _is_cell(c)],)


def _broken_guard() -> Guard:
    return Guard([Condition("cell", types.CellType(), "", "what was pickled", None)])


def _is_cell(condition: Condition) -> bool:
    return isinstance(condition.owner, types.CellType)


def _frozen(condition: Condition) -> Condition:
    """For a file: what another process has anew is not in it."""
    if condition.is_local and condition.kind != "class":
        return condition
    return condition._replace(value=_Anew())


class _Anew:
    """In a file: the value as it is where the file is read."""


def _thawed(conditions: list[Condition]) -> Guard:
    return Guard(
        [c._replace(value=_now(c)) if isinstance(c.value, _Anew) else c for c in conditions]
    )


def _now(condition: Condition):
    if condition.kind == "class":
        return type(condition.owner)
    held = condition.place()
    if condition.kind == "is none":
        return held[condition.key] is None
    return snapshot(held[condition.key]) if condition.key in held else None


@torch.compiler.assume_constant_result
def _holds(guard: Guard) -> bool:
    guard.compile()
    return guard._compiled is not None and guard._compiled()


def _compiled(conditions: list[Condition]):
    """A function without arguments: whether all conditions hold."""
    names, values, tests = [], [], []
    for i, c in enumerate(conditions):
        names += [f"o{i}", f"v{i}"]
        values += [c.place(), attributes(c.value) if c.kind == "training" else c.value]
        test = _SHAPES[c.kind].format(o=f"o{i}", k=repr(c.key), v=f"v{i}")
        tests.append(f"({test})")
    source = _SOURCE.format(names=", ".join(names), tests=" and ".join(tests) or "True")
    namespace: dict = {}
    exec(compile(source, "<fastseg.optimize_'s guard>", "exec"), namespace)
    return namespace["make"](*values)


_SOURCE = """\
def make({names}):
    def holds():
        try:
            return bool({tests})
        except Exception:
            return False
    return holds
"""


def snapshot(value):
    """What to compare a value with later: containers as they are now, all else itself."""
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


def guard_of(block: nn.Module, witnesses: list[Witness], replaced: Iterable[nn.Module]) -> Guard:
    """The guard of a block as it is now.

    Args:
        block: whose forward was traced.
        witnesses: of the traces.
        replaced: modules that the new forward does not call, in the block.
    """
    found: dict[tuple, Condition] = {}
    for c in _conditions(block, witnesses, replaced):
        owner = c.owner if isinstance(c.owner, str) else id(c.owner)
        found.setdefault((c.kind, owner, c.part, c.key), c)
    guard = Guard(found.values())
    guard.compile()
    return guard


def _conditions(block, witnesses: list[Witness], replaced):
    yield Condition("global hooks", torch_modules.__name__, "__dict__", "", None)
    yield Condition("is", nn.Module, "__dict__", "__call__", nn.Module.__call__)
    yield from _found(base_of(block), "forward")
    names = set().union(*(w.names for w in witnesses))
    objects: dict[int, tuple[Any, bool]] = {}
    for witness in witnesses:
        for module, name in witness.reads.values():
            yield from _read(block, module, name, objects)
        for mapping, name in witness.items.values():
            owner = mapping.get("__name__")
            if _is_module(owner, mapping) and name in mapping:
                yield from _item(owner, "__dict__", mapping, name, objects)
        for cell, name in witness.cells.values():
            yield Condition("cell", cell, "", name, snapshot(cell.cell_contents))
            _note_objects(cell.cell_contents, False, objects)
        for value in witness.objects.values():
            objects.setdefault(id(value), (value, False))
    yield from _of_objects(objects, names)
    for module in replaced:
        yield from _of_replaced(module)


def _of_replaced(module: nn.Module):
    """That a module would do what it did."""
    held = attributes(module)
    yield Condition("class", module, "", "", type(module))
    yield Condition("absent", module, "__dict__", "forward", None)
    yield Condition("hooks", module, "__dict__", "", None)
    yield from _found(base_of(module), "forward")
    if isinstance(module, nn.Conv2d):
        yield from _found(nn.Conv2d, "_conv_forward")
    for name in deciding(module):
        yield Condition("equals", module, "__dict__", name, held[name])
    if is_timm_batch_norm(module):
        for name in ("act", "drop"):
            child = held["_modules"][name]
            yield Condition("is", module, "_modules", name, child)
            yield from _of_replaced(child)
    if "inplace" in held:
        yield Condition("equals", module, "__dict__", "inplace", held["inplace"])


def base_of(module: nn.Module) -> type:
    """The class that it had before it was swapped."""
    return getattr(type(module), "_base", type(module))


def _found(cls: type, name: str):
    """An attribute where the class finds it."""
    owner = next((c for c in cls.__mro__ if name in vars(c)), None)
    if owner is not None:
        yield Condition("is", owner, "__dict__", name, vars(owner)[name])


def _read(block, module: nn.Module, name: str, objects: dict):
    """What was read of a module, wherever it has it."""
    held = attributes(module)
    if name == "training":
        if module is not block:
            yield Condition("training", module, "__dict__", name, block)
    elif name == "_modules":
        children = held["_modules"]
        yield Condition("is", module, "__dict__", "_modules", children)
        yield Condition("children", module, "_modules", "", ([*children], [*children.values()]))
    elif name in held:
        yield from _item(module, "__dict__", held, name, objects)
    else:
        for part in ("_parameters", "_buffers", "_modules"):
            if name in held[part]:
                child = part == "_modules"
                value = held[part][name]
                kind = "is" if child else "is none"
                yield Condition("is", module, "__dict__", part, held[part])
                yield Condition(kind, module, part, name, value if child else value is None)
                return
        for cls in base_of(module).__mro__:
            if name in vars(cls):
                yield Condition("absent", module, "__dict__", name, None)
                if not is_trusted(cls):
                    yield from _item(cls, "__dict__", vars(cls), name, objects)
                return
        for part in ("__dict__", "_parameters", "_buffers", "_modules"):
            yield Condition("absent", module, part, name, None)


def _item(owner, part: str, mapping, name: str, objects: dict):
    """A value that was read, and what may decide in it."""
    value = mapping[name]
    kind = "equals" if is_constant(value) else "is"
    yield Condition(kind, owner, part, name, snapshot(value) if kind == "equals" else value)
    _note_objects(value, not isinstance(owner, (type, str)), objects)


def _note_objects(value, local: bool, objects: dict) -> None:
    """Of a value, the objects in it that have attributes."""
    parts = [value]
    while parts:
        value = parts.pop()
        if isinstance(value, dict):
            parts += value.values()
        elif isinstance(value, (list, tuple, set, frozenset)):
            parts += value
        elif is_opaque(value) or isinstance(value, (type, types.ModuleType)):
            objects.setdefault(id(value), (value, local))


def _of_objects(objects: dict[int, tuple[Any, bool]], names: Collection[str]):
    """Attributes of objects, of classes and of modules of Python, that code has the names of."""
    seen: set[int] = set()
    while pending := [entry for key, entry in objects.items() if key not in seen]:
        for value, local in pending:
            seen.add(id(value))
            owner = value.__name__ if isinstance(value, types.ModuleType) else value
            if isinstance(value, (type, types.ModuleType)) and is_trusted(value):
                continue
            held = attributes(value) if is_opaque(value) else vars(value)
            if isinstance(owner, str) and not _is_module(owner, held):
                continue
            inner: dict = {}
            for name in sorted(names & held.keys()):
                yield from _item(owner, "__dict__", held, name, inner)
            if is_opaque(value):
                for cls in (c for c in type(value).__mro__ if not is_trusted(c)):
                    for name in sorted((names & vars(cls).keys()) - held.keys()):
                        yield Condition("absent", value, "__dict__", name, None)
                        yield from _item(cls, "__dict__", vars(cls), name, inner)
            for key, (part, _) in inner.items():
                objects.setdefault(key, (part, local))


def _is_module(name: str | None, mapping: dict) -> bool:
    """Whether these are the globals of the module of that name."""
    module = sys.modules.get(name or "")
    return module is not None and vars(module) is mapping
