"""The cases that are measured on a GPU, the essential ones first.

Each is compared with torch's own ops on the GPU or with fastseg on the CPU. A result that differs
makes its row red; it is timed all the same, for whoever mends it.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import lru_cache, partial
from statistics import median

import torch
import torch.nn.functional as F
from torch import Tensor

import fastseg
from benchmarks import (
    atrous_cases,
    atrous_conv2d_gpu,
    confusion_matrix,
    dense_crf,
    distance_transform,
    pixel_adaptive_refinement,
    pooling,
    upsample_argmax,
    upsample_cross_entropy,
)
from benchmarks.gpu.worker import Job, Outcome
from benchmarks.harness import Candidate, Case, copy_bandwidth, measure, nbytes

OURS = "fastseg"
SECONDS = 0.15
"""Least seconds of a case's runs."""
HOST_ROUNDS = 20
VOID = 255
"""The class of ignored pixels."""


@lru_cache(maxsize=1)
def copy_speed() -> float:
    """Returns the bytes a second of a large copy."""
    return copy_bandwidth("cuda")


@lru_cache(maxsize=1)
def product_speed() -> float:
    """Returns the FLOPs a second of a large matrix product."""
    return atrous_conv2d_gpu.product_speed(torch.bfloat16)


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


def host_seconds(run: Callable[[], object]) -> float:
    """Returns the median time after which a call returns to the host, nothing being queued."""
    times = []
    for _ in range(HOST_ROUNDS):
        torch.cuda.synchronize()
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return median(times)


def figures(case: Case, tensor_cores: bool = False) -> Outcome:
    """Checks and measures a case.

    Args:
        case: the case; candidates of torch.compile are left out, which take too long to compile.
        tensor_cores: whether the case's FLOPs are a floor, at the speed of a matrix product.

    Returns:
        A row for each candidate: the GPU's time with the host ahead of it, the time of a call with
        nothing queued, and that after which the host goes on.
    """
    outcome = Outcome()
    try:
        case.check()
    except AssertionError as error:
        outcome.red = " ".join(str(error).split()) or "results differ"
    candidates = [c for c in case.candidates if not c.name.startswith("torch.compile")]
    case = replace(case, candidates=candidates, check=lambda: None)
    calls = replace(case, seconds={})
    measure([case], "cuda", SECONDS, warm_up=2, gpu_alone=True)
    measure([calls], "cuda", SECONDS / 3, warm_up=0)
    floor = case.floor_bytes / copy_speed()
    if tensor_cores and case.flops:
        floor = max(floor, case.flops / product_speed())
    for candidate in candidates:
        ordered = sorted(case.seconds[candidate.name])
        p20, p80 = (ordered[int(q * (len(ordered) - 1))] for q in (0.2, 0.8))
        times = {
            "gpu_us": case.median(candidate.name),
            "p20_us": p20,
            "p80_us": p80,
            "call_us": calls.median(candidate.name),
            "host_us": host_seconds(candidate.run),
            "floor_us": floor,
        }
        row = {name: f"{1e6 * seconds:.1f}" for name, seconds in times.items()}
        outcome.rows.append({"candidate": candidate.name, **row})
    return outcome


def job(name: str, make: Callable[[], Case], seconds: float = 20.0, modelled: str = "") -> Job:
    """Returns the job of a case that needs no gradients of its own."""

    @torch.no_grad()
    def run() -> Outcome:
        torch.manual_seed(0)
        torch.cuda.empty_cache()
        return figures(make(), tensor_cores=name.startswith(TENSOR_CORES))

    return Job(name, run, seconds, modelled)


TENSOR_CORES = ("aspp", "atrous_conv2d", "gradient of")
"""Beginnings of names of cases whose FLOPs are products of matrices."""


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


def as_on_cpu(op: Callable[..., Tensor], *arguments: object, tolerance: float = 1e-5) -> None:
    """Checks that an op computes on the GPU what it computes on the CPU."""
    on_cpu = [a.cpu() if isinstance(a, Tensor) else a for a in arguments]
    actual, expected = op(*arguments).cpu(), op(*on_cpu)
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


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


def class_map_case(shape, size: tuple[int, int]) -> Case:
    """Returns the case of the class map of smooth logits."""
    return upsample_argmax.case_of(upsample_argmax.blobs(shape, "cuda"), size, "")


def loss_case(loss: str, shape: str) -> Case:
    """Returns the case of a loss's step."""
    case = upsample_cross_entropy.case(loss, shape, "cuda")
    candidates = [Candidate(c.name, torch.enable_grad()(c.run)) for c in case.candidates]
    return replace(case, candidates=candidates, check=torch.enable_grad()(case.check))


