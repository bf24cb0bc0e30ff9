"""Budgets of the CUDA kernels' accesses: sectors, bank conflicts, launches and waits of a call."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator

import pytest
import torch

from benchmarks.gpu_model import cases
from tests.cuda_on_cpu.build import cuda_home
from tests.cuda_on_cpu.tracing import SECTOR_BYTES, Launch, Trace, traced

pytestmark = pytest.mark.skipif(cuda_home() is None, reason="no CUDA headers (cuda_fp16.h) here")

# Of each kernel the least share of its sectors' bytes that its threads asked for, and the most
# wavefronts of shared memory, of the least possible. Kernels that move tensors are near one; those
# that follow a hash table or a lattice's rows are not, and their figures are what they have.
BUDGETS = {
    "candidates_hash": (0.13, 1.0),
    "chunk_sums_kernel": (0.24, 1.0),
    "class_argmax": (0.37, 1.0),
    "class_counts": (0.42, 2.4),
    "confusion_matrix_pairs": (0.51, 2.8),
    "count_touched_kernel": (0.30, 1.0),
    "cross_entropy_pixels": (0.29, 1.1),
    "cross_entropy_total": (0.70, 1.0),
    "depthwise_conv2d_gather_pixels": (0.25, 1.0),
    "depthwise_conv2d_planes": (0.56, 1.0),
    "depthwise_conv2d_same": (0.53, 1.0),
    "depthwise_conv2d_staged_planes": (0.75, 1.8),
    "depthwise_weight_grad_gather_pixels": (0.65, 1.0),
    "depthwise_weight_grad_planes": (0.88, 1.9),
    "depthwise_weight_grad_same": (0.94, 1.4),
    "depthwise_weight_grad_total": (0.22, 1.0),
    "distance_columns_kernel": (0.99, 1.0),
    "distance_envelope_pass": (0.99, 1.1),
    "enclosing_simplex": (0.99, 1.42),
    "index_hash": (0.15, 1.0),
    "keep_kernel": (0.32, 1.0),
    "lattice_mean_field_tile": (0.53, 4.1),
    "max_pool2d_2x2": (0.56, 1.0),
    "max_unpool2d_2x2": (0.71, 1.0),
    "mean_field_factors": (0.99, 1.0),
    "mean_field_fold": (0.59, 1.0),
    "mean_field_gather": (0.66, 1.0),
    "mean_field_mixing": (0.77, 1.0),
    "mean_field_positions": (0.81, 1.0),
    "mean_field_unary": (0.27, 1.0),
    "move_touched_kernel": (0.85, 1.0),
    "neighbors_hash": (0.13, 1.0),
    "none_back_kernel": (0.84, 1.0),
    "number_added_kernel": (0.53, 1.0),
    "number_touched_kernel": (0.27, 1.0),
    "permutohedral_blur": (0.19, 1.0),  # rows of one channel, of which a call blurs one
    "permutohedral_blur_beside_pass": (0.89, 1.8),
    "permutohedral_order": (0.61, 1.6),
    "permutohedral_reduce": (0.25, 1.0),
    "permutohedral_reduce_beside_pass": (0.89, 1.1),
    "permutohedral_slice": (0.27, 1.5),
    "permutohedral_tile_splat": (0.28, 1.7),
    "place_rows_kernel": (0.31, 1.0),
    "refinement_affinity": (0.92, 1.0),
    "refinement_step": (0.87, 1.0),
    "scan_chunks_kernel": (0.24, 1.0),
    "scan_in_one_block_kernel": (0.23, 1.0),
    "sort_rows_kernel": (0.18, 1.0),
    "spatial_gaussian_pass": (0.88, 1.8),
    "spatial_gaussian_taps": (0.26, 1.0),
    "summarize_kernel": (0.14, 1.0),
    "tile_rows_hash": (0.27, 1.41),
    "tile_vertices_kernel": (0.30, 1.0),
    "upsampled_gradient_corners": (0.80, 1.6),
    "upsampled_gradient_gather": (0.65, 1.0),
}


def strided_depthwise(layout, ops):
    """A convolution that makes an image smaller, and its gradients."""
    x = torch.randn(1, 64, 32, 64).contiguous(memory_format=layout)
    weight, geometry = torch.randn(64, 1, 3, 3), ([2, 2], [1, 1], [1, 1])
    y = ops.depthwise_conv2d(x, weight, *[None] * 4, *geometry, "relu")
    ops.depthwise_conv2d_input_grad(y, weight, [32, 64], *geometry)
    ops.depthwise_conv2d_weight_grad(x, y, [3, 3], *geometry)


def planes_in_memory(ops):
    """A convolution of planes in float32 that do not fit shared memory beside their outputs."""
    x, weight = torch.randn(1, 2, 120, 110), torch.randn(2, 1, 3, 3)
    ops.depthwise_conv2d(x, weight, *[None] * 4, [1, 1], [2, 2], [2, 2], "relu")


def calls() -> Iterator[Callable[[object], object]]:
    """Of every kernel that has a budget, with its usual shapes made small."""
    for dtype in (torch.float32, torch.bfloat16):
        for layout in (torch.contiguous_format, torch.channels_last):
            for op in (cases.max_pool2d, cases.max_unpool2d, cases.max_pool2d_backward):
                yield lambda ops, a=(op, dtype, layout): a[0](*a[1:], ops, 1)
    yield lambda ops: cases.upsample_argmax(19, 64, ops, 8)
    for op in (
        cases.upsample_cross_entropy,
        cases.upsample_cross_entropy_backward,
        cases.upsample_confusion_matrix,
    ):
        yield lambda ops, op=op: op(19, 32, ops, 4)
    for dtype in (torch.uint8, torch.int64):
        yield lambda ops, dtype=dtype: cases.confusion_matrix(dtype, ops, 32)
    yield lambda ops: ops.distance_transform(torch.rand(1, 64, 256) > 0.01, [1.0, 1.0])
    image, masks = torch.rand(1, 3, 32, 128), torch.rand(1, 21, 32, 128)
    yield lambda ops: ops.pixel_adaptive_refinement(image, masks, [1, 2, 4], 2)
    for layout in (torch.contiguous_format, torch.channels_last):
        depthwise = (cases.depthwise_conv2d, cases.depthwise_conv2d_weight_grad)
        for op in depthwise:
            yield lambda ops, op=op, layout=layout: op(33, 12, torch.bfloat16, layout, ops, 1)
        yield lambda ops, layout=layout: strided_depthwise(layout, ops)
    yield planes_in_memory
    for quality in (cases.COMPAT, cases.HIGH):
        yield lambda ops, q=quality: cases.lattice_mean_field(64, 48, 21, q, ops, 2)


@pytest.fixture(scope="module")
def launches() -> dict[str, list[Launch]]:
    """By kernel."""
    torch.manual_seed(0)
    by_name = defaultdict(list)
    for call in calls():
        with Trace() as trace:
            call(traced())
        for launch in trace.launches:
            by_name[launch.name].append(launch)
    return by_name


def test_every_kernel_of_these_calls_has_a_budget(launches):
    assert launches.keys() == BUDGETS.keys()


@pytest.mark.parametrize("kernel", BUDGETS)
def test_requests(kernel, launches):
    efficiency, wavefronts = BUDGETS[kernel]
    for launch in launches[kernel]:
        moved = [site for site in launch.sites if not site.shared]
        wanted = sum(site.lane_bytes for site in moved)
        assert wanted >= efficiency * SECTOR_BYTES * sum(site.sectors for site in moved)
        least = launch.total("least_wavefronts")
        assert launch.total("wavefronts") <= wavefronts * least


def test_rows_of_many_channels_are_blurred_in_whole_sectors(launches):
    """Of the budget above, what the rows of one channel hide."""
    blurs = [x for x in launches["permutohedral_blur"] if x.kernel.endswith(", 4>")]
    assert {x.kernel[-5] for x in blurs} == {"2", "3"}  # steps of a launch
    for launch in blurs:
        wanted = sum(site.lane_bytes for site in launch.sites)
        assert wanted >= 0.82 * SECTOR_BYTES * launch.total("sectors")


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_unpooling_writes_whole_sectors(layout):
    with Trace() as trace:
        cases.max_unpool2d(torch.float32, layout, traced(), 1)
    (launch,) = trace.launches
    assert all(site.efficiency == 1 for site in launch.sites if site.kind == "store")


@pytest.mark.parametrize(
    ("quality", "each", "once"),
    [(cases.COMPAT, 4, 55), (cases.HIGH, 5, 47)],
    ids=["compat", "high"],
)
def test_launches_of_a_mean_field(quality, each, once):
    """A tile's pass, one reduction, a blur for three axes or for two in both orders.

    The Gaussian's passes are beside these.
    """
    counts, waits = [], []
    for iterations in (1, 2):
        with Trace() as trace:
            cases.lattice_mean_field(32, 24, 5, quality, traced(), iterations)
        counts.append(len(trace.launches) + len(trace.memsets) + len(trace.memcpys))
        waits.append(trace.synchronizations)
    assert counts[1] - counts[0] == each
    assert counts[0] - each <= once
    assert waits == [2, 2]


@pytest.mark.parametrize("quality", [cases.COMPAT, cases.HIGH], ids=["compat", "high"])
def test_a_captured_mean_field_waits_for_nothing(quality, monkeypatch):
    """Launches walk over memory for the largest lattice, with no more blocks than are busy."""
    counts = []
    for captures in (False, True):
        if captures:
            monkeypatch.setenv("CUDA_ON_CPU_CAPTURES", "1")
        with Trace() as trace:
            cases.lattice_mean_field(96, 80, 5, quality, traced(), 2)
        counts.append(len(trace.launches))
    assert trace.synchronizations == 0
    assert counts[1] <= counts[0] + 6  # longer prefix sums, and what bounds the counts
    blurs = [launch for launch in trace.launches if launch.name == "permutohedral_blur"]
    assert blurs
    assert all(launch.blocks <= 4096 for launch in blurs)
