"""The origins of the code that runs in a trace, and which of it is known to be harmless."""

from __future__ import annotations

import contextlib
import functools
import os
import random
import sys
import types
from pathlib import Path

import torch
from torch import Tensor

from fastseg.optimize.classify.names import BUILTINS
from fastseg.optimize.trace.contents import CONTAINERS

_TORCH = str(Path(torch.__file__).parent) + os.sep
_OURS = str(Path(__file__).parents[1]) + os.sep
_STDLIB = str(Path(os.__file__).parent) + os.sep
_SITE = (f"{os.sep}site-packages{os.sep}", f"{os.sep}dist-packages{os.sep}")


@functools.lru_cache(4096)
def origin(file: str) -> str:
    """Whose code a file holds: that of "torch", "ours" (fastseg.optimize), "stdlib" or "others"."""
    if file.startswith(_TORCH):
        return "torch"
    if file.startswith(_OURS):
        return "ours"
    in_stdlib = file.startswith(_STDLIB) and not any(part in file for part in _SITE)
    return "stdlib" if in_stdlib or file.startswith("<frozen") else "others"


def is_others(frame: types.FrameType) -> bool:
    """Whether a frame is of neither torch's code nor ours."""
    return origin(frame.f_code.co_filename) in ("others", "stdlib")


def is_trusted(value) -> bool:
    """Whether a function, class or module is torch's or Python's own, and stays as it is."""
    name = value.__name__ if isinstance(value, types.ModuleType) else value.__module__
    return (name or "builtins").partition(".")[0] in _TRUSTED


_TRUSTED = {"torch"} | sys.stdlib_module_names


def torch_file(code: types.CodeType) -> str:
    """The file of torch's code relative to torch's folder, or "" of other code."""
    file = code.co_filename
    return file[len(_TORCH) :].replace(os.sep, "/") if file.startswith(_TORCH) else ""


ASKS = {
    ("jit/_trace.py", "is_tracing"): "tracing",
    ("compiler/__init__.py", "is_compiling"): "compiling",
    ("compiler/__init__.py", "is_dynamo_compiling"): "compiling",
    ("compiler/__init__.py", "is_exporting"): "compiling",
    ("onnx/__init__.py", "is_in_onnx_export"): "tracing",
}
"""Contexts that functions of torch tell of, by file and name; an eager call is in none of them.

torch.jit.is_scripting is not among them, as what is optimised is not scripted.
"""

_CONTEXTS = ("autograd/grad_mode.py", "amp/autocast_mode.py", "utils/_contextlib.py")
_TORCH_FUNCTIONS = (("__init__.py", "_assert"), ("__init__.py", "is_tensor"))
_TORCH_FILES = (
    "fx/", "nn/modules/", "nn/functional.py", "nn/parameter.py", "functional.py",
    "_jit_internal.py", "overrides.py", "_tensor.py", "_VF.py", "utils/_pytree.py",
)  # fmt: skip
"""Files of torch whose functions make nodes of a graph, or look at modules alone."""


def why_not_torch(code: types.CodeType) -> str | None:
    """Why a function of torch may not be called."""
    file = torch_file(code)
    if file in _CONTEXTS:
        return "its forward changes the gradient mode or autocast"
    key = file, code.co_name
    if file.startswith(_TORCH_FILES) or key in _TORCH_FUNCTIONS or key in ASKS:
        return None
    module = file.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
    return f"its forward calls torch.{module}.{code.co_name}"


_STDLIB_MODULES = (
    "collections", "collections.abc", "_collections_abc", "typing", "functools", "enum", "abc",
    "types", "numbers", "operator", "dataclasses", "_weakrefset",
)  # fmt: skip


def why_not_stdlib(frame: types.FrameType) -> str | None:
    """Why a function of the standard library may not be called."""
    module, code = frame.f_globals.get("__name__") or "", frame.f_code
    is_null = isinstance(frame.f_locals.get("self"), contextlib.nullcontext)
    if module in _STDLIB_MODULES or is_null or code.co_name == "_handle_fromlist":
        return None
    return f"its forward calls {module}.{code.co_name}"


_PURE_MODULES = ("math", "_operator", "_functools", "itertools", "_collections")
_OPS_OF_TORCH = ("torch._C._nn", "torch._C._linalg", "torch._C._fft", "torch._C._special")
_PLAIN = (
    *(str, bytes, int, float, complex, tuple, frozenset, range, slice, type),
    *CONTAINERS,
)
RANDOM = "its forward draws random numbers"


def why_not_builtin(function) -> str | None:
    """Why a function that is no Python may not be called."""
    owner = getattr(function, "__self__", None)
    module = (getattr(function, "__module__", None) or "").partition(".")[0]
    if owner is None:
        # It is an op of torch, which the stand-ins or the mode for tensors see.
        known = module in ("torch", "builtins", *_PURE_MODULES) or not module
        return None if known else f"its forward calls {module}.{function.__name__}"
    if isinstance(owner, types.ModuleType):
        name = owner.__name__
        known = name == "builtins" and function.__name__ in BUILTINS
        if known or name in _OPS_OF_TORCH or name in _PURE_MODULES:
            return None
        name = "torch" if name == "torch._C" else name
        return f"its forward calls {name}.{function.__name__}".replace("builtins.", "")
    if isinstance(owner, (*_PLAIN, Tensor)):
        return None
    if isinstance(owner, random.Random):
        return RANDOM
    cls = type(owner)
    iterates = cls.__module__ in ("builtins", "collections", "itertools", "_collections_abc")
    if iterates and cls.__name__ != "PyCapsule":
        return None
    return f"its forward calls {function.__name__} of a {cls.__name__}"


_PLAIN_OBJECTS = ("builtins", "collections", "types", "enum", "contextlib")


def why_not_object(value, name: str) -> str | None:
    """Why an object may not be read, as its state is hidden."""
    module = type(value).__module__
    if module.partition(".")[0] in _TRUSTED and module not in _PLAIN_OBJECTS:
        return f"its forward reads {name}, a {type(value).__name__}"
    return None


def why_not_module(module: types.ModuleType) -> str | None:
    """Why a module of Python may not be used."""
    hides = module.__name__.partition(".")[0] in ("numpy", "sys", "gc")
    return f"its forward uses {module.__name__}" if hides else None
