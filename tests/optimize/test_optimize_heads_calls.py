"""Each call of an optimised model reads all options of what reduces its upsampled logits."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fastseg
from tests.optimize.heads import CLASSES, image, model_of, target_like
from tests.optimize.optimize_cases import Calls
from tests.optimize.test_optimize_heads import called, entries, same


class Tail(nn.Module):
    """The class map of logits, by attributes that its forward reads."""

    def __init__(self, size=None, factor=None, corners=False, recomputed=None):
        super().__init__()
        self.size, self.factor, self.corners, self.recomputed = size, factor, corners, recomputed

    def forward(self, z):
        u = F.interpolate(
            z,
            self.size,
            self.factor,
            "bilinear",
            self.corners,
            recompute_scale_factor=self.recomputed,
        )
        return u.argmax(1)


class LossTail(nn.Module):
    """The cross-entropy of logits that are upsampled twofold."""

    def __init__(self, **options):
        super().__init__()
        self.up, self.loss = nn.Upsample(None, 2, "bilinear"), nn.CrossEntropyLoss(**options)

    def forward(self, z, y):
        return self.loss(self.up(z), y)


def outcome(model, *args):
    """What a model returns, or the class and the words of what it raises."""
    try:
        return model(*args)
    except Exception as error:
        return type(error), str(error)


def agree(model, ours, *args, by_op: bool):
    """Asserts that both return or raise the same, and whether the op has computed it."""
    with Calls() as calls:
        actual = outcome(ours, *args)
    expected = outcome(model, *args)
    if isinstance(expected, tuple):
        assert actual == expected
    else:
        same(actual, expected)
    assert any(name.startswith("upsample_") and "bilinear" not in name for name in calls.names) is (
        by_op
    ), calls.names


LOGITS = torch.linspace(-3, 3, 2 * CLASSES * 30, dtype=torch.float64).sin().view(2, CLASSES, 5, 6)
NAN = LOGITS.clone()
NAN[:, 3, 2, 2], NAN[:, 2, 1, 1], NAN[:, 4, 4, 4] = torch.nan, torch.inf, -torch.inf
INPUTS = {
    "double": (LOGITS, True),
    "float": (LOGITS.float(), True),
    "one class": (LOGITS[:, :1], True),
    "one pixel": (LOGITS[:, :, :1, :1], True),
    "strided": (LOGITS.transpose(2, 3)[:, ::2], True),
    "channels_last": (LOGITS.to(memory_format=torch.channels_last), True),
    "not finite": (NAN, True),
    "with a gradient": (LOGITS.clone().requires_grad_(), True),
    "no image": (LOGITS[:0], False),
    "no class": (LOGITS[:, :0], False),
    "parameter": (nn.Parameter(LOGITS), False),
    "three dimensions": (LOGITS[0], False),
    "five dimensions": (LOGITS[None], False),
    "uint8": ((LOGITS * 50).abs().to(torch.uint8), False),
    "int64": ((LOGITS * 50).long(), False),
    "complex": (LOGITS.to(torch.complex64), False),
    "meta": (LOGITS.to("meta"), False),
}


@pytest.mark.parametrize("kind", INPUTS)
def test_logits(kind):
    z, by_op = INPUTS[kind]
    model = Tail((9, 13))
    ours = copy.deepcopy(model)
    assert entries(fastseg.optimize_(ours)) == ["fastseg.upsample_argmax"]
    if kind == "meta":
        assert ours(z).shape == (2, 9, 13)
    else:
        agree(model, ours, z, by_op=by_op)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_halves_where_the_largest_logits_differ(dtype):
    z = (LOGITS * 8).to(dtype)
    ours = Tail((9, 13))
    fastseg.optimize_(ours)
    value, names = called(ours, z)
    assert "upsample_argmax" in names
    top = F.interpolate(z.double(), (9, 13), mode="bilinear").topk(2, 1)
    apart = top.values[:, 0] - top.values[:, 1] > 0.3
    assert apart.float().mean() > 0.5
    assert torch.equal(value[apart], top.indices[:, 0][apart])


SIZES = {
    "sizes": ({"size": [9, 13]}, True),
    "one size": ({"size": 9}, True),
    "corners": ({"size": (9, 13), "corners": True}, True),
    "corners, none": ({"size": (9, 13), "corners": None}, True),
    "factor": ({"factor": 2}, True),
    "whole by a fraction": ({"factor": (1.4, 1.5)}, True),
    "a fraction": ({"factor": 2.3}, False),
    "a fraction of corners": ({"factor": 2.3, "corners": True}, True),
    "a fraction, recomputed": ({"factor": 2.3, "recomputed": True}, True),
    "smaller than a pixel": ({"factor": 0.1}, False),
    "negative": ({"size": (-1, 3)}, False),
    "no pixel": ({"size": (0, 3)}, False),
    "three sizes": ({"size": (3, 3, 3)}, False),
    "size of fractions": ({"size": (3.0, 3.0)}, False),
    "both": ({"size": (3, 3), "factor": 2}, False),
    "neither": ({}, False),
    "size, recomputed": ({"size": (9, 13), "recomputed": True}, False),
    "corners of a number": ({"size": (9, 13), "corners": 1}, False),
    "infinite": ({"factor": float("inf")}, False),
    "not a number": ({"factor": float("nan")}, False),
    "text": ({"size": "ab"}, False),
}


@pytest.mark.parametrize("case", SIZES)
def test_sizes(case):
    """The options are changed after optimize_, too."""
    options, by_op = SIZES[case]
    model = Tail(**options)
    ours = copy.deepcopy(model)
    fastseg.optimize_(ours)
    agree(model, ours, LOGITS, by_op=by_op)
    ours = nn.Sequential(nn.Upsample((4, 4), None, "bilinear"), Argmax())
    fastseg.optimize_(ours)
    up = ours[0]
    up.size, up.scale_factor = options.get("size"), options.get("factor")
    up.align_corners = options.get("corners", False)
    up.recompute_scale_factor = options.get("recomputed")
    agree(model, ours, LOGITS, by_op=by_op)


class Argmax(nn.Module):
    def forward(self, u):
        return u.argmax(1)


def test_other_modes_after_optimize():
    for mode in ("nearest", "bicubic"):
        ours = nn.Sequential(nn.Upsample((9, 13), None, "bilinear"), Argmax())
        fastseg.optimize_(ours)
        ours[0].mode = mode
        expected = F.interpolate(LOGITS, (9, 13), mode=mode).argmax(1)
        value, names = called(ours, LOGITS)
        assert torch.equal(value, expected)
        assert "upsample_argmax" not in names


Y = torch.arange(2 * 10 * 12).view(2, 10, 12) % CLASSES
WEIGHT = torch.linspace(0.5, 2, CLASSES, dtype=torch.float64)
LOSSES = {
    "classes": (Y, {}, True),
    "weight": (Y, {"weight": WEIGHT}, True),
    "all options": (
        Y,
        {"weight": WEIGHT, "ignore_index": 3, "label_smoothing": 0.3, "reduction": "sum"},
        True,
    ),
    "smoothing of one": (Y, {"label_smoothing": 1}, True),
    "of pixels": (Y, {"reduction": "none", "ignore_index": 0}, True),
    "255": (torch.where(Y == 3, 255, Y), {"ignore_index": 255}, True),
    "negative": (torch.where(Y == 3, -7, Y), {"ignore_index": -7}, True),
    "all ignored": (torch.full_like(Y, -100), {}, True),
    "strided": (Y.mT.contiguous().mT, {}, True),
    "probabilities": (F.one_hot(Y, CLASSES).movedim(3, 1).double(), {}, False),
    "no class": (Y + 1, {}, False),
    "below zero": (Y - 1, {"weight": WEIGHT}, False),
    "another size": (Y[:, 1:], {}, False),
    "another batch": (Y[:1], {}, False),
    "int32": (Y.int(), {}, False),
    "uint8": (Y.byte(), {}, False),
    "float weight": (Y, {"weight": WEIGHT.float()}, False),
    "short weight": (Y, {"weight": WEIGHT[1:]}, False),
    "smoothing": (Y, {"label_smoothing": 1.5}, False),
    "reduction": (Y, {"reduction": "median"}, False),
    "no target": (None, {}, False),
}


@pytest.mark.parametrize("changed", [False, True])
@pytest.mark.parametrize("case", LOSSES)
def test_losses(case, changed):
    """The options are changed after optimize_, too."""
    y, options, by_op = LOSSES[case]
    model = LossTail(**options)
    ours = copy.deepcopy(model)
    if changed:
        ours = LossTail(weight=None if "weight" not in options else WEIGHT + 1)
    assert entries(fastseg.optimize_(ours)) == ["fastseg.upsample_cross_entropy"]
    for name, value in options.items():
        setattr(ours.loss, name, value)
    agree(model, ours, LOGITS, y, by_op=by_op or case in ("no class", "below zero"))
    gradients = []
    for m in (model, ours):
        z = LOGITS.clone().requires_grad_()
        loss = outcome(m, z, y)
        if not isinstance(loss, tuple):
            gradients += torch.autograd.grad(loss.sum(), z)
    if gradients:
        same(*gradients)


def test_deprecated_reductions():
    class Old(nn.Module):
        def __init__(self):
            super().__init__()
            self.size_average = True

        def forward(self, z, y):
            u = F.interpolate(z, scale_factor=2, mode="bilinear")
            return F.cross_entropy(u, y, size_average=self.size_average)

    model = Old()
    ours = copy.deepcopy(model)
    fastseg.optimize_(ours)
    with pytest.warns(UserWarning, match="size_average"):
        agree(model, ours, LOGITS, Y, by_op=False)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_autocast(dtype):
    model = LossTail(weight=WEIGHT.float())
    ours = copy.deepcopy(model)
    fastseg.optimize_(ours)
    z = LOGITS.to(dtype)
    with torch.autocast("cpu"):
        expected = outcome(model, z, Y)
        value = outcome(ours, z, Y)
    if isinstance(expected, tuple):
        assert value == expected
    else:
        assert value.dtype == expected.dtype
        torch.testing.assert_close(value, expected, rtol=1e-3, atol=1e-3)


def test_replaced_criterion_and_weight():
    model = LossTail(weight=WEIGHT)
    ours = copy.deepcopy(model)
    fastseg.optimize_(ours)
    for m in (model, ours):
        m.loss.weight = 2 * WEIGHT
        m.loss.weight[2] = 0
    agree(model, ours, LOGITS, Y, by_op=True)
    for m in (model, ours):
        m.loss = nn.CrossEntropyLoss(ignore_index=1)
    agree(model, ours, LOGITS, Y, by_op=False)
    for m in (model, ours):
        m.loss = nn.NLLLoss()
    agree(model, ours, LOGITS, Y, by_op=False)


@pytest.mark.parametrize(
    "optional", ["y=None", "y=None, scale=1.0", "y=None, w=None", "*, y=None", "y=None, *, w=None"]
)
def test_optional_targets(optional):
    given_w = "self.w if w is None else w" if "w=None" in optional else "self.w"
    model = model_of(
        "u = resized(z, x)",
        "if y is not None:",
        f"    return F.cross_entropy(u, y, {given_w})",
        "return u.argmax(1)",
        arguments=f"x, {optional}",
    )
    ours, x = copy.deepcopy(model), image()
    y, w = target_like(x), model.w + 1
    report = fastseg.optimize_(ours)
    assert set(entries(report)) == {"fastseg.upsample_argmax", "fastseg.upsample_cross_entropy"}
    calls = [((x,), {}), ((x,), {"y": y}), ((x,), {"y": None}), ((), {"y": y, "x": x})]
    if not optional.startswith("*"):
        calls += [((x, None), {}), ((x, y), {})]
    if "w=None" in optional:
        calls += [((x,), {"w": w, "y": y}), ((x,), {"w": None, "y": y})]
    if optional == "y=None, w=None":
        calls += [((x, y, w), {})]
    for twin in (ours, copy.deepcopy(ours)):
        for args, kwargs in calls:
            value, names = called(twin, *args, **kwargs)
            assert {"upsample_argmax", "upsample_cross_entropy"} & {*names}
            same(value, model(*args, **kwargs))
    if "scale" in optional:
        assert "upsample_bilinear2d" in called(ours, x, y, 2.0)[1]
    for args, kwargs in [((), {}), ((x,), {"x": x}), ((x,), {"z": y}), ((x, y, w, x), {})]:
        with pytest.raises(TypeError):
            ours(*args, **kwargs)


def test_forwards_that_differ_between_modes():
    model = model_of(
        "u = resized(z, x)",
        "return self.loss(u, y) if self.training else u.argmax(1)",
        arguments="x, y=None",
    )
    ours, x = copy.deepcopy(model), image()
    y = target_like(x)
    fastseg.optimize_(ours)
    for training, name in [(True, "cross_entropy"), (False, "argmax"), (True, "cross_entropy")]:
        value, names = called(ours.train(training), x, y)
        assert f"upsample_{name}" in names
        same(value, model.train(training)(x, y))
    ours.train()
    assert outcome(ours, x) == outcome(model.train(), x)


def test_pickled_and_copied(tmp_path):
    model = nn.Sequential(nn.Conv2d(3, CLASSES, 1), Tail(factor=2), nn.Identity())
    x = torch.randn(1, 3, 5, 6)
    keys = [*model.state_dict()]
    expected = model(x)
    fastseg.optimize_(model)
    assert [*model.state_dict()] == keys
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        value, names = called(twin, x)
        assert "upsample_argmax" in names
        assert torch.equal(value, expected)
        twin[1].factor = 3
        assert twin(x).shape == (1, 15, 18)
        assert model(x).shape == (1, 10, 12)
    same(torch.fx.symbolic_trace(model)(x), expected)
    same(torch.jit.trace(model, x)(torch.cat([x, x]))[:1], expected)


def test_compiled_and_exported():
    model = model_of(
        "u = self.up(z)",
        "if y is not None:",
        "    return self.weighted(u, y)",
        "return u.argmax(1)",
        arguments="x, y=None",
    )
    ours, x = copy.deepcopy(model), image()
    y = target_like(x)
    fastseg.optimize_(ours)
    compiled = torch.compile(ours, fullgraph=True, backend="aot_eager")
    same(compiled(x), model(x))
    same(compiled(x, y), model(x, y))
    ours.weighted.ignore_index = model.weighted.ignore_index = 1
    same(compiled(x, y), model(x, y))
    exported = torch.export.export(ours, (x,)).module()
    same(exported(x), model(x))


def test_func_transforms():
    model = LossTail(weight=WEIGHT)
    ours = copy.deepcopy(model)
    fastseg.optimize_(ours)
    same(*(torch.func.grad(m)(LOGITS, Y) for m in (ours, model)))
    same(*(torch.vmap(m)(LOGITS[:, None], Y[:, None]) for m in (ours, model)))
    same(*(torch.func.hessian(lambda z, m=m: m(z, Y[:1]))(LOGITS[:1]) for m in (ours, model)))
    tangents = torch.ones_like(LOGITS)
    results = [
        torch.func.jvp(lambda z, m=m: m(z, Y), (LOGITS,), (tangents,)) for m in (ours, model)
    ]
    for actual, expected in zip(*results, strict=True):
        same(actual, expected)


def test_gradient_of_the_gradient():
    model = LossTail(weight=WEIGHT, label_smoothing=0.1)
    ours, penalties = copy.deepcopy(model), []
    fastseg.optimize_(ours)
    for m in (model, ours):
        z = LOGITS.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(m(z, Y), z, create_graph=True)
        penalties += torch.autograd.grad(gradient.square().sum(), z)
    same(*penalties)
