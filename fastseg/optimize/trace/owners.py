"""What a forward may read of that is neither a module, an object nor a class, to compare later."""

from __future__ import annotations

import types


class Globals:
    """The globals of code that is in no module of ``sys.modules``, as attributes of an object.

    Another process has no such globals, and a guard says that of objects of its process.
    """

    def __init__(self, mapping: dict):
        self.__dict__ = mapping


class FunctionParts:
    """What a function was made with, by name; nothing of it goes into a file."""

    __slots__ = ("function",)

    def __init__(self, function: types.FunctionType | None):
        self.function = function

    def __getitem__(self, name: str):
        return getattr(self.function, name, None)

    def __contains__(self, name: str) -> bool:
        return hasattr(self.function, name)

    def __reduce__(self):
        return FunctionParts, (None,)

    def __str__(self) -> str:
        return f"function {self['__name__']}"
