"""optimize_ on max-pooling and unpooling: byte codes where all indices are seen."""

import copy
import pickle
import threading

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fastseg
from tests.optimize.blocks import SegNet
from tests.optimize.optimize_cases import Calls, close, run
from tests.zoo.other_models import with_statistics


@pytest.mark.parametrize("size", [(16, 12), (19, 13)])
def test_codes_flow_through_lists_and_blocks(size):
    class Stage(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(4, 4, 3, padding=1)
            self.pool = nn.MaxPool2d(2, return_indices=True)

        def forward(self, x):
            x = self.conv(x)
            values, indices = self.pool(x)
            return values, (indices, x.shape)

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.stages = nn.ModuleList([Stage(), Stage()])
            self.unpool = nn.MaxUnpool2d(2)

        def forward(self, x):
            stack = []
            for stage in self.stages:
                x, info = stage(x)
                stack.append(info)
            while stack:
                indices, shape = stack.pop()
                x = self.unpool(x, indices, shape)
            return x

    model, x = Model().eval(), torch.randn(2, 4, *size)
    expected = run(model, x)
    report = fastseg.optimize_(model, mode="train")
    assert [e.detail for e in report.swapped].count("byte codes") == 3
    assert torch.equal(run(model, x), expected)


def test_indices_that_go_elsewhere_stay():
    class Leaks(SegNet):
        def forward(self, x):
            y, indices = self.pool(x)
            return self.unpool(y, indices), indices

    class Mismatched(SegNet):
        def __init__(self):
            super().__init__()
            self.unpool = nn.MaxUnpool2d((2, 1), (2, 2))

    for model in (Leaks().eval(), Mismatched().eval()):
        report = fastseg.optimize_(model, mode="infer")
        assert {"pool", "unpool"} <= {entry.name for entry in report.left}
        assert type(model.pool) is nn.MaxPool2d


def test_indices_that_are_unpooled_themselves_stay():
    class Modules(SegNet):
        def forward(self, x):
            y, indices = self.pool(self.enc1(x))
            return self.unpool(y, indices), self.unpool(indices, indices=indices)

    class Functions(SegNet):
        def forward(self, x):
            y, indices = F.max_pool2d(self.enc1(x), 2, return_indices=True)
            return F.max_unpool2d(y, indices, 2), F.max_unpool2d(indices, indices, 2)

    for model in (Modules().eval(), Functions().eval()):
        report = fastseg.optimize_(model, mode="infer")
        assert "byte codes" not in [entry.detail for entry in report.swapped]


def test_the_reasons_of_a_pair_come_in_the_same_order():
    class Pair(nn.Module):
        def __init__(self):
            super().__init__()
            self.pool, self.unpool = nn.MaxPool2d(2, return_indices=True), nn.MaxUnpool2d(3)

        def forward(self, x):
            y, indices = self.pool(x)
            return self.unpool(y, indices)

    left = {entry.name: entry.detail for entry in fastseg.optimize_(Pair()).left}
    assert left == {
        "pool": "its windows are not those of its partner",
        "unpool": "its indices go to or come from one that is left",
    }


@pytest.mark.parametrize("mode", ["train", "infer"])
def test_batch_norm_relu_and_pooling(mode):
    stem = nn.Sequential(nn.Conv2d(4, 8, 2, 2), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(3, 2, 1))
    model, x = with_statistics(stem), torch.randn(2, 4, 9, 7)
    expected = run(model, x)
    fastseg.optimize_(model, mode=mode)
    with Calls() as calls:
        close(run(model, x), expected, 1e-6)
    assert "batch_norm_relu_max_pool2d" in calls.names


class FunctionalSegNet(SegNet):
    """Two levels; ``how`` is what a forward does with the indices of the second."""

    def __init__(self, how="unpool", window=(2, 2)):
        super().__init__()
        self.how, self.window = how, window

    def forward(self, x):
        x = self.enc1(x)
        size = x.size()
        x, first = F.max_pool2d(x, 2, stride=2, return_indices=True)
        x = self.enc2(x)
        inner = x.shape[-2:]
        x, second = F.max_pool2d(x, [2, 2], ceil_mode=True, return_indices=True)
        if self.how == "add":
            x = x + second % 2
        x = F.max_unpool2d(x, second, *self.window, output_size=inner)
        x = self.dec1(self.dec2(F.max_unpool2d(x, kernel_size=(2, 2), indices=first,
                                               output_size=size)))  # fmt: skip
        return (x, second) if self.how == "return" else x


@pytest.mark.parametrize("mode", ["train", "infer"])
def test_functions_take_codes(mode):
    model, x = with_statistics(FunctionalSegNet()), torch.randn(2, 3, 15, 19)
    ours, gradients = copy.deepcopy(model), []
    report = fastseg.optimize_(ours, mode=mode)
    names = ["F.max_pool2d", "F.max_unpool2d"]
    entries = [e for e in report.swapped if e.detail == "byte codes"]
    assert sorted(entry.module for entry in entries) == sorted(2 * names)
    assert "pool" in [entry.name for entry in report.left]  # MaxPool2d, which is not called
    with Calls() as calls:
        actual = run(ours, x)
    close(actual, run(model, x))
    assert calls.names.count("max_pool2d") == calls.names.count("max_unpool2d") == 2
    assert "max_pool2d_with_indices" not in calls.names
    twin = pickle.loads(pickle.dumps(ours))
    close(torch.fx.symbolic_trace(twin)(x), actual)
    if mode == "train":
        for m in (model, ours):
            m.train()
            inputs = x.clone().requires_grad_()
            m(inputs).square().mean().backward()
            gradients.append([inputs.grad, *(p.grad for p in m.parameters())])
        for actual, expected in zip(*gradients, strict=True):
            close(actual, expected, 1e-4)
    fastseg.restore_(ours)
    assert type(ours) is FunctionalSegNet


@pytest.mark.parametrize(
    ("how", "window", "reason"),
    [
        ("add", (2, 2), "go elsewhere"),
        ("return", (2, 2), "go elsewhere"),
        ("unpool", ((2, 3), (2, 2)), "windows are not those"),
    ],
)
def test_functions_whose_indices_are_not_codes(how, window, reason):
    model, x = with_statistics(FunctionalSegNet(how, window)), torch.randn(1, 3, 16, 16)
    with torch.no_grad():
        expected = model(x)
        report = fastseg.optimize_(model, mode="infer")
        actual = model(x)
    left = {entry.module: entry.detail for entry in report.left if entry.module.startswith("F.")}
    assert reason in left["F.max_pool2d"]
    assert "that is left" in left["F.max_unpool2d"]
    assert [e.detail for e in report.swapped].count("byte codes") == 2  # the first level
    pairs = zip(actual, expected, strict=True) if how == "return" else [(actual, expected)]
    for y, before in pairs:
        close(y, before)


def test_functions_in_different_blocks_and_filter():
    class Decoder(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(4, 4, 3, padding=1)

        def forward(self, x, indices):
            return self.conv(F.max_unpool2d(x, indices, 2))

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.decoder = nn.Conv2d(3, 4, 3, padding=1), Decoder()

        def forward(self, x):
            x, indices = F.max_pool2d(self.conv(x), 2, return_indices=True)
            return self.decoder(x, indices)

    model, x = Model().eval(), torch.randn(1, 3, 8, 8)
    expected = run(model, x)
    report = fastseg.optimize_(model, mode="infer")
    left = {entry.module: entry for entry in report.left}
    assert left["F.max_pool2d"].name == ""
    assert "go elsewhere" in left["F.max_pool2d"].detail
    assert left["F.max_unpool2d"].name == "decoder"
    assert "no max_pool2d in this forward" in left["F.max_unpool2d"].detail
    close(run(model, x), expected)

    model = FunctionalSegNet().eval()
    report = fastseg.optimize_(model, filter_fn=lambda module, name: module is not model)
    reasons = [entry.detail for entry in report.left if entry.module.startswith("F.")]
    assert reasons == ["filter_fn"] * 4


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.pool = nn.MaxPool2d(2, return_indices=True)

    def forward(self, x):
        return self.pool(self.conv(x).relu())


class WithEncoder(nn.Module):
    """A model whose encoder others call alone."""

    def __init__(self):
        super().__init__()
        self.features, self.unpool = Encoder(), nn.MaxUnpool2d(2)

    def forward(self, x):
        values, indices = self.features(x)
        return self.unpool(values, indices)


def with_encoder():
    model, x = WithEncoder().eval(), torch.randn(1, 3, 8, 8)
    ours = copy.deepcopy(model)
    report = fastseg.optimize_(ours, mode="train")
    assert [e.detail for e in report.swapped].count("byte codes") == 2
    return model, ours, x


def pools(graph) -> list[str]:
    return [n.name for n in graph.nodes if n.name.startswith("max_pool2d")]


@torch.no_grad()
def test_a_part_called_alone_returns_indices():
    model, ours, x = with_encoder()
    _, expected = model.features(x)
    twins = copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))
    for m in (ours, *twins, copy.deepcopy(ours.features)):
        part = m if isinstance(m, Encoder) else m.features
        for _ in range(2):
            _, indices = part(x)
            assert torch.equal(indices, expected)
            if part is not m:
                with Calls() as calls:
                    actual = m(x)
                close(actual, model(x))
                if m is not twins[1]:  # a file may not hold all that its guard compares
                    assert "max_pool2d_with_indices" not in calls.names


