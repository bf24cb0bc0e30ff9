"""The conditions of a rewritten forward as one expression, for each call asks whether they hold."""

from __future__ import annotations

import ast
import contextlib
import copy
import types
from typing import Any

from torch import nn
from torch.compiler import is_dynamo_compiling, is_exporting

from fastseg.optimize.blocks.conditions import Condition, snapshot
from fastseg.optimize.classify.eligible import HOOKS
from fastseg.optimize.trace.contents import attributes, is_opaque

_SHAPES = {
    "is": "{o}[{k}] is {v}",
    "call": "({o}[{k}] is {v} or is_exporting())",  # exporting puts its own there meanwhile
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
"""Expression over what a condition looks at, its key and its value, by the condition's kind."""


class Guard:
    """The conditions of one block, compiled to one function.

    Args:
        block: the block.
        conditions: all its conditions.
    """

    def __init__(self, block: nn.Module | None, conditions: list[Condition]):
        self.block, self.conditions = block, conditions
        self._hold = self._hold_traced = None

    def holds(self) -> bool:
        """Whether all conditions hold."""
        if is_dynamo_compiling():
            return _holds(self) and (self._hold_traced is None or self._hold_traced(self.block))
        return _holds(self) if self._hold is None else self._hold()

    def compile(self) -> None:
        """Compiles the conditions of a block that is all there, as it is not while it is copied."""
        with contextlib.suppress(KeyError):
            self._hold = _compiled(self.conditions)
            self._hold_traced = _compiled_for_dynamo(self.block, self.conditions)

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
        copies = [
            Condition(c.kind, *copy.deepcopy(c[1:], memo)) if c.is_local else c
            for c in self.conditions
        ]
        return Guard(copy.deepcopy(self.block, memo), copies)

    def __reduce__(self):
        strange = any(not c.is_local and is_opaque(c.owner) for c in self.conditions)
        if strange or self.broken() is not None:
            return _broken, (self.block,)
        kept = [_frozen(c) for c in self.conditions if c.kind != "cell"]
        return _thawed, (self.block, kept)


def _broken(block: nn.Module) -> Guard:
    """A guard that never holds, of a block that had changed or had read objects of its process."""
    return Guard(block, [Condition("cell", types.CellType(), "", "what was read", None, False)])


def _frozen(condition: Condition) -> Condition:
    """The condition for a file, without what another process has anew."""
    if condition.is_local and condition.kind != "class":
        return condition
    return condition._replace(value=_Anew())


class _Anew:
    """A value in a file that stands for what it is where the file is read."""


def _thawed(block: nn.Module, conditions: list[Condition]) -> Guard:
    return Guard(
        block,
        [c._replace(value=_now(c)) if isinstance(c.value, _Anew) else c for c in conditions],
    )


def _now(condition: Condition) -> Any:
    if condition.kind == "class":
        return type(condition.owner)
    held = condition.place()
    return snapshot(held[condition.key]) if condition.key in held else None


def _compiled(conditions: list[Condition]):
    """A function without arguments that tells whether all conditions hold."""
    names, values, tests = [], [], []
    for i, c in enumerate(conditions):
        names += [f"o{i}", f"v{i}"]
        values += [c.place(), attributes(c.value) if c.kind == "training" else c.value]
        test = _SHAPES[c.kind].format(o=f"o{i}", k=repr(c.key), v=f"v{i}")
        tests.append(f"({test})")
    source = _SOURCE.format(names=", ".join(names), tests=" and ".join(tests) or "True")
    return _defined(source, "make")(*values)


_SOURCE = """\
def make({names}):
    def holds():
        try:
            return bool({tests})
        except Exception:
            return False
    return holds
"""


def _defined(source: str, name: str):
    namespace: dict = {"is_exporting": is_exporting}
    exec(compile(source, "<fastseg.optimize_'s guard>", "exec"), namespace)
    return namespace[name]


def _holds(guard: Guard) -> bool:
    """Whether a guard's conditions hold now; torch.compile takes it for a constant."""
    if guard._hold is None:
        guard.compile()
    return guard._hold is not None and guard._hold()


# torch.compiler.assume_constant_result sets this too, but loads the compiler: 1.4 s and 150 MB.
_holds._dynamo_marked_constant = True


def _compiled_for_dynamo(block: nn.Module, conditions: list[Condition]):
    """A function of the block for torch.compile to look into, for it watches what it reads there.

    The function reads children, whose classes torch.compile then watches, and attributes that can
    be written down, but those that the calls of the new forward read themselves.
    """
    paths = {m: "block" + "".join(f"._modules[{n!r}]" for n in name.split(".") if n)
             for name, m in block.named_modules()}  # fmt: skip
    tests = []
    for c in conditions:
        if not isinstance(c.owner, nn.Module) or c.owner not in paths:
            continue
        path = paths[c.owner]
        if c.kind == "children":
            tests.append(f"len({path}._modules) == {len(c.value[0])}")
            tests += [f"type({paths[m]}) is not None" for m in c.value[1] if m in paths]
        elif c.part == "_modules" and c.value in paths:
            tests.append(f"type({path}._modules[{c.key!r}]) is not None")
        elif c.part == "__dict__" and c.key.isidentifier() and c.key not in _READ_BY_CALLS:
            with contextlib.suppress(ValueError, SyntaxError):
                if ast.literal_eval(repr(c.value)) == c.value:
                    tests.append(f"{path}.{c.key} == {c.value!r}")
    tests = list(dict.fromkeys(tests)) or ["True"]
    return _defined(f"def holds(block):\n    return {' and '.join(tests)}\n", "holds")


_READ_BY_CALLS = ("stride", "padding", "dilation", "groups", "kernel_size", "eps", "inplace")
