"""Atrous convolution's Triton kernels on a GPU: values, determinism, CUDA graphs."""

from __future__ import annotations

import pytest
import torch

import fastseg
from fastseg._core import prepared_calls
from fastseg import reference

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU here"),
    pytest.mark.usefixtures("ieee_convolutions"),
]
ONE = (1, 1)
# Relative L2. Of float32 in three TF32 terms: the matrix units cut off their sums' last bits, over
# thousands of terms; one TF32 term alone has 3e-4.
TOLERANCE = {torch.float32: 2e-5, torch.float16: 1e-3, torch.bfloat16: 8e-3}
CASES = (  # (N, Ci, H, W), Co, kernel, stride, padding, dilation
    ((1, 2048, 33, 33), 256, (3, 3), ONE, (12, 12), (12, 12)),  # split
    ((8, 512, 33, 33), 256, (3, 3), ONE, (18, 18), (18, 18)),
    ((2, 40, 41, 37), 21, (5, 3), ONE, (6, 9), (3, 9)),
    ((2, 33, 20, 21), 70, (3, 3), (2, 2), (6, 6), (6, 6)),  # rows that TMA cannot address
)
each_dtype = pytest.mark.parametrize("dtype", TOLERANCE, ids=str)


@pytest.fixture(autouse=True)
def _nothing_is_left_to_torch(monkeypatch):
    from fastseg.kernels.conv import choice

    monkeypatch.setattr(choice, "MARGIN", float("inf"))


def inputs(case, dtype):
    shape, outputs, kernel, *geometry = case
    x = torch.randn(shape, device="cuda").to(dtype, memory_format=torch.channels_last)
    weight = torch.randn(outputs, shape[1], *kernel, device="cuda")
    weight = (weight / weight[0].numel() ** 0.5).to(dtype)
    return x, weight, *torch.randn(3, outputs, device="cuda"), (*geometry, 1)


def doubled(a):
    if isinstance(a, list):
        return [doubled(t) for t in a]
    return a.double() if isinstance(a, torch.Tensor) else a


def error(actual, expected):
    return ((actual.double() - expected).norm() / expected.norm()).item()


@each_dtype
@pytest.mark.parametrize("case", CASES, ids=str)
def test_values_and_determinism(case, dtype):
    from fastseg.kernels.conv import atrous_conv2d as kernels

    x, weight, bias, scale, shift, geometry = inputs(case, dtype)
    vectors = (bias, scale, shift)
    wide = [t.double() for t in (x, weight, *vectors)]
    out = kernels.atrous_conv2d(x, weight, *vectors, None, *geometry, "relu")
    expected = reference.atrous_conv2d(*wide, None, *geometry, "relu")
    assert error(out, expected) < TOLERANCE[dtype]
    again = kernels.atrous_conv2d(x, weight, *vectors, None, *geometry, "relu")
    assert torch.equal(out, again)
    size = x.shape[2:]
    expected = reference.atrous_conv2d_input_grad(out.double(), wide[1], size, *geometry)
    actual = kernels.atrous_conv2d_input_grad(out, weight, size, *geometry)
    assert error(actual, expected) < TOLERANCE[dtype]


@each_dtype
@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("summed", [False, True])
def test_aspp(dtype, batch, summed):
    from fastseg.kernels.conv import aspp

    x = torch.randn(batch, 512, 33, 33, device="cuda").to(dtype)
    channels = 21 if summed else 256
    weights = [torch.randn(channels, 512, k, k, device="cuda") / (23 * k) for k in (1, 3, 3, 3)]
    weights = [w.to(dtype) for w in weights]
    shifts = list(torch.randn(4, channels, device="cuda"))
    scales, rest, activation = [None] * 4, [None] * 4, ""
    if not summed:
        scales, activation = list(torch.randn(4, channels, device="cuda")), "relu"
        project = (torch.randn(128, 5 * channels, 1, 1, device="cuda") / 32).to(dtype)
        rest = [project[:, : 4 * channels], *torch.randn(2, 128, device="cuda")]
        rest.append(torch.randn(batch, 128, device="cuda"))
    arguments = (x, weights, scales, shifts, [1, 6, 12, 18], *rest)
    out = aspp.aspp(*arguments, activation)
    expected = reference.aspp(*map(doubled, arguments), activation)
    assert error(out, expected) < 2 * TOLERANCE[dtype]  # the branches are rounded as well


