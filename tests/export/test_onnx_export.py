"""torch.onnx.export of models on fastseg's ops: torch's operators in the file, or what to do."""

from __future__ import annotations

import importlib.util

import pytest
import torch
from torch import nn
from torch.export import Dim, export

import fastseg
from fastseg._core import library
from fastseg._core.onnx_export import is_exporting
from fastseg.models import main_logits
from tests.models.small_models import build

ops = torch.ops.fastseg


@pytest.fixture
def exporting(monkeypatch):
    """What torch says while it exports to ONNX, without the packages that this needs."""
    import torch.onnx  # torch imports it when it is first asked for

    monkeypatch.setattr(torch.onnx, "is_in_onnx_export", lambda: True)


def ops_of_ours(program) -> set[str]:
    called = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    return {name for name in called if name.startswith("fastseg")}


class Call(nn.Module):
    """A module that calls one function."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, *tensors):
        return self.function(*tensors)


MODELS = [
    ("segnet_basic", False),
    ("segnet_basic", True),
    ("unet", False),
    ("deeplabv2", False),
    ("deeplabv3 mmseg", False),
    ("deeplabv3plus mobile", False),
]
"""Names of networks that together have all ops of inference, and whether gradients are enabled."""


@pytest.mark.parametrize(("name", "gradient"), MODELS)
def test_models_become_torch_operators(exporting, name, gradient):
    model = build(name, backend="fastseg").eval()
    free = {0: Dim.DYNAMIC, 2: Dim.DYNAMIC, 3: Dim.DYNAMIC}
    with torch.set_grad_enabled(gradient):
        program = export(model, (torch.randn(2, 3, 96, 96),), dynamic_shapes=(free,))
    assert not ops_of_ours(program)
    with torch.no_grad():
        for size in ((2, 3, 96, 96), (1, 3, 75, 101)):
            x = torch.randn(size)
            expected = main_logits(model(x))
            found = main_logits(program.module()(x))
            scale = float(expected.abs().max())
            torch.testing.assert_close(found / scale, expected / scale, rtol=0, atol=1e-5)


def pooled_and_back(x):
    values, codes = fastseg.max_pool2d(x, 3, 2, 1)
    return fastseg.max_unpool2d(values, codes, 3, 2, 1, output_size=x.shape), codes


def normed_and_pooled(x):
    scale, shift = torch.linspace(0.5, 1.5, 5), torch.linspace(-1, 1, 5)
    return fastseg.batch_norm_relu_max_pool2d(x, scale, shift, 2)


def sure(x):
    return fastseg.upsample_argmax(x, (20, 30), return_confidence=True)


def sum_of_rates(x):
    weight = torch.linspace(-1, 1, 5 * 5 * 9).view(5, 5, 3, 3)
    branches = [fastseg.ASPPBranch(weight, dilation=rate) for rate in (1, 2)]
    return fastseg.aspp(x, branches, activation=None)


@pytest.mark.parametrize("function", [pooled_and_back, normed_and_pooled, sure, sum_of_rates])
def test_what_is_recorded_gives_the_same(exporting, function):
    x = torch.randn(2, 5, 8, 12)
    program = export(Call(function), (x,))
    assert not ops_of_ours(program)
    expected = function(x)
    torch.testing.assert_close(program.module()(x), expected)


def test_each_op_that_a_model_has_in_inference_has_a_form():
    names = {op.name().removeprefix("fastseg::") for op in library.STANDARD}
    assert names == {
        "aspp",
        "atrous_conv2d",
        "batch_norm_relu_max_pool2d",
        "image_layout",
        "max_pool2d",
        "max_unpool2d",
        "upsample_argmax",
        "upsample_argmax_confidence",
    }


def test_outside_of_an_export_ops_stay():
    assert not is_exporting()
    program = export(Call(lambda x: fastseg.max_pool2d(x, 2)), (torch.randn(1, 2, 8, 8),))
    assert ops_of_ours(program) == {"fastseg.max_pool2d.default"}


def test_a_program_with_ops_is_told_what_to_do(exporting, monkeypatch):
    monkeypatch.setattr(torch.onnx, "is_in_onnx_export", lambda: False)
    program = export(Call(lambda x: fastseg.max_pool2d(x, 2)), (torch.randn(1, 2, 8, 8),))
    monkeypatch.setattr(torch.onnx, "is_in_onnx_export", lambda: True)
    with pytest.raises(RuntimeError, match="fastseg::max_pool2d is no operator of ONNX"):
        program.run_decompositions()


def test_a_dense_crf_is_told_what_to_do(exporting):
    def refined(energies, image):
        return fastseg.dense_crf(energies, image, iterations=2)

    tensors = torch.rand(1, 3, 8, 9), torch.rand(1, 3, 8, 9) * 255
    with pytest.raises(RuntimeError, match=r"is no operator of ONNX.*model\.crf = None"):
        export(Call(refined), tensors)


def need_onnx():
    for package in ("onnx", "onnxscript", "onnxruntime"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed")


def run(program, *tensors):
    import onnxruntime  # only where it is installed

    session = onnxruntime.InferenceSession(program.model_proto.SerializeToString())
    feeds = {i.name: t.numpy() for i, t in zip(session.get_inputs(), tensors, strict=True)}
    return [torch.from_numpy(y) for y in session.run(None, feeds)]


@pytest.mark.parametrize("name", ["segnet_basic", "deeplabv3plus mobile"])
def test_onnx_runtime_agrees(name):
    need_onnx()
    model = build(name, backend="fastseg").eval()
    x = torch.randn(2, 3, 96, 96)
    program = torch.onnx.export(
        model, (x,), dynamo=True, verbose=False, dynamic_shapes=({0: "n", 2: "h", 3: "w"},)
    )
    assert {node.domain for node in program.model_proto.graph.node} == {""}
    for size in ((2, 3, 96, 96), (1, 3, 75, 101)):
        x = torch.randn(size)
        with torch.no_grad():
            expected = main_logits(model(x))
        scale = float(expected.abs().max())
        torch.testing.assert_close(run(program, x)[0] / scale, expected / scale, rtol=0, atol=1e-4)


@pytest.mark.parametrize("function", [pooled_and_back, normed_and_pooled, sure, sum_of_rates])
def test_onnx_runtime_agrees_on_ops(function):
    need_onnx()
    x = torch.randn(2, 5, 8, 12)
    free = ({0: "n", 2: "h", 3: "w"},)  # of the module's variable arguments
    module = Call(function).eval()
    program = torch.onnx.export(module, (x,), dynamo=True, verbose=False, dynamic_shapes=(free,))
    x = torch.randn(1, 5, 9, 11)
    expected = function(x)
    expected = list(expected) if isinstance(expected, tuple) else [expected]
    torch.testing.assert_close(run(program, x), expected)


def test_an_exported_program_is_told_what_to_do_by_torch():
    need_onnx()
    program = export(Call(lambda x: fastseg.max_pool2d(x, 2)), (torch.randn(1, 2, 8, 8),))
    with pytest.raises(Exception, match=r"fastseg::max_pool2d is no operator of ONNX"):
        torch.onnx.export(program, dynamo=True, verbose=False)


@pytest.mark.filterwarnings("ignore")  # torch's exporter by TorchScript is old, and says so
def test_the_exporter_by_torchscript_is_told_what_to_do(tmp_path):
    need_onnx()
    tensors = torch.rand(1, 3, 8, 9), torch.rand(1, 3, 8, 9) * 255

    def refined(energies, image):
        return fastseg.dense_crf(energies, image, iterations=2)

    with pytest.raises(Exception, match=r"fastseg::\w+ is no operator of ONNX"):
        torch.onnx.export(Call(refined), tensors, str(tmp_path / "m.onnx"), dynamo=False)
