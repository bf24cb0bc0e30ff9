"""Forwards whose Python does what no graph shows: left alone, and nothing of them is changed."""

import collections
import contextlib
import copy
import itertools
import logging
import math
import os
import pickle
import random
import threading
import time
import types
import warnings

import numpy as np
import pytest
import torch
from torch import nn

import fastseg
from tests.optimize import witness_bodies as bodies
from tests.optimize.optimize_cases import close
from tests.optimize.witness_bodies import (
    BODIES,
    CALLS,
    FUSED,
    SEEN,
    Functional,
    Settings,
    asks_whether_compiled,
    asks_whether_traced,
    caches,
    closure,
    has_a_default,
    logs,
    model_of,
    nonlocal_counter,
    prints,
    reads_a_parameter,
)
from tests.zoo.other_models import with_statistics

FLAGS = {"skip": False}
SWITCH = False
SETTINGS = Settings()


def held_by(value, seen=None):
    """All that a model and the globals of this file hold, as plain values."""
    seen = set() if seen is None else seen
    if id(value) in seen:
        return "again"
    if isinstance(value, torch.Tensor):
        return value._version, value.tolist()
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, (dict, list, nn.Module)):
        seen.add(id(value))
    if isinstance(value, dict):
        return [(k, held_by(v, seen)) for k, v in value.items()]
    if isinstance(value, (list, tuple, collections.deque)):
        return [held_by(v, seen) for v in value]
    if isinstance(value, types.FunctionType):
        cells = value.__closure__ or ()
        inner = [held_by(cell.cell_contents, seen) for cell in cells]
        return inner, held_by(value.__defaults__, seen)
    if isinstance(value, random.Random):
        return value.getstate()
    if isinstance(value, (nn.Module, types.SimpleNamespace, Settings)):
        return type(value), held_by(vars(value), seen)
    return str(value)


def state(model: nn.Module):
    """What a trace must leave as it was."""
    of_this_file = CALLS, bodies.COUNT, FLAGS, SEEN, vars(Settings).copy(), Functional.kept
    drawn = random.getstate(), np.random.get_state(), torch.get_rng_state()
    return str((held_by(model), held_by(list(of_this_file)), drawn))


@pytest.fixture(autouse=True)
def _as_before(monkeypatch):
    monkeypatch.setattr(time, "perf_counter_ns", iter(range(10**9)).__next__)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
    CALLS.clear(), SEEN.clear(), Functional.kept.clear()


@contextlib.contextmanager
def default_dtype():
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


@contextlib.contextmanager
def environment():
    os.environ["FASTSEG_TESTS"] = "three"
    try:
        yield
    finally:
        del os.environ["FASTSEG_TESTS"]


@contextlib.contextmanager
def no_onednn():
    torch.backends.mkldnn.enabled = False
    try:
        yield
    finally:
        torch.backends.mkldnn.enabled = True


def steps(model: nn.Module) -> list:
    """What it computes, call after call, in one context after another."""
    # The same at the start of each; a body may count on.
    bodies.COUNT, Settings.made = 0, 0
    for log in (CALLS, SEEN, Functional.kept, has_a_default.__defaults__[0]):
        log.clear()
    clock = itertools.count()
    time.perf_counter_ns = clock.__next__
    torch.manual_seed(3), random.seed(3), np.random.seed(3)
    x, outputs = torch.linspace(-1, 1, 2 * 32 * 81).view(2, 32, 9, 9), []
    contexts = (
        torch.no_grad, torch.no_grad, torch.enable_grad, torch.inference_mode, environment,
        default_dtype, no_onednn, lambda: torch.autocast("cpu", torch.bfloat16),
    )  # fmt: skip
    for context in contexts:
        with context():
            outputs.append(model(x.clone()).detach().float())
    outputs.append(random.random()), outputs.append(float(np.random.rand()))
    outputs.append([len(v) for v in (CALLS, SEEN, Functional.kept)] + [bodies.COUNT, Settings.made])
    outputs.append((model.calls, model.log, len(model.cache), model.seen, model.stats.count))
    outputs.append((len(model.nested["log"][0]), len(model.queue), model.steps.tolist()))
    return outputs


@pytest.fixture
def log_records():
    """What is logged; pytest's own fixture is off (pyproject.toml)."""
    records, handler = [], logging.Handler()
    handler.emit = records.append
    logging.getLogger().addHandler(handler)
    yield records
    logging.getLogger().removeHandler(handler)


@pytest.mark.parametrize("body", BODIES, ids=lambda body: body.__name__)
def test_what_python_does(body, capsys, log_records):
    model = model_of(body)
    ours, before = copy.deepcopy(model), state(model)
    report = fastseg.optimize_(model, mode="infer", dry_run=True)
    assert state(model) == before
    assert not capsys.readouterr().out
    assert not log_records
    reasons = [e.detail for e in report.left if e.name == "bn"]
    assert bool(reasons) == (body not in FUSED), str(report)
    for mode in ("train", "infer"):
        twin = copy.deepcopy(ours) if body not in (closure, nonlocal_counter) else model_of(body)
        if body in (closure, nonlocal_counter):
            twin.load_state_dict(ours.state_dict())
        before = state(twin)
        fastseg.optimize_(twin, mode=mode)
        fastseg.restore_(twin)
        assert state(twin) == before
    expected = steps(model)
    twin.__dict__["_program"] = None
    del twin.__dict__["_program"]
    fastseg.optimize_(twin, mode="infer")
    for actual, y in zip(steps(twin), expected, strict=True):
        if isinstance(y, torch.Tensor):
            assert (actual - y).abs().max() <= 0.02 * y.abs().max()
        else:
            assert actual == y


