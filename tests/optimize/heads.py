"""Models that upsample logits and reduce them, made of the ways in which that may be written."""

from __future__ import annotations

import textwrap

import torch
import torch.nn.functional as F
from torch import nn

CLASSES = 7

UPSAMPLINGS = {
    "size": "F.interpolate(z, size=x.shape[-2:], mode='bilinear', align_corners=False)",
    "size by place": "F.interpolate(z, x.size()[2:], None, 'bilinear')",
    "height and width": "F.interpolate(z, (x.shape[2], x.shape[3]), mode='bilinear')",
    "corners": "F.interpolate(z, size=x.shape[2:], mode='bilinear', align_corners=True)",
    "one size": "F.interpolate(input=z, size=24, mode='bilinear')",
    "factor": "F.interpolate(z, scale_factor=2, mode='bilinear', align_corners=False)",
    "factors": "F.interpolate(z, scale_factor=(2.0, 3), mode='bilinear', align_corners=False)",
    "half": "F.interpolate(z, scale_factor=0.5, mode='bilinear', align_corners=False)",
    "fraction": "F.interpolate(z, scale_factor=2.6, mode='bilinear', align_corners=True)",
    "recomputed": "F.interpolate(z, None, 2.3, 'bilinear', False, True)",
    "F.upsample": "F.upsample(z, scale_factor=2, mode='bilinear')",
    "F.upsample_bilinear": "F.upsample_bilinear(z, scale_factor=2)",
    "Upsample": "self.up(z)",
    "UpsamplingBilinear2d": "self.up_corners(z)",
    "in a Sequential": "self.ups(z)",
    "named mode": "F.interpolate(z, scale_factor=2, mode=self.mode)",
    "in a method": "self.method(z, x)",
    "in a function": "resized(z, x)",
    "in a child": "self.child(z, x)",
    "in a child's dict": "self.of_dict(z, x)['out']",
    "in a child's child": "self.nested(z, x)[0]['out']",
}
"""Expressions of the logits ``z`` and the image ``x``."""

CLASS_MAPS = {
    "argmax": "u.argmax(1)",
    "dim": "u.argmax(dim=1)",
    "last but two": "u.argmax(-3)",
    "axis": "u.argmax(axis=1)",
    "keepdim": "u.argmax(1, keepdim=True)",
    "keepdim by place": "u.argmax(1, True)",
    "torch.argmax": "torch.argmax(u, dim=1)",
    "torch.argmax of input": "torch.argmax(input=u, dim=1, keepdim=True)",
    "max": "u.max(1)[1]",
    "max, last": "u.max(dim=1)[-1]",
    "indices": "u.max(dim=1, keepdim=True).indices",
    "torch.max": "torch.max(u, 1)[1]",
    "torch.max, indices": "torch.max(u, dim=1).indices.float()",
    "detached": "u.detach().argmax(1)",
    "data": "u.data.max(1)[1]",
    "contiguous": "u.contiguous().argmax(1).to(torch.uint8)",
    "identity": "self.identity(u).argmax(1)",
    "in a child": "self.classes(u)",
}
"""Expressions of the upsampled logits ``u``."""

LOSSES = {
    "F.cross_entropy": "F.cross_entropy(u, y)",
    "by name": "F.cross_entropy(input=u, target=y, reduction='sum')",
    "all options": "F.cross_entropy(u, y, self.w, None, 3, None, 'mean', 0.1)",
    "of pixels": "F.cross_entropy(u, y, ignore_index=2, reduction='none')",
    "long": "F.cross_entropy(u, y.int().long(), weight=self.w)",
    "CrossEntropyLoss": "self.loss(u, y)",
    "CrossEntropyLoss by name": "self.loss(input=u, target=y)",
    "with options": "self.weighted(u, y)",
    "in a child": "self.of_child(u, y)",
    "subclass": "self.of_subclass(u, y)",
    "contiguous": "self.loss(u.contiguous(), y)",
}
"""Expressions of the upsampled logits ``u`` and the target ``y``."""


def resized(z, like):
    return F.interpolate(z, like.shape[2:], mode="bilinear", align_corners=False)


class Child(nn.Module):
    def forward(self, z, x):
        size = x.shape[-2:]
        return F.interpolate(z, size=size, mode="bilinear", align_corners=False)


class OfDict(nn.Module):
    def forward(self, z, x):
        return {"out": resized(z, x), "in": z}


class Nested(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = OfDict()

    def forward(self, z, x):
        return self.inner(z, x), z


class Classes(nn.Module):
    def forward(self, u):
        return u.max(1).indices


class Loss(nn.Module):
    def __init__(self, ignored=4):
        super().__init__()
        self.ignored = ignored
        self.register_buffer("weight", torch.linspace(0.5, 2, CLASSES, dtype=torch.float64))

    def forward(self, scores, truth):
        return 2 * F.cross_entropy(scores, truth, self.weight, ignore_index=self.ignored)


class OwnCrossEntropy(nn.CrossEntropyLoss):
    def forward(self, scores, truth):
        return super().forward(scores, truth)


class Base(nn.Module):
    """Logits of half the image's size, in float64, and all parts that a forward may want."""

    mode = "bilinear"

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, CLASSES, 3, stride=2, padding=1)
        self.up = nn.Upsample(scale_factor=2, mode="bilinear")
        self.up_corners = nn.UpsamplingBilinear2d(size=(9, 14))
        self.ups = nn.Sequential(nn.Identity(), nn.Upsample(size=(9, 7), mode="bilinear"))
        self.child, self.of_dict, self.nested = Child(), OfDict(), Nested()
        self.classes, self.identity = Classes(), nn.Identity()
        self.loss, self.of_subclass = nn.CrossEntropyLoss(), OwnCrossEntropy(ignore_index=0)
        weight = torch.linspace(0.5, 2, CLASSES)
        self.weighted = nn.CrossEntropyLoss(weight, ignore_index=5, label_smoothing=0.2)
        self.of_child = Loss()
        self.register_buffer("w", weight + 1)
        self.double()

    def method(self, z, x):
        return resized(z, x)


def model_of(*lines: str, arguments: str = "x") -> nn.Module:
    """A model with a forward of these lines, in which ``z`` is the logits of the image ``x``."""
    body = textwrap.indent("\n".join(["z = self.conv(x)", *lines]), "        ")
    source = f"class Model(Base):\n    def forward(self, {arguments}):\n{body}\n"
    namespace = dict(globals())
    exec(source, namespace)
    torch.manual_seed(0)
    return namespace["Model"]().eval()


def image(n: int = 2, height: int = 12, width: int = 16) -> torch.Tensor:
    """An image in float64."""
    return torch.randn(n, 3, height, width, dtype=torch.float64)


def target_like(u: torch.Tensor) -> torch.Tensor:
    """Classes (N, H, W) for upsampled logits."""
    return torch.randint(0, CLASSES, (u.shape[0], *u.shape[2:]))
