"""What a frame of a running forward tells: whether its reads decide, and whose frame it is."""

from __future__ import annotations

import gc
import types

from fastseg.optimize.trace.origins import origin, torch_file


def decides(frame: types.FrameType, name: str) -> bool:
    """Whether what torch's code reads of a module decides what is traced.

    All that is read in the forward of a layer does, which runs where a class of one's own calls its
    base's. That torch goes through children does too, if it is not for torch itself.
    """
    file = torch_file(frame.f_code)
    if not file.startswith("nn/modules/") or file in ("nn/modules/module.py", _CONTAINERS):
        within = file == _CONTAINERS or _is_asked_to_go_through(frame)
        return name == "_modules" and within
    return frame.f_code.co_name in ("forward", "_conv_forward")


_CONTAINERS = "nn/modules/container.py"


def _is_asked_to_go_through(frame: types.FrameType | None) -> bool:
    while frame is not None and torch_file(frame.f_code) == "nn/modules/module.py":
        if frame.f_code.co_name.startswith("__"):
            return False
        frame = frame.f_back
    return frame is not None and origin(frame.f_code.co_filename) == "others"


def functions_of(frame: types.FrameType) -> list[types.FunctionType]:
    """The functions that a frame may be a call of, which the frame does not tell.

    They are found where its name leads, or else among all objects, which takes long.
    """
    code = frame.f_code
    first = frame.f_locals.get(code.co_varnames[0]) if code.co_argcount else None
    places = [vars(cls) for cls in type(first).__mro__] + [frame.f_globals]
    for found in (place.get(code.co_name) for place in places):
        function = getattr(found, "__func__", None) or getattr(found, "fget", None) or found
        while function is not None:
            if getattr(function, "__code__", None) is code:
                return [function]
            function = getattr(function, "__wrapped__", None)
    functions = (f for f in gc.get_referrers(code) if isinstance(f, types.FunctionType))
    return [f for f in functions if f.__code__ is code]


def holds(cell: types.CellType, value) -> bool:
    """Whether a variable of a function around another is a value now."""
    try:
        return cell.cell_contents is value
    except ValueError:  # the cell is empty
        return False
