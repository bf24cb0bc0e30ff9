"""The cases of what follows the logits."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

import fastseg
from benchmarks import (
    confusion_matrix,
    distance_transform,
    pixel_adaptive_refinement,
    upsample_argmax,
    upsample_cross_entropy,
)
from benchmarks.gpu.figures import OURS, as_on_cpu, job
from benchmarks.gpu.worker import Job
from benchmarks.harness import Candidate, Case, nbytes

VOID = 255
"""The class of ignored pixels."""


def class_map_case(shape, size: tuple[int, int]) -> Case:
    """Returns the case of the class map of smooth logits."""
    return upsample_argmax.case_of(upsample_argmax.blobs(shape, "cuda"), size, "")


def loss_case(loss: str, shape: str) -> Case:
    """Returns the case of a loss's step."""
    case = upsample_cross_entropy.case(loss, shape, "cuda")
    candidates = [Candidate(c.name, torch.enable_grad()(c.run)) for c in case.candidates]
    return replace(case, candidates=candidates, check=torch.enable_grad()(case.check))


class EightfoldTarget:
    """Logits and a target eight times as large: what the parts of a loss are measured on."""

    def __init__(self, classes: int, rows: int, width: int):
        self.classes = classes
        self.logits = torch.randn(1, classes, rows, width, device="cuda", requires_grad=True)
        size = 1, 8 * rows, 8 * width
        self.ids = torch.randint(0, classes, size, device="cuda")  # as torch's ops take them
        self.target = self.ids.byte()

    def upsampled(self) -> Tensor:
        """Returns logits of the target's size."""
        return F.interpolate(self.logits, self.target.shape[1:], mode="bilinear")

    def loss(self) -> Tensor:
        """Returns the cross-entropy by the op."""
        return fastseg.upsample_cross_entropy(self.logits, self.target, ignore_index=VOID)

    def eager_loss(self) -> Tensor:
        """Returns the cross-entropy by torch's two ops."""
        return F.cross_entropy(self.upsampled(), self.ids)

    def counts(self) -> Tensor:
        """Returns the confusion matrix by the op."""
        return fastseg.upsample_confusion_matrix(self.logits, self.target, ignore_index=VOID)

    def eager_counts(self) -> Tensor:
        """Returns the confusion matrix by torch's three ops."""
        pairs = self.ids * self.classes + self.upsampled().argmax(1)
        return torch.bincount(pairs.flatten(), minlength=self.classes**2).view(self.classes, -1)

    def gradient(self, loss: Tensor) -> Tensor:
        """Returns the gradient of the logits, for which the loss's graph is kept."""
        return torch.autograd.grad(loss, self.logits, retain_graph=True)[0]

    def case(self, op: str, ours: Callable[[], Tensor], eager: Callable[[], Tensor]) -> Case:
        """Returns the case of an op and of what it replaces."""

        def check():
            torch.testing.assert_close(ours(), eager(), rtol=1e-4, atol=1e-6)

        candidates = [Candidate(OURS, ours), Candidate("eager", eager)]
        return Case(op, "", candidates, check, nbytes(self.logits, self.target))


def forward_case(*size: int) -> Case:
    """Returns the case of the cross-entropy's value."""
    inputs = EightfoldTarget(*size)
    return inputs.case("upsample_cross_entropy", inputs.loss, inputs.eager_loss)


@torch.enable_grad()
def backward_case(*size: int) -> Case:
    """Returns the case of the cross-entropy's gradient alone."""
    inputs = EightfoldTarget(*size)
    losses = inputs.loss(), inputs.eager_loss()
    ours, eager = (partial(inputs.gradient, loss) for loss in losses)
    return inputs.case("upsample_cross_entropy_backward", ours, eager)


def logits_counts_case(*size: int) -> Case:
    """Returns the case of the confusion matrix from logits."""
    inputs = EightfoldTarget(*size)
    return inputs.case("upsample_confusion_matrix", inputs.counts, inputs.eager_counts)


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
    voc, cityscapes = "8x21x65x65 to 520x520, uint8", "1x19x128x256 to 1024x2048, uint8"
    for name, make in {
        f"upsample_cross_entropy {voc}": partial(forward_case, 21, 520, 65),
        f"upsample_cross_entropy_backward {voc}": partial(backward_case, 21, 520, 65),
        f"upsample_confusion_matrix {cityscapes}": partial(logits_counts_case, 19, 128, 256),
    }.items():
        yield job(name, make, modelled=name)
    for loss, shape in itertools.product(("cross_entropy",), upsample_cross_entropy.SHAPES):
        yield job(f"upsample_{loss} step, {shape}", partial(loss_case, loss, shape))
    name = "distance_transform 8x256x1024"
    yield job(name, distances_case, modelled=name)
    name = "pixel_adaptive_refinement 1x21x128x512, 10 iterations"
    yield job(name, refinement_case, modelled=name)
