"""A model that is changed after optimize_ computes what it would have without."""

import copy
import pickle
import types

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

import fastseg
from tests.optimize.blocks import ASPP, BasicBlock, ConvModule, InvertedResidual, SegNet
from tests.optimize.optimize_cases import close, run
from tests.zoo.other_models import with_statistics


class Block(nn.Module):
    """Reads an attribute of each sort; a tester may change any."""

    width = 1.0

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 3, padding=1)
        self.bn = nn.BatchNorm2d(8)
        self.relu = nn.LeakyReLU(inplace=True)
        self.alpha, self.use_skip, self.order = 1.0, False, ["relu"]
        self.config = types.SimpleNamespace(shift=0.0, inner=types.SimpleNamespace(add=1))
        self.options = {"times": (1, 1)}
        self.act = F.relu6
        self.extra = None
        self.layers = nn.ModuleList([nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8)])

    def gain(self):
        return self.alpha * self.width

    def forward(self, x):
        y = self.bn(self.conv(x))
        for name in self.order:
            y = getattr(self, name)(y)
        for layer in self.layers:
            y = layer(y)
        y = self.act(y) * self.gain() + self.config.shift
        if self.use_skip:
            y = y + x
        if self.extra is not None:
            y = self.extra(y)
        return y * self.options["times"][0] * self.config.inner.add


def sequential() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(8, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(),
        nn.Conv2d(32, 8, 1), nn.BatchNorm2d(8),
    )  # fmt: skip


