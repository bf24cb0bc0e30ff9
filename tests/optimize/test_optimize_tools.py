"""What torch's tools make of an optimised model: the same as of the model, or a clear error."""

import copy
import cProfile
import io
import sys

import pytest
import torch
from torch import nn
from torch._subclasses import FakeTensorMode
from torch.func import functional_call, jvp, stack_module_state, vmap

import fastseg
from tests.optimize.blocks import ASPP, BasicBlock, InvertedResidual, SegNet
from tests.optimize.optimize_cases import close, run
from tests.zoo.other_models import with_statistics

MODES = pytest.mark.parametrize("mode", ["train", "infer"])


def small_model() -> nn.Sequential:
    return with_statistics(
        nn.Sequential(BasicBlock(4, 32, dilation=2), InvertedResidual(32, 40), ASPP(32, 8))
    )


def pair(mode: str, build=small_model) -> tuple[nn.Module, nn.Module]:
    model = build()
    ours = copy.deepcopy(model)
    fastseg.optimize_(ours, mode=mode)
    return model, ours


X = torch.linspace(-1, 1, 2 * 4 * 12 * 16).view(2, 4, 12, 16).sin()


@MODES
def test_script_says_what_helps(mode):
    model, ours = pair(mode)
    for part in (ours, ours[0], ours[0].conv2, nn.Sequential(nn.ReLU(), ours)):
        with pytest.raises(RuntimeError, match="restore_"):
            torch.jit.script(part)
    fastseg.restore_(ours)
    close(torch.jit.script(ours)(X), model(X))


@MODES
def test_trace(mode):
    model, ours = pair(mode)
    with torch.no_grad():
        traced = torch.jit.trace(ours, X)
        assert "fastseg::" in str(traced.inlined_graph)
        file = io.BytesIO()
        torch.jit.save(traced, file)
        file.seek(0)
        close(torch.jit.load(file)(X), model(X))


@pytest.mark.parametrize("training", [False, True])
def test_trace_with_gradients(training):
    """torch.jit.trace compares its graph with one that it makes without gradients."""
    model, ours = pair("train")
    for m in (model, ours):
        m.train(training)
        for child in m.modules():  # statistics that move, and noise, are no graph's difference
            if isinstance(child, (nn.BatchNorm2d, nn.Dropout)):
                child.eval()
    traced = torch.jit.trace(ours, X)
    assert "fastseg::" in str(traced.inlined_graph)
    gradients = []
    for m in (traced, model):
        x = X.clone().requires_grad_()
        m(x).square().sum().backward()
        gradients.append(x.grad)
    close(*gradients, 1e-3)


@MODES
@pytest.mark.parametrize("activation", [nn.SiLU, nn.Hardswish, nn.LeakyReLU])
def test_trace_of_activations_with_gradients(activation, mode):
    def build():
        return nn.Sequential(nn.Conv2d(4, 8, 3, padding=1), nn.BatchNorm2d(8), activation())

    model, ours = pair(mode, lambda: with_statistics(build()))
    x = X.contiguous(memory_format=torch.channels_last)
    traced = torch.jit.trace(ours, x)
    assert "fastseg::" in str(traced.inlined_graph)
    gradients = []
    for m in (traced, model):
        inputs = x.clone().requires_grad_()
        m(inputs).square().sum().backward()
        gradients.append(inputs.grad)
    close(*gradients, 1e-3)


def test_trace_of_pooling_with_gradients():
    stem = nn.Sequential(nn.Conv2d(4, 8, 2, 2), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2))
    model, ours = pair("train", lambda: with_statistics(stem))
    traced = torch.jit.trace(ours, X)
    assert "fastseg::batch_norm_relu_max_pool2d" in str(traced.inlined_graph)
    close(traced(X), model(X))


def operators(graph) -> set[str]:
    return {str(node.target) for node in graph.nodes if node.op == "call_function"}


