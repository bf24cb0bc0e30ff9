"""A pickle module for ``torch.load`` that runs none of a file's code.

A pickle is a program: it names classes and functions and the arguments of their calls. This module
makes tensors, the containers around them and NumPy's numbers. Every other name, and every result of
it, becomes a :class:`StandIn`, an object that knows its name and does nothing. So a checkpoint's
tensors are read whatever its trainer saved beside them, and nothing is imported.

Where :class:`pickle._Unpickler` would call something or change an object, a method below does not;
its other methods move numbers, texts and containers.
"""

from __future__ import annotations

import pickle
import re
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, BinaryIO, ClassVar

import numpy as np
import torch


class StandIn(dict):
    """An object that stands for one that is not made; if that is a mapping, with its items.

    Args:
        name: the name, with the module, of its class or of the function that would have made it.
    """

    __hash__ = object.__hash__  # objects are keys of dicts, too

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    def __eq__(self, other: object) -> bool:
        """Whether the other is the same object."""
        return self is other

    def __repr__(self) -> str:
        """Returns a text with the name."""
        return f"<stand-in for {self.name}>"


class Maker:
    """A function that a file may call; it is no object of the file, so that none can change it.

    Args:
        make: the function, which checks its arguments.
    """

    def __init__(self, make: Callable[..., Any]) -> None:
        self.make = make


class NumPyType:
    """A NumPy dtype of numbers, whose byte order comes after it is made.

    Args:
        code: NumPy's code of the dtype, such as "f8".
    """

    def __init__(self, code: str) -> None:
        self.dtype = np.dtype(code)

    def set_byte_order(self, order: str) -> None:
        """Sets the order: "<", ">", or "|" where there is none."""
        if order in ("<", ">"):
            self.dtype = self.dtype.newbyteorder(order)


class Unpickler(pickle._Unpickler):
    """An unpickler for torch.load, which derives from it and sets ``persistent_load``."""

    dispatch: ClassVar[dict[int, Callable[..., Any]]] = dict(pickle._Unpickler.dispatch)

    def find_class(self, module: str, name: str) -> Any:
        """Returns a function that may be called, a dtype of torch, or a stand-in."""
        module = {"__builtin__": "builtins"}.get(module, module)  # this is Python 2's name
        if module == "torch":
            value = vars(torch).get(name)  # getattr may import
            if isinstance(value, torch.dtype):
                return value
        full_name = f"{module}.{name}"
        if full_name in ("torch.storage.UntypedStorage", "torch.UntypedStorage"):
            return torch.UntypedStorage  # torch.load needs it; nothing can be called on it
        return MAKERS.get(full_name) or StandIn(full_name)

    def get_extension(self, code: int) -> None:
        """Pushes a stand-in for a name of copyreg's registry."""
        self.append(StandIn(f"copyreg extension {code}"))

    def _instantiate(self, function: Any, arguments: Any) -> None:
        self.append(_called(function, tuple(arguments)))

    def load_reduce(self) -> None:
        """Handles REDUCE, a call."""
        arguments = self.stack.pop()
        self.stack[-1] = _called(self.stack[-1], arguments)

    dispatch[pickle.REDUCE[0]] = load_reduce
    dispatch[pickle.NEWOBJ[0]] = load_reduce  # cls.__new__(cls, *arguments)

    def load_newobj_ex(self) -> None:
        """Handles NEWOBJ_EX, a new object with keyword arguments, which nothing here takes."""
        self.stack.pop()
        self.load_reduce()

    dispatch[pickle.NEWOBJ_EX[0]] = load_newobj_ex

    def load_build(self) -> None:
        """Handles BUILD, an object's state, which pickle would set as its attributes."""
        state = self.stack.pop()
        built = self.stack[-1]
        if isinstance(built, NumPyType) and type(state) is tuple and len(state) > 1:
            built.set_byte_order(state[1])

    dispatch[pickle.BUILD[0]] = load_build

    def load_append(self) -> None:
        """Handles APPEND to a list."""
        self._extend([self.stack.pop()])

    dispatch[pickle.APPEND[0]] = load_append

    def load_appends(self) -> None:
        """Handles APPENDS to a list."""
        self._extend(self.pop_mark())

    dispatch[pickle.APPENDS[0]] = load_appends

    def load_additems(self) -> None:
        """Handles ADDITEMS to a set."""
        items = self.pop_mark()
        if type(self.stack[-1]) is set:
            self.stack[-1].update(items)

    dispatch[pickle.ADDITEMS[0]] = load_additems

    def load_setitem(self) -> None:
        """Handles SETITEM of a dict."""
        value, key = self.stack.pop(), self.stack.pop()
        self._set_items([key, value])

    dispatch[pickle.SETITEM[0]] = load_setitem

    def load_setitems(self) -> None:
        """Handles SETITEMS of a dict."""
        self._set_items(self.pop_mark())

    dispatch[pickle.SETITEMS[0]] = load_setitems

    def load_bytearray8(self) -> None:
        """Handles BYTEARRAY8, whose bytes must be in the file before memory is taken for it."""
        self.load_binbytes8()
        self.stack[-1] = bytearray(self.stack[-1])

    dispatch[pickle.BYTEARRAY8[0]] = load_bytearray8

    def load_binpersid(self) -> None:
        """Handles BINPERSID, a storage, or in old files a class beside its source."""
        identity = self.stack.pop()
        if type(identity) is tuple and identity[:1] == ("module",):
            self.append(identity[1])  # torch.load would compare the sources
        elif type(identity) is tuple and identity[:1] == ("storage",):
            self.append(self.persistent_load(identity))
        else:
            raise pickle.UnpicklingError("it refers to an object that is in no checkpoint")

    dispatch[pickle.BINPERSID[0]] = load_binpersid
    dispatch[pickle.PERSID[0]] = lambda self: self.append(StandIn(repr(self.readline())))

    def _extend(self, items: list) -> None:
        if type(self.stack[-1]) is list:
            self.stack[-1].extend(items)

    def _set_items(self, items: list) -> None:
        target = self.stack[-1]
        if type(target) in (dict, OrderedDict, StandIn):
            target.update(zip(items[::2], items[1::2], strict=True))


