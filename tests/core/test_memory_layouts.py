"""Every tensor of every op wherever its values may lie: strides of all kinds, offsets, signs."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import fastseg
from fastseg._core import extension
from fastseg._core.conv2d import Conv2d
from fastseg._core.library import CPU_PLANS
from fastseg.ops.conv import cpu_aspp, cpu_plan
from tests.core.memory_layouts import layouts
from tests.core.op_samples import DIFFERENTIABLE, Sample, assert_close, samples

pytestmark = pytest.mark.usefixtures("one_thread")

TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-9, torch.float16: 1e-2, torch.bfloat16: 5e-2}
CONVOLUTIONS = ("atrous", "aspp", "depthwise")
SIXTEEN_BITS = (*CONVOLUTIONS, "max_", "batch_norm")
needs_kernels = pytest.mark.skipif(
    not extension.available_simd_levels(), reason="the CPU kernels are not built"
)


def in_dtype(sample: Sample, dtype: torch.dtype) -> Sample:
    """The call with its floating-point tensors in that dtype."""
    return sample.with_tensors({name: t.to(dtype) for name, t in sample.floats().items()})


def assert_same(sample: Sample, name: str, what: str, t: Tensor, tolerance: float) -> None:
    """As for the same values in a contiguous tensor of its own, or the same error."""
    plain = t.resolve_neg().clone(memory_format=torch.contiguous_format)
    results = []
    for tensor in (t, plain):
        try:
            results.append(sample.with_tensors({name: tensor})())
        except RuntimeError as error:  # numbers of a lattice that do not belong together
            results.append(str(error))
    actual, expected = results
    if isinstance(expected, str):
        assert actual == expected, what
        return
    for a, b in zip(actual, expected, strict=True):
        assert_close(a, b, tolerance, f"{name} {what}")


@pytest.mark.parametrize(
    ("sample", "dtype"),
    [(s, dtype) for dtype in (torch.float32, torch.float64) for s in samples(dtype)],
    ids=str,
)
def test_every_tensor_of_every_op(sample, dtype):
    for leaf in sample.leaves():
        for what, t in layouts(leaf.tensor):
            assert_same(sample, leaf.name, what, t, TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    "sample", [s for s in samples() if s.name.startswith(SIXTEEN_BITS)], ids=str
)
def test_16_bits(sample, dtype):
    sample = in_dtype(sample, dtype)
    for leaf in sample.leaves():
        for what, t in layouts(leaf.tensor):
            assert_same(sample, leaf.name, what, t, TOLERANCE[dtype])


@pytest.mark.parametrize(
    "sample", [s for s in samples() if s.name.startswith(CONVOLUTIONS)], ids=str
)
def test_every_simd_level(sample, simd_level):
    """At the portable one torch computes nearly all of them."""
    for leaf in sample.leaves():
        for what, t in layouts(leaf.tensor):
            assert_same(sample, leaf.name, what, t, TOLERANCE[torch.float32])


class Way(NamedTuple):
    """A convolution that the CPU computes in one of its ways.

    Attributes:
        name: the name of the function that cpu_plan.plan chooses.
        x: the sizes of x.
        weight: the sizes of the weight.
        conv: its geometry.
        dtype: of both.
        native: whether the processor is taken for one that multiplies 16 bits the fastest.
        avx2: the function's name with AVX2, if it is another.
    """

    name: str
    x: tuple[int, ...]
    weight: tuple[int, ...]
    conv: Conv2d
    dtype: torch.dtype = torch.float32
    native: bool = False
    avx2: str | None = None


def geometry(stride=1, padding=0, dilation=1, groups=1) -> Conv2d:
    """With both axes alike."""
    return Conv2d((stride,) * 2, (padding,) * 2, (dilation,) * 2, groups)


WAYS = [
    Way("winograd_conv2d", (1, 32, 24, 24), (32, 32, 3, 3), geometry(1, 1)),
    Way("im2col_conv2d", (1, 16, 5, 5), (8, 16, 3, 3), geometry(2, 1)),
    Way("by_layout", (1, 64, 28, 28), (64, 16, 3, 3), geometry(2, 1, groups=4)),
    Way("as_it_lies", (1, 128, 30, 30), (96, 128, 5, 5), geometry(1, 4, 2)),
    Way("as_it_lies", (1, 32, 46, 46), (24, 32, 5, 5), geometry(1, 2), avx2="by_layout"),
    Way("im2col_conv2d", (1, 8, 40, 40), (64, 8, 1, 1), geometry()),
    Way("by_layout", (1, 8, 96, 96), (64, 8, 3, 3), geometry(2, 1)),
    Way("onednn_conv2d", (1, 64, 40, 40), (128, 64, 7, 7), geometry(1, 6, 2)),
    Way("by_layout", (1, 8, 96, 96), (64, 8, 1, 1), geometry()),
    Way(
        "onednn_conv2d",
        (1, 32, 56, 56),
        (32, 1, 5, 5),
        geometry(1, 2, groups=32),
        avx2="by_layout",
    ),
    Way(
        "depthwise_conv2d",
        (1, 16, 184, 184),
        (16, 1, 3, 3),
        geometry(2, 1, groups=16),
        avx2="by_layout",
    ),
    Way("by_groups", (2, 8, 5, 9), (12, 4, 3, 3), geometry(1, 6, 5, groups=2)),
    Way("by_live_tap", (1, 16, 6, 6), (8, 16, 3, 3), geometry(1, 6, 6)),
    Way("depthwise_conv2d", (2, 8, 9, 9), (8, 1, 3, 3), geometry(1, 12, 12, groups=8)),
    Way("by_reference", (1, 4, 9, 9), (4, 4, 3, 3), geometry(1, 1), torch.float64),
    Way("onednn_conv2d", (1, 6, 20, 20), (8, 6, 1, 1), geometry(), torch.bfloat16),
    Way("onednn_conv2d", (1, 8, 20, 20), (8, 8, 1, 1), geometry(), torch.bfloat16),
    Way("onednn_conv2d", (1, 8, 20, 20), (8, 8, 1, 1), geometry(), torch.bfloat16, native=True),
    Way("widened_winograd", (1, 32, 24, 24), (32, 32, 3, 3), geometry(1, 1), torch.bfloat16),
]


@needs_kernels
@pytest.mark.parametrize("only", ["bias", "scale", "shift", "residual", "all"])
@pytest.mark.parametrize("way", WAYS, ids=lambda way: f"{way.name}-{way.x}")
def test_every_way_of_a_convolution(way, only, monkeypatch, request):
    """Through the public function, whose shortcut calls kernels without the op."""
    if extension.simd_level() == "portable":
        pytest.skip("other ways are taken")
    if way.native and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        pytest.skip("the processor has no instructions for bfloat16")
    monkeypatch.setattr(cpu_plan, "is_native", lambda dtype: way.native)
    CPU_PLANS.clear()
    request.addfinalizer(CPU_PLANS.clear)
    x, weight = torch.randn(way.x).to(way.dtype), torch.randn(way.weight).to(way.dtype)
    plan = cpu_plan.plan(x, weight, way.conv, "relu", bare=False)
    name = way.avx2 if way.avx2 and extension.simd_level() == "avx2" else way.name
    assert plan.func.__name__ == name
    channels = weight.shape[0]
    operands = {name: torch.randn(channels) for name in ("bias", "scale", "shift")}
    operands["residual"] = torch.randn(
        1 if way.x[0] == 1 else way.x[0],
        channels,
        *way.conv.output_size(x.shape[2:], way.weight[2:]),
    ).to(way.dtype)
    if only != "all":
        operands = {only: operands[only]}
    tensors = {"x": x, "weight": weight, **operands}
    options = way.conv._asdict()

    def convolve(**changed):
        return fastseg.atrous_conv2d(**{**tensors, **changed}, **options, activation="relu")

    for name, tensor in tensors.items():
        for what, t in layouts(tensor):
            plain = t.resolve_neg().clone(memory_format=torch.contiguous_format)
            tolerance = TOLERANCE[way.dtype]
            actual, expected = convolve(**{name: t}), convolve(**{name: plain})
            assert_close(actual, expected, tolerance, f"{name} {what}")


@needs_kernels
def test_every_tensor_of_aspp_side_by_side():
    """Branches that Winograd's pieces compute at once."""
    if extension.simd_level() == "portable":
        pytest.skip("branches are computed one by one")
    x, y = torch.randn(1, 64, 33, 33), torch.randn(1, 24)
    weights = [torch.randn(n, 64, 3, 3) for n in (64, 32)]
    vectors = [torch.randn(64), torch.randn(32)]
    arguments = [
        x,
        weights,
        vectors,
        vectors[:],
        [6, 12],
        torch.randn(24, 96, 1, 1),
        torch.randn(24),
        torch.randn(24),
        y,
        "relu",
    ]
    sample = Sample("aspp", arguments)
    assert cpu_aspp.aspp(*arguments[:8], None, "relu") is not None
    for leaf in sample.leaves():
        for what, t in layouts(leaf.tensor):
            assert_same(sample, leaf.name, what, t, 1e-3)


