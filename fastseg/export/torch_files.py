"""Files of torch itself: exported programs, and packages that AOTInductor has compiled."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.export import ExportedProgram

from fastseg._core.atomic import atomic_write
from fastseg.export.errors import ExportError, first_line, quiet


def write_program(program: ExportedProgram, path: Path) -> None:
    """Writes a program with ``torch.export.save``."""
    with atomic_write(path) as file, quiet():
        torch.export.save(program, file)


def load_program(path: Path) -> Callable[[Tensor], Tensor]:
    """Returns the module of a program's file."""
    return torch.export.load(path).module()


def write_compiled(program: ExportedProgram, path: Path) -> None:
    """Compiles a program with AOTInductor, which needs a C++ compiler, and writes the package.

    Raises:
        ExportError: it cannot be compiled here.
    """
    # torch writes to names that end in .pt2 alone, so that the package is moved to its place.
    with tempfile.TemporaryDirectory() as folder:
        try:
            with quiet():
                made = torch._inductor.aoti_compile_and_package(
                    program, package_path=f"{folder}/compiled.pt2"
                )
        except Exception as error:  # from tracing to the compiler's exit status
            raise ExportError(
                f"AOTInductor cannot compile the network here: {first_line(error)}"
            ) from error
        with atomic_write(path) as file:
            file.write(Path(made).read_bytes())


def load_compiled(path: Path) -> Callable[[Tensor], Tensor]:
    """Returns the function of a compiled package."""
    return torch._inductor.aoti_load_package(str(path))
