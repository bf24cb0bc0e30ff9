"""optimize_ finds upsampled logits of which the class map or the cross-entropy alone is wanted."""

import copy
import itertools
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fastseg
from tests.optimize.heads import CLASS_MAPS, LOSSES, UPSAMPLINGS, image, model_of, target_like
from tests.optimize.optimize_cases import Calls

OPS = {"fastseg.upsample_argmax": "upsample_argmax",
       "fastseg.upsample_cross_entropy": "upsample_cross_entropy"}  # fmt: skip
READERS = ("argmax", "max", "F.cross_entropy", "CrossEntropyLoss")


def entries(report, part="swapped"):
    """The details of the report's entries of readers."""
    return [e.detail for e in getattr(report, part) if e.module in READERS]


def called(model, *args, **kwargs):
    """What a model returns, and the names of the ops that ran."""
    with Calls() as calls, warnings.catch_warnings(action="ignore"):
        value = model(*args, **kwargs)
    return value, calls.names


def same(actual, expected):
    assert actual.dtype == expected.dtype
    torch.testing.assert_close(actual, expected, rtol=1e-11, atol=1e-11, equal_nan=True)


# Each way to upsample with one way to read, and each way to read with one way to upsample.
PAIRS = [
    *itertools.product(UPSAMPLINGS, ["argmax"]),
    *itertools.product(["size", "in a child", "Upsample"], CLASS_MAPS),
]


@pytest.mark.parametrize("mode", ["train", "infer"])
@pytest.mark.parametrize(("upsampling", "reader"), PAIRS)
def test_class_maps_are_found(upsampling, reader, mode):
    model, x = model_of(f"u = {UPSAMPLINGS[upsampling]}", f"return {CLASS_MAPS[reader]}"), image()
    ours = copy.deepcopy(model)
    with warnings.catch_warnings(action="ignore"):
        report = fastseg.optimize_(ours, mode=mode)
        expected = model(x)
    assert entries(report) == ["fastseg.upsample_argmax"], report
    for training in (False, True) if mode == "train" else (False,):
        value, names = called(ours.train(training), x)
        assert "upsample_argmax" in names
        assert not {"upsample_bilinear2d", "argmax", "max"} & {*names}
        same(value, expected)
    fastseg.restore_(ours)
    assert called(ours, x)[1].count("upsample_bilinear2d") == 1


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(
    ("upsampling", "reader"),
    [
        *itertools.product(UPSAMPLINGS, ["F.cross_entropy"]),
        *itertools.product(["size", "in a child", "Upsample"], LOSSES),
    ],
)
def test_losses_are_found(upsampling, reader, training):
    lines = [f"u = {UPSAMPLINGS[upsampling]}"]
    x = image().requires_grad_()
    with warnings.catch_warnings(action="ignore"):
        y = target_like(model_of(*lines, "return u")(x))
    model = model_of(*lines, f"return {LOSSES[reader]}", arguments="x, y").train(training)
    ours = copy.deepcopy(model)
    with warnings.catch_warnings(action="ignore"):
        report = fastseg.optimize_(ours)
        expected = model(x, y)
    assert entries(report) == ["fastseg.upsample_cross_entropy"], report
    value, names = called(ours, x, y)
    assert "upsample_cross_entropy" in names
    assert "upsample_bilinear2d" not in names
    same(value, expected)
    wanted = [x, *model.conv.parameters()], [x, *ours.conv.parameters()]
    gradients = [
        torch.autograd.grad(loss.sum() * 3, tensors)
        for loss, tensors in zip((expected, value), wanted, strict=True)
    ]
    for ours_, theirs in zip(*gradients, strict=True):
        same(ours_, theirs)


