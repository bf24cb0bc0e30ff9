"""What is prepared from weights is found again, and never when they have changed."""

from __future__ import annotations

import copy
import gc
import io
import weakref

import pytest
import torch
from conv_cases import needs_kernel

import fastseg
from fastseg import _prepared_weights
from fastseg._prepared_weights import prepared

pytestmark = needs_kernel("winograd_conv2d")


def counted(weight, folded=(), form="form"):
    """Whether prepare() ran, and what came."""
    runs = []
    made = prepared(weight, folded, form, lambda: runs.append(1) or weight.clone())
    return len(runs), made


@pytest.fixture(autouse=True)
def forget():
    _prepared_weights.forget()


def test_prepared_once():
    weight = torch.randn(4, 3, 3, 3)
    assert counted(weight)[0] == 1
    assert counted(weight)[0] == 0
    assert counted(weight, form="other")[0] == 1
    assert counted(weight.clone())[0] == 1


@pytest.mark.parametrize(
    "change",
    [
        lambda w: w.mul_(2),
        lambda w: w.data.mul_(2),
        lambda w: w.data.copy_(torch.randn_like(w)),
        lambda w: w.detach().zero_(),
        lambda w: w.set_(torch.randn_like(w)),
        lambda w: w.numpy().fill(3),
    ],
)
def test_a_change_is_noticed(change):
    weight = torch.randn(64, 32, 3, 3)
    counted(weight)
    change(weight)
    runs, made = counted(weight)
    assert runs == 1
    assert torch.equal(made, weight)


def test_a_change_of_what_is_folded_is_noticed():
    weight, scale = torch.randn(4, 3, 3, 3), torch.rand(4)
    assert counted(weight, (None, scale))[0] == 1
    assert counted(weight, (None, scale))[0] == 0
    scale.data.mul_(2)
    assert counted(weight, (None, scale))[0] == 1
    assert counted(weight, (scale, None))[0] == 1


def test_views_of_one_weight():
    weight = torch.randn(4, 6, 1, 1)
    parts = [lambda: weight[:, :2], lambda: weight[:, 2:4], lambda: weight[:2, :2]]
    assert [counted(part())[0] for part in parts] == [1, 1, 1]
    assert [counted(part())[0] for part in parts] == [0, 0, 0]
    weight[0, 3] = 5
    assert [counted(part())[0] for part in parts] == [1, 1, 1]


def test_tensors_of_inference_mode_and_expanded_ones():
    with torch.inference_mode():
        weight = torch.randn(4, 3, 3, 3)
        assert [counted(weight)[0] for _ in range(2)] == [1, 0]
        weight.mul_(2)
        assert counted(weight)[0] == 1
    one = torch.randn(1, 1, 1, 1)
    assert [counted(one.expand(64, 64, 3, 3))[0] for _ in range(2)] == [1, 0]


def test_dies_with_its_weight():
    weight = torch.randn(4, 3, 3, 3)
    alive = weakref.ref(counted(weight)[1])
    assert alive() is not None
    del weight
    gc.collect()
    assert alive() is None


def test_few_forms_of_one_weight_are_kept():
    weight = torch.randn(4, 3, 3, 3)
    for form in range(_prepared_weights.MOST_FORMS + 1):
        counted(weight, form=form)
    assert counted(weight, form=form)[0] == 0
    assert counted(weight, form=0)[0] == 1


def test_weights_are_saved_and_copied_without_it():
    weight = torch.nn.Parameter(torch.randn(32, 32, 3, 3), requires_grad=False)
    fastseg.atrous_conv2d(torch.randn(1, 32, 8, 8), weight)
    file = io.BytesIO()
    torch.save(weight, file)
    assert file.tell() < 1.2 * weight.numel() * 4
    assert copy.deepcopy(weight).equal(weight)


def test_convolution_follows_its_weight():
    x, weight = torch.randn(1, 32, 9, 9), torch.randn(32, 32, 3, 3)
    first = fastseg.atrous_conv2d(x, weight)
    weight.data.mul_(2)
    torch.testing.assert_close(fastseg.atrous_conv2d(x, weight), 2 * first)
    point, scale = torch.randn(8, 32, 1, 1), torch.rand(8)
    first = fastseg.atrous_conv2d(x, point, scale=scale)
    scale.data.mul_(2)
    torch.testing.assert_close(fastseg.atrous_conv2d(x, point, scale=scale), 2 * first)
