"""Forwards whose Python does what no graph shows: what they write, and what they ask for."""

from __future__ import annotations

import collections
import logging
import os
import random
import time
import types
import warnings

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from tests.zoo.other_models import with_statistics

CALLS: list = []
COUNT = 0
SEEN: set = set()


class Settings:
    """A class of one's own whose attributes decide."""

    skip = False
    made = 0


class Functional(nn.Module):
    """``body(self, x)`` as forward."""

    kept: list = []  # noqa: RUF012

    def __init__(self, body):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(32, 32, 3, padding=1), nn.BatchNorm2d(32)
        self.relu, self.body = nn.ReLU(), body
        self.calls, self.log, self.cache, self.seen = 0, [], {}, set()
        self.nested, self.queue = {"log": [[]]}, collections.deque(maxlen=4)
        self.stats = types.SimpleNamespace(count=0)
        self.random = random.Random(0)
        self.array = np.zeros(2)
        self.tensors = [torch.ones(1)]
        self.gamma = nn.Parameter(torch.ones(1))
        self.register_buffer("steps", torch.zeros(1))
        self.child = Nothing()
        self.returns_list = Listed()

    def forward(self, x):
        return self.body(self, x)

    def chain(self, x):
        return self.relu(self.bn(self.conv(x)))


class Nothing(nn.Module):
    def forward(self, x):
        return None


class Listed(nn.Module):
    def forward(self, x):
        return [x]


class Popping(nn.Module):
    def forward(self, maps):
        return maps.pop()


# What writes something.


def counts(m, x):
    m.calls += 1
    return m.chain(x)


def logs(m, x):
    m.log.append(1)
    return m.chain(x)


def logs_by_addition(m, x):
    m.log += [1]
    return m.chain(x)


def logs_deep_inside(m, x):
    m.nested["log"][0].append(x)
    return m.chain(x)


def queues(m, x):
    m.queue.append(1)
    return m.chain(x)


def caches(m, x):
    m.cache["x"] = x
    return m.chain(x)


def caches_by_update(m, x):
    m.cache.update(x=1)
    return m.chain(x)


def remembers_in_a_set(m, x):
    m.seen.add("x")
    return m.chain(x)


def counts_in_an_object(m, x):
    m.stats.count += 1
    return m.chain(x)


def counts_in_a_class(m, x):
    Settings.made += 1
    return m.chain(x)


def keeps_in_its_class(m, x):
    m.kept.append(1)
    return m.chain(x)


def counts_globally(m, x):
    global COUNT
    COUNT += 1
    return m.chain(x)


def logs_globally(m, x):
    CALLS.append(1)
    return m.chain(x)


def sees_globally(m, x):
    SEEN.add(len(SEEN))
    return m.chain(x)


def has_a_default(m, x, log=[]):  # noqa: B006
    log.append(1)
    return m.chain(x) * len(log)


def sets_by_name(m, x):
    setattr(m, "calls", m.calls + 1)  # noqa: B010
    return m.chain(x)


def sets_by_object(m, x):
    object.__setattr__(m, "calls", m.calls + 1)
    return m.chain(x)


def sets_its_dict(m, x):
    m.__dict__["calls"] = m.calls + 1
    return m.chain(x)


def sets_a_child(m, x):
    m.relu.last = x
    return m.chain(x)


def tags_the_input(m, x):
    x.tag = 1
    return m.chain(x)


def counts_in_a_buffer(m, x):
    m.steps.add_(1)
    return m.chain(x) * m.steps


def counts_as_timm(m, x):
    m.bn.num_batches_tracked.add_(1)
    return m.chain(x)


def writes_a_buffer(m, x):
    m.steps[0] = m.steps[0] + 1
    return m.chain(x) * m.steps


def writes_a_parameter(m, x):
    with torch.no_grad():
        m.gamma.mul_(2)
    return m.chain(x) * m.gamma


def writes_an_array(m, x):
    m.array[0] += 1
    return m.chain(x) * float(m.array[0])


def registers(m, x):
    m.register_buffer("late", x)
    return m.chain(x)


def closure():
    log = []

    def body(m, x):
        log.append(1)
        return m.chain(x) * len(log)

    return body


def nonlocal_counter():
    count = 0

    def body(m, x):
        nonlocal count
        count += 1
        return m.chain(x) * count

    return body


def prints(m, x):
    print("forward")
    return m.chain(x)


def warns(m, x):
    warnings.warn("forward", stacklevel=2)
    return m.chain(x)


def logs_properly(m, x):
    logging.getLogger("fastseg.tests").error("forward")
    return m.chain(x)


# What asks for something.


def draws_by_numpy(m, x):
    return m.chain(x) * float(np.random.rand())


def draws(m, x):
    return m.chain(x) * random.random()


def draws_by_its_own(m, x):
    return m.chain(x) * m.random.random()


def draws_by_torch(m, x):
    return m.chain(x) * torch.rand(1).item()


def draws_a_tensor(m, x):
    return m.chain(x) + torch.randn(1)


def tells_time(m, x):
    return m.chain(x) * (time.perf_counter_ns() % 7 + 1)


def reads_the_environment(m, x):
    return m.chain(x) * len(os.environ.get("FASTSEG_TESTS", "1"))


def asks_for_gradients(m, x):
    return m.chain(x) * (2 if torch.is_grad_enabled() else 3)


def asks_for_autocast(m, x):
    return m.chain(x) * (2 if torch.is_autocast_enabled("cpu") else 3)


def asks_for_the_default_dtype(m, x):
    return m.chain(x) * (2 if torch.get_default_dtype() == torch.float64 else 3)


