"""Forwards that write in place, through views and `out=`: what is fused sees the same values."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fastseg
from tests.optimize.optimize_cases import close
from tests.zoo.other_models import with_statistics


class Functional(nn.Module):
    """``body(self, x, s)`` as forward."""

    def __init__(self, body):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.relu, self.inplace, self.body = nn.ReLU(), nn.ReLU(inplace=True), body
        self.drop, self.same, self.unknown = nn.Dropout(0.0), nn.Identity(), Unknown()
        self.pool = nn.MaxPool2d(2)
        self.register_buffer("scratch", torch.zeros(8))

    def forward(self, x, s):
        return self.body(self, x, s)


class Unknown(nn.Module):
    """Returns its argument and writes to it."""

    def forward(self, x):
        return x.mul_(3)


def to_the_input(m, x, s):
    y = m.conv(x)
    x.mul_(2)
    return m.relu(m.bn(y)) + x


def through_a_view_of_the_input(m, x, s):
    part = x[:, :3]
    y = m.conv(x)
    part.add_(1)
    return m.relu(m.bn(y)) + x


def through_a_view_of_a_view(m, x, s):
    part = x.permute(0, 2, 3, 1)[..., 1:].reshape(-1, 7)
    row = x.view(x.shape[0], -1).unsqueeze(0)
    y = m.conv(x)
    row.clamp_(min=0)
    return m.relu(m.bn(y)) + x + part.sum()


def through_chunks(m, x, s):
    first, second = x.chunk(2, 1)
    y = m.conv(x)
    first.add_(second)
    return m.relu(m.bn(y)) + x


def through_data(m, x, s):
    y = m.conv(x)
    x.data.mul_(2)
    return m.relu(m.bn(y)) + x


def through_detach(m, x, s):
    y = m.conv(x)
    x.detach().zero_()
    return m.relu(m.bn(y)) + x


def through_identity(m, x, s):
    z = m.drop(m.same(x))
    y = m.conv(x)
    z += 1
    return m.relu(m.bn(y)) + x


def by_an_activation(m, x, s):
    y = m.conv(x)
    m.inplace(x)
    return m.relu(m.bn(y)) + x


def by_a_function(m, x, s):
    y = m.conv(x)
    F.relu(x, True)
    return m.relu(m.bn(y)) + x


def by_out(m, x, s):
    y = m.conv(x)
    torch.add(s, s, out=x)
    return m.relu(m.bn(y)) + x


def by_copy(m, x, s):
    y = m.conv(x)
    x.copy_(s)
    return m.relu(m.bn(y)) + x


def by_set(m, x, s):
    y = m.conv(x)
    x.set_(s)
    return m.relu(m.bn(y)) + x


def by_an_unknown_module(m, x, s):
    y = m.conv(x)
    m.unknown(x)
    return m.relu(m.bn(y)) + x


def to_the_other_argument(m, x, s):
    y = m.conv(x)
    s.mul_(2)
    return m.relu(m.bn(y)) + s


def to_the_other_argument_that_is_the_same(m, x, s):
    return to_the_other_argument(m, x, s)


def to_the_residual(m, x, s):
    z = m.bn(m.conv(x)) + s
    s.mul_(2)
    return m.relu(z) + s


def to_a_view_of_the_residual(m, x, s):
    part = s[:, :2]
    z = m.bn(m.conv(x)) + s
    part.mul_(2)
    return m.relu(z) + s


def residual_made_by_the_unknown(m, x, s):
    z = m.unknown(s * 1)
    return m.relu(m.bn(m.conv(x)) + z)


def to_what_the_convolution_made(m, x, s):
    y = m.conv(x)
    y[:, :4].add_(1)
    return m.relu(m.bn(y))


def to_what_the_batch_norm_made(m, x, s):
    y = m.bn(m.conv(x))
    y.narrow(1, 0, 4).add_(1)
    return m.relu(y)


def adds_to_the_input(m, x, s):
    x += m.bn(m.conv(x))
    return m.relu(x)


def to_the_weight(m, x, s):
    y = m.conv(x)
    m.conv.weight.data.mul_(2)
    return m.relu(m.bn(y))


def to_the_statistics(m, x, s):
    y = m.conv(x)
    z = m.bn(y)
    m.bn.running_mean.add_(0.1)
    return m.relu(z)


def before_pooling(m, x, s):
    y = m.bn(x)
    x.mul_(2)
    return m.pool(m.relu(y)) + m.pool(x)


def numbers_count_up(m, x, s):
    height = x.shape[2]
    width = height
    width += 1
    y = m.relu(m.bn(m.conv(x)))
    return F.interpolate(y, (height, width))


def lists_grow_in_place(m, x, s):
    maps = [x]
    other = maps
    maps += [s]
    return m.relu(m.bn(m.conv(x))) * len(other)


def powers_in_place(m, x, s):
    y = m.conv(x)
    x **= 2
    return m.relu(m.bn(y)) + x


def masks_in_place(m, x, s):
    mask, other = x > 0, s > 0
    again = mask
    mask &= other
    return m.relu(m.bn(m.conv(x))) * again


BODIES = [
    to_the_input, through_a_view_of_the_input, through_a_view_of_a_view, through_chunks,
    through_data, through_detach, through_identity, by_an_activation, by_a_function, by_out,
    by_copy, by_set, by_an_unknown_module, to_the_other_argument,
    to_the_other_argument_that_is_the_same, to_the_residual, to_a_view_of_the_residual,
    residual_made_by_the_unknown, to_what_the_convolution_made, to_what_the_batch_norm_made,
    adds_to_the_input, to_the_weight, to_the_statistics, before_pooling, numbers_count_up,
    lists_grow_in_place, powers_in_place, masks_in_place,
]  # fmt: skip


@pytest.mark.parametrize("mode", ["train", "infer"])
@pytest.mark.parametrize("body", BODIES, ids=lambda body: body.__name__)
def test_writes_stay_in_their_order(body, mode):
    model = with_statistics(Functional(body))
    ours = copy.deepcopy(model)
    fastseg.optimize_(ours, mode=mode)
    x, s = torch.randn(2, 8, 6, 8), torch.randn(2, 8, 6, 8)
    written = []
    with torch.no_grad():
        for m in (model, ours):
            inputs = x.clone(), s.clone()
            if body is to_the_other_argument_that_is_the_same:
                inputs = inputs[0], inputs[0]
            written.append((m(*inputs), *inputs, *m.buffers(), m.conv.weight))
    for actual, expected in zip(written[1][:3], written[0][:3], strict=True):
        close(actual, expected)
    close(ours.conv.weight, model.conv.weight)
    close(ours.bn.running_mean, model.bn.running_mean)


def harmless_before(m, x, s):
    z = s * 2
    y = m.conv(x)
    z.add_(1)
    return m.relu(m.bn(y)) + z


def squeeze_and_excitation(m, x, s):
    y = m.conv(x)
    z = m.unknown(x.mean((2, 3), keepdim=True))
    return m.relu(m.bn(y)) * z


@pytest.mark.parametrize("body", [harmless_before, squeeze_and_excitation, numbers_count_up])
def test_writes_to_other_memory_stop_nothing(body):
    report = fastseg.optimize_(with_statistics(Functional(body)), mode="infer")
    assert [e.detail for e in report.swapped] == ["conv + batch norm + relu"]


def test_statistics_are_taken_in_their_order():
    """One batch norm for two maps: the second's statistics count more."""

    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1)
            self.bn = nn.BatchNorm2d(8, momentum=0.9)

        def forward(self, x):
            a, b = self.bn(self.first(x)), self.bn(self.second(x))
            return torch.relu(b) - torch.relu(a)

    model = with_statistics(Shared())
    ours, x = copy.deepcopy(model), torch.randn(4, 8, 6, 6)
    fastseg.optimize_(ours)
    with torch.no_grad():
        close(ours(x), model(x))
        model.train(), ours.train()
        close(ours(x), model(x))
    close(ours.bn.running_mean, model.bn.running_mean)
    close(ours.bn.running_var, model.bn.running_var)