@torch.no_grad()
def test_a_part_called_alone_after_an_error_and_in_another_thread():
    model, ours, x = with_encoder()
    _, expected = model.features(x)
    found = []

    def look():
        found.append(ours.features(x)[1].dtype)

    class Failing(torch.Tensor):
        @classmethod
        def __torch_function__(cls, func, types, args=(), kwargs=None):
            look()
            thread = threading.Thread(target=look)
            thread.start()
            thread.join()
            raise ArithmeticError

    with pytest.raises(ArithmeticError):
        ours(x.as_subclass(Failing))
    assert found == [torch.uint8, torch.int64]
    assert torch.equal(ours.features(x)[1], expected)


@torch.no_grad()
def test_a_part_compiled_alone_returns_indices():
    model, ours, x = with_encoder()
    torch._dynamo.reset()
    graphs = []

    def backend(module, inputs):
        graphs.append(module.graph)
        return module

    whole = torch.compile(ours, backend=backend, fullgraph=True)
    part = torch.compile(ours.features, backend=backend, fullgraph=True)
    for _ in range(2):
        close(whole(x), model(x))
        assert torch.equal(part(x)[1], model.features(x)[1])
    assert len(graphs) == 2
    assert "max_unpool2d" in str(graphs[0])
    exported = torch.export.export(ours, (x,))
    assert pools(exported.graph) == ["max_pool2d"]
    close(exported.module()(x), model(x))
    exported = torch.export.export(ours.features, (x,))
    assert torch.equal(exported.module()(x)[1], model.features(x)[1])
