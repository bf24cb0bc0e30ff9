"""What happens to ops while torch exports to ONNX, whose runtimes do not have them.

An op with a composition of torch's own operators becomes that; any other says what to do instead.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import NoReturn

from torch._C import _get_tracing_state, _len_torch_dispatch_stack

from fastseg._core.when_imported import when_imported

FIRST_OPSET = 7
"""The oldest opset of torch's exporter by TorchScript."""


def is_exporting() -> bool:
    """Whether ``torch.onnx.export`` is tracing.

    Outside of any tracing this asks torch's C++ alone, so that small ops do not wait for it.
    """
    if not _len_torch_dispatch_stack() and _get_tracing_state() is None:
        return False
    onnx = sys.modules.get("torch.onnx")  # whose import takes time that only exporting is worth
    return onnx is not None and onnx.is_in_onnx_export()


def refuse(name: str) -> NoReturn:
    """Raises the error of an op that is none of ONNX.

    Args:
        name: the op's name in ``torch.ops.fastseg``.
    """
    raise RuntimeError(
        f"fastseg::{name} is no operator of ONNX. Give torch.onnx.export the module itself, with "
        "dynamo=True: ops of networks become torch's then; in a program of torch.export they are "
        "recorded already. A dense CRF cannot be exported (model.crf = None drops it). `fastseg "
        "export` writes and compares the file of a checkpoint"
    )


def refuse_in_torchscript(names: Iterable[str]) -> None:
    """Makes ``torch.onnx.export(..., dynamo=False)`` refuse ops as :func:`refuse` does.

    Args:
        names: the ops' names in ``torch.ops.fastseg``.
    """
    names = tuple(names)

    def register() -> None:
        for name in names:
            sys.modules["torch.onnx"].register_custom_op_symbolic(
                f"fastseg::{name}", _refusing(name), FIRST_OPSET
            )

    when_imported("torch.onnx", register)


def _refusing(name: str):
    def symbolic(graph, *arguments, **attributes) -> NoReturn:
        refuse(name)

    return symbolic
