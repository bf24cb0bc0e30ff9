"""The modules whose classes the forwards around them ask for, by ``type(x)`` or ``x.__class__``.

A swapped module is of a subclass: ``isinstance`` takes it for what it was, ``type(x) is nn.Conv2d``
does not. What may be asked so is left as it is.
"""

from __future__ import annotations

import dis
import inspect
import types

from torch import nn

from fastseg.optimize.trace.bytecode import codes_in
from fastseg.optimize.trace.origins import is_trusted

ASKED = "the forward around it asks for classes"
"""The reason why the modules are left, in words."""


def asked_for_classes(model: nn.Module) -> set[nn.Module]:
    """The modules in a model whose classes a forward around them may ask for.

    They are the children of each module whose forward asks, and the members of those children
    that have no forward of other people's: lists, dictionaries and Sequentials.
    """
    asked: set[nn.Module] = set()
    asking = {cls for cls in {type(m) for m in model.modules()} if _asks(cls)}
    pending = [m for m in model.modules() if type(m) in asking]
    while pending:
        children = {*pending.pop().children()} - asked
        asked |= children
        pending += [child for child in children if is_trusted(type(child))]
    return asked


def _asks(cls: type[nn.Module]) -> bool:
    """Whether the forward of a class, or what the forward names of the class, asks for classes."""
    pending, seen = ["forward"], set()
    while pending:
        name = pending.pop()
        owner = next((c for c in cls.__mro__ if name in vars(c)), None)
        if name in seen or owner is None or is_trusted(owner):
            continue
        seen.add(name)
        code = _code_of(vars(owner)[name])
        for part in () if code is None else codes_in(code):
            # Of functions inside it, the first argument is any value.
            own = "".join(code.co_varnames[:1]) if part is code else ""
            if _code_asks(part, own):
                return True
            pending += part.co_names
    return False


def _code_of(member) -> types.CodeType | None:
    """The code of a member of a class, or None."""
    if isinstance(member, property):
        member = member.fget
    return getattr(inspect.unwrap(getattr(member, "__func__", member)), "__code__", None)


def _code_asks(code: types.CodeType, own: str) -> bool:
    """Whether code asks for the class of anything but the variable `own`."""
    instructions = [i for i in dis.get_instructions(code) if i.opname not in _NOTHING]
    for k, instruction in enumerate(instructions):
        if instruction.opname == "LOAD_GLOBAL" and instruction.argval == "type":
            of = instructions[k + 1]
        elif instruction.opname == "LOAD_ATTR" and instruction.argval == "__class__":
            of = instructions[k - 1]
        else:
            continue
        if not (of.opname.startswith("LOAD_FAST") and of.argval == own):
            return True
    return False


_NOTHING = ("NOP", "EXTENDED_ARG", "CACHE", "PUSH_NULL", "PRECALL")
