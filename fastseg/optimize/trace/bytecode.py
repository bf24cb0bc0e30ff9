"""What a function's bytecode does that no stand-in for a tensor notices."""

from __future__ import annotations

import dis
import functools
from collections.abc import Iterator
from types import CodeType
from typing import NamedTuple

_CATCHES = {"CHECK_EXC_MATCH", "JUMP_IF_NOT_EXC_MATCH", "CHECK_EG_MATCH"}
_MATCHES = {"MATCH_CLASS", "MATCH_MAPPING", "MATCH_SEQUENCE", "MATCH_KEYS"}
_GLOBALS = {"LOAD_GLOBAL", "LOAD_NAME", "STORE_GLOBAL", "DELETE_GLOBAL"}
_CONSTANTS = (None, True, False, ...)


class Facts(NamedTuple):
    """What a function's code does that matters to a trace.

    Attributes:
        names: all names in it, those of attributes too.
        global_names: names that it reads, writes or deletes as globals and builtins.
        asks_for_none: whether it compares a local value or a result, no attribute, with None, other
            than those of asked_arguments.
        asked_arguments: names of its arguments, never assigned to, that it compares with None.
        refusal: why a trace of it is not to be trusted, in words, or None.
    """

    names: frozenset[str]
    global_names: frozenset[str]
    asks_for_none: bool
    asked_arguments: frozenset[str]
    refusal: str | None


def codes_in(code: CodeType) -> Iterator[CodeType]:
    """A function's code and that of the functions in it."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from codes_in(constant)


@functools.lru_cache(4096)
def facts(code: CodeType) -> Facts:
    """The facts of a code object."""
    instructions = [
        i for i in dis.get_instructions(code) if i.opname not in ("NOP", "EXTENDED_ARG")
    ]
    names = {i.opname for i in instructions}
    compared = [_operands(instructions, k) for k in range(len(instructions))]
    refusal = None
    if any(pair is not None and pair[1] for pair in compared):
        refusal = "its forward compares the identity of values"
    elif names & _CATCHES or _catches_all(instructions):
        refusal = "its forward catches exceptions"
    elif names & _MATCHES:
        refusal = "its forward matches patterns of values"
    elif any(i.opname == "STORE_DEREF" and i.argval in code.co_freevars for i in instructions):
        refusal = "its forward writes variables of a function around it"
    made = [pair[0] for pair in compared if pair is not None]
    arguments = _never_assigned(code, instructions)
    asked = {i.argval for i in made if i.opname in _LOADS and i.argval in arguments}
    return Facts(
        frozenset(code.co_names),
        frozenset(i.argval for i in instructions if i.opname in _GLOBALS),
        any(_is_local(i) and not (i.opname in _LOADS and i.argval in asked) for i in made),
        frozenset(asked),
        refusal,
    )


_LOADS = ("LOAD_FAST", "LOAD_FAST_CHECK", "LOAD_FAST_BORROW")


def _never_assigned(code: CodeType, instructions: list) -> set[str]:
    """The names of a function's arguments that have one value throughout."""
    arguments = {*code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]}
    for i in instructions:
        if i.opname.startswith(("STORE_FAST", "DELETE_FAST")):
            # From Python 3.13 on one instruction may be for two names.
            arguments -= {*i.argval} if isinstance(i.argval, tuple) else {i.argval}
    return arguments


def _operands(instructions: list, k: int) -> tuple[dis.Instruction, bool] | None:
    """What made the value that an `is` compares, and whether it is compared with no constant."""
    opname = instructions[k].opname
    if opname == "IS_OP":
        constant = instructions[k - 1]
        if constant.opname.startswith("LOAD_CONST") and constant.argval in _CONSTANTS:
            return instructions[k - 2], False
        return instructions[k - 1], True
    if opname.startswith("POP_JUMP") and opname.endswith(("IF_NONE", "IF_NOT_NONE")):
        return instructions[k - 1], False
    return None


def _is_local(made_by: dis.Instruction) -> bool:
    """Whether the value may be one that the forward was given or has computed.

    An attribute is no such value: stand-ins have only attributes that are never None.
    """
    return not made_by.opname.startswith(("LOAD_ATTR", "LOAD_METHOD", "LOAD_GLOBAL", "LOAD_CONST"))


def _catches_all(instructions: list) -> bool:
    """Whether there is an `except` without a class."""
    after = {"PUSH_EXC_INFO": 1, "SETUP_FINALLY": None}
    for k, instruction in enumerate(instructions):
        if instruction.opname not in after:
            continue
        if after[instruction.opname]:
            handler = k + 1
        else:  # Python 3.10 names the handler's place; a bare `except` drops all three values
            target = instruction.argval
            handler = next(i for i, x in enumerate(instructions) if x.offset == target)
        opnames = [i.opname for i in instructions[handler : handler + 3]]
        if opnames[:1] == ["POP_TOP"] and (after[instruction.opname] or opnames == 3 * ["POP_TOP"]):
            return True
    return False