def asks_for_onednn(m, x):
    return m.chain(x) * (2 if torch.backends.mkldnn.enabled else 3)


def asks_for_threads(m, x):
    return m.chain(x) * torch.get_num_threads()


def asks_whether_compiled(m, x):
    return m.chain(x) * (2 if torch.compiler.is_compiling() else 3)


def asks_whether_traced(m, x):
    return m.chain(x) * (2 if torch.jit.is_tracing() else 3)


def asks_for_a_type(m, x):
    return m.chain(x) if type(x) is torch.Tensor else x


def asks_for_a_class(m, x):
    return m.chain(x) if x.__class__ is torch.Tensor else x


def asks_by_isinstance(m, x):
    return m.chain(x) if isinstance(x, torch.Tensor) else x


def asks_for_a_parameter(m, x):
    return m.chain(x) * (2 if isinstance(m.gamma, nn.Parameter) else 3)


def asks_for_an_attribute(m, x):
    return m.chain(x) * (2 if hasattr(x, "shape") and not hasattr(x, "meta") else 3)


def asks_with_a_default(m, x):
    return m.chain(x) * getattr(x, "factor", 3)


def asks_for_a_gradient(m, x):
    return m.chain(x) * (2 if x.grad is None else 3)


def asks_for_identity(m, x):
    y = m.chain(x)
    return y if y is not x else y + 1


def asks_for_the_same(m, x):
    y = nn.functional.dropout(x, 0.0, False)
    return m.chain(x) * (2 if y is x else 3)


def asks_whether_callable(m, x):
    return m.chain(x) * (2 if callable(x) else 3)


def asks_for_an_id(m, x):
    return m.chain(x) * (2 if id(x) in m.cache else 3)


def asks_for_text(m, x):
    return m.chain(x) * (2 if "float32" in str(x.dtype) else 3)


def formats(m, x):
    return m.chain(x) * len(f"{x.dtype}")


def asks_for_length(m, x):
    return m.chain(x) * len(x)


def asks_for_a_shape(m, x):
    return m.chain(x) * (2 if isinstance(x.shape, tuple) else 3)


def asks_for_a_size(m, x):
    return m.chain(x) * (2 if isinstance(x.shape[0], int) else 3)


def asks_a_child(m, x):
    y = m.child(x)
    return m.chain(x) * (2 if y is None else 3)


def asks_what_a_child_returns(m, x):
    y = m.returns_list(x)
    return m.chain(y[0]) if isinstance(y, list) else y


def catches(m, x):
    try:
        return m.chain(x) + torch.ones(3)
    except RuntimeError:
        return m.chain(x)


def catches_all(m, x):
    try:
        return m.chain(x) + m.missing
    except:  # noqa: E722
        return m.chain(x)


def matches(m, x):
    match x:
        case torch.Tensor():
            return m.chain(x)
    return x


def reads_a_parameter(m, x):
    return m.chain(x) * m.gamma.item()


def reads_a_list_of_tensors(m, x):
    return m.chain(x) * float(m.tensors[0])


def reads_a_dtype(m, x):
    dtype = next(m.conv.parameters()).dtype
    return m.chain(x).to(torch.float64 if dtype == torch.float32 else torch.float32)


def makes_weights(m, x):
    return m.relu(m.bn(F.conv2d(x, m.conv.weight / m.conv.weight.std(), padding=1)))


def makes_a_tensor(m, x):
    return m.chain(x) + torch.zeros(1)


def loops(m, x):
    return sum(m.chain(row[None]) for row in x)


def gives_a_list(m, x):
    maps = [x, x + 1]
    y = Popping.forward(None, maps)
    return m.chain(y) * len(maps)


BODIES = [
    counts, logs, logs_by_addition, logs_deep_inside, queues, caches, caches_by_update,
    remembers_in_a_set, counts_in_an_object, counts_in_a_class, keeps_in_its_class,
    counts_globally, logs_globally, sees_globally, has_a_default, sets_by_name, sets_by_object,
    sets_its_dict, sets_a_child, tags_the_input, counts_in_a_buffer, counts_as_timm,
    writes_a_buffer, writes_a_parameter, writes_an_array, registers, closure, nonlocal_counter,
    prints, warns, logs_properly, draws_by_numpy, draws, draws_by_its_own, draws_by_torch,
    draws_a_tensor, tells_time, reads_the_environment, asks_for_gradients, asks_for_autocast,
    asks_for_the_default_dtype, asks_for_onednn, asks_for_threads, asks_whether_compiled,
    asks_whether_traced, asks_for_a_type, asks_for_a_class, asks_by_isinstance,
    asks_for_a_parameter, asks_for_an_attribute, asks_with_a_default, asks_for_a_gradient,
    asks_for_identity, asks_for_the_same, asks_whether_callable, asks_for_an_id, asks_for_text,
    formats, asks_for_length, asks_for_a_shape, asks_for_a_size, asks_a_child,
    asks_what_a_child_returns, catches, catches_all, matches, reads_a_parameter,
    reads_a_list_of_tensors, reads_a_dtype, makes_weights, makes_a_tensor, loops, gives_a_list,
]  # fmt: skip
FUSED = {
    asks_by_isinstance, asks_for_a_parameter, asks_for_an_attribute, asks_with_a_default,
    asks_whether_compiled, asks_whether_traced, counts_as_timm, counts_in_a_buffer, gives_a_list,
    reads_a_parameter,
}  # fmt: skip
"""Those whose answers are certain, or which a graph shows."""


def model_of(body) -> Functional:
    made = body in (closure, nonlocal_counter)
    return with_statistics(Functional(body() if made else body))