def test_vectors_that_begin_at_one_address():
    """What was prepared of a vector is not another's that begins where it does."""
    x, weight, numbers = torch.randn(1, 64, 28, 28), torch.randn(64, 16, 3, 3), torch.randn(128)
    for vector in (numbers[:64], numbers[::2], numbers[:1].expand(64)):
        actual = fastseg.atrous_conv2d(x, weight, vector, stride=2, groups=4)
        expected = F.conv2d(x, weight, vector, 2, 1, groups=4)
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)
    vectors = torch.randn(64)
    x, weights = torch.randn(1, 64, 33, 33), [torch.randn(32, 64, 3, 3) for _ in range(2)]
    project = fastseg.ASPPBranch(torch.randn(8, 64, 1, 1))
    for shift in (vectors[:32], vectors[::2]):
        branches = [
            fastseg.ASPPBranch(w, shift=shift, dilation=d)
            for w, d in zip(weights, (6, 12), strict=True)
        ]
        maps = [
            F.relu(F.conv2d(x, b.weight, b.shift, padding=b.dilation, dilation=b.dilation))
            for b in branches
        ]
        expected = F.relu(F.conv2d(torch.cat(maps, 1), project.weight))
        torch.testing.assert_close(
            fastseg.aspp(x, branches, project), expected, rtol=1e-3, atol=2e-3
        )


@pytest.mark.parametrize(
    "sample", [s for s in samples(torch.float64) if s.name in DIFFERENTIABLE], ids=str
)
def test_gradients_that_are_expanded(sample):
    """y.sum() and y.mean() hand one value to all elements, with strides of 0."""
    leaves = {name: t.clone().requires_grad_() for name, t in sample.floats().items()}
    outputs = [y for y in sample.with_tensors(leaves)() if y.requires_grad]
    expanded = [torch.ones((), dtype=torch.float64).expand(y.shape) for y in outputs]
    results = [
        torch.autograd.grad(outputs, tuple(leaves.values()), grads, True, allow_unused=True)
        for grads in (expanded, [g.contiguous() for g in expanded])
    ]
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b)
