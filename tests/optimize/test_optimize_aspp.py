"""optimize_ on ASPP, however others write it: one op, or left as it is."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fastseg
from tests.optimize.aspp_blocks import ASPPHead, InlineASPP
from tests.optimize.blocks import ASPP
from tests.optimize.optimize_cases import Calls, close, run
from tests.zoo.other_models import with_statistics


class OfPairs(ASPPHead):
    def forward(self, pair):
        return super().forward(pair[0])


HEADS = {
    "mmseg v3, an item of an item": OfPairs,
    "mmseg v3": ASPPHead,
    "mmseg v3, silu": lambda: ASPPHead(act=nn.SiLU),
    "mmseg v3+": lambda: ASPPHead(low=4, separable=True),
}
BLOCKS = {
    **HEADS,
    "inline": InlineASPP,
    "inline, no pooling": lambda: InlineASPP(pool=False),
}


def inputs_of(name: str):
    """A list of levels for a head; channels_last, which depthwise kernels want."""
    x = torch.randn(2, 8, 11, 9).contiguous(memory_format=torch.channels_last)
    levels = [torch.randn(2, 4, 22, 18), x]
    if name.endswith("of an item"):
        return levels, None
    return levels if name in HEADS else x


def called(model: nn.Module, x) -> tuple[torch.Tensor, list[str]]:
    with torch.no_grad(), Calls() as calls:
        return model(x), calls.names


@pytest.mark.parametrize("mode", ["train", "infer"])
@pytest.mark.parametrize("name", BLOCKS)
def test_one_op(name, mode):
    model, x = with_statistics(BLOCKS[name]()), inputs_of(name)
    expected, _ = called(model, x)
    keys, parameters = list(model.state_dict()), [*model.parameters()]
    classes = [*map(type, model.modules())]
    report = fastseg.optimize_(model, mode=mode)
    assert [entry.name for entry in report.swapped if entry.detail == "fastseg.aspp"] == [""]
    actual, names = called(model, x)
    close(actual, expected)
    assert names.count("cat") == ("v3+" in name)  # that of the decoder
    assert not {"batch_norm", "native_batch_norm", "upsample_bilinear2d"} & {*names} or "+" in name
    close(called(pickle.loads(pickle.dumps(model)), x)[0], expected)
    assert list(model.state_dict()) == keys
    assert all(p is q for p, q in zip(model.parameters(), parameters, strict=True))
    fastseg.restore_(model)
    assert [*map(type, model.modules())] == classes
    assert torch.equal(called(model, x)[0], expected)


@pytest.mark.parametrize("batch_statistics", [True, False])
@pytest.mark.parametrize("name", BLOCKS)
def test_gradients(name, batch_statistics):
    model, x = with_statistics(BLOCKS[name]()), inputs_of(name)
    ours, gradients = copy.deepcopy(model), []
    fastseg.optimize_(ours)
    for m in (model, ours):
        m.train(batch_statistics)
        m(x).square().mean().backward()
        gradients.append([p.grad for p in m.parameters() if p.grad is not None])
    for actual, expected in zip(*gradients, strict=True):
        close(actual, expected, 1e-4)
    for actual, expected in zip(ours.buffers(), model.buffers(), strict=True):
        close(actual, expected)


@pytest.mark.parametrize("mode", ["train", "infer"])
def test_compiled_and_traced(mode):
    model, x = with_statistics(InlineASPP()), inputs_of("inline")
    expected = run(model, x)
    fastseg.optimize_(model, mode=mode)
    torch._dynamo.reset()
    with torch.no_grad():
        close(torch.compile(model, fullgraph=True, backend="aot_eager")(x), expected)
        traced = torch.fx.symbolic_trace(model)
        close(traced(x), expected)
    assert any("aspp_call" in node.name for node in traced.graph.nodes)


def add_one(module: nn.Module, inputs, output: torch.Tensor) -> torch.Tensor:
    return output + 1


@pytest.mark.parametrize("part", ["convs.1", "convs.3", "project", "convs.0.2", "project.3"])
def test_parts_with_hooks_are_called(part):
    model, x = with_statistics(ASPP(8, 32)), torch.randn(2, 8, 9, 9)
    plain = run(model, x)
    model.get_submodule(part).register_forward_hook(add_one)
    expected = run(model, x)
    assert not torch.allclose(expected, plain, atol=0.1)
    report = fastseg.optimize_(model, mode="infer")
    assert "fastseg.aspp" not in [entry.detail for entry in report.swapped]
    close(run(model, x), expected)


class Otherwise(InlineASPP):
    """``how`` is what makes it another thing than ASPP."""

    def __init__(self, how: str):
        super().__init__()
        self.how = how
        if how == "two activations":
            self.aspp3.relu = nn.ReLU6()
        elif how == "a stride":
            self.aspp1.atrous_conv.stride = self.aspp2.atrous_conv.stride = (2, 2)
            self.aspp3.atrous_conv.stride = (2, 2)
        elif how == "several pixels":
            self.global_avg_pool[0] = nn.AdaptiveAvgPool2d(2)
        elif how == "no rates":
            for block in (self.aspp2, self.aspp3):
                block.atrous_conv.dilation = block.atrous_conv.padding = (1, 1)
        elif how == "max pooling":
            self.global_avg_pool[0] = nn.AdaptiveMaxPool2d(1)

    def forward(self, x):
        x1, x2 = self.aspp1(x), self.aspp2(x)
        x3 = self.aspp3(x + 1 if self.how == "another input" else x)
        if self.how == "written between":
            x.mul_(2)
        x4 = F.interpolate(self.global_avg_pool(x), size=x3.shape[2:], mode="bilinear")
        parts = (x1, x4, x2, x3) if self.how == "pooling between" else (x1, x2, x3, x4)
        y = torch.cat(parts, 2 if self.how == "along rows" else 1)
        if self.how == "along rows":
            y = y.repeat(1, 4, 1, 1)
        z = self.relu(self.bn1(self.conv1(y)))
        return z + y.mean() if self.how == "read twice" else z + (x1 if "branch" in self.how else 0)


@pytest.mark.parametrize(
    "how",
    [
        "two activations",
        "a stride",
        "several pixels",
        "no rates",
        "max pooling",
        "written between",
        "pooling between",
        "another input",
        "along rows",
        "read twice",
        "a branch is read twice",
    ],
)
def test_what_is_no_aspp_is_left(how):
    model, x = with_statistics(Otherwise(how)), torch.randn(2, 8, 10, 10)
    expected = run(model, x)
    report = fastseg.optimize_(model, mode="infer")
    assert "fastseg.aspp" not in [entry.detail for entry in report.swapped]
    close(run(model, x), expected)


def test_otherwise_it_is_one():
    model, x = with_statistics(Otherwise("")), torch.randn(2, 8, 10, 10)
    expected = run(model, x)
    report = fastseg.optimize_(model, mode="infer")
    assert "fastseg.aspp" in [entry.detail for entry in report.swapped]
    close(run(model, x), expected)


def test_filter_leaves_the_block():
    model = with_statistics(InlineASPP())
    report = fastseg.optimize_(model, mode="infer", filter_fn=lambda m, name: m is not model)
    assert "fastseg.aspp" not in [entry.detail for entry in report.swapped]
    x = inputs_of("inline")
    fastseg.restore_(model)
    expected = run(model, x)
    fastseg.optimize_(model, mode="infer", filter_fn=lambda m, name: name != "aspp1.atrous_conv")
    _, names = called(model, x)
    assert "cat" in names
    close(run(model, x), expected)


class BatchNormAct2d(nn.BatchNorm2d):
    """timm's: an activation of its own."""

    def __init__(self, channels: int):
        super().__init__(channels)
        self.drop, self.act = nn.Identity(), nn.SiLU()

    def forward(self, x):
        return self.act(self.drop(super().forward(x)))


BatchNormAct2d.__module__ = "timm.layers.norm_act"


@pytest.mark.parametrize("batch_statistics", [True, False])
def test_batch_norms_with_an_activation(batch_statistics):
    model, x = InlineASPP(), inputs_of("inline").requires_grad_()
    for block in (model.aspp1, model.aspp2, model.aspp3):
        block.bn, block.relu = BatchNormAct2d(8), nn.Identity()
    model.global_avg_pool[2], model.global_avg_pool[3] = BatchNormAct2d(8), nn.Identity()
    model.bn1, model.relu = BatchNormAct2d(8), nn.Identity()
    ours = copy.deepcopy(with_statistics(model))
    report = fastseg.optimize_(ours)
    assert "fastseg.aspp" in [entry.detail for entry in report.swapped]
    close(run(ours, x), run(model, x))
    model.train(batch_statistics), ours.train(batch_statistics)
    close(ours(x), model(x))