@pytest.mark.parametrize("mode", ["train", "infer"])
@pytest.mark.parametrize("body", [asks_whether_compiled, asks_whether_traced])
def test_contexts_that_a_forward_asks_for(body, mode):
    model, x = model_of(body), torch.randn(1, 32, 6, 6)
    ours = copy.deepcopy(model)
    fastseg.optimize_(ours, mode=mode)
    with torch.no_grad():
        torch._dynamo.reset()
        compiled = [torch.compile(m, backend="eager", fullgraph=True)(x) for m in (ours, model)]
        close(*compiled)
        close(*(torch.jit.trace(m, x)(x) for m in (ours, model)))
        close(ours(x), model(x))


def test_a_forward_that_calls_its_base_class():
    class Layer(nn.LeakyReLU):
        def __init__(self):
            super().__init__(0.5)
            self.conv, self.bn = nn.Conv2d(32, 32, 1), nn.BatchNorm2d(32)

        def forward(self, x):
            return super().forward(self.bn(self.conv(x)))

    model, x = with_statistics(Layer()), torch.randn(1, 32, 6, 6)
    ours = copy.deepcopy(model)
    assert fastseg.optimize_(ours, mode="infer").left == []
    for m in (model, ours):
        m.negative_slope = 0.25
    with torch.no_grad():
        close(ours(x), model(x))


def test_attributes_read_in_a_way_of_its_own():
    class Layer(Functional):
        def __getattribute__(self, name):
            return object.__getattribute__(self, name)

    report = fastseg.optimize_(with_statistics(Layer(logs)), mode="infer", dry_run=True)
    assert "way of its own" in next(e.detail for e in report.left if e.name == "bn")


def test_a_model_of_another_thread_runs_meanwhile():
    """What it reads is not what the traced forward has read."""
    running, other = threading.Event(), with_statistics(Functional(prints))
    failures = []

    def run():
        while not running.is_set():
            try:
                other.relu(torch.ones(1)), other.log, other.__dict__
            except Exception as error:
                failures.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        for _ in range(5):
            report = fastseg.optimize_(model_of(reads_a_parameter), mode="infer", dry_run=True)
            assert report.left == []
    finally:
        running.set()
        thread.join()
    assert not [e for e in failures if "forward" in str(e)]


def test_a_model_that_was_looked_at_can_be_pickled():
    model = with_statistics(Functional(caches))
    fastseg.optimize_(model, dry_run=True)
    assert pickle.loads(pickle.dumps(model)).cache == {}


def test_reasons_are_in_plain_words():
    for body in BODIES:
        report = fastseg.optimize_(model_of(body), mode="infer", dry_run=True)
        text = str(report)
        assert "Proxy" not in text
        assert "symbolically" not in text
        assert "StandIn" not in text


# Globals and closures that a forward reads.


def helper(x):
    return x


def reads_globals(m, x):
    y = helper(m.chain(x)) * math.pi
    if FLAGS["skip"]:
        y = y + x
    if SWITCH:
        y = y * 2
    if SETTINGS.skip:
        y = y * 3
    return y


CHANGES = {
    "an item": lambda: FLAGS.update(skip=True),
    "a global": lambda: globals().update(SWITCH=True),
    "an attribute": lambda: setattr(SETTINGS, "skip", True),
    "an attribute of a class": lambda: setattr(Settings, "skip", True),
    "a function": lambda: globals().update(helper=lambda x: -x),
    "a method": lambda: setattr(Functional, "chain", lambda self, x: self.conv(x)),
    "a class's forward": lambda: setattr(nn.ReLU, "forward", lambda self, x: x),
    "a convolution's forward": lambda: setattr(nn.Conv2d, "forward", lambda self, x: x * 2),
    "the block's forward": lambda: setattr(Functional, "forward", lambda self, x: x * 5),
    "a hook of all modules": lambda: nn.modules.module.register_module_forward_hook(
        lambda m, i, o: o + 1
    ),
}


@pytest.mark.parametrize("mode", ["train", "infer"])
@pytest.mark.parametrize("name", CHANGES)
def test_what_a_forward_reads_elsewhere(name, mode, monkeypatch):
    for owner, key in ((FLAGS, "skip"), (globals(), "SWITCH"), (globals(), "helper")):
        monkeypatch.setitem(owner, key, owner[key])
    monkeypatch.setattr(Settings, "skip", False)
    for owner, key in ((Functional, "chain"), (Functional, "forward"), (nn.ReLU, "forward"),
                       (nn.Conv2d, "forward")):  # fmt: skip
        monkeypatch.setattr(owner, key, getattr(owner, key))
    model, x = with_statistics(Functional(reads_globals)), torch.randn(1, 32, 6, 6)
    ours = copy.deepcopy(model)
    report = fastseg.optimize_(ours, mode=mode)
    assert report.left == []
    with torch.no_grad():
        before = model(x)
        close(ours(x), before)
        handle = CHANGES[name]()
        try:
            assert not torch.allclose(model(x), before, atol=1e-3)
            close(ours(x), model(x))
        finally:
            if hasattr(handle, "remove"):
                handle.remove()
            SETTINGS.__dict__.clear()


def test_closures_that_a_forward_reads():
    skip, factors = False, [1.0]

    def body(m, x):
        y = m.chain(x) * factors[0]
        return y + x if skip else y

    model, x = with_statistics(Functional(body)), torch.randn(1, 32, 6, 6)
    assert fastseg.optimize_(model, mode="infer").left == []
    with torch.no_grad():
        before = model(x)
        factors[0] = 2.0
        close(model(x), 2 * before)
        factors[0], skip = 1.0, True
        close(model(x), before + x)
        skip = False
        close(model(x), before)
        assert model.why_not_fused() is None
