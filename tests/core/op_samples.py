"""A call of every op, and what tests that run over all tensors of all ops need of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastseg._core.conv2d import Conv2d

ops = torch.ops.fastseg
SAME = Conv2d((1, 1), (2, 2), (2, 2), 1)
STRIDED = Conv2d((2, 1), (1, 2), (1, 2), 2)
WINDOW = ((2, 2), (2, 2), (0, 0), (1, 1))
OVERLAPPING = ((3, 3), (2, 2), (1, 1), (1, 1))


DIFFERENTIABLE = {
    "aspp",
    "atrous_conv2d",
    "atrous_conv2d_input_grad",
    "atrous_conv2d_weight_grad",
    "batch_norm_relu_max_pool2d",
    "bilateral_filter",
    "dense_energy",
    "exact_gaussian_filter",
    "max_pool2d",
    "max_pool2d_backward",
    "max_unpool2d",
    "max_unpool2d_backward",
    "mean_field",
    "permutohedral_filter",
    "permutohedral_lattice",
    "pixel_adaptive_refinement",
    "pixel_adaptive_refinement_backward",
    "spatial_gaussian_filter",
    "upsample_cross_entropy",
    "upsample_cross_entropy_backward",
    "upsample_softmax_sums",
}
TWICE_IN_VALUES = {"exact_gaussian_filter", "permutohedral_filter", "spatial_gaussian_filter"}
"""Their other tensors are differentiable once."""
ONCE = {
    "mean_field",
    "permutohedral_lattice",
    "upsample_softmax_sums",
}
CONSTANT_OUTPUTS = {"upsample_cross_entropy": 2, "upsample_softmax_sums": 2}
"""The number of an op's last outputs that have no gradient."""
CONSTANTS = {
    "bilateral_filter": {"image"},
    "dense_energy": {"image", "rois", "gates"},
    "pixel_adaptive_refinement": {"image"},
    "pixel_adaptive_refinement_backward": {"image"},
    "upsample_cross_entropy_backward": {"normalizer", "weight", "weight_map"},
}
"""Floating-point tensors that differentiable ops refuse a gradient of."""
OF_INTEGERS = {"codes_to_indices", "confusion_matrix", "indices_to_codes", "pack_codes"}
"""Their tensors are integers; all other ops refuse to be differentiated."""
TO_INTEGERS = {"upsample_argmax", "upsample_confusion_matrix"}
"""Their outputs are integers, on which no gradient can depend."""


class Leaf(NamedTuple):
    """A tensor among an op's arguments: its name, its place, itself."""

    name: str
    argument: int
    position: int | None  # in a list
    tensor: Tensor


class Sample(NamedTuple):
    """A call of an op.

    Attributes:
        name: the op's.
        arguments: all of its arguments.
        note: tells samples of one op apart.
    """

    name: str
    arguments: Sequence[Any]
    note: str = ""

    def __str__(self) -> str:
        return f"{self.name}-{self.note}" if self.note else self.name

    @property
    def op(self) -> torch._ops.OpOverload:
        """The op."""
        return getattr(ops, self.name).default

    def leaves(self) -> list[Leaf]:
        """All tensors."""
        found = []
        for i, (argument, schema) in enumerate(
            zip(self.arguments, self.op._schema.arguments, strict=False)  # others have defaults
        ):
            if isinstance(argument, Tensor):
                found.append(Leaf(schema.name, i, None, argument))
            elif isinstance(argument, list):
                found += [
                    Leaf(f"{schema.name}[{j}]", i, j, t)
                    for j, t in enumerate(argument)
                    if isinstance(t, Tensor)
                ]
        return found

    def floats(self) -> dict[str, Tensor]:
        """The tensors that can have a gradient, by name."""
        constants = CONSTANTS.get(self.name, ())
        return {
            t.name: t.tensor
            for t in self.leaves()
            if t.tensor.is_floating_point() and t.name not in constants
        }

    def with_tensors(self, tensors: dict[str, Tensor]) -> Sample:
        """The call with other tensors, by the leaves' names."""
        arguments = [list(a) if isinstance(a, list) else a for a in self.arguments]
        for leaf in self.leaves():
            if leaf.name not in tensors:
                continue
            if leaf.position is None:
                arguments[leaf.argument] = tensors[leaf.name]
            else:
                arguments[leaf.argument][leaf.position] = tensors[leaf.name]
        return self._replace(arguments=arguments)

    def __call__(self) -> list[Tensor]:
        """The op's outputs."""
        outputs = self.op(*self.arguments)
        return [outputs] if isinstance(outputs, Tensor) else list(outputs)

    def as_function(self, names: Sequence[str]) -> Callable[..., list[Tensor]]:
        """The outputs as a function of the named tensors."""
        return lambda *tensors: self.with_tensors(dict(zip(names, tensors, strict=True)))()


