"""The formats that a network is written in."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from fastseg.export import onnx_files, openvino_files, torch_files


@dataclass(frozen=True)
class Format:
    """How a kind of file is written and run.

    Attributes:
        suffix: how the files' names end.
        runtime: the package that runs them.
        write: writes a program to a path; of the further arguments of :func:`onnx_files.write` it
            takes those in ``arguments``.
        load: returns the function of a file; needs the runtime.
        arguments: names of arguments that ``write`` takes.
        check: raises ImportError where a package that writes is not installed.
    """

    suffix: str
    runtime: str
    write: Callable[..., None]
    load: Callable[[Path], Callable[[Tensor], Tensor]]
    arguments: tuple[str, ...] = ()
    check: Callable[[], None] = lambda: None

    def chosen(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """Returns the arguments that ``write`` takes."""
        return {name: arguments[name] for name in self.arguments}


FORMATS = {
    "onnx": Format(
        ".onnx",
        "onnxruntime",
        onnx_files.write,
        onnx_files.load,
        ("module", "output", "dynamic", "opset"),
        onnx_files.check_packages,
    ),
    "torch_export": Format(".pt2", "torch", torch_files.write_program, torch_files.load_program),
    "aoti": Format(".pt2", "torch", torch_files.write_compiled, torch_files.load_compiled),
    "openvino": Format(
        ".xml",
        "openvino",
        openvino_files.write,
        openvino_files.load,
        ("output",),
        openvino_files.check_packages,
    ),
}
"""Formats by their names."""