@MODES
@pytest.mark.parametrize("build", [small_model, SegNet])
def test_torchs_operators_run_for_onnx(mode, build, monkeypatch):
    _, ours = pair(mode, lambda: with_statistics(build()))
    x = X if build is small_model else X[:, :3]
    with torch.no_grad():
        assert any("fastseg" in o for o in operators(torch.export.export(ours, (x,)).graph))
        monkeypatch.setattr(torch.onnx, "is_in_onnx_export", lambda: True)
        assert not any("fastseg" in o for o in operators(torch.export.export(ours, (x,)).graph))
        if build is small_model:  # torch's own max_unpool2d is not traced
            traced = torch.jit.trace(ours, x, check_trace=False)
            assert "fastseg::" not in str(traced.inlined_graph)


@MODES
@pytest.mark.parametrize(("build", "dynamo"), [(small_model, True), (small_model, False),
                                               (SegNet, True)])  # fmt: skip
def test_onnx(mode, build, dynamo):
    onnx = pytest.importorskip("onnx")
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    model, ours = pair(mode, lambda: with_statistics(build()))
    x = X if build is small_model else X[:, :3]
    file = io.BytesIO()
    if dynamo:
        torch.onnx.export(ours, (x,), dynamo=True, verbose=False).save(file)
    else:
        torch.onnx.export(ours, (x,), file, dynamo=False)
    domains = {node.domain for node in onnx.load_from_string(file.getvalue()).graph.node}
    assert not any("fastseg" in domain for domain in domains)
    session = runtime.InferenceSession(file.getvalue())
    (y,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    close(torch.from_numpy(y), run(model, x), 1e-4)
    close(run(ours, x), run(model, x))


@MODES
def test_fake_tensors(mode):
    with FakeTensorMode():
        model = small_model()
        fastseg.optimize_(model, mode=mode)
        y = model(torch.randn(2, 4, 12, 16))
        assert y.shape == (2, 8, 12, 16)
        fastseg.restore_(model)
    model, ours = pair(mode)
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    with fake, torch.no_grad():
        y = ours(fake.from_tensor(X))
    assert y.shape == (2, 8, 12, 16)
    close(run(ours, X), run(model, X))


@MODES
def test_optimised_on_the_meta_device(mode):
    with torch.device("meta"):
        model = small_model()
    fastseg.optimize_(model, mode=mode)
    assert model(torch.empty(2, 4, 12, 16, device="meta")).shape == (2, 8, 12, 16)


@MODES
def test_vmap(mode):
    model, ours = pair(mode)
    x = torch.stack([X, X + 1, X * 2])
    with torch.no_grad():
        expected = torch.stack([model(part) for part in x])
        close(vmap(ours)(x), expected)
        close(vmap(ours)(x.contiguous(memory_format=torch.channels_last_3d)), expected)
        close(vmap(ours, in_dims=1)(x.movedim(0, 1)), expected)


@MODES
def test_forward_mode_derivatives(mode):
    model, ours = pair(mode)
    tangent = torch.ones_like(X)
    for actual, expected in zip(jvp(ours, (X,), (tangent,)), jvp(model, (X,), (tangent,)),
                                strict=True):  # fmt: skip
        close(actual, expected, 1e-4)


@MODES
@pytest.mark.parametrize("what", ["weight", "bias", "running_mean", "running_var"])
def test_functional_call(mode, what):
    model, ours = pair(mode)
    names = [n for n, _ in (*model.named_parameters(), *model.named_buffers()) if n.endswith(what)]
    held = model.state_dict()
    torch.manual_seed(2)
    others = {n: torch.rand_like(held[n]) + 0.1 for n in names}
    with torch.no_grad():
        close(functional_call(ours, others, X), functional_call(model, others, X), 1e-4)
        close(ours(X), model(X))


def test_an_ensemble():
    models = [small_model() for _ in range(3)]
    ours = [copy.deepcopy(m) for m in models]
    for m in ours:
        fastseg.optimize_(m, mode="infer")
    parameters, buffers = stack_module_state(ours)
    base = ours[0]
    with torch.no_grad():
        y = vmap(lambda p, b: functional_call(base, (p, b), (X,)))(parameters, buffers)
        close(y, torch.stack([m(X) for m in models]), 1e-4)


CONVERSIONS = {
    "double": lambda m: m.double(),
    "bfloat16": lambda m: m.bfloat16(),
    "channels_last": lambda m: m.to(memory_format=torch.channels_last),
    "assign": lambda m: m.load_state_dict(copy.deepcopy(small_model().state_dict()), assign=True),
    "requires_grad_": lambda m: m.requires_grad_(False),
    "initialised": lambda m: m.apply(initialise),
    "share_memory": lambda m: m.share_memory(),
}


def initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d):
        nn.init.constant_(module.weight, 0.01)