def assert_close(actual: Tensor, expected: Tensor, tolerance: float, what: str) -> None:
    """torch.testing.assert_close, whose words cost a millisecond, where there is a difference."""
    assert actual.shape == expected.shape, what
    if not torch.allclose(actual.double(), expected.double(), tolerance, tolerance):
        torch.testing.assert_close(
            actual, expected, rtol=tolerance, atol=tolerance, msg=lambda m: f"{what}: {m}"
        )


def samples(dtype: torch.dtype = torch.float32) -> list[Sample]:
    """At least one call of every op, small enough for tests of all their tensors.

    Args:
        dtype: float32, or float64 for those ops that have it.
    """

    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=dtype)

    parts = [convolutions, poolings, filters, mean_fields, heads, losses, refinements, distances]
    if dtype == torch.float32:
        parts.append(building_blocks)
    return [sample for part in parts for sample in part(random)]


def convolutions(random) -> list[Sample]:
    """atrous_conv2d, its gradients, aspp, and the depthwise ops."""
    vectors = random(6), random(6), random(6)
    x, weight, y = random(2, 4, 7, 6), random(6, 4, 3, 3), random(2, 6, 7, 6)
    grouped, point, depth = random(6, 2, 3, 3), random(6, 4, 1, 1), random(4, 1, 3, 3)
    size = STRIDED.output_size((7, 6), (3, 3))
    strided = random(2, 6, *size)
    image = random(2, 4, 7, 6)
    geometry = list(map(list, SAME[:3]))
    aspp = [
        x,
        [weight, point],
        [vectors[0], None],
        [None, vectors[1]],
        [2, 1],
        random(5, 12, 1, 1),
        random(5),
        random(5),
        random(2, 5),
        "relu6",
    ]
    depthwise = (depth, *(v[:4] for v in vectors), image, *geometry, "silu")
    return [
        Sample("atrous_conv2d", [x, weight, *vectors, y, *SAME, "leaky_relu"]),
        Sample("atrous_conv2d", [x, weight, *vectors, None, *SAME, "hardswish"], "smooth"),
        Sample("atrous_conv2d", [x, grouped, *vectors, strided, *STRIDED, ""], "grouped"),
        Sample("atrous_conv2d", [x, point, None, None, None, None, *point_conv(), ""], "bare"),
        Sample("atrous_conv2d", [x, *depthwise[:5], *SAME[:3], 4, "relu"], "depthwise"),
        Sample("atrous_conv2d_input_grad", [y, weight, [7, 6], *SAME]),
        Sample("atrous_conv2d_input_grad", [strided, grouped, [7, 6], *STRIDED], "grouped"),
        Sample("atrous_conv2d_weight_grad", [x, y, [3, 3], *SAME]),
        Sample("atrous_conv2d_weight_grad", [x, strided, [3, 3], *STRIDED], "grouped"),
        Sample("aspp", aspp),
        Sample("depthwise_conv2d", [x, *depthwise]),
        Sample("depthwise_conv2d_input_grad", [image, depth, [7, 6], *geometry]),
        Sample("depthwise_conv2d_weight_grad", [x, image, [3, 3], *geometry]),
    ]


def point_conv() -> Conv2d:
    """A 1x1 convolution's geometry."""
    return Conv2d((1, 1), (0, 0), (1, 1), 1)


