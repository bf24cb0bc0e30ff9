"""The witness of what a forward's Python reads, calls and changes while it is traced.

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
import operator
import sys
import threading
import types

import torch
from torch import Tensor, fx, nn
from torch.overrides import TorchFunctionMode

from fastseg.optimize.trace.bytecode import facts
from fastseg.optimize.trace.contents import CONTAINERS, Contents, attributes, is_opaque
from fastseg.optimize.trace.frames import decides, functions_of, holds
from fastseg.optimize.trace.origins import (
    ASKS,
    RANDOM,
    is_others,
    is_trusted,
    origin,
    torch_file,
    why_not_builtin,
    why_not_module,
    why_not_object,
    why_not_stdlib,
    why_not_torch,
)
from fastseg.optimize.trace.stand_ins import NotTraceable, any_stand_in, is_stand_in


class Witness:
    """A witness of one run of a forward.

    Attributes:
        refusal: why the run is not to be trusted, or None.
        reads: each module and name of an attribute that was read, by the module's id and the name.
        items: each mapping and name that was read as a global, by the mapping's id and the name.
        cells: each cell that was read and its name, by the cell's id.
        objects: objects and classes of which something may have been read, by id.
        codes: the code of the functions that ran.
        names: all names in that code.
        computes_names: whether attributes may have been read that the code has no names of.
        asks: the contexts that were asked for, of "tracing" and "compiling".
        asks_for_none: whether a local value was compared with None, any of them.
        asked_for_none: the nodes of arguments of functions that were compared with None.
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
        self.computes_names = False
        self.asks: set[str] = set()
        self.asks_for_none = False
        self.asked_for_none: set[fx.Node] = set()
        self.contents = Contents()
        self._builtin: tuple = None, None
        # The method is held here too: CPython 3.11 calls it once more after it has dropped it.
        self._on_event = self._event
        for module in self.modules:
            self.contents.keep_module(module)

    def refuse(self, reason: str | None) -> None:
        """Ends the run if there is a reason; code that catches exceptions does not help it."""
        if reason is not None:
            self.refusal = self.refusal or reason
            raise NotTraceable(reason)

    @contextlib.contextmanager
    def looking(self):
        """A context in which the forward runs and is looked at."""
        plain, thread = object.__getattribute__, threading.get_ident()
        if any(type(m).__getattribute__ is not plain for m in self.modules):
            self.refuse("its forward reads attributes of modules in a way of its own")

        def recording(module: nn.Module, name: str):
            if threading.get_ident() == thread:
                self._reads(module, name, sys._getframe(1))
            return plain(module, name)

        with _NoTensors(self), _profiler_paused(), _no_finalizers():
            nn.Module.__getattribute__ = recording
            sys.setprofile(self._on_event)
            try:
                yield
            finally:
                sys.setprofile(None)
                del nn.Module.__getattribute__

    @contextlib.contextmanager
    def looking_away(self):
        """A context in which torch.fx keeps its books, by many calls that are of no interest."""
        sys.setprofile(None)
        try:
            yield
        finally:
            sys.setprofile(self._on_event)

    def is_asked(self, frame: types.FrameType) -> bool:
        """Whether other people's code asks for a class in a frame, by itself or by isinstance()."""
        # isinstance(x, nn.Parameter) asks from there.
        while torch_file(frame.f_code) == "nn/parameter.py":
            frame = frame.f_back
        within, builtin = self._builtin
        return is_others(frame) and (frame is not within or builtin in (isinstance, issubclass))

    def _event(self, frame: types.FrameType, event: str, argument) -> None:
        if event == "call":
            kind = origin(frame.f_code.co_filename)
            if kind == "others":
                self._ran(frame)
            elif kind != "ours":
                caller = frame.f_back
                if caller is not None and origin(caller.f_code.co_filename) == "others":
                    self._called(frame, kind)
        elif event != "return" and origin(frame.f_code.co_filename) == "others":
            self._builtin = (frame, argument) if event == "c_call" else (None, None)
            if event == "c_call":
                self.refuse(why_not_builtin(argument))

    def _called(self, frame: types.FrameType, kind: str) -> None:
        """Judges a function of torch or of the standard library that other people's code calls."""
        if kind == "stdlib":
            self.refuse(why_not_stdlib(frame))
            owner = frame.f_locals.get("self")
            self.saw(owner, f"a {type(owner).__name__}")
            # The names in that code are none of those which the forward has.
            for value in filter(is_opaque, frame.f_locals.values()):
                self.computes_names = True
                for part in attributes(value).values():
                    self.contents.keep(part, ())
            return
        code = frame.f_code
        self.refuse(why_not_torch(code))
        asked = ASKS.get((torch_file(code), code.co_name))
        if asked is not None:
            self.asks.add(asked)

    def _ran(self, frame: types.FrameType) -> None:
        code = frame.f_code
        found = facts(code)
        for name in found.asked_arguments:
            value = frame.f_locals.get(name)
            if is_stand_in(value):
                self.asked_for_none.add(value.node)
        if code in self.codes:
            return
        self.names |= found.names
        self.computes_names |= not _COMPUTE_NAMES.isdisjoint(found.names)
        self.asks_for_none |= found.asks_for_none
        self.refuse(found.refusal)
        for name in found.global_names:
            if name in frame.f_globals or name not in frame.f_builtins:
                self._reads_item(frame.f_globals, name)
            elif name == "type":
                self.refuse("its forward asks for the type of a value")
        made_here = any(code in outer.co_consts for outer in self.codes)
        self.codes.add(code)
        if not made_here:
            self._keep_what_it_was_made_with(frame)

    def _keep_what_it_was_made_with(self, frame: types.FrameType) -> None:
        """Keeps the defaults of a function's arguments and the variables of functions around it."""
        code = frame.f_code
        arguments = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
        mutable = any(isinstance(frame.f_locals.get(a), CONTAINERS) for a in arguments)
        if not mutable and not set(code.co_freevars) - {"__class__"}:
            return
        for function in functions_of(frame):
            cells = zip(code.co_freevars, function.__closure__ or (), strict=True)
            for name, cell in cells:
                if name != "__class__" and holds(cell, frame.f_locals.get(name)):
                    self.cells[id(cell)] = cell, name
                    self.saw(cell.cell_contents, name)
            for value in (
                *(function.__defaults__ or ()),
                *(function.__kwdefaults__ or {}).values(),
            ):
                self.saw(value, "a default")

    def _reads(self, module: nn.Module, name: str, frame: types.FrameType) -> None:
        """Notes a read of a module; those by torch count in the forwards of its modules alone."""
        if not is_others(frame) and not decides(frame, name):
            return
        if name == "__dict__":
            self.refuse("its forward reads __dict__ of a module")
        if (id(module), name) in self.reads:
            return
        if module not in self.modules:
            parts = set(object.__getattribute__(module, "_modules").values())
            if isinstance(module, nn.Sequential) and parts <= self.modules:
                return  # it is a slice, made in this run
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
        """Keeps what may change in a value that was read, and refuses one that hides its state."""
        if value is None or isinstance(value, (*_ATOMS, Tensor, nn.Module)) or is_stand_in(value):
            return
        self.computes_names |= any(value is f for f in _READERS)
        if isinstance(value, (*CONTAINERS, tuple, frozenset)):
            self.contents.keep(value, self.names)
            for part in value.values() if isinstance(value, dict) else value:
                if not isinstance(part, (*CONTAINERS, tuple)):
                    self.saw(part, name)
        elif isinstance(value, (staticmethod, classmethod)):
            self.saw(value.__func__, name)
        elif isinstance(value, (types.FunctionType, types.BuiltinFunctionType, property)):
            module = (getattr(value, "__module__", None) or "").partition(".")[0]
            self.refuse("its forward uses numpy" if module == "numpy" else None)
        elif isinstance(value, types.MethodType):
            self.saw(value.__self__, name)
        elif isinstance(value, functools.partial):
            for part in (value.func, *value.args, *value.keywords.values()):
                self.saw(part, name)
        elif isinstance(value, types.ModuleType):
            self.refuse(why_not_module(value))
            if not is_trusted(value):
                self.objects[id(value)] = value
        elif isinstance(value, type):
            if not is_trusted(value):
                self.contents.keep_class(value)
                self.objects[id(value)] = value
        elif type(value).__module__.partition(".")[0] not in ("torch", "typing"):
            self.refuse(why_not_object(value, name))
            if not is_opaque(value):
                self.refuse(f"its forward reads {name}, a {type(value).__name__}")
            self.contents.keep(value, self.names)
            self.objects[id(value)] = value

    def finish(self) -> None:
        """Undoes what the run has changed.

        Raises:
            NotTraceable: it has changed something.
        """
        if self.contents.restore():
            raise NotTraceable("its forward writes attributes or other state")


_READERS = (getattr, hasattr, vars, dir, operator.attrgetter, operator.methodcaller)
"""What reads attributes by names that are values."""

_COMPUTE_NAMES = {f.__name__ for f in _READERS} | {"__dict__", "__getattribute__"}

_ATOMS = (
    *(bool, int, float, complex, str, bytes, type(...), type(NotImplemented), range, slice),
    *(enum.Enum, torch.dtype, torch.device, torch.memory_format, torch.layout),
)


@contextlib.contextmanager
def _no_finalizers():
    """A context in which the garbage collector rests: what it calls is no part of a forward."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@contextlib.contextmanager
def _profiler_paused():
    """A context in which profilers pause; Python's own is switched off and on, others set again."""
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


_DRAWS = ("rand", "bernoulli", "normal", "multinomial", "poisson")


class _NoTensors(TorchFunctionMode):
    """A mode that refuses ops without stand-ins, which would run and leave a constant."""

    def __init__(self, witness: Witness):
        super().__init__()
        self.witness = witness

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if not any_stand_in(types):
            draws = getattr(func, "__name__", "").startswith(_DRAWS)
            self.witness.refuse(RANDOM if draws else "its forward makes or reads tensors by itself")
        return func(*args, **(kwargs or {}))