@MODES
@pytest.mark.parametrize("swapping", [False, True])
@pytest.mark.parametrize("name", CONVERSIONS)
def test_conversions(name, mode, swapping):
    model, ours = pair(mode)
    torch.__future__.set_swap_module_params_on_conversion(swapping)
    try:
        for m in (model, ours):
            torch.manual_seed(4)
            CONVERSIONS[name](m)
    finally:
        torch.__future__.set_swap_module_params_on_conversion(False)
    x = X.to(next(model.parameters()).dtype)
    tolerance = 3e-2 if x.dtype == torch.bfloat16 else 1e-12 if x.dtype == torch.float64 else 1e-5
    close(run(ours, x), run(model, x), tolerance)
    close(run(copy.deepcopy(ours), x), run(model, x), tolerance)
    fastseg.restore_(ours)
    assert torch.equal(run(ours, x), run(model, x))
    assert [n for n, _ in ours.named_buffers()] == [n for n, _ in model.named_buffers()]


@MODES
def test_synchronised_batch_norms(mode):
    model, ours = (nn.SyncBatchNorm.convert_sync_batchnorm(m) for m in pair(mode))
    close(run(ours, X), run(model, X))
    close(run(copy.deepcopy(ours), X), run(model, X))
    fastseg.restore_(ours)
    assert torch.equal(run(ours, X), run(model, X))


@MODES
def test_torchs_own_folding(mode):
    model, ours = pair(mode)
    for m in (model, ours):
        block = m[0]
        block.conv2 = torch.nn.utils.fuse_conv_bn_eval(block.conv2, block.bn2)
        block.bn2 = nn.Identity()
    close(run(ours, X), run(model, X))


def test_one_module_in_several_blocks():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.ReLU())
            self.second = nn.Sequential(self.first[0], self.first[1], nn.SiLU())

        def forward(self, x):
            return self.second(self.first(x))

    model, ours = pair("infer", lambda: with_statistics(Twice()))
    close(run(ours, X), run(model, X))
    for m in (model, ours):
        m.first[1] = nn.GroupNorm(2, 4)
    close(run(ours, X), run(model, X))
    assert ours.second.why_not_fused() is None


@MODES
def test_shallow_copies_and_replicas(mode):
    model, ours = pair(mode)
    for make in (copy.copy, lambda m: m._replicate_for_data_parallel()):
        twins = make(model[0]), make(ours[0])
        for twin, m in zip(twins, (model[0], ours[0]), strict=True):
            twin._parameters, twin._modules = dict(m._parameters), dict(m._modules)
            twin.relu = nn.Sigmoid()
        close(run(twins[1], X), run(twins[0], X))
        close(run(ours, X), run(model, X))


def test_a_profiler_goes_on():
    model, profiler = small_model(), cProfile.Profile()
    profiler.enable()
    fastseg.optimize_(model)
    torch.zeros(1).sin()
    profiler.disable()
    assert any("sin" in str(entry.code) for entry in profiler.getstats())
    events = []
    sys.setprofile(lambda frame, event, argument: events.append(event))
    fastseg.optimize_(small_model())
    kept = sys.getprofile()
    sys.setprofile(None)
    assert kept is not None
    assert events