def building_blocks(random) -> list[Sample]:
    """The ops of the CPU alone, which have float32 alone."""
    x, weight, y = random(2, 4, 7, 6), random(6, 4, 3, 3), random(2, 6, 7, 6)
    vectors = random(6), random(6), random(6)
    packed, other = (
        ops.winograd_conv2d_weight(w, (7, 6), (d, d), False, False)
        for w, d in ((weight, 2), (-weight, 1))
    )
    many, grouped = random(2, 20, 7, 6), random(6, 2, 3, 3)
    strided = random(2, 6, *STRIDED.output_size((7, 6), (3, 3)))
    geometry = list(map(list, SAME[:3]))
    return [
        Sample("winograd_conv2d", [x, packed, 6, *vectors, y, [2, 2], False, "relu"]),
        Sample(
            "winograd_branches",
            [x, [packed, other], [6, 6], random(12), random(12), [2, 1], False, "silu"],
        ),
        Sample("winograd_conv2d_weight", [weight, [7, 6], [2, 2], False, True]),
        Sample("im2col_conv2d", [x, weight, *vectors, y, *geometry, 1, "hardswish"]),
        Sample("im2col_conv2d", [x, grouped, *vectors, strided, *STRIDED, "relu"], "grouped"),
        Sample("dense_conv2d_weight_grad", [many, y, [3, 3], *geometry]),
        Sample("im2col_conv2d_input_grad", [strided, grouped, [7, 6], *STRIDED]),
        Sample("im2col_conv2d_weight_grad", [x, strided, [3, 3], *STRIDED]),
        Sample("image_layout", [x, True], "channels_last"),
        Sample("image_layout", [x, False], "contiguous"),
    ]


def poolings(random) -> list[Sample]:
    """Max-pooling, unpooling, their gradients, and the conversions of positions."""
    x, values, plane = random(2, 3, 6, 8), random(2, 3, 3, 4), random(2, 3, 6, 8)
    codes = ops.max_pool2d(x, (2, 2))[1]
    other = ops.max_pool2d(x, *OVERLAPPING)[1]
    indices = ops.codes_to_indices(codes, (6, 8), *WINDOW)
    packed, size, pooled = ops.pack_codes(codes, -1), [6, 8], [3, 4]
    window, overlapping = list(map(list, WINDOW)), list(map(list, OVERLAPPING))
    return [
        Sample("max_pool2d", [x, *window, False]),
        Sample("max_pool2d", [x[0], *overlapping, True], "unbatched"),
        Sample("batch_norm_relu_max_pool2d", [x, random(3), random(3).abs(), *window, False]),
        Sample("max_unpool2d", [values, codes, size, *window[:3]], "codes"),
        Sample("max_unpool2d", [values, indices, size, *window[:3]], "indices"),
        Sample("max_pool2d_backward", [values, other, size, *overlapping, 0]),
        Sample("max_pool2d_backward", [values, packed, size, *window, -1], "packed"),
        Sample("max_unpool2d_backward", [plane, codes, pooled, *window, 0], "codes"),
        Sample("max_unpool2d_backward", [plane, packed, pooled, *window, -1], "packed"),
        Sample("max_unpool2d_backward", [plane, indices, pooled, *window, 0], "indices"),
        Sample("codes_to_indices", [codes, size, *window]),
        Sample("indices_to_codes", [indices, size, *window]),
        Sample("pack_codes", [codes, -1]),
        Sample("pack_codes", [codes, -3], "channels"),
    ]


def distances(random) -> list[Sample]:
    """The distance transform: of floats, so that what has a gradient may be asked for one."""
    mask, labels = random(2, 3, 9, 18).relu(), random(3, 4, 5, 3).mul(2).int()
    return [
        Sample("distance_transform", [mask, [1.0, 1.0], False, False]),
        Sample("distance_transform", [mask, [0.5, 1.0, 2.0], True, True], "volumes"),
        Sample("distance_transform", [labels.to(mask), [1.0], False, False], "lines"),
    ]


def filters(random) -> list[Sample]:
    """The Gaussian filters, and the lattice."""
    values, grad, features = random(2, 3, 24), random(2, 3, 24), random(2, 2, 24)
    image, sigma = random(2, 3, 6, 5), random(2).abs() + 0.5
    lattice = list(ops.permutohedral_lattice(features, 1.0, 2)[:7])
    options = [1, False, True, 0.8, 0.45]
    return [
        Sample("bilateral_filter", [image, random(2, 3, 6, 5), 2.0, 0.7]),
        Sample("exact_gaussian_blocks", [features, 0.0]),
        Sample("exact_gaussian_filter", [values, features, 0.0]),
        Sample("exact_gaussian_filter_backward", [grad, values, features, 0.0]),
        Sample("spatial_gaussian_filter", [image, sigma, -1]),
        Sample("permutohedral_lattice", [features, 1.0, 1]),
        Sample("permutohedral_filter", [values, *lattice, *options]),
        Sample("permutohedral_filter_backward", [grad, values, *lattice, *options]),
    ]


