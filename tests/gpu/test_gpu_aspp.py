"""fastseg.nn.ASPP on a GPU beside torch's modules: training, autocast, evaluation, CUDA graphs."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import fastseg
from tests.conv import aspp_of_torch as plain
from tests.gpu.test_gpu_atrous_conv2d import each_dtype, error
from tests.pool.pool_cases import LAYOUTS, assert_layout

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU here"),
    pytest.mark.usefixtures("ieee_convolutions"),
]
LAST = torch.channels_last
SHAPE = (4, 256, 33, 33)
each_layout = pytest.mark.parametrize("layout", LAYOUTS, ids=("contiguous", "channels_last"))
each_kind = pytest.mark.parametrize("separable", [False, True], ids=("dense", "separable"))
# Beside twice torch's own error: of float32, sums that matrix units cut off.
SLACK = {torch.float32: 2e-5, torch.float16: 1e-3, torch.bfloat16: 8e-3}


def keep_from_zero(module: nn.Module) -> nn.Module:
    """Batch norms whose outputs are not near zero: there a rounding decides what ReLU lets pass."""
    for m in module.modules():
        if isinstance(m, nn.BatchNorm2d):
            nn.init.constant_(m.weight, 0.1)
            m.bias.data[::2], m.bias.data[1::2] = 1, -1
    return module


def pair_of(
    separable=False, dtype=torch.float32, layout=LAST, batch_norms=plain.unsettle
) -> list[nn.Module]:
    """Ours and torch's, with the same state."""
    branch = plain.separable if separable else None
    theirs = batch_norms(plain.ASPP(SHAPE[1], (6, 12, 18), 64, branch))
    ours = fastseg.nn.ASPP(SHAPE[1], (6, 12, 18), 64, separable=separable, dropout=0.0)
    ours.load_state_dict(theirs.state_dict())
    return [m.to("cuda", dtype).to(memory_format=layout) for m in (ours, theirs)]


def train(module: nn.Module, x: torch.Tensor, grad: torch.Tensor) -> dict[str, torch.Tensor]:
    """A step: the output, all gradients and the running statistics."""
    x = x.detach().requires_grad_()
    y = module(x)
    gradients = torch.autograd.grad(y, [x, *module.parameters()], grad.to(y.dtype))
    names = ["gradient of x", *(f"gradient of {n}" for n, _ in module.named_parameters())]
    statistics = {n: b.clone() for n, b in module.named_buffers() if "running" in n}
    return {"output": y.detach()} | dict(zip(names, gradients, strict=True)) | statistics


def compare(ours: dict, theirs: dict, expected: dict, slack: float) -> None:
    for name, wanted in expected.items():
        assert ours[name].dtype == theirs[name].dtype, name
        limit = 2 * error(theirs[name], wanted) + slack
        assert error(ours[name], wanted) < limit, name


@each_dtype
@each_layout
@each_kind
def test_training_step(separable, layout, dtype):
    pair = pair_of(separable, dtype, layout, keep_from_zero)
    ours, theirs = (m.train() for m in pair)
    x, grad = (torch.randn(s, device="cuda").to(dtype) for s in (SHAPE, (SHAPE[0], 64, 33, 33)))
    x = x.contiguous(memory_format=layout)
    exact = copy.deepcopy(theirs).double()
    steps = [train(module, x, grad) for module in (ours, theirs)]
    assert_layout(steps[0]["output"], layout)
    compare(*steps, train(exact, x.double(), grad.double()), SLACK[dtype])


@each_kind
def test_training_step_under_autocast(separable):
    pair = pair_of(separable, batch_norms=keep_from_zero)
    ours, theirs = (m.train() for m in pair)
    x, grad = (torch.randn(s, device="cuda") for s in (SHAPE, (SHAPE[0], 64, 33, 33)))
    grad = grad.bfloat16()
    exact = copy.deepcopy(theirs).double()
    with torch.autocast("cuda", torch.bfloat16):
        steps = [train(module, x, grad) for module in (ours, theirs)]
    assert steps[0]["output"].dtype == torch.bfloat16
    compare(*steps, train(exact, x.double(), grad.double()), SLACK[torch.bfloat16])


@each_kind
def test_the_same_bits_every_time(separable):
    ours, _ = pair_of(separable, torch.bfloat16)
    x, grad = (torch.randn(s, device="cuda") for s in (SHAPE, (SHAPE[0], 64, 33, 33)))
    x, grad = (t.to(torch.bfloat16, memory_format=LAST) for t in (x, grad))
    first = _evaluate(ours, x)
    for _ in range(2):
        assert torch.equal(_evaluate(ours, x), first)
    # Dense convolutions whose gradients are torch's are as deterministic as cuDNN is told to be.
    deterministic = torch.backends.cudnn.deterministic
    torch.backends.cudnn.deterministic = True
    try:
        first, *again = (train(copy.deepcopy(ours).train(), x, grad) for _ in range(3))
    finally:
        torch.backends.cudnn.deterministic = deterministic
    for step in again:
        for name, t in first.items():
            assert torch.equal(step[name], t), name


@torch.no_grad()
def _evaluate(module: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return module.eval()(x)


@each_dtype
@each_layout
@each_kind
def test_evaluation(separable, layout, dtype):
    ours, theirs = pair_of(separable, dtype, layout)
    x = torch.randn(SHAPE, device="cuda").to(dtype, memory_format=layout)
    expected = _evaluate(copy.deepcopy(theirs).double(), x.double())
    y = _evaluate(ours, x)
    assert_layout(y, layout)
    assert error(y, expected) < 2 * error(_evaluate(theirs, x), expected) + SLACK[dtype]


def test_sum_of_branches():
    ours = fastseg.nn.ASPPSum(SHAPE[1], 21, (6, 12, 18, 24)).cuda().to(memory_format=LAST)
    x = torch.randn(SHAPE, device="cuda").to(memory_format=LAST)
    exact = copy.deepcopy(ours).double()
    expected = sum(conv(x.double()) for conv in exact.children())
    assert error(_evaluate(ours, x), expected) < 2e-5


@each_kind
def test_evaluation_in_a_cuda_graph(separable):
    ours, _ = pair_of(separable, torch.float16)
    x = torch.randn(SHAPE, device="cuda").to(torch.float16, memory_format=LAST)
    expected = _evaluate(ours, x)  # compiles the kernels and makes their plans
    inputs = torch.zeros_like(x)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = _evaluate(ours, inputs)
    inputs.copy_(x)
    for _ in range(2):
        graph.replay()
        assert torch.equal(y, expected)


def test_evaluation_runs_on_the_current_stream():
    """Beside a slow producer on a side stream, work on any other stream would read too early."""
    ours, _ = pair_of(dtype=torch.float16)
    x = torch.randn(SHAPE, device="cuda").to(torch.float16, memory_format=LAST)
    expected, late = _evaluate(ours, x), torch.zeros_like(x)
    stream = torch.cuda.Stream()
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(20_000_000)
        late.copy_(x)
        y = _evaluate(ours, late)
    stream.synchronize()
    assert torch.equal(y, expected)