SIZE = f"u = {UPSAMPLINGS['size']}"
REFUSED = {
    "returned": (SIZE, "return u.argmax(1), u", "read elsewhere"),
    "two readers": (SIZE, "return u.argmax(1), u.argmax(1)", "read elsewhere"),
    "its size": (SIZE, "return u.argmax(1), u.shape", "read elsewhere"),
    "a hook": (f"{SIZE}\nu.register_hook(print)", "return u.argmax(1)", "raises NotImplemented"),
    "kept gradient": (f"{SIZE}\nu.retain_grad()", "return self.loss(u, y)", "read elsewhere"),
    "pseudo-labels": (SIZE, "return self.loss(u, u.argmax(1))", "read elsewhere"),
    "of itself": (SIZE, "return F.cross_entropy(u, u)", "read elsewhere"),
    "written to": (f"{SIZE}\nu.mul_(-1)", "return u.argmax(1)", "read elsewhere"),
    "a method's result": (f"{SIZE}\nv = u.contiguous()", "return v.argmax(1), v", "read elsewhere"),
    "logits written to": (f"{SIZE}\nz.mul_(-1)", "return u.argmax(1)", "may be written to"),
    "in a child's dict": (
        f"d = {UPSAMPLINGS['in a child']}, z",
        "return d[0].argmax(1), d",
        "read elsewhere",
    ),
    "largest values": (SIZE, "return u.max(1)", "largest logits are read too"),
    "values": (SIZE, "return u.max(1).values, u.mean()", "largest logits are read too"),
    "all pixels": (SIZE, "return u.argmax()", "not of the classes"),
    "rows": (SIZE, "return u.argmax(dim=2)", "not of the classes"),
    "last": (SIZE, "return torch.max(u, -1)[1]", "not of the classes"),
    "softmax": (SIZE, "return u.softmax(1).argmax(1)", "softmax stands between"),
    "F.softmax": (SIZE, "return F.softmax(u, dim=1).argmax(1)", "softmax stands between"),
    "log_softmax": (SIZE, "return u.log_softmax(1).argmax(1)", "log_softmax stands between"),
    "sigmoid": (SIZE, "return torch.sigmoid(u).max(1)[1]", "sigmoid stands between"),
    "Softmax": (SIZE, "return nn.Softmax(1)(u).argmax(1)", "none of its own"),
    "some classes": (SIZE, "return u[:, 1:].argmax(1)", "getitem stands between"),
    "scaled": (SIZE, "return (u / 3).argmax(1)", "truediv stands between"),
    "float": (SIZE, "return u.float().argmax(1)", "float stands between"),
    "detached loss": (SIZE, "return self.loss(u.detach(), y)", "detach stands between"),
    "nearest": ("u = F.interpolate(z, scale_factor=2)", "return u.argmax(1)", "is nearest"),
    "bicubic": (
        "u = F.interpolate(z, scale_factor=2, mode='bicubic')",
        "return u.argmax(1)",
        "is bicubic",
    ),
    "antialias": (
        "u = F.interpolate(z, scale_factor=0.5, mode='bilinear', antialias=True)",
        "return u.argmax(1)",
        "against aliases",
    ),
    "gradient mode": (
        f"with torch.no_grad():\n    {SIZE}",
        "return u.argmax(1)",
        "changes the gradient mode",
    ),
    "sizes": (f"{SIZE}\nif x.shape[2] > 1: u = 2 * u", "return u.argmax(1)", "decides by values"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_others_are_left_for_a_reason(case):
    *lines, reason = REFUSED[case]
    arguments = "x, y" if "y)" in lines[-1] else "x"
    model, x = model_of(*lines, arguments=arguments), image()
    given = (x, target_like(x)) if arguments == "x, y" else (x,)
    ours = copy.deepcopy(model)
    report = fastseg.optimize_(ours, mode="train")
    assert entries(report) == []
    left = entries(report, "left")
    assert left
    assert all(reason in detail for detail in left), left
    assert left[0] in str(report)
    expected = outcome(model, *given)
    value = outcome(ours, *given)
    torch.testing.assert_close(value, expected, rtol=0, atol=0)


def outcome(model, *args):
    """What a model returns, or the class of what it raises."""
    try:
        return model(*args)
    except Exception as error:
        return repr(type(error))


def test_places_without_an_upsampling_are_no_places():
    model = model_of("z = F.max_pool2d(z, 2)", "return self.loss(z, z.argmax(1)) + z.max()")
    report = fastseg.optimize_(model)
    assert not entries(report) + entries(report, "left")


def test_several_places_of_one_forward():
    model = model_of(
        "a, b = resized(z, x), resized(2 * z, x)",
        "loss = self.loss(a, y) + 0.4 * self.weighted(b, y)",
        "return loss, resized(z, x).argmax(1), self.up(z)",
        arguments="x, y",
    )
    x = image()
    y = target_like(x)
    expected = model(x, y)
    report = fastseg.optimize_(model)
    assert sorted(entries(report)) == [
        "fastseg.upsample_argmax", *["fastseg.upsample_cross_entropy"] * 2
    ]  # fmt: skip
    value, names = called(model, x, y)
    assert names.count("upsample_cross_entropy") == 2
    for actual, wanted in zip(value, expected, strict=True):
        same(actual, wanted)


def test_logits_that_are_written_to_after_their_loss_have_their_gradient():
    lines = [SIZE, "loss = self.loss(u, y)", "return loss, z"]
    model, x = model_of(*lines, arguments="x, y"), image()
    y, gradients = target_like(x), []
    ours = copy.deepcopy(model)
    assert entries(fastseg.optimize_(ours)) == ["fastseg.upsample_cross_entropy"]
    for m in (model, ours):
        loss, z = m(x, y)
        z.detach().zero_()
        z.mul_(2)
        loss.backward()
        gradients.append(m.conv.weight.grad)
    same(*gradients)


def test_filter_and_dry_run():
    model = model_of(SIZE, "return u.argmax(1)")
    asked = []
    report = fastseg.optimize_(model, filter_fn=lambda m, name: asked.append(m) or m is not model)
    assert entries(report, "left") == ["filter_fn"]
    assert model in asked
    fastseg.restore_(model)
    report = fastseg.optimize_(model, dry_run=True)
    assert entries(report) == ["fastseg.upsample_argmax"]
    assert type(model).__name__ == "Model"


def test_hooks_of_modules_are_called():
    for name, reader in {"up": "u.argmax(1)", "identity": "self.identity(u).argmax(1)"}.items():
        model, x, seen = model_of("u = self.up(z)", f"return {reader}"), image(), []
        expected = model(x)
        fastseg.optimize_(model)
        getattr(model, name).register_forward_hook(lambda m, i, o, seen=seen: seen.append(o))
        value, names = called(model, x)
        assert len(seen) == 1
        assert "upsample_argmax" not in names
        assert torch.equal(value, expected)
        fastseg.restore_(model)
        left = entries(fastseg.optimize_(model), "left")
        assert left
        assert "hooks" in left[0] or "stands between" in left[0]


def test_hooks_in_children_are_called():
    model, x, seen = model_of(f"u = {UPSAMPLINGS['in a child']}", "return u.argmax(1)"), image(), []
    expected = model(x)
    handle = model.child.register_forward_hook(lambda m, i, o: seen.append(o))
    left = entries(fastseg.optimize_(model), "left")
    assert left == ["in Child: has hooks or another forward than its class's"]
    assert torch.equal(model(x), expected)
    assert len(seen) == 1
    handle.remove()
    fastseg.restore_(model)
    fastseg.optimize_(model)
    assert "upsample_argmax" in called(model, x)[1]
    model.child.register_forward_hook(lambda m, i, o: seen.append(o))
    assert torch.equal(model(x), expected)
    assert len(seen) == 2


def test_a_head_without_a_convolution():
    class Head(nn.Module):
        def forward(self, logits):
            return F.interpolate(logits, scale_factor=4, mode="bilinear").argmax(1)

    model = nn.Sequential(nn.Conv2d(3, 4, 1), Head())
    report = fastseg.optimize_(model)
    assert [e.name for e in report.swapped if e.module == "argmax"] == ["1"]
    assert "upsample_argmax" in called(model, torch.randn(1, 3, 4, 4))[1]
