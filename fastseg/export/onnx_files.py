"""ONNX files, and ONNX Runtime."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.export import ExportedProgram

from fastseg._core.atomic import atomic_write
from fastseg.export.deployed import Deployed
from fastseg.export.errors import ExportError, first_line, needed, quiet
from fastseg.export.program import INPUT

LEAST_OPSET = 18
"""torch's exporter writes no older one."""

PACKAGES = ("onnx", "onnxscript")

LARGEST = 2**31
"""Bytes of a protobuf message, which an ONNX file is."""


def check_packages() -> None:
    """Raises ImportError where a package that writes ONNX is not installed."""
    for package in PACKAGES:
        needed(package, "an ONNX file", " ".join(PACKAGES))


def write(
    program: ExportedProgram,
    path: Path,
    *,
    module: Deployed,
    output: str,
    dynamic: bool,
    opset: int,
) -> None:
    """Writes an ONNX file of a program.

    Args:
        program: what :func:`fastseg.export.program.capture` returns.
        path: the file.
        module: what the program was made of.
        output: name of the output.
        dynamic: whether the sizes have names.
        opset: version of ONNX's operators.

    Raises:
        ExportError: an operator that ONNX or its opset does not have; more than 2 GiB.
    """
    names = {i: axis for i, axis in enumerate(module.axes) if isinstance(axis, str)}
    try:
        with quiet():
            written = torch.onnx.export(
                program,
                (),
                dynamo=True,
                verbose=False,
                opset_version=opset,
                input_names=[INPUT],
                output_names=[output],
                dynamic_shapes=(names,) if dynamic else None,
            ).model_proto
    except Exception as error:  # exporters raise nearly anything
        raise ExportError(f"ONNX cannot hold the network: {first_line(error)}") from error
    versions = {o.domain: o.version for o in written.opset_import}
    if versions.get("") != opset:
        raise ExportError(f"the network cannot be written for opset {opset}; {versions['']} works")
    if written.ByteSize() >= LARGEST:
        raise ExportError(f"an ONNX file holds less than 2 GiB, the network {written.ByteSize()}")
    with atomic_write(path) as file:
        file.write(written.SerializeToString())


def load(path: Path) -> Callable[[Tensor], Tensor]:
    """Returns the function of a file in ONNX Runtime, on the CPU."""
    runtime = needed("onnxruntime", "running an ONNX file")
    options = runtime.SessionOptions()
    options.log_severity_level = 4  # errors are raised, not printed too
    session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def run(image: Tensor) -> Tensor:
        (output,) = session.run(None, {INPUT: image.numpy()})
        return torch.from_numpy(output)

    return run