def mean_fields(random) -> list[Sample]:
    """The dense CRF's ops."""
    unary, grad = random(2, 3, 5, 4), random(2, 3, 5, 4)
    kernels = [random(2).abs() + 1, random(2, 2, 5, 4), random(1, 3, 5, 4)]
    compatibility = [random(3, 3), random(3), random(2)[0].clone()]
    model = [unary, kernels, compatibility, [3, 0, 1], 2]
    q = ops.mean_field(*model, 1)
    lattice = [1.0, 2, 1, True, 0.45]
    pixels, rois = random(2, 2, 5, 4), random(2, 5, 4)
    found = [
        Sample("dense_energy", [unary, pixels, rois, rois.abs(), 2.0, 0.7, 1]),
        Sample("dense_energy", [unary, pixels, None, None, 2.0, 0.7, 2], "bare"),
        Sample("mean_field", [*model, 1, 3, False]),
        Sample("mean_field", [*model, 1, 3, True], "log"),
        Sample("mean_field_backward", [grad, q, *model, 1, 3, [True] * 6, False]),
        Sample("mean_field_backward", [grad, q.log(), *model, 1, 3, [True] * 6, True], "log"),
    ]
    if unary.dtype == torch.float32:
        found.append(Sample("lattice_mean_field", [*model, 1, *lattice]))
    return found


def heads(random) -> list[Sample]:
    """What follows the logits."""
    logits, size = random(2, 5, 4, 6), [9, 14]
    prediction, target = (random(2, 4, 5, 6).argmax(1) for _ in range(2))
    target[:, :1] = 255
    bytes_of = prediction.to(torch.uint8), target.to(torch.uint8)
    return [
        Sample("upsample_argmax", [logits, size, False, torch.uint8]),
        Sample("upsample_argmax_confidence", [logits, size, True, torch.int64]),
        Sample("upsample_confusion_matrix", [random(2, 5, 2, 3), prediction, False, 255]),
        Sample("confusion_matrix", [prediction % 4, target % 4, 4]),
        Sample("confusion_matrix", [*bytes_of, 4, 255], "ignoring"),
    ]


def refinements(random) -> list[Sample]:
    """Pixel-adaptive refinement and its gradient, linear in their planes."""
    image, planes = random(2, 3, 7, 6), random(2, 2, 7, 6)
    found = []
    for variant in ("par", "pamr"):
        options = [[1, 3], 2, variant]
        name, note = "pixel_adaptive_refinement", variant
        found += [
            Sample(name, [image, planes, *options], note),
            Sample(f"{name}_backward", [planes, image, *options], note),
        ]
    return found


def losses(random) -> list[Sample]:
    """Losses of upsampled logits, and the sums that others are made of."""
    logits = random(2, 3, 4, 5)
    target = (random(2, 9, 11) * 2).long().clamp(-1, 2)
    small = target.clamp_min(0).to(torch.uint8)
    options = [False, -1, 0.1]
    _, _, normalizer = ops.upsample_cross_entropy(logits, target, None, None, *options, "none")
    sums = ops.upsample_softmax_sums(logits, target, False, -1, False)
    grads, pixels = (random(2, 3), random(2, 3)), random(2, 9, 11)
    return [
        Sample("upsample_cross_entropy", [logits, target, None, None, *options, "sum"]),
        Sample("upsample_cross_entropy", [logits, small, None, None, True, -1, 0.0, "none"], "map"),
        Sample(
            "upsample_cross_entropy_backward",
            [pixels, logits, target, normalizer, random(3).abs(), pixels.abs(), *options],
        ),
        Sample("upsample_softmax_sums", [logits, target, False, -1, False]),
        Sample("upsample_softmax_sums", [logits, small, True, -1, True], "squared"),
        Sample(
            "upsample_softmax_sums_backward",
            [*grads, logits, target, sums[3], False, -1, False],
        ),
    ]