def load(file: BinaryIO, **arguments: Any) -> Any:
    """Replaces ``pickle.load``, by which torch.load reads the headers of files before torch 1.6."""
    return Unpickler(file, **arguments).load()


def _called(function: Any, arguments: Any) -> Any:
    """Returns the result of a call, or a stand-in with the name of a forbidden function."""
    if isinstance(function, Maker) and type(arguments) is tuple:
        return function.make(*arguments)
    return StandIn(function.name if isinstance(function, StandIn) else "object")


def _bytes(text: str, encoding: str) -> Any:
    """Makes bytes, which protocol 2 does not have."""
    return text.encode("latin1") if encoding in ("latin1", "latin-1") else StandIn("bytes")


def _byte_array(contents: bytes | str = b"", encoding: str = "latin1") -> Any:
    """Makes a bytearray of its contents, but not of a number, which would be its length."""
    contents = _bytes(contents, encoding) if isinstance(contents, str) else contents
    return bytearray(contents) if isinstance(contents, bytes) else StandIn("bytearray")


def _numpy_type(code: Any, *copying: Any) -> Any:
    """Makes a dtype of numbers, but none of objects or records."""
    plain = isinstance(code, str) and re.fullmatch(r"b1|[iu][1248]|f[248]|c8|c16", code)
    return NumPyType(code) if plain else StandIn("numpy.dtype")


def _numpy_scalar(kind: Any, data: Any) -> Any:
    """Makes a number of NumPy."""
    if isinstance(data, str):  # Python 2 wrote it
        data = data.encode("latin1")
    if not isinstance(kind, NumPyType) or len(data) != kind.dtype.itemsize:
        return StandIn("numpy scalar")
    return np.frombuffer(data, kind.dtype)[0]


def _tensor(
    storage: Any,
    offset: Any,
    size: Any,
    stride: Any,
    grad: Any = False,
    hooks: Any = None,
    metadata: Any = None,
) -> Any:
    """Makes a tensor without gradient and hooks; metadata hold its conjugate and negative bits."""
    return _tensor_of_new_dtype(storage, offset, size, stride, grad, hooks, None, metadata)


def _tensor_of_new_dtype(
    storage: Any,
    offset: Any,
    size: Any,
    stride: Any,
    grad: Any,
    hooks: Any,
    dtype: Any,
    metadata: Any = None,
) -> Any:
    """Makes a tensor of a dtype that has no class of storages, such as uint16."""
    if not isinstance(storage, torch.storage.TypedStorage):
        return StandIn("torch.Tensor in a storage of its own kind")
    dtype = dtype or storage.dtype
    return torch._utils._rebuild_tensor_v3(
        storage, offset, size, stride, False, OrderedDict(), dtype, metadata
    )


def _parameter(data: Any, *rest: Any) -> Any:
    """Makes the tensor of a parameter."""
    return data


def _tensor_of_class(function: Any, kind: Any, arguments: Any, *rest: Any) -> Any:
    """Makes the plain tensor inside a subclass or beside attributes, if there is one."""
    if isinstance(function, Maker) and type(arguments) is tuple:
        return function.make(*arguments)
    return StandIn(kind.name if isinstance(kind, StandIn) else "tensor subclass")


MAKERS = {
    name: Maker(make)
    for name, make in {
        "builtins.bytearray": _byte_array,
        "builtins.complex": complex,
        "builtins.frozenset": frozenset,
        "builtins.set": set,
        "_codecs.encode": _bytes,
        "collections.Counter": dict,
        "collections.OrderedDict": OrderedDict,
        "collections.defaultdict": lambda *factory: {},
        "numpy.dtype": _numpy_type,
        "numpy.core.multiarray.scalar": _numpy_scalar,  # the name in NumPy 1
        "numpy._core.multiarray.scalar": _numpy_scalar,
        "torch.Size": torch.Size,
        "torch._tensor._rebuild_from_type_v2": _tensor_of_class,
        "torch._utils._rebuild_parameter": _parameter,
        "torch._utils._rebuild_parameter_with_state": _parameter,
        "torch._utils._rebuild_tensor": _tensor,
        "torch._utils._rebuild_tensor_v2": _tensor,
        "torch._utils._rebuild_tensor_v3": _tensor_of_new_dtype,
    }.items()
}
