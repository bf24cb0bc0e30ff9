"""Where the indices of a max-pooling go in a graph, and with which arguments it is called.

Max-unpooling takes indices of its own kind only: int64 indices become byte codes where all of them
go from such a pooling to such an unpooling and nowhere else, both with the same windows. That is so
for modules and for functions.
"""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable
from typing import Any

from torch import fx

from fastseg._core.pool2d import Pool2d, pool2d


def unpoolings_of(
    pool: fx.Node, arguments_of: Callable[[fx.Node], dict[str, Any]]
) -> tuple[list[fx.Node], bool]:
    """The unpoolings that take a pooling's indices, and whether nothing else takes them.

    Args:
        pool: the call of a pooling, which returns values and indices.
        arguments_of: gives the arguments of an unpooling's call by name, none for any other node.
    """
    unpools, nothing_else = [], True
    for user in pool.users:
        if user.target is not operator.getitem or user.args[1] not in (0, 1):
            nothing_else = False
            continue
        for taker in user.users if user.args[1] == 1 else ():
            taken_as = [name for name, value in arguments_of(taker).items() if value is user]
            if taken_as == ["indices"]:
                unpools.append(taker)
            else:
                nothing_else = False
    return unpools, nothing_else


def pooling_of(indices: Any) -> fx.Node | None:
    """The call whose second result an unpooling's indices are, or None."""
    if not isinstance(indices, fx.Node) or indices.target is not operator.getitem:
        return None
    source, item = indices.args
    return source if isinstance(source, fx.Node) and item == 1 else None


def bound(function: Callable, *args: Any, **kwargs: Any) -> dict[str, Any]:
    """The arguments of a call by name, with the function's defaults; none if they do not fit."""
    try:
        found = inspect.signature(function).bind(*args, **kwargs)
    except TypeError:
        return {}
    found.apply_defaults()
    return found.arguments


def windows(kernel_size, stride, padding, dilation=1) -> Pool2d:
    """The windows of a pooling, or of an unpooling, which are never dilated."""
    return pool2d("fastseg.optimize_", kernel_size, stride, padding, dilation)
