"""OpenVINO's intermediate representation: an .xml of the graph and a .bin of the weights."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.export import ExportedProgram

from fastseg._core.atomic import atomic_write
from fastseg.export.errors import ExportError, first_line, needed, quiet
from fastseg.export.program import INPUT


def check_packages() -> None:
    """Raises ImportError where OpenVINO is not installed."""
    needed("openvino", "an OpenVINO file")


def write(program: ExportedProgram, path: Path, *, output: str) -> None:
    """Writes a program as float32 to an .xml and the .bin beside it.

    Args:
        program: what :func:`fastseg.export.program.capture` returns.
        path: the .xml.
        output: name of the output.

    Raises:
        ExportError: OpenVINO cannot convert the program.
    """
    openvino = needed("openvino", "an OpenVINO file")
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder) / "model.xml"
        try:
            with quiet():
                model = openvino.convert_model(program)
                model.inputs[0].get_tensor().set_names({INPUT})
                model.outputs[0].get_tensor().set_names({output})
                openvino.save_model(model, made, compress_to_fp16=False)
        except Exception as error:  # converters raise nearly anything
            raise ExportError(f"OpenVINO cannot hold the network: {_reason(error)}") from error
        for suffix in (".bin", ".xml"):  # the graph last: it names weights that are there
            with atomic_write(path.with_suffix(suffix)) as file:
                file.write(made.with_suffix(suffix).read_bytes())


def _reason(error: Exception) -> str:
    """Returns the line that names an operator, which comes after where OpenVINO has failed."""
    named = (line[3:] for line in str(error).splitlines() if line.startswith("-- "))
    return next(named, first_line(error))


def load(path: Path) -> Callable[[Tensor], Tensor]:
    """Returns the function of a file in OpenVINO, on the CPU, in float32."""
    openvino = needed("openvino", "running an OpenVINO file")
    hint = {"INFERENCE_PRECISION_HINT": "f32"}
    compiled = openvino.compile_model(openvino.Core().read_model(path), "CPU", hint)
    return lambda image: torch.from_numpy(compiled([image.numpy()])[0].copy())
