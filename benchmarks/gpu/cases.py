"""The cases that are measured on a GPU, the essential ones first.

Each is compared with torch's own ops on the GPU or with fastseg on the CPU. A result that differs
makes its row red; it is timed all the same, for whoever mends it.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from functools import partial

import torch

from benchmarks import atrous_cases, atrous_conv2d_gpu, dense_crf, pooling
from benchmarks.gpu.depthwise_cases import depthwise_jobs
from benchmarks.gpu.figures import OURS, as_on_cpu, job
from benchmarks.gpu.head_cases import class_map_case, head_jobs
from benchmarks.gpu.worker import Job
from benchmarks.harness import Candidate, Case, nbytes


def machine() -> str:
    """Returns what the figures were measured with."""
    return f"{torch.cuda.get_device_name()}, torch {torch.__version__}"


def usable() -> bool:
    """Whether the GPU still works in this process."""
    try:
        torch.cuda.synchronize()
    except RuntimeError:
        return False
    return True


def crf_case(row: dense_crf.Row, quality: str) -> Case:
    """Returns the case of a whole call, compared with the same on the CPU."""
    problem = dense_crf.Problem(row, dense_crf.synthetic_image(), "cuda")
    ours = partial(problem.op, quality)

    def check():
        expected = problem.op(quality, [t.cpu() for t in problem.tensors])
        problem.expect(ours().cpu(), expected, "GPU and CPU")

    candidates = [Candidate(OURS, ours)]
    return Case("dense_crf", row.name, candidates, check, problem.floor_bytes())


def gaussian_case() -> Case:
    """Returns the case of the mean field's Gaussian, compared with the same on the CPU."""
    values = torch.randn(1, 375, 500, 24, device="cuda").permute(0, 3, 1, 2)
    sigma = torch.full((2,), 3.0, device="cuda")
    op = torch.ops.fastseg.spatial_gaussian_filter
    check = partial(as_on_cpu, op, values, sigma)
    candidates = [Candidate(OURS, partial(op, values, sigma))]
    return Case("spatial_gaussian_filter", "", candidates, check, 2 * nbytes(values))


def crf_jobs() -> Iterator[Job]:
    """Yields whole calls of the dense CRF, and its Gaussian alone."""
    for width, height, labels in ((500, 375, 21), (2048, 1024, 19), (125, 94, 21)):
        for quality in ("high", "compat"):
            row = dense_crf.Row(width, height, labels, 3, 80, 13, 10)
            name = f"{width}x{height}x{labels}, 80/13, {quality}, 10 iterations"
            modelled = f"lattice_mean_field {name}" if width < 1000 else ""
            yield job(f"dense_crf {name}", partial(crf_case, row, quality), 40, modelled)
    modelled = "spatial_gaussian_filter 1x24x375x500 channels_last, sigma 3"
    yield job("spatial_gaussian 1x24x375x500, sigma 3", gaussian_case, modelled=modelled)


def pooling_case(make, shape, dtype: torch.dtype, memory_format: torch.memory_format) -> Case:
    """Returns the case of a pooling op."""
    x = torch.randn(shape, device="cuda").to(dtype).contiguous(memory_format=memory_format)
    return make(x, "")


def pooling_jobs() -> Iterator[Job]:
    """Yields batches of two of SegNet's levels, which are larger than the second-level cache."""
    dtypes, layouts = (torch.bfloat16, torch.float32), pooling.LAYOUTS.items()
    modelled_ops = ("max_pool2d", "max_unpool2d", "max_pool2d_backward")
    for shape, ops in (((16, 64, 360, 480), pooling.OPS), ((32, 64, 90, 120), modelled_ops)):
        for dtype, (layout, memory_format), op in itertools.product(dtypes, layouts, ops):
            words = f"{op} {'x'.join(map(str, shape))} {str(dtype)[6:]}"
            make = partial(pooling_case, pooling.OPS[op], shape, dtype, memory_format)
            modelled = f"{words} {str(memory_format)[6:]}" if ops is modelled_ops else ""
            yield job(f"{words} {layout}", make, modelled=modelled)


def convolution_case(make: Callable[[], Case]) -> Case:
    """Returns the case, for which TF32 is admitted, and cuDNN measures its algorithms."""
    torch.backends.cudnn.benchmark = True
    torch.set_float32_matmul_precision("high")
    return make()


def conv_jobs() -> Iterator[Job]:
    """Yields ASPP, atrous and depthwise convolutions, their gradients and a step of training."""
    yield from depthwise_jobs()
    no_compiler = atrous_conv2d_gpu.Compiler(0)
    for name, make in atrous_conv2d_gpu.cases(torch.bfloat16, no_compiler):
        yield job(name, partial(convolution_case, make), 40)


def module_case(make, *arguments) -> Case:
    """Returns the case of a small module, in float32."""
    with torch.device("cuda"):
        pair = make(*arguments)
        x = torch.randn(pair.shape)

    def check():
        torch.testing.assert_close(pair.ours(x), pair.theirs(x), rtol=1e-2, atol=1e-2)

    candidates = [Candidate(OURS, lambda: pair.ours(x)), Candidate("eager", lambda: pair.theirs(x))]
    return Case(pair.op, pair.title, candidates, check, nbytes(x))


def call_jobs() -> Iterator[Job]:
    """Yields tiny calls, which show what the host takes."""
    small, layout = (1, 16, 8, 8), torch.contiguous_format
    for op in pooling.OPS:
        make = partial(pooling_case, pooling.OPS[op], small, torch.float32, layout)
        yield job(f"{op} 1x16x8x8", make)
    modules = {
        "atrous_conv2d 1x32x16x16, rate 2": (atrous_cases.conv, (1, 32, 16, 16), 32, 3, 1, 2),
        "depthwise_conv2d 1x32x16x16, rate 2": (
            *(atrous_cases.conv, (1, 32, 16, 16)),
            *(32, 3, 1, 2, 32),
        ),
        "aspp 1x64x16x16": (atrous_cases.aspp, (1, 64, 16, 16), (2, 4)),
    }
    for name, arguments in modules.items():
        yield job(name, partial(module_case, *arguments), 40)
    yield job("upsample_argmax 1x3x8x8 to 16x16", partial(class_map_case, (1, 3, 8, 8), (16, 16)))
    row = dense_crf.Row(32, 24, 2, 3, 80, 13, 5)
    yield job("dense_crf 32x24x2, high, 5 iterations", partial(crf_case, row, "high"))


GROUPS: dict[str, Callable[[], Iterator[Job]]] = {
    "dense-crf": crf_jobs,
    "pooling": pooling_jobs,
    "heads": head_jobs,
    "conv": conv_jobs,
    "calls": call_jobs,
}


def jobs(group: str) -> list[Job]:
    """Returns a group's jobs."""
    return list(GROUPS[group]())
