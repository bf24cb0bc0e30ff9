"""Each module is classified once, and patterns whose input another pattern computes are fused."""

import sys
from collections import Counter

import pytest
import torch
from torch import nn

import fastseg
from fastseg.optimize.classify import eligible
from tests.optimize.aspp_blocks import ASPPHead, InlineASPP
from tests.optimize.blocks import ASPP, BasicBlock, ConvModule, InvertedResidual, SegNet
from tests.optimize.optimize_cases import Calls, close, run
from tests.zoo.other_models import with_statistics

QUESTIONS = ("why_not", "has_hooks", "activation_of", "own_activation")
"""Beginnings of the names of the functions that ask about a module."""

MODELS = {
    "basic block": lambda: BasicBlock(8, 32, dilation=2),
    "inverted residual": lambda: InvertedResidual(8, 40),
    "switches": lambda: ConvModule(8, 32),
    "aspp": lambda: ASPP(8, 32, separable=True),
    "aspp in a head": ASPPHead,
    "pooling": SegNet,
    "nested": lambda: nn.Sequential(nn.Sequential(BasicBlock(8, 8)), ASPP(8, 32)),
}


@pytest.fixture
def asked(monkeypatch):
    """How often other files ask each question about each module."""
    counts, seen = Counter(), []

    def counting(question):
        def ask(module):
            counts[question.__name__, id(module)] += 1
            seen.append(module)  # alive, so that no other module gets its id
            return question(module)

        return ask

    for name, question in vars(eligible).items():
        if name.startswith(QUESTIONS) and question.__module__ == eligible.__name__:
            for file in [*sys.modules.values()]:
                of_optimize = getattr(file, "__name__", "").startswith("fastseg.optimize.")
                if of_optimize and file is not eligible and name in vars(file):
                    monkeypatch.setattr(file, name, counting(question))
    return counts


@pytest.mark.parametrize("mode", ["train", "infer"])
@pytest.mark.parametrize("name", MODELS)
def test_each_module_is_asked_once(asked, name, mode):
    model = with_statistics(MODELS[name]())
    filtered = Counter()

    def wanted(module, name):
        filtered[name] += 1
        return True

    fastseg.optimize_(model, mode=mode, filter_fn=wanted)
    assert {question for question, _ in asked} >= {"why_not_conv", "has_hooks"}
    assert set(asked.values()) == {1}
    assert set(filtered.values()) == {1}


class Adding(nn.Module):
    """``body(self, x)`` as forward, of four convolutions."""

    def __init__(self, body):
        super().__init__()
        self.a, self.b, self.c, self.d = (nn.Conv2d(8, 8, 3, padding=1) for _ in range(4))
        self.bn, self.relu, self.body = nn.BatchNorm2d(8), nn.ReLU(), body

    def forward(self, x):
        return self.body(self, x)


def to_the_end_of_a_chain(m, x):
    y = m.relu(m.bn(m.a(x)))
    return y + m.b(y)


def to_the_end_of_a_chain_first(m, x):
    y = m.relu(m.bn(m.a(x)))
    return m.b(y) + y


def sums_of_four(m, x):
    return m.a(x) + m.b(x) + m.c(x) + m.d(x)


def sums_of_sums(m, x):
    return m.relu((m.a(x) + m.b(x)) + (m.c(x) + m.d(x)))


def one_after_the_other(m, x):
    y = m.relu(m.a(x) + x)
    z = m.relu(m.b(y) + y)
    return m.relu(m.bn(m.c(z)) + z) + m.d(x)


@pytest.mark.parametrize("mode", ["train", "infer"])
@pytest.mark.parametrize(
    "body",
    [
        to_the_end_of_a_chain,
        to_the_end_of_a_chain_first,
        sums_of_four,
        sums_of_sums,
        one_after_the_other,
    ],
)
def test_a_residual_that_another_chain_computes(body, mode):
    model, x = with_statistics(Adding(body)), torch.randn(2, 8, 9, 7)
    expected = run(model, x)
    report = fastseg.optimize_(model, mode=mode)
    computed = report.swapped + report.in_evaluation
    assert sum("residual" in entry.detail for entry in computed) >= 1
    close(run(model, x), expected)


@pytest.mark.parametrize("mode", ["train", "infer"])
def test_an_aspp_of_an_aspp(mode):
    class Twice(InlineASPP):
        def once(self, x):
            maps = [self.aspp1(x), self.aspp2(x), self.aspp3(x)]
            return self.relu(self.bn1(self.conv1(torch.cat(maps, dim=1))))

        def forward(self, x):
            return self.once(self.once(x))

    model, x = with_statistics(Twice(8, 8, pool=False)), torch.randn(2, 8, 11, 9)
    expected = run(model, x)
    fastseg.optimize_(model, mode=mode)
    with Calls() as calls:
        close(run(model, x), expected)
    assert calls.names.count("aspp") == 2
