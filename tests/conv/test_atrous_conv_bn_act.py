"""AtrousConvBNAct and SeparableAtrousConvBNAct beside torch's modules in a row."""

from __future__ import annotations

import copy
import io
import pickle
import weakref

import numpy as np
import pytest
import torch
from torch import nn
from torch.export import Dim, export

import fastseg
from fastseg.nn import AtrousConvBNAct, SeparableAtrousConvBNAct
from fastseg.reference import ACTIVATION
from tests.conv.conv_cases import ACTIVATION_NAMES, largest
from tests.pool.pool_cases import LAYOUTS, assert_identical, assert_layout

each_layout = pytest.mark.parametrize("layout", LAYOUTS, ids=("contiguous", "channels_last"))
OPTIONS = (
    {},
    {"kernel_size": 1, "bias": True},
    {"kernel_size": (3, 5), "stride": (2, 1), "dilation": (1, 2), "activation": "leaky_relu"},
    {"dilation": 6, "groups": 2, "activation": "silu", "eps": 1e-3},
    {"stride": 2, "padding": 1, "activation": None, "momentum": 0.3},
)
each_option = pytest.mark.parametrize("options", OPTIONS, ids=str)
SEPARABLE = ({"dilation": 4}, {"depthwise_batch_norm": True, "activation": "relu6"})