@each_dtype
@pytest.mark.parametrize("form", ["live taps", "joined weights", "few outputs", "torch"])
def test_forms_of_a_sum(form, dtype, monkeypatch):
    from fastseg.kernels.conv import aspp

    monkeypatch.setattr(aspp, "choose_form", lambda *_, **__: form)
    x = torch.randn(2, 192, 33, 33, device="cuda").to(dtype, memory_format=torch.channels_last)
    weights = [(torch.randn(21, 192, k, k, device="cuda") / (14 * k)).to(dtype) for k in (1, 3, 3)]
    shifts = list(torch.randn(3, 21, device="cuda"))
    arguments = (x, weights, [None] * 3, shifts, [1, 6, 12], *[None] * 4)
    out = aspp.aspp(*arguments, "")
    assert torch.equal(out, aspp.aspp(*arguments, ""))
    # Partial sums are rounded too where each branch is a convolution of its own.
    most = TOLERANCE[dtype] * (3 if form == "torch" else 1)
    assert error(out, reference.aspp(*map(doubled, arguments), "")) < most


@each_dtype
def test_every_block_shape(dtype):
    """Those of the table, whole tiles and split ones, and all ways to compute a few outputs."""
    from fastseg.kernels.conv import few_outputs
    from fastseg.kernels.conv import launch as launches
    from fastseg.kernels.conv.geometry import Branch

    for batch, outputs in ((1, 256), (16, 256), (2, 21)):
        case = ((batch, 320, 33, 33), outputs, (3, 3), ONE, (6, 6), (6, 6))
        x, weight, *_, geometry = inputs(case, dtype)
        weight = weight.contiguous(memory_format=torch.channels_last)
        launch = launches.launch_of(x, outputs, [Branch((3, 3), *geometry[:3])])
        expected = torch.conv2d(x.double(), weight.double(), None, *geometry)
        runs = [(launches.run, c) for c in launches.candidates(launch)]
        if outputs == 21:
            runs += [
                (few_outputs.run, few_outputs.Way(config, parts))
                for config in few_outputs.candidates(x.device, launch.precision)
                for parts in few_outputs.PARTS
            ]
        for run, way in runs:
            outs = [torch.empty_like(expected, dtype=dtype) for _ in range(2)]
            for out in outs:
                run(launch, x, [weight], out, launches.Epilogue(), way)
            assert torch.equal(*outs), way
            assert error(outs[0], expected) < TOLERANCE[dtype], way


@pytest.mark.parametrize("warm", [True, False])
def test_cuda_graphs(warm):
    """Also one whose capture is the first to need its plan; and new ones do not harm it."""
    from fastseg.kernels.conv import atrous_conv2d as kernels
    from fastseg.kernels.conv import plan_cache as plans

    case = ((1, 256, 29, 31 + warm), 64, (3, 3), ONE, (12, 12), (12, 12))
    x, weight, *_, geometry = inputs(case, torch.float16)

    def run():
        return kernels.atrous_conv2d(x, weight, *[None] * 4, *geometry, "")

    # Compiles the kernels, which a capture cannot wait for; elsewhere a plan of the same kind.
    run()
    plans.cache.pinned.clear()
    if not warm:
        plans.cache.plans.clear()
        prepared_calls.forget()  # they hold plans
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = run()
    assert bool(plans.cache.pinned) != warm
    plans.cache.plans.clear()
    prepared_calls.forget()
    torch.full((1 << 22,), -1, dtype=torch.int32, device="cuda")  # over memory that was given up
    x.copy_(torch.randn_like(x))
    graph.replay()
    expected = reference.atrous_conv2d(
        x.double(), weight.double(), *[None] * 4, *geometry, ""
    )  # fmt: skip
    assert error(out, expected) < TOLERANCE[torch.float16]


def test_compiled_cuda_graphs():
    """Those of torch.compile, whose pool must hold nothing that stays, as a plan does."""
    from fastseg.kernels.conv import plan_cache as plans

    case = ((2, 256, 27, 33), 64, (3, 3), ONE, (12, 12), (12, 12))
    x, weight, *_, geometry = inputs(case, torch.float16)

    def run(x):
        return torch.ops.fastseg.atrous_conv2d(x, weight, *[None] * 4, *geometry, "relu") + 1

    torch._dynamo.reset()
    plans.cache.plans.clear()
    prepared_calls.forget()
    compiled = torch.compile(run, mode="reduce-overhead")
    with torch.no_grad():
        for _ in range(4):  # warms up, records, replays
            torch.compiler.cudagraph_mark_step_begin()
            x.copy_(torch.randn_like(x))
            found = compiled(x).clone()  # first, while nothing is planned
            assert torch.equal(found, run(x))
    torch._dynamo.reset()


@torch.no_grad()
def test_captured_modules_follow_their_weights():
    """What a module keeps of its batch norm is made anew in a graph, which would read it freed."""
    module = fastseg.nn.AtrousConvBNAct(64, 32, 3, dilation=2).cuda().eval()
    x = torch.randn(1, 64, 17, 19, device="cuda")
    expected = module(x)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = module(x)
    graph.replay()
    assert torch.equal(out, expected)
    module[-1].weight.fill_(0.5)
    module[-1].bias.fill_(-0.25)
    expected = module(x)  # folds, and forgets what there was
    torch.full((1 << 20,), torch.nan, device="cuda")  # over memory that was given up
    graph.replay()
    assert torch.equal(out, expected)
