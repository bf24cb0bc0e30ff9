"""Other ways to run a network: torch.compile, ONNX Runtime and OpenVINO, where they are there."""

from __future__ import annotations

import contextlib
import importlib
import io
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor, nn

from fastseg.cli.agreement import tensors_of
from fastseg.export.errors import quiet as without_warnings

Run = Callable[[], list[Tensor]]
"""Computes the tensors of an output."""


def compiled(model: nn.Module, inputs: Sequence[Tensor]) -> Run:
    """Compiles a model; on the CPU its weights are frozen, which inference allows.

    The first call compiles it.
    """
    torch.compiler.reset()
    program = torch.compile(model, options={"freezing": inputs[0].is_cpu})
    return lambda: tensors_of(program(*inputs))


def onnx_runtime(model: nn.Module, inputs: Sequence[Tensor]) -> Run:
    """Exports a model and loads it in ONNX Runtime, with torch's number of threads.

    Raises:
        ValueError: a package is missing, or the inputs are on a GPU.
    """
    _check_cpu(inputs)
    onnxruntime = _package("onnxruntime")
    for name in ("onnx", "onnxscript"):  # torch's exporter needs them
        _package(name)
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = torch.get_num_threads()
    settings.log_severity_level = 3  # errors
    names = [f"input{i}" for i in range(len(inputs))]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        torch.onnx.export(model, tuple(inputs), path, input_names=names, dynamo=True, verbose=False)
        session = onnxruntime.InferenceSession(
            str(path), settings, providers=["CPUExecutionProvider"]
        )
    arrays = {name: x.numpy() for name, x in zip(names, inputs, strict=True)}
    taken = {node.name: arrays[node.name] for node in session.get_inputs()}
    return lambda: [torch.from_numpy(array) for array in session.run(None, taken)]


def openvino(model: nn.Module, inputs: Sequence[Tensor]) -> Run:
    """Converts a model to OpenVINO, in float32 and with torch's number of threads.

    Raises:
        ValueError: the package is missing, or the inputs are on a GPU.
    """
    _check_cpu(inputs)
    package = _package("openvino")
    converted = package.convert_model(model, example_input=_copies(inputs))
    settings = {
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "INFERENCE_PRECISION_HINT": "f32",  # its choice may be bfloat16, which is another result
        "PERFORMANCE_HINT": "LATENCY",
    }
    request = package.Core().compile_model(converted, "CPU", settings).create_infer_request()
    arrays = [x.numpy() for x in inputs]

    def run() -> list[Tensor]:
        found = request.infer(arrays)
        return [torch.from_numpy(found[i]) for i in range(len(found))]

    return run


def _check_cpu(inputs: Sequence[Tensor]) -> None:
    if not all(x.is_cpu for x in inputs):
        raise ValueError("is run on the CPU alone")


def _copies(inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Returns inputs to trace with, for models that write into theirs."""
    return tuple(x.clone() for x in inputs)


def _package(name: str) -> ModuleType:
    """Imports an optional package here, because it takes seconds."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name:
            raise
        raise ValueError(f"{name} is not installed: pip install {name}") from None


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keeps compilers and exporters from telling their steps; what fails is still an error."""
    with without_warnings(), contextlib.redirect_stdout(io.StringIO()):
        yield