def plain(options):
    """The same of torch's modules."""
    options = {"kernel_size": 3, "dilation": 1, "bias": False, **options}
    activation = options.pop("activation", "relu")
    norm = {k: options.pop(k) for k in ("eps", "momentum") if k in options}
    if "padding" not in options:
        pairs = [
            v if isinstance(v, tuple) else (v, v)
            for v in map(options.get, ("kernel_size", "dilation"))
        ]
        options["padding"] = tuple(d * (k // 2) for k, d in zip(*pairs, strict=True))
    return nn.Sequential(nn.Conv2d(4, 6, **options), nn.BatchNorm2d(6, **norm)), activation


def pair_of(options):
    """Our module and torch's with the same parameters and statistics, in training."""
    ours = AtrousConvBNAct(4, 6, **options)
    theirs, activation = plain(options)
    unsettle(theirs)
    ours.load_state_dict(theirs.state_dict())

    def reference(x, residual=None):
        y = theirs(x)
        return ACTIVATION[activation or ""](y if residual is None else y + residual)

    return ours, theirs, reference


def unsettle(module):
    """Batch norms as after a training."""
    for m in module.modules():
        if isinstance(m, nn.BatchNorm2d):
            nn.init.normal_(m.weight)
            nn.init.normal_(m.bias)
            nn.init.normal_(m.running_mean)
            nn.init.uniform_(m.running_var, 0.5, 2)


def images(*shape, layout=LAYOUTS[0]):
    return torch.randn(shape or (2, 4, 9, 8)).contiguous(memory_format=layout)


def close(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5 * max(1, largest(expected)))


@each_layout
@each_option
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("with_residual", [False, True])
def test_results_and_gradients_are_torchs(with_residual, training, options, layout):
    ours, theirs, reference = pair_of(options)
    ours.train(training), theirs.train(training)
    x = images(layout=layout).requires_grad_()
    residual = torch.randn_like(theirs(x)).requires_grad_() if with_residual else None
    theirs.load_state_dict(ours.state_dict())
    y, expected = ours(x, residual), reference(x, residual)
    close(y, expected)
    assert_layout(y, layout)
    leaves = [x, *([residual] if with_residual else [])]
    grad = torch.randn_like(y)
    actual = torch.autograd.grad(y, [*leaves, *ours.parameters()], grad)
    wanted = torch.autograd.grad(expected, [*leaves, *theirs.parameters()], grad)
    for a, e in zip(actual, wanted, strict=True):
        torch.testing.assert_close(a, e, rtol=1e-3, atol=1e-4 * max(1, largest(e)))
    for (name, a), e in zip(ours.named_buffers(), theirs.buffers(), strict=True):
        torch.testing.assert_close(a, e, msg=name)


@each_option
def test_without_gradients_as_with_them(options):
    ours, theirs, reference = pair_of(options)
    ours.eval(), theirs.eval()
    x = images()
    with torch.no_grad():
        for _ in range(2):
            close(ours(x), reference(x))
    with torch.inference_mode():
        close(ours(x), reference(x))


@pytest.mark.parametrize("activation", ACTIVATION_NAMES, ids=str)
def test_evaluation_is_one_op(activation):
    module = AtrousConvBNAct(4, 6, activation=activation).eval()
    with torch.profiler.profile() as profile, torch.no_grad():
        module(images(), torch.randn(2, 6, 9, 8))
    names = [e.name for e in profile.events()]
    assert names.count("fastseg::atrous_conv2d") == 1
    assert "aten::batch_norm" not in names


@each_option
def test_state_dict_is_torchs(options):
    ours, theirs, _ = pair_of(options)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    theirs.load_state_dict(ours.state_dict())
    torch.manual_seed(7)
    a = AtrousConvBNAct(4, 6, **options).state_dict()
    torch.manual_seed(7)
    for key, t in plain(options)[0].state_dict().items():
        assert_identical(a[key], t)


def test_frozen_statistics_in_training():
    """A batch norm in evaluation inside of a module in training, as in fine-tuning."""
    ours, theirs, reference = pair_of({})
    for m in (ours, theirs):
        m.train()[1].eval()
    x = images()
    close(ours(x), reference(x))
    ours(x).sum().backward()
    assert all(p.grad is not None for p in ours.parameters())
    assert ours[1].num_batches_tracked == 0


def test_statistics_of_the_batch_in_evaluation():
    ours = AtrousConvBNAct(4, 6)
    ours[1] = nn.BatchNorm2d(6, track_running_stats=False)
    ours.eval()
    y = ours(x := images())
    close(y, nn.functional.batch_norm(ours[0](x), None, None, training=True).relu())


def test_batch_norm_without_affine():
    ours = AtrousConvBNAct(4, 6)
    ours[1] = nn.BatchNorm2d(6, affine=False)
    nn.init.normal_(ours[1].running_mean)
    ours.eval()
    x = images()
    with torch.no_grad():
        close(ours(x), ours[1](ours[0](x)).relu())


# What evaluation remembers.


CHANGES = {
    "running_var in place": lambda m: m[1].running_var.mul_(2),
    "running_mean in place": lambda m: m[1].running_mean.add_(1),
    "weight in place": lambda m: m[1].weight.mul_(-2),
    "bias by copy": lambda m: m[1].bias.copy_(torch.arange(6.0)),
    "weight.data": lambda m: setattr(m[1].weight, "data", torch.randn(6)),
    "another parameter": lambda m: setattr(m[1], "weight", nn.Parameter(torch.randn(6))),
    "another buffer": lambda m: setattr(m[1], "running_mean", torch.randn(6)),
    "another batch norm": lambda m: m.__setitem__(1, trained_batch_norm()),
    "eps": lambda m: setattr(m[1], "eps", 0.5),
    "load_state_dict": lambda m: m.load_state_dict(changed_state(m)),
    "load_state_dict(assign=True)": lambda m: m.load_state_dict(changed_state(m), assign=True),
    "training": lambda m: [m.train(), m(images()), m.eval()],
    "an optimizer's step": lambda m: step(m),
    "data in place, then eval()": lambda m: [m[1].running_var.data.mul_(3), m.eval()],
    "bfloat16 and back": lambda m: m.bfloat16().float(),
}


def trained_batch_norm():
    bn = nn.BatchNorm2d(6).eval()
    unsettle(bn)
    return bn


def changed_state(module):
    return {k: v * 2 if k.startswith("1.running") else v for k, v in module.state_dict().items()}


def step(module):
    optimizer = torch.optim.SGD(module.parameters(), lr=1.0)
    with torch.enable_grad():
        module(images()).sum().backward()
    optimizer.step()


@pytest.mark.parametrize("name", CHANGES)
@torch.no_grad()
def test_changes_of_the_batch_norm_count(name):
    ours, _, _ = pair_of({})
    ours.eval()
    x = images()
    before = ours(x)
    assert_identical(ours(x), before)
    CHANGES[name](ours)
    fresh = ours[1](ours[0](x)).relu()  # never folded
    close(ours(x), fresh)
    assert not torch.equal(before, ours(x))


@torch.no_grad()
def test_an_address_that_is_remembered_is_not_given_away():
    """A tensor that is replaced keeps its memory, or another may come to the same address."""
    ours = AtrousConvBNAct(4, 6).eval()
    x = images()
    owner = np.ones(6, np.float32)
    alive = weakref.ref(owner)
    ours[1].weight.data = torch.from_numpy(owner)
    del owner
    ours(x)
    ours[1].weight.data = torch.randn(6)
    assert alive() is not None
    close(ours(x), ours[1](ours[0](x)).relu())
    assert alive() is None  # no longer remembered


@torch.no_grad()
def test_what_is_folded_is_kept():
    ours = AtrousConvBNAct(4, 6).eval()
    first, second = ours.folded(), ours.folded()
    assert all(a is b for a, b in zip(first, second, strict=True))
    ours.train()
    assert ours.folded() is None
    assert ours.eval().folded()[0] is not first[0]
    with torch.enable_grad():
        assert all(t.requires_grad for t in ours.folded())


def test_inference_tensors_are_folded_anew():
    with torch.inference_mode():
        ours = AtrousConvBNAct(4, 6).eval()
        x = images()
        ours(x)
        ours[1].running_var.mul_(2)
        close(ours(x), ours[1](ours[0](x)).relu())


def test_dtypes():
    ours, theirs, reference = pair_of({})
    ours.eval().double(), theirs.eval().double()
    x = images().double()
    for _ in range(2):
        with torch.no_grad():
            torch.testing.assert_close(ours(x), reference(x))
    assert ours.folded()[0].dtype == torch.float64
    ours.bfloat16()
    y = ours(x.bfloat16())
    assert y.dtype == torch.bfloat16
    assert ours.folded()[0].dtype == torch.float32
    torch.testing.assert_close(y.double(), reference(x), rtol=0.05, atol=0.1)


# Copies, tracing, autocast.


def modules():
    return [
        *(pair_of(options)[0] for options in OPTIONS),
        *(SeparableAtrousConvBNAct(4, 6, **options) for options in SEPARABLE),
    ]


each_module = pytest.mark.parametrize("number", range(len(OPTIONS) + len(SEPARABLE)))


@each_module
@torch.no_grad()
def test_copies_are_equal_and_independent(number):
    module = modules()[number].eval()
    x = images()
    y = module(x)  # a copy of what has been folded would be wrong below
    saved = io.BytesIO()
    torch.save(module, saved)
    saved.seek(0)
    for other in (
        copy.deepcopy(module),
        pickle.loads(pickle.dumps(module)),
        torch.load(saved, weights_only=False),
    ):
        assert repr(other) == repr(module)
        assert_identical(other(x), y)
        other[-1].running_var.mul_(4)
        assert not torch.equal(other(x), y)
        assert_identical(module(x), y)


@each_module
@pytest.mark.parametrize("training", [True, False])
def test_compile(training, number):
    module = modules()[number].train(training)
    torch._dynamo.reset()
    compiled = torch.compile(copy.deepcopy(module), fullgraph=True, backend="aot_eager")
    x = images().requires_grad_()
    results = []
    for m in (module, compiled):
        y = m(x)
        results.append([y, *torch.autograd.grad(y.square().sum(), [x, *m.parameters()])])
    for a, e in zip(*results, strict=True):
        torch.testing.assert_close(a, e, rtol=1e-3, atol=1e-3)


@torch.no_grad()
def test_compiled_code_sees_changes():
    module = pair_of({})[0].eval()
    torch._dynamo.reset()
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    x = images()
    close(compiled(x), module(x))
    module[1].running_var.mul_(2)
    close(compiled(x), module(x))


@each_module
@pytest.mark.parametrize("strict", [True, False])
def test_export(strict, number):
    torch._dynamo.reset()
    module = modules()[number].eval()
    with torch.no_grad():
        module(images())
    dynamic = ({0: Dim.AUTO, 2: Dim.AUTO, 3: Dim.AUTO}, None)
    exported = export(module, (images(), None), dynamic_shapes=dynamic, strict=strict)
    for size in ((2, 4, 9, 8), (1, 4, 12, 13)):
        x = images(*size)
        torch.testing.assert_close(exported.module()(x, None), module(x))
    # The statistics are the program's own, not constants.
    program, before = exported.module(), module(x)
    for name, buffer in program.named_buffers():
        if name.endswith("running_var"):
            buffer.mul_(2)
    assert not torch.allclose(program(x, None), before)


@pytest.mark.parametrize("training", [True, False])
def test_autocast(training):
    ours, theirs, reference = pair_of({})
    ours.train(training), theirs.train(training)
    x = images()
    with torch.autocast("cpu", torch.bfloat16):
        y, expected = ours(x), reference(x)
    assert y.dtype == expected.dtype == torch.bfloat16
    torch.testing.assert_close(y, expected, rtol=0.05, atol=0.05)
    if not training:
        assert ours.folded()[0].dtype == torch.float32


def test_functional_call():
    ours, theirs, reference = pair_of({})
    ours.eval(), theirs.eval()
    x = images()
    with torch.no_grad():
        ours(x)
        state = {k: v * 2 for k, v in ours.state_dict().items() if v.is_floating_point()}
        y = torch.func.functional_call(ours, state, x)
        theirs.load_state_dict(state, strict=False)
        close(y, reference(x))


def test_bad_arguments():
    with pytest.raises(ValueError, match=r"activation must be None or one of .* got 'tanh'"):
        AtrousConvBNAct(4, 6, activation="tanh")
    with pytest.raises(RuntimeError, match="residual must have the output's shape"):
        AtrousConvBNAct(4, 6).eval()(images(), images())
    with pytest.raises(RuntimeError, match='padding must be "same"'):
        AtrousConvBNAct(4, 6, padding="full")


def test_repr_names_the_activation():
    text = repr(AtrousConvBNAct(4, 6, dilation=6, activation="silu"))
    assert "activation='silu'" in text
    assert "dilation=(6, 6)" in text


# Separable.


def separable_of_torch(options):
    """smp's SeparableConv2d and batch norm, or with a batch norm between."""
    rate = options.get("dilation", 1)
    depthwise = nn.Conv2d(4, 4, 3, padding=rate, dilation=rate, groups=4, bias=False)
    if options.get("depthwise_batch_norm"):
        depthwise = nn.Sequential(depthwise, nn.BatchNorm2d(4), nn.ReLU6())
    pointwise = nn.Conv2d(4, 6, 1, bias=False)
    act = nn.ReLU6() if options.get("activation") == "relu6" else nn.ReLU()
    return nn.Sequential(nn.Sequential(depthwise, pointwise), nn.BatchNorm2d(6), act)


@each_layout
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("options", SEPARABLE, ids=str)
def test_separable(options, training, layout):
    ours, theirs = SeparableAtrousConvBNAct(4, 6, **options), separable_of_torch(options)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    unsettle(theirs)
    ours.load_state_dict(theirs.state_dict())
    ours.train(training), theirs.train(training)
    x = images(layout=layout).requires_grad_()
    y, expected = ours(x), theirs(x)
    close(y, expected)
    grad = torch.randn_like(y)
    for a, e in zip(
        torch.autograd.grad(y, [x, *ours.parameters()], grad),
        torch.autograd.grad(expected, [x, *theirs.parameters()], grad),
        strict=True,
    ):
        torch.testing.assert_close(a, e, rtol=1e-3, atol=1e-4 * max(1, largest(e)))
    with torch.no_grad():
        if not training:
            close(ours(x), theirs(x))
            residual = torch.randn(2, 6, 9, 8)
            close(ours(x, residual), theirs[2](theirs[1](theirs[0](x)) + residual))


def test_separable_atrous_conv2d():
    """The function: both epilogues, a stride, gradients, bad weights."""
    x = images().double().requires_grad_()
    depthwise = torch.randn(4, 1, 3, 5).double().requires_grad_()
    pointwise = torch.randn(6, 4, 1, 1).double().requires_grad_()
    inner = {f"depthwise_{k}": torch.randn(4).double() for k in ("bias", "scale", "shift")}
    outer = {k: torch.randn(6).double() for k in ("bias", "scale", "shift")}

    def function(x, depthwise, pointwise):
        return fastseg.separable_atrous_conv2d(
            x,
            depthwise,
            pointwise,
            **inner,
            depthwise_activation="relu6",
            **outer,
            activation="silu",
            stride=2,
            padding=(2, 4),
            dilation=2,
            residual=residual,
        )

    h = nn.functional.conv2d(x, depthwise, inner["depthwise_bias"], 2, (2, 4), 2, 4)
    b, s, t = (v.view(-1, 1, 1) for v in outer.values())
    ds, dt = (inner[k].view(-1, 1, 1) for k in ("depthwise_scale", "depthwise_shift"))
    h = (h * ds + dt).clamp(0, 6)
    residual = torch.randn(2, 6, *h.shape[2:], dtype=torch.float64)
    expected = nn.functional.silu((nn.functional.conv2d(h, pointwise) + b) * s + t + residual)
    torch.testing.assert_close(function(x, depthwise, pointwise), expected)
    assert torch.autograd.gradcheck(function, (x, depthwise, pointwise), fast_mode=True)
    for bad in (depthwise.transpose(0, 1), depthwise[0]):
        with pytest.raises(RuntimeError, match=r"depthwise_weight must have the shape \(Ci, 1"):
            fastseg.separable_atrous_conv2d(x, bad, pointwise)
    for bad in (pointwise.expand(-1, -1, 3, 3), pointwise[..., 0]):
        with pytest.raises(RuntimeError, match=r"pointwise_weight must have the shape"):
            fastseg.separable_atrous_conv2d(x, depthwise, bad)
