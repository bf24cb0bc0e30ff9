"""Modules become instances of subclasses of their own classes, in place, and back.

Only ``module.__class__`` changes: parameters, buffers, keys, hooks, references to the module and
isinstance() stay. The subclass is made for the class at hand, so pickle and copy rebuild it.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable

from torch import nn


class Swapped:
    """The base that comes before the module's own class in the subclass.

    Attributes:
        _base: the module's own class.
        _base_forward: the forward of that class, as it was.
    """

    _base: type
    _base_forward: Callable

    def __init_subclass__(cls, **kwargs):
        """Does without what authors have done for each class of theirs, as registries have."""

    def __new__(cls, *args, **kwargs):
        """Makes a module of the own class where code makes another of a module's class."""
        if args or kwargs:
            return cls._base(*args, **kwargs)
        return super().__new__(cls)

    @classmethod
    def _forward_for(cls, base: type):
        """The forward of the subclass."""
        return cls.forward

    def _after_swap(self) -> None:
        """Adds what the swapped module needs."""

    def _before_restore(self) -> None:
        """Takes away what the swap has added."""

    def __prepare_scriptable__(self):
        raise RuntimeError(
            "torch.jit.script cannot compile what fastseg.optimize_ has swapped: call"
            " fastseg.restore_(model) before, and fastseg.optimize_(model) after it; a model of"
            ' fastseg.models is built with backend="torch" for it'
        )

    def __reduce_ex__(self, protocol):
        _, (_, *arguments), *state = super().__reduce_ex__(protocol)
        return (_new, (self._mixin, self._base, *arguments), *state)


_subclasses: weakref.WeakValueDictionary[tuple[type, int], type] = weakref.WeakValueDictionary()
"""The subclasses in use, by mixin and the id of the class, which each of them keeps alive."""


def subclass(mixin: type[Swapped], base: type) -> type:
    """The class of modules of class `base` that were swapped by `mixin`."""
    made = _subclasses.get((mixin, id(base)))
    if made is None:
        made = _subclasses.setdefault((mixin, id(base)), _made(mixin, base))
    return made


def _made(mixin: type[Swapped], base: type) -> type:
    members = {
        "_base": base,
        "_base_forward": staticmethod(base.forward),
        "_mixin": mixin,
        "__module__": base.__module__,
        "__doc__": base.__doc__,
        "forward": mixin._forward_for(base),
    }
    return type(f"{mixin.__name__}{base.__name__}", (mixin, base), members)


def _new(mixin: type[Swapped], base: type, *arguments):
    return base.__new__(subclass(mixin, base), *arguments)


def swap(module: nn.Module, mixin: type[Swapped]) -> None:
    """Changes a module's class to the subclass that a mixin makes of it, in place."""
    module.__class__ = subclass(mixin, type(module))
    module._after_swap()


def restore(module: nn.Module) -> None:
    """Undoes :func:`swap`, if the module was swapped."""
    if isinstance(module, Swapped):
        module._before_restore()
        swapped = subclass(module._mixin, module._base)
        module.__class__ = _replaced(type(module), swapped, module._base)


def _replaced(cls: type, old: type, new: type) -> type:
    """The class with `new` for `old` among its bases, as fully_shard derives from classes."""
    if cls is old:
        return new
    bases = tuple(_replaced(b, old, new) if issubclass(b, old) else b for b in cls.__bases__)
    members = {k: v for k, v in vars(cls).items() if k not in ("__dict__", "__weakref__")}
    return type(cls)(cls.__name__.replace(old.__name__, new.__name__), bases, members)
