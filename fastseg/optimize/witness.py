"""What a forward's Python reads, calls and changes while it is traced.

Stand-ins see what is done with tensors. The rest decides too: attributes, globals, the state of
generators of random numbers, what other libraries say. So the witness looks at each function of
other people's code that runs (not torch's), refuses what is not known to be harmless before it
happens, and notes what was read, for a guard to compare later.
"""

from __future__ import annotations

import contextlib
import enum
import functools
import gc
import random
import sys
import sysconfig
import types
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from fastseg.optimize.bytecode import facts
from fastseg.optimize.contents import CONTAINERS, Contents, is_opaque
from fastseg.optimize.names import BUILTINS
from fastseg.optimize.stand_ins import NotTraceable, any_stand_in, is_stand_in

_TORCH = str(Path(torch.__file__).parent)
_FASTSEG = str(Path(__file__).parents[1])
_STDLIB = tuple({sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib")})
_SITE = ("site-packages", "dist-packages")

TRUSTED = frozenset({"torch", "fastseg"}) | sys.stdlib_module_names
"""Packages whose functions and classes are what they are."""

_STDLIB_FILES = ("collections", "typing", "functools", "enum", "abc", "types", "numbers",
                 "operator", "dataclasses", "_collections_abc", "_weakrefset")  # fmt: skip

_TORCH_FILES = (
    "fx/", "nn/modules/", "nn/functional.py", "nn/parameter.py", "functional.py",
    "_jit_internal.py", "overrides.py", "_tensor.py", "_VF.py", "utils/_pytree.py",
)  # fmt: skip
"""Files of torch whose functions make nodes of a graph, or look at modules alone."""

_TORCH_FUNCTIONS = {("__init__.py", "_assert"), ("__init__.py", "is_tensor")}

_ASKS = {
    ("jit/_trace.py", "is_tracing"): "tracing",
    ("compiler/__init__.py", "is_compiling"): "compiling",
    ("compiler/__init__.py", "is_dynamo_compiling"): "compiling",
    ("compiler/__init__.py", "is_exporting"): "compiling",
    ("onnx/__init__.py", "is_in_onnx_export"): "tracing",
}
"""Functions that tell of a context that an eager call is not in."""

_CONTEXT = "its forward changes the gradient mode or autocast"
_CONTEXTS = ("autograd/grad_mode.py", "amp/autocast_mode.py", "utils/_contextlib.py")

_PARAMETER = str(Path("torch", "nn", "parameter.py"))
_RANDOM = "its forward draws random numbers"
_DRAWS = ("rand", "bernoulli", "normal", "multinomial", "poisson")

_PURE_MODULES = ("math", "_operator", "_functools", "itertools", "_collections")
_PLAIN_MODULES = ("builtins", "collections", "types", "functools", "enum", "contextlib")
_PLAIN = (str, bytes, int, float, complex, tuple, list, dict, set, frozenset, range, slice)


def origin(code: types.CodeType) -> str:
    """Whose code it is: torch, fastseg, stdlib, or user for all other."""
    return _origin(code.co_filename)


@functools.lru_cache(4096)
def _origin(file: str) -> str:
    if file.startswith(_TORCH):
        return "torch"
    if file.startswith(_FASTSEG):
        return "fastseg"
    in_stdlib = file.startswith(_STDLIB) and not any(part in file for part in _SITE)
    return "stdlib" if in_stdlib or file.startswith("<frozen") else "user"


def is_trusted(value) -> bool:
    """Whether a function, class or module is torch's, fastseg's or the standard library's."""
    name = value.__name__ if isinstance(value, types.ModuleType) else value.__module__
    return (name or "builtins").partition(".")[0] in TRUSTED


class Witness:
    """Used as a context around one run of a forward.

    Attributes:
        refusal: why the run is not to be trusted, or None.
        reads: what was read of modules: by id and name, the module and the name.
        items: what was read of globals and cells: by id and name, the mapping and the name.
        objects: by id, objects and classes of which something may have been read.
        codes: of the functions that ran.
        names: all names in these.
        asks: "tracing", "compiling": contexts that were asked for.
        asks_for_none: whether a local value was compared with None.
    """

    def __init__(self, root: nn.Module):
        self.modules = {*root.modules()}
        self.refusal: str | None = None
        self.reads: dict[tuple[int, str], tuple[nn.Module, str]] = {}
        self.items: dict[tuple[int, str], tuple[dict, str]] = {}
        self.cells: dict[int, tuple[types.CellType, str]] = {}
        self.objects: dict[int, object] = {}
        self.codes: set[types.CodeType] = set()
        self.names: set[str] = set()
        self.asks: set[str] = set()
        self.asks_for_none = False
        self._builtin: tuple = None, None
        self.contents = Contents()
        for module in self.modules:
            self.contents.keep_module(module)

    def refuse(self, reason: str) -> None:
        """Ends the run; code that catches exceptions does not help it."""
        self.refusal = self.refusal or reason
        raise NotTraceable(reason)

    @contextlib.contextmanager
    def looking(self):
        """While the forward runs."""

        def recording(module: nn.Module, name: str):
            self._reads(module, name, sys._getframe(1))
            return object.__getattribute__(module, name)

        with _NoTensors(self), _profiler_paused():
            nn.Module.__getattribute__ = recording
            sys.setprofile(self._event)
            try:
                yield
            finally:
                sys.setprofile(None)
                del nn.Module.__getattribute__

    @contextlib.contextmanager
    def looking_away(self):
        """While torch.fx keeps its books, which takes many calls."""
        sys.setprofile(None)
        try:
            yield
        finally:
            sys.setprofile(self._event)

    def is_others(self, frame: types.FrameType) -> bool:
        """Whether a frame is of other people's code."""
        return _origin(frame.f_code.co_filename) in ("user", "stdlib")

    def is_asked(self, frame: types.FrameType) -> bool:
        """Whether it is other people's code that asks, by itself or by isinstance()."""
        while frame.f_code.co_filename.endswith(_PARAMETER):  # it is asked for nn.Parameter
            frame = frame.f_back
        within, builtin = self._builtin
        return self.is_others(frame) and (
            frame is not within or builtin in (isinstance, issubclass)
        )

    def _event(self, frame: types.FrameType, event: str, argument) -> None:
        if event == "call":
            kind = _origin(frame.f_code.co_filename)
            if kind == "user":
                self._ran(frame)
            elif kind != "fastseg":
                caller = frame.f_back
                if caller is not None and _origin(caller.f_code.co_filename) == "user":
                    self._called(frame, kind)
        elif event != "return" and _origin(frame.f_code.co_filename) == "user":
            self._builtin = (frame, argument) if event == "c_call" else (None, None)
            if event == "c_call":
                self._called_builtin(argument)

    def _called(self, frame: types.FrameType, kind: str) -> None:
        code = frame.f_code
        if kind == "stdlib":
            file = code.co_filename.removeprefix("<frozen ").removesuffix(">")
            name = Path(file).stem if Path(file).stem != "__init__" else Path(file).parent.name
            owner = frame.f_locals.get("self")
            is_null = isinstance(owner, contextlib.nullcontext)
            if name not in _STDLIB_FILES and not is_null and name != "importlib._bootstrap":
                self.refuse(f"its forward calls {name}.{code.co_name}")
            self.saw(owner, f"a {type(owner).__name__}")
            return
        file = code.co_filename[len(_TORCH) + 1 :].replace("\\", "/")
        known = file.startswith(_TORCH_FILES) or (file, code.co_name) in _TORCH_FUNCTIONS
        if (file, code.co_name) in _ASKS:
            self.asks.add(_ASKS[file, code.co_name])
        elif file in _CONTEXTS:
            self.refuse(_CONTEXT)
        elif not known:
            name = file.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
            self.refuse(f"its forward calls torch.{name}.{code.co_name}")

    def _called_builtin(self, function) -> None:
        owner = getattr(function, "__self__", None)
        module = getattr(function, "__module__", None) or ""
        if owner is None and module.partition(".")[0] == "torch":
            return  # an op: its stand-ins, or the mode for tensors, see it
        if isinstance(owner, types.ModuleType):
            name = owner.__name__
            if name.startswith("torch._C._") or name in _PURE_MODULES:
                return
            if name == "builtins" and function.__name__ in BUILTINS:
                return
            name = "torch" if name == "torch._C" else name
            known = f"{name}.{function.__name__}".removeprefix("builtins.")
            self.refuse(f"its forward calls {known}")
        holder = type if isinstance(owner, type) else type(owner)
        if owner is None or isinstance(owner, (*_PLAIN, *CONTAINERS, Tensor, type)):
            return
        if holder.__module__.partition(".")[0] in ("builtins", "collections", "itertools"):
            return
        name = f"{function.__name__} of a {holder.__name__}"
        self.refuse(_RANDOM if isinstance(owner, random.Random) else f"its forward calls {name}")

    def _ran(self, frame: types.FrameType) -> None:
        code = frame.f_code
        if code in self.codes:
            return
        found = facts(code)
        self.names |= found.names
        self.asks_for_none |= found.asks_for_none
        if found.refusal:
            self.refuse(found.refusal)
        builtins = frame.f_builtins
        for name in found.global_names:
            if name in frame.f_globals or name not in builtins:
                self._reads_item(frame.f_globals, name)
            elif name == "type":
                self.refuse("its forward asks for the type of a value")
        made_here = any(code in outer.co_consts for outer in self.codes)
        self.codes.add(code)
        if not made_here:
            self._keep_what_it_was_made_with(frame)

    def _keep_what_it_was_made_with(self, frame: types.FrameType) -> None:
        """Defaults of arguments, and variables of functions around it."""
        code = frame.f_code
        arguments = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
        mutable = any(isinstance(frame.f_locals.get(a), CONTAINERS) for a in arguments)
        if not mutable and not set(code.co_freevars) - {"__class__"}:
            return
        for function in gc.get_referrers(code):
            if not isinstance(function, types.FunctionType) or function.__code__ is not code:
                continue
            cells = zip(code.co_freevars, function.__closure__ or (), strict=True)
            for name, cell in cells:
                if name != "__class__" and _holds(cell, frame.f_locals.get(name)):
                    self.cells[id(cell)] = cell, name
                    self.saw(cell.cell_contents, name)
            for value in (
                *(function.__defaults__ or ()),
                *(function.__kwdefaults__ or {}).values(),
            ):
                self.saw(value, "a default")

    def _reads(self, module: nn.Module, name: str, frame: types.FrameType) -> None:
        """Of a module; torch's own code is of interest where it goes through children."""
        others = _origin(frame.f_code.co_filename) == "user"
        if not others and (name != "_modules" or not _goes_through(frame)):
            return
        if name == "__dict__":
            self.refuse("its forward reads __dict__ of a module")
        if (id(module), name) in self.reads:
            return
        if module not in self.modules:
            parts = set(object.__getattribute__(module, "_modules").values())
            if isinstance(module, nn.Sequential) and parts <= self.modules:
                return  # a slice, made in this run
            self.refuse("its forward reads a module that is none of its own")
        if name == "__class__":
            self.saw(type(module), name)
            return
        self.reads[id(module), name] = module, name
        held = object.__getattribute__(module, "__dict__")
        if name in held:
            self.saw(held[name], name)
            return
        for cls in type(module).__mro__:
            if name in vars(cls) and not is_trusted(cls):
                self.saw(vars(cls)[name], name)
                return

    def _reads_item(self, mapping: dict, name: str) -> None:
        self.items[id(mapping), name] = mapping, name
        self.contents.keep_items(mapping, (name,))
        if name in mapping:
            self.saw(mapping[name], name)

    def saw(self, value, name: str) -> None:
        """Of a value that was read: keeps what may change in it, refuses what hides its state."""
        if value is None or isinstance(value, (*_ATOMS, Tensor, nn.Module)) or is_stand_in(value):
            return
        if isinstance(value, (*CONTAINERS, tuple, frozenset)):
            self.contents.keep(value, self.names)
            for part in value.values() if isinstance(value, dict) else value:
                if not isinstance(part, (*CONTAINERS, tuple)):
                    self.saw(part, name)
        elif isinstance(value, (staticmethod, classmethod)):
            self.saw(value.__func__, name)
        elif isinstance(value, (types.FunctionType, types.BuiltinFunctionType, property)):
            if (getattr(value, "__module__", None) or "").startswith("numpy"):
                self.refuse("its forward uses numpy")
        elif isinstance(value, types.MethodType):
            self.saw(value.__self__, name)
        elif isinstance(value, functools.partial):
            for part in (value.func, *value.args, *value.keywords.values()):
                self.saw(part, name)
        elif isinstance(value, types.ModuleType):
            if value.__name__.partition(".")[0] in ("numpy", "sys"):
                self.refuse(f"its forward uses {value.__name__}")
            if not is_trusted(value):
                self._saw_object(value)
        elif isinstance(value, type):
            if not is_trusted(value):
                self.contents.keep_class(value)
                self._saw_object(value)
        elif type(value).__module__.partition(".")[0] in ("torch", "typing"):
            return
        elif is_trusted(type(value)) and type(value).__module__ not in _PLAIN_MODULES:
            self.refuse(f"its forward reads {name}, a {type(value).__name__}")
        elif is_opaque(value):
            self.contents.keep(value, self.names)
            self._saw_object(value)
        else:
            self.refuse(f"its forward reads {name}, a {type(value).__name__}")

    def _saw_object(self, value) -> None:
        self.objects[id(value)] = value

    def finish(self) -> None:
        """Undoes what the run has changed.

        Raises:
            NotTraceable: it has changed something.
        """
        if self.contents.restore():
            raise NotTraceable("its forward writes attributes or other state")


_ATOMS = (
    *(bool, int, float, complex, str, bytes, type(...), type(NotImplemented), range, slice),
    *(enum.Enum, torch.dtype, torch.device, torch.memory_format, torch.layout),
)


def _goes_through(frame: types.FrameType) -> bool:
    """Whether torch goes through a module's children as other people's code has asked it to."""
    if frame.f_code.co_filename.endswith("container.py"):
        return True
    while frame is not None and frame.f_code.co_filename.endswith("modules/module.py"):
        if not frame.f_code.co_name.startswith("__"):
            frame = frame.f_back
        else:
            return False
    return frame is not None and _origin(frame.f_code.co_filename) == "user"


def _holds(cell: types.CellType, value) -> bool:
    try:
        return cell.cell_contents is value
    except ValueError:  # empty
        return False


@contextlib.contextmanager
def _profiler_paused():
    """Whoever profiles goes on afterwards; Python's own profiler is no function to set again."""
    profiler = sys.getprofile()
    in_c = hasattr(profiler, "enable") and hasattr(profiler, "disable")
    if in_c:
        profiler.disable()
    try:
        yield
    finally:
        if in_c:
            profiler.enable()
        else:
            sys.setprofile(profiler)


class _NoTensors(TorchFunctionMode):
    """Ops of torch on tensors of the model alone, or on none, would run and leave a constant."""

    def __init__(self, witness: Witness):
        super().__init__()
        self.witness = witness

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if not any_stand_in(types):
            draws = getattr(func, "__name__", "").startswith(_DRAWS)
            self.witness.refuse(
                _RANDOM if draws else "its forward makes or reads tensors by itself"
            )
        return func(*args, **(kwargs or {}))
