"""A call of every public function and module that takes tensors, for tests over all of these."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

import fastseg
from fastseg.ops import bilateral_filter, exact_gaussian_filter, spatial_gaussian_filter
from fastseg.ops.crf.dense_energy import dense_energy
from fastseg.ops.crf.permutohedral_filter import permutohedral_filter
from fastseg.ops.crf.permutohedral_lattice import permutohedral_lattice


class PublicCall(NamedTuple):
    """A call by the names of its tensors.

    Attributes:
        name: what errors begin with.
        function: takes the tensors by keyword, any of the optional ones missing or None.
        tensors: that fit.
        optional: the names of those that may be None.
        note: tells calls of one function apart.
        constants: the names of floating-point tensors that a gradient of is refused.
    """

    name: str
    function: Callable[..., Any]
    tensors: dict[str, Tensor]
    optional: frozenset[str] = frozenset()
    note: str = ""
    constants: frozenset[str] = frozenset()

    def __str__(self) -> str:
        return f"{self.name}-{self.note}" if self.note else self.name

    def __call__(self, **changed: Any) -> list[Tensor]:
        """The outputs that are tensors."""
        out = self.function(**{**self.tensors, **changed})
        return list(out) if isinstance(out, (tuple, list)) else [out]


def public_calls() -> list[PublicCall]:
    """Of all of them at least one."""
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    parts = (convolutions, aspps, poolings, filters, heads, losses, refinements, distances)
    return [call for part in parts for call in part(random)]


def convolutions(random) -> list[PublicCall]:
    """Convolutions, as functions and as modules."""
    x, weight, residual = random(2, 4, 9, 8), random(6, 4, 3, 3), random(2, 6, 9, 8)
    depth, point = random(4, 1, 3, 3), random(6, 4, 1, 1)
    vectors = {"bias": random(6), "scale": random(6), "shift": random(6)}
    of_depth = {f"depthwise_{name}": v[:4] for name, v in vectors.items()}
    optional = frozenset((*vectors, *of_depth, "residual"))
    atrous = {"x": x, "weight": weight, **vectors, "residual": residual}
    separable = {
        "x": x,
        "depthwise_weight": depth,
        "pointwise_weight": point,
        **of_depth,
        **vectors,
        "residual": residual,
    }
    point_atrous = {**atrous, "weight": point}
    calls = [
        PublicCall("fastseg::atrous_conv2d", fastseg.atrous_conv2d, atrous, optional),
        PublicCall("fastseg::atrous_conv2d", fastseg.atrous_conv2d, point_atrous, optional, "1x1"),
        PublicCall(
            "fastseg::separable_atrous_conv2d",
            fastseg.separable_atrous_conv2d,
            separable,
            optional,
        ),
    ]
    module = fastseg.nn.AtrousConvBNAct(4, 6).eval()
    by_depth = fastseg.nn.SeparableAtrousConvBNAct(4, 6).eval()
    of_module = {"x": x, "residual": residual}
    return [
        *calls,
        PublicCall("fastseg::atrous_conv2d", module, of_module, optional, "module"),
        PublicCall("fastseg::atrous_conv2d", by_depth, of_module, optional, "separable module"),
    ]


def aspps(random) -> list[PublicCall]:
    """ASPP as one op, by its branches, summed, and as modules."""

    def aspp(x, *, separable: bool, kernel: int = 1, **t):
        def branch(name: str, dilation: int = 1) -> fastseg.ASPPBranch:
            return fastseg.ASPPBranch(
                t.get(f"{name}.weight"), t.get(f"{name}.scale"), t.get(f"{name}.shift"), dilation
            )

        second = branch("branches[1]", 2)
        if separable:
            second = second._replace(
                depthwise_weight=t["branches[1].depthwise_weight"],
                depthwise_scale=t["branches[1].depthwise_scale"],
                depthwise_shift=t["branches[1].depthwise_shift"],
            )
        return fastseg.aspp(
            x, [branch("branches[0]"), second], branch("project"), pool=branch("pool")
        )

    def aspp_sum(x, **t):
        branches = [
            fastseg.ASPPBranch(t[f"branches[{i}].weight"], shift=t[f"branches[{i}].shift"])
            for i in range(2)
        ]
        return fastseg.aspp(x, branches, activation=None)

    def tensors(second, project):
        found = {"x": random(2, 4, 9, 8)}
        shapes = {
            "branches[0]": (3, 4, 1, 1),
            "branches[1]": second,
            "project": project,
            "pool": (2, 4, 1, 1),
        }
        for name, shape in shapes.items():
            found[f"{name}.weight"] = random(*shape)
            found[f"{name}.scale"] = random(shape[0])
            found[f"{name}.shift"] = random(shape[0])
        return found

    dense, wide = tensors((5, 4, 3, 3), (6, 10, 1, 1)), tensors((5, 4, 3, 3), (6, 10, 3, 3))
    separable = {
        **tensors((5, 4, 1, 1), (6, 10, 1, 1)),
        "branches[1].depthwise_weight": random(4, 1, 3, 3),
        "branches[1].depthwise_scale": random(4),
        "branches[1].depthwise_shift": random(4),
    }
    vectors = frozenset(
        name for name in separable if name.endswith(("scale", "shift", "depthwise_weight"))
    )
    summed = {"x": random(2, 4, 9, 8)}
    for i in range(2):
        summed[f"branches[{i}].weight"] = random(3, 4, 3, 3)
        summed[f"branches[{i}].shift"] = random(3)

    def call(found, note, by_depth=False):
        return PublicCall(
            "fastseg::aspp", lambda **t: aspp(separable=by_depth, **t), found, vectors, note
        )

    module = fastseg.nn.ASPP(4, (2, 3), 5).eval()
    sum_module = fastseg.nn.ASPPSum(4, 5, (2, 3))
    x = {"x": random(2, 4, 9, 8)}
    return [
        call(dense, "one op"),
        call(wide, "3x3 projection"),
        call(separable, "separable", by_depth=True),
        PublicCall("fastseg::aspp", aspp_sum, summed, vectors, "sum"),
        PublicCall("fastseg::aspp", module, x, note="module"),
        PublicCall("fastseg::aspp", sum_module, x, note="sum module"),
    ]


def poolings(random) -> list[PublicCall]:
    """Max-pooling, unpooling and the conversions of positions."""
    x, values = random(2, 3, 8, 6), random(2, 3, 4, 3)
    codes = fastseg.max_pool2d(x, 2)[1]
    indices = fastseg.codes_to_indices(codes, x.shape, 2)
    module = fastseg.nn.BatchNormReLUMaxPool2d(3).eval()
    pool, unpool = fastseg.nn.MaxPool2d(2), fastseg.nn.MaxUnpool2d(2)
    with_codes = {"values": values, "indices": codes}
    with_indices = {"values": values, "indices": indices}
    return [
        PublicCall("fastseg::max_pool2d", lambda x: fastseg.max_pool2d(x, 2), {"x": x}),
        PublicCall("fastseg::max_pool2d", lambda x: pool(x), {"x": x}, note="module"),
        PublicCall(
            "fastseg::batch_norm_relu_max_pool2d",
            lambda **t: fastseg.batch_norm_relu_max_pool2d(**t, kernel_size=2),
            {"x": x, "scale": random(3), "shift": random(3)},
        ),
        PublicCall("fastseg::batch_norm_relu_max_pool2d", module, {"x": x}, note="module"),
        PublicCall(
            "fastseg::max_unpool2d",
            lambda **t: fastseg.max_unpool2d(**t, kernel_size=2),
            with_codes,
            note="codes",
        ),
        PublicCall(
            "fastseg::max_unpool2d",
            lambda **t: fastseg.max_unpool2d(**t, kernel_size=2),
            with_indices,
            note="indices",
        ),
        PublicCall(
            "fastseg::max_unpool2d",
            lambda values, indices: unpool(values, indices),
            with_codes,
            note="module",
        ),
        PublicCall(
            "fastseg::codes_to_indices",
            lambda codes: fastseg.codes_to_indices(codes, (8, 6), 2),
            {"codes": codes},
        ),
        PublicCall(
            "fastseg::indices_to_codes",
            lambda indices: fastseg.indices_to_codes(indices, (8, 6), 2),
            {"indices": indices},
        ),
        PublicCall(
            "fastseg::fold_batch_norm",
            fastseg.fold_batch_norm,
            {
                "weight": random(3),
                "bias": random(3),
                "running_mean": random(3),
                "running_var": random(3).abs(),
            },
            frozenset(("weight", "bias")),
        ),
    ]


def distances(random) -> list[PublicCall]:
    """The distance transform, and the losses on it."""
    mask = random(2, 3, 8, 6).relu()
    return [
        PublicCall("fastseg::distance_transform", fastseg.distance_transform, {"mask": mask}),
        PublicCall(
            "fastseg::distance_transform",
            lambda mask: fastseg.distance_transform(mask, 3, spacing=(1, 2, 3)),
            {"mask": mask},
            note="volumes",
        ),
        *(
            PublicCall(
                f"fastseg.nn.{loss.__name__}",
                loss(to_onehot_y=True, softmax=True),
                {"input": random(2, 3, 8, 6), "target": random(2, 1, 8, 6).abs().round()},
            )
            for loss in (fastseg.nn.BoundaryLoss, fastseg.nn.HausdorffDTLoss)
        ),
    ]


def filters(random) -> list[PublicCall]:
    """The Gaussian filters and the lattice."""
    features, values = random(2, 3, 20), random(2, 4, 20)
    lattice = fastseg.PermutohedralLattice(features)
    tensors = permutohedral_lattice(features)
    pixels = {"segmentations": random(2, 2, 6, 5), "image": random(2, 3, 6, 5)}
    weights = {"rois": random(2, 6, 5), "gates": random(2, 6, 5)}
    return [
        PublicCall(
            "fastseg::bilateral_filter",
            lambda values, image: bilateral_filter(values, image, 2.0, 0.7),
            {"values": random(2, 2, 6, 5), "image": random(2, 3, 6, 5)},
            constants=frozenset(("image",)),
        ),
        PublicCall(
            "fastseg::dense_energy",
            lambda **t: dense_energy(**t, sxy=2.0, srgb=0.7),
            {**pixels, **weights},
            frozenset(weights),
            constants=frozenset(("image", *weights)),
        ),
        PublicCall(
            "fastseg::exact_gaussian_filter",
            exact_gaussian_filter,
            {"values": values, "features": features},
        ),
        PublicCall(
            "fastseg::spatial_gaussian_filter",
            spatial_gaussian_filter,
            {"values": random(2, 3, 6, 5), "sigma": random(2).abs() + 1},
        ),
        PublicCall("fastseg::permutohedral_lattice", permutohedral_lattice, {"features": features}),
        PublicCall(
            "fastseg::permutohedral_filter",
            lambda values: permutohedral_filter(values, tensors),
            {"values": values},
        ),
        PublicCall("PermutohedralLattice", fastseg.PermutohedralLattice, {"features": features}),
        PublicCall("PermutohedralLattice.filter", lattice.filter, {"values": values}),
    ]


def heads(random) -> list[PublicCall]:
    """What follows the logits."""
    logits = random(2, 5, 4, 6)
    prediction, target = (random(2, 4, 5, 6).argmax(1) for _ in range(2))

    def with_confidence(logits):
        return fastseg.upsample_argmax(logits, (9, 14), return_confidence=True)

    return [
        PublicCall(
            "fastseg::upsample_argmax",
            lambda logits: fastseg.upsample_argmax(logits, (9, 14)),
            {"logits": logits},
        ),
        PublicCall(
            "fastseg::upsample_argmax", with_confidence, {"logits": logits}, note="confidence"
        ),
        PublicCall(
            "fastseg::upsample_confusion_matrix",
            fastseg.upsample_confusion_matrix,
            {"logits": logits, "target": prediction},
        ),
        PublicCall(
            "fastseg::confusion_matrix",
            lambda **t: fastseg.confusion_matrix(**t, num_classes=4),
            {"prediction": prediction, "target": target},
        ),
    ]


def refinements(random) -> list[PublicCall]:
    """Refinement of masks by an image, as a function and as a module."""
    tensors = {"image": random(2, 3, 6, 5), "masks": random(2, 2, 6, 5)}
    module = fastseg.nn.PixelAdaptiveRefinement((1, 3), 2, variant="pamr")

    def refine(**tensors):
        return fastseg.pixel_adaptive_refinement(**tensors, dilations=(1, 2), iterations=2)

    return [
        PublicCall(
            "fastseg::pixel_adaptive_refinement",
            function,
            tensors,
            note=note,
            constants=frozenset(("image",)),
        )
        for function, note in ((refine, ""), (module, "module"))
    ]


def losses(random) -> list[PublicCall]:
    """Losses of upsampled logits, as functions and as modules."""
    logits, target = random(2, 3, 4, 5), torch.randint(0, 3, (2, 9, 11))
    plain = {"logits": logits, "target": target}
    weight = random(3).abs()
    modules = fastseg.nn
    calls = [
        ("cross_entropy", {"weight": weight, "weight_map": random(2, 9, 11).abs()}),
        ("focal_loss", {"alpha": weight}),
        ("ohem_cross_entropy", {"weight": weight}),
        ("dice_loss", {"weight": weight}),
    ]
    # Sums, since a mean of weights that are all 0 is undefined.
    return [
        *(
            PublicCall(
                f"fastseg::upsample_{name}",
                functools.partial(getattr(fastseg, f"upsample_{name}"), reduction="sum"),
                {**plain, **others},
                frozenset(others),
                constants=frozenset(others) if name == "cross_entropy" else frozenset(),
            )
            for name, others in calls
        ),
        *(
            PublicCall(f"fastseg::upsample_{name}", module, plain, note="module")
            for name, module in (
                ("cross_entropy", modules.UpsampleCrossEntropyLoss()),
                ("focal_loss", modules.UpsampleFocalLoss()),
                ("dice_loss", modules.UpsampleDiceLoss()),
            )
        ),
    ]