def pooled() -> nn.Sequential:
    return nn.Sequential(nn.AvgPool2d(1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(3, 2, 1))


class Adapter(nn.Module):
    """What LoRA makes of a convolution."""

    def __init__(self, base: nn.Conv2d):
        super().__init__()
        self.base, self.delta = base, nn.Conv2d(base.in_channels, base.out_channels, 1, base.stride)

    def forward(self, x):
        return self.base(x) + self.delta(x)


class Doubled(nn.Conv2d):
    def forward(self, x):
        return 2 * super().forward(x)


class FrozenBatchNorm2d(nn.Module):
    """torchvision's: buffers alone."""

    def __init__(self, channels: int):
        super().__init__()
        for name in ("weight", "bias", "running_mean", "running_var"):
            self.register_buffer(name, torch.rand(channels) + 0.5)

    def forward(self, x):
        scale = (self.weight * (self.running_var + 1e-5).rsqrt()).view(-1, 1, 1, 1)
        return x * scale.view(1, -1, 1, 1) + self.bias.view(1, -1, 1, 1)


class Twice(nn.Module):
    def forward(self, t):
        return 2 * t


def plus_one(module, inputs, output):
    return output + 1


def halved(module, inputs):
    return (inputs[0] / 2,)


def wrapped(x, original):
    return original(x) + 1


def append(m):
    m.append(nn.Sigmoid())


def insert(m):
    m.insert(2, nn.Tanh())


def other_order(m):
    m[2], m[1] = m[1], m[2]


def whole_new_children(m):
    children = list(m._modules.values())
    m._modules = dict(enumerate_names([*children[:2], nn.GELU(), *children[3:]]))


def enumerate_names(modules):
    return ((str(i), m) for i, m in enumerate(modules))


def replaced_forward(m):
    m.forward = types.MethodType(lambda self, x: type(self).forward(self, x) + 1, m)


def forward_of_a_child(m):
    m.conv.forward = lambda x: F.conv2d(x, m.conv.weight, None, padding=1)


def past_setattr(m):
    m.__dict__["alpha"] = 0.25
    m._modules["relu"] = nn.Softplus()


def reflects(m):
    m.conv.padding_mode, m.conv._reversed_padding_repeated_twice = "reflect", [1, 1, 1, 1]


def class_attribute(m):
    m.relu.__class__ = type("Half", (nn.LeakyReLU,), {"forward": lambda self, x: x / 2})


def reshaped(m):
    m.conv = nn.Conv2d(8, 8, 2, padding=1)


def new_kernel(m):
    m.conv.weight = nn.Parameter(torch.randn(8, 8, 2, 2))


def pruned(m):
    prune.random_unstructured(m.conv, "weight", 0.5)


def other_statistics(m):
    m.bn.running_var = torch.rand(8) + 1


CHANGES = {
    Block: {
        "alpha": lambda m: setattr(m, "alpha", 0.5),
        "width of the instance": lambda m: setattr(m, "width", 3.0),
        "use_skip": lambda m: setattr(m, "use_skip", True),
        "an item of a list": lambda m: m.order.clear(),
        "an item of a dictionary": lambda m: m.options.update(times=(3, 1)),
        "an object's attribute": lambda m: setattr(m.config, "shift", 1.0),
        "an inner object's attribute": lambda m: setattr(m.config.inner, "add", 2),
        "a function": lambda m: setattr(m, "act", torch.sigmoid),
        "None becomes a module": lambda m: setattr(m, "extra", Twice()),
        "a method": lambda m: setattr(m, "gain", lambda: 7.0),
        "relu": lambda m: setattr(m, "relu", nn.Sigmoid()),
        "another of the same class": lambda m: setattr(m, "relu", nn.LeakyReLU(0.5)),
        "negative_slope": lambda m: setattr(m.relu, "negative_slope", 0.3),
        "a child is no more": lambda m: setattr(m, "bn", None),
        "a child is deleted": lambda m: delattr(m, "bn"),
        "a layer is appended": lambda m: m.layers.append(nn.Sigmoid()),
        "a layer of the list": lambda m: m.layers.__setitem__(1, nn.Tanh()),
        "a layer is popped": lambda m: m.layers.pop(0),
        "past setattr": past_setattr,
        "group norm": lambda m: setattr(m, "bn", nn.GroupNorm(2, 8)),
        "frozen batch norm": lambda m: setattr(m, "bn", FrozenBatchNorm2d(8)),
        "identity": lambda m: setattr(m, "bn", nn.Identity()),
        "adapter": lambda m: setattr(m, "conv", Adapter(m.conv)),
        "doubled": lambda m: setattr(m, "conv", Doubled(8, 8, 3, padding=1)),
        "another convolution": reshaped,
        "another kernel": new_kernel,
        "reflect": reflects,
        "stride": lambda m: setattr(m.conv, "stride", (2, 2)),
        "padding": lambda m: setattr(m.conv, "padding", (0, 0)),
        "padding beyond": lambda m: setattr(m.conv, "padding", (5, 5)),
        "dilation": lambda m: setattr(m.conv, "dilation", (2, 2)),
        "no bias": lambda m: setattr(m.conv, "bias", None),
        "eps": lambda m: setattr(m.bn, "eps", 0.5),
        "no running statistics": lambda m: (
            setattr(m.bn, "running_mean", None),
            setattr(m.bn, "running_var", None),
        ),
        "not affine": lambda m: setattr(m.bn, "weight", None),
        "other running statistics": other_statistics,
        "forward": replaced_forward,
        "a child's forward": forward_of_a_child,
        "a child's class": class_attribute,
        "hook": lambda m: m.conv.register_forward_hook(plus_one),
        "hook of the activation": lambda m: m.relu.register_forward_hook(plus_one),
        "hook of the batch norm": lambda m: m.bn.register_forward_hook(plus_one),
        "pre-hook": lambda m: m.bn.register_forward_pre_hook(halved),
        "hook of the block": lambda m: m.register_forward_hook(plus_one),
        "pruned": pruned,
        "weight_norm": lambda m: parametrizations.weight_norm(m.conv),
        "spectral_norm": lambda m: parametrizations.spectral_norm(m.conv),
        "parametrized batch norm": lambda m: parametrize.register_parametrization(
            m.bn, "weight", Twice()
        ),
        "double": lambda m: m.double(),
    },
    sequential: {
        "replaced": lambda m: m.__setitem__(2, nn.GELU()),
        "appended": append,
        "inserted": insert,
        "popped": lambda m: m.pop(1),
        "deleted": lambda m: m.__delitem__(2),
        "extended": lambda m: m.extend([nn.Tanh(), nn.Sigmoid()]),
        "added": lambda m: m.add_module("late", nn.Tanh()),
        "in another order": other_order,
        "other children": whole_new_children,
        "forward": replaced_forward,
        "hook": lambda m: m[0].register_forward_hook(plus_one),
        "adapter": lambda m: m.__setitem__(0, Adapter(m[0])),
    },
    lambda: BasicBlock(8, 8, dilation=2): {
        "no downsampling": lambda m: setattr(m, "downsample", None),
        "one relu for both": lambda m: setattr(m, "relu", nn.SiLU()),
        "downsampling": lambda m: m.downsample.__setitem__(1, nn.Tanh()),
        "hook of downsampling": lambda m: m.downsample.register_forward_hook(plus_one),
    },
    lambda: InvertedResidual(8, 40): {
        "an inner activation": lambda m: m.conv[0].__setitem__(2, nn.Tanh()),
        "max_val": lambda m: setattr(m.conv[1][2], "max_val", 1.0),
        "an inner Sequential": lambda m: m.conv.__setitem__(1, nn.Identity()),
    },
    lambda: ConvModule(8, 8): {
        "order": lambda m: setattr(m, "order", ("conv", "act", "norm")),
        "bn": lambda m: setattr(m, "bn", nn.GroupNorm(2, 8)),
    },
    lambda: ASPP(8, 8): {
        "a branch": lambda m: m.convs.__setitem__(1, nn.Conv2d(8, 8, 1)),
        "an inner activation": lambda m: m.convs[2].__setitem__(2, nn.Sigmoid()),
        "a branch in another place": lambda m: m.convs.__setitem__(1, m.convs[2]),
        "dropout": lambda m: m.project.__setitem__(3, nn.Sigmoid()),
        "pooling": lambda m: m.convs[3].__setitem__(0, nn.AdaptiveMaxPool2d(1)),
        "output_size": lambda m: setattr(m.convs[3][0], "output_size", 2),
        "hook": lambda m: m.convs[1][1].register_forward_hook(plus_one),
    },
    pooled: {
        "relu": lambda m: m.__setitem__(2, nn.Sigmoid()),
        "pooling": lambda m: m.__setitem__(3, nn.AvgPool2d(3, 2, 1)),
        "stride": lambda m: setattr(m[3], "stride", 1),
    },
}
SAME_VALUES = ("weight_norm", "double")
CASES = [(build, name) for build, changes in CHANGES.items() for name in changes]


def outcome(model: nn.Module, x: torch.Tensor):
    """The output, or the class of the error."""
    try:
        return run(model, x.to(next(model.parameters()).dtype))
    except Exception as error:
        return type(error)


def same(actual, expected) -> None:
    if isinstance(expected, type):
        assert actual is expected
    else:
        close(actual, expected)


def changed(model: nn.Module, change) -> None:
    torch.manual_seed(1)
    change(model)


@pytest.mark.parametrize("mode", ["train", "infer"])
@pytest.mark.parametrize(("build", "name"), CASES, ids=[f"{i}-{n}" for i, n in enumerate(
    name for _, name in CASES)])  # fmt: skip
def test_a_change_is_computed(build, name, mode):
    change = CHANGES[build][name]
    model, x = with_statistics(build()), torch.randn(2, 8, 9, 7)
    before, ours = run(model, x), copy.deepcopy(model)
    fastseg.optimize_(ours, mode=mode)
    close(run(ours, x), before)
    for m in (model, ours):
        changed(m, change)
    expected = outcome(model, x)
    if name not in SAME_VALUES and not isinstance(expected, type):
        assert expected.shape != before.shape or not torch.allclose(expected, before, atol=1e-4)
    same(outcome(ours, x), expected)
    same(outcome(copy.deepcopy(ours), x), expected)
    fastseg.restore_(ours)
    same(outcome(ours, x), expected)
    assert not [m for m in ours.modules() if hasattr(m, "_base")]


PICKLED = ["alpha", "use_skip", "relu", "negative_slope", "an object's attribute", "hook", "eps"]


@pytest.mark.parametrize("mode", ["train", "infer"])
@pytest.mark.parametrize("name", PICKLED)
def test_a_change_survives_a_file(name, mode):
    model, x = with_statistics(Block()), torch.randn(1, 8, 9, 7)
    fastseg.optimize_(model, mode=mode)
    twin = pickle.loads(pickle.dumps(model))
    assert twin.why_not_fused() is None
    for m in (model, twin):
        changed(m, CHANGES[Block][name])
        expected = outcome(m, x)
        same(outcome(pickle.loads(pickle.dumps(m)), x), expected)
    fastseg.restore_(twin)
    same(outcome(twin, x), expected)


OTHERS = {bool: lambda v: not v, int: lambda v: v + 1, float: lambda v: v + 0.5}


def other_value(value):
    """A value of the same type, or None where there is no obvious one."""
    if isinstance(value, tuple) and value and all(type(v) is int for v in value):
        return tuple(v + 1 for v in value)
    change = OTHERS.get(type(value))
    return None if change is None else change(value)


MODELS = [Block, sequential, lambda: BasicBlock(8, 8), lambda: ASPP(8, 8), pooled, SegNet]


@pytest.mark.parametrize("mode", ["train", "infer"])
@pytest.mark.parametrize("build", MODELS)
def test_each_attribute_of_each_module(build, mode):
    """Numbers, switches and tuples of all modules, one changed at a time."""
    plain = with_statistics(build())
    ours = copy.deepcopy(plain)
    fastseg.optimize_(ours, mode=mode)
    x = torch.randn(2, 3 if build is SegNet else 8, 12, 8)
    pairs = list(zip(plain.modules(), ours.modules(), strict=True))
    count = 0
    for module, twin in pairs:
        for name, value in list(vars(module).items()):
            other = other_value(value)
            if other is None or name == "training":
                continue
            count += 1
            for m in (module, twin):
                m.__dict__[name] = other
            expected = outcome(plain, x)
            same(outcome(ours, x), expected)
            for m in (module, twin):
                m.__dict__[name] = value
            close(run(ours, x), run(plain, x))
    assert count > 10


@pytest.mark.parametrize("mode", ["train", "infer"])
@pytest.mark.parametrize("build", MODELS[:5])
def test_each_child_of_each_module(build, mode):
    """Each child becomes another module, and the one that it was again."""
    plain = with_statistics(build())
    ours = copy.deepcopy(plain)
    fastseg.optimize_(ours, mode=mode)
    x = torch.randn(2, 8, 12, 8)
    for module, twin in list(zip(plain.modules(), ours.modules(), strict=True)):
        for name, child in list(module.named_children()):
            before = twin._modules[name]
            for m in (module, twin):
                m._modules[name] = nn.Softplus()
            same(outcome(ours, x), outcome(plain, x))
            module._modules[name], twin._modules[name] = child, before
            close(run(ours, x), run(plain, x))