def part_case(op: str, classes: int, rows: int, width: int) -> Case:
    """Returns the case of one op on logits (1, classes, rows, width) and an eightfold target."""
    logits = torch.randn(1, classes, rows, width, device="cuda", requires_grad=True)
    target = torch.randint(0, classes, (1, 8 * rows, 8 * width), device="cuda").byte()
    whole = target.long()

    def upsampled() -> Tensor:
        return F.interpolate(logits, target.shape[1:], mode="bilinear")

    def counts() -> Tensor:
        pairs = whole * classes + upsampled().argmax(1)
        return torch.bincount(pairs.flatten(), minlength=classes**2).view(classes, classes)

    loss = fastseg.upsample_cross_entropy(logits, target, ignore_index=VOID)
    eager = F.cross_entropy(upsampled(), whole)

    def gradient(of: Tensor) -> Tensor:
        return torch.autograd.grad(of, logits, retain_graph=True)[0]

    ours, torchs = {
        "upsample_cross_entropy": (
            lambda: fastseg.upsample_cross_entropy(logits, target, ignore_index=VOID),
            lambda: F.cross_entropy(upsampled(), whole),
        ),
        "upsample_cross_entropy_backward": (lambda: gradient(loss), lambda: gradient(eager)),
        "upsample_confusion_matrix": (
            lambda: fastseg.upsample_confusion_matrix(logits, target, ignore_index=VOID),
            counts,
        ),
    }[op]

    def check() -> None:
        torch.testing.assert_close(ours(), torchs(), rtol=1e-4, atol=1e-6)

    floor = nbytes(logits, target)
    return Case(op, "", [Candidate(OURS, ours), Candidate("eager", torchs)], check, floor)


# Names of the model's cases, and the logits of each.
PARTS = {
    "upsample_cross_entropy 8x21x65x65 to 520x520, uint8": (21, 520, 65),
    "upsample_cross_entropy_backward 8x21x65x65 to 520x520, uint8": (21, 520, 65),
    "upsample_confusion_matrix 1x19x128x256 to 1024x2048, uint8": (19, 128, 256),
}


def counts_case(dtype: str, kind: str = "noise") -> Case:
    """Returns the case of a confusion matrix."""
    return confusion_matrix.case(kind, dtype, confusion_matrix.SIZE, "cuda", void=False)


def distances_case() -> Case:
    """Returns the case of the distance transform, compared with the same on the CPU."""
    mask = (torch.rand(8, 256, 1024) > 0.001).cuda()
    rivals = dict.fromkeys(("scipy.ndimage", "cv2"))
    case = distance_transform.transform("", mask, None, rivals)
    return replace(case, check=partial(as_on_cpu, fastseg.distance_transform, mask))


def refinement_case() -> Case:
    """Returns the case of pixel-adaptive refinement beside the published computation."""
    row = pixel_adaptive_refinement.Row(21, 128, 512)
    calls = pixel_adaptive_refinement.candidates(row, "par", "cuda")
    ways = [Candidate(n, call) for n, call in calls.items() if "compile" not in n]

    def check():
        torch.testing.assert_close(calls[OURS](), calls["published"](), rtol=0, atol=1e-5)

    return Case("pixel_adaptive_refinement", row.name, ways, check, row.floor()[0])


def head_jobs() -> Iterator[Job]:
    """Yields what follows the logits."""
    for shape, size in reversed(upsample_argmax.SHAPES):
        words = f"{'x'.join(map(str, shape))} to {'x'.join(map(str, size))}"
        modelled = f"upsample_argmax {words}" if shape[1] == 19 else ""
        make = partial(class_map_case, shape, size)
        yield job(f"upsample_argmax {words}", make, modelled=modelled)
    for dtype in ("uint8", "int64"):
        modelled = f"confusion_matrix 1024x2048 {dtype}, 19 classes"
        for kind in confusion_matrix.KINDS:
            make = partial(counts_case, dtype, kind)
            name = f"confusion_matrix 1024x2048 {dtype}, {kind}"
            yield job(name, make, modelled=modelled if kind == "noise" else "")
    for name, logits in PARTS.items():
        make = torch.enable_grad()(partial(part_case, name.split(" ")[0], *logits))
        yield job(name, make, modelled=name)
    for loss, shape in itertools.product(("cross_entropy",), upsample_cross_entropy.SHAPES):
        yield job(f"upsample_{loss} step, {shape}", partial(loss_case, loss, shape))
    name = "distance_transform 8x256x1024"
    yield job(name, distances_case, modelled=name)
    name = "pixel_adaptive_refinement 1x21x128x512, 10 iterations"
    yield job(name, refinement_case, modelled=name)


def conv_jobs() -> Iterator[Job]:
    """Yields ASPP, atrous and depthwise convolutions, their gradients and a step of training."""
    torch.backends.cudnn.benchmark = True
    torch.set_float32_matmul_precision("high")
    no_compiler = atrous_conv2d_gpu.Compiler(0)
    for name, make in atrous_conv2d_gpu.cases(torch.bfloat16, no_compiler):
        yield job(name, make, 40)


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
