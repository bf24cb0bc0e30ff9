"""What is prepared from weights is found again, and never when they have changed."""

from __future__ import annotations

import copy
import gc
import io
import multiprocessing
import threading
import weakref

import pytest
import torch

import fastseg
from fastseg.ops.conv import prepared_weights
from fastseg.ops.conv.prepared_weights import MOST_FORMS, State, prepared
from tests.conv.conv_cases import needs_kernel

pytestmark = needs_kernel("winograd_conv2d")


def counted(weight, folded=(), form="form"):
    """Whether prepare() ran, and what came."""
    runs = []
    made = prepared(weight, folded, form, lambda: runs.append(1) or weight.clone())
    return len(runs), made


@pytest.fixture(autouse=True)
def forget():
    prepared_weights.forget()


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


def test_no_filter_goes_unseen():
    """A write that leaves no trace but the bytes, to one number of any filter."""
    weight = torch.randn(512, 512, 3, 3)
    state = State((weight,))
    assert state.still_of((weight,))
    values = weight.numpy().reshape(512, -1)
    for i in range(512):
        at = (i * 7919) % values.shape[1]
        before, values[i, at] = values[i, at], 3
        assert not state.still_of((weight,)), i
        values[i, at] = before
    assert state.still_of((weight,))
    weight.data[[0, 1]] = weight.data[[1, 0]]
    assert not state.still_of((weight,))


@pytest.mark.parametrize("bytes_", [1, 7, 16, 127, 128, 129, 4096, 1 << 18, (1 << 18) + 5, 1 << 20])
def test_no_byte_goes_unseen(bytes_):
    memory = torch.arange(bytes_, dtype=torch.int32).to(torch.uint8)
    state = State((memory,))
    for at in {0, bytes_ // 3, bytes_ // 2, bytes_ - 2, bytes_ - 1} - {-1}:
        memory.numpy()[at] ^= 1
        assert not state.still_of((memory,)), at
        memory.numpy()[at] ^= 1
    assert state.still_of((memory,))


@pytest.mark.parametrize(
    "view",
    [
        lambda t: t[:, ::2],
        lambda t: t[::3, 1:],
        lambda t: t.transpose(0, 1),
        lambda t: t[:, :, ::2, 1:],
        lambda t: t[:, :1].expand(-1, 4, -1, -1),
        lambda t: t[:, :, 2:3, 1:2],
        lambda t: t.contiguous(memory_format=torch.channels_last)[:, :, 2:3, 1:2],
        lambda t: t[:, 2:4],
    ],
)
def test_no_element_of_a_view_goes_unseen(view):
    memory = torch.randn(6, 8, 5, 4)
    weight = view(memory)
    state = State((weight,))
    for index in range(0, weight.numel(), 7):
        place = tuple(int(i) for i in torch.unravel_index(torch.tensor(index), weight.shape))
        before = weight[place].item()
        weight.data[place] = 9.0
        assert not state.still_of((weight,)), place
        weight.data[place] = before
    assert state.still_of((weight,))


def test_gaps_are_not_read():
    """The middle tap of a weight in channels_last is a ninth of it."""
    weight = torch.randn(20, 96, 3, 3).contiguous(memory_format=torch.channels_last)
    pieces = prepared_weights._pieces(weight[:, :, 1:2, 1:2])
    assert [bytes_ for _, bytes_ in pieces] == [96 * 4] * 20
    assert pieces[1][0] - pieces[0][0] == 96 * 9 * 4
    assert len(prepared_weights._pieces(torch.randn(20, 96, 1, 1)[:, 16:48])) == 20
    assert len(prepared_weights._pieces(weight)) == 1
    # One number in nine lies in every line of the memory.
    assert len(prepared_weights._pieces(torch.randn(500, 96, 3, 3)[:, :, 1:2, 1:2])) == 1
    assert prepared_weights._pieces(weight[:0]) == []


def test_writes_of_another_process_are_noticed():
    weight = torch.randn(64, 64, 3, 3).share_memory_()
    assert counted(weight)[0] == 1
    child = multiprocessing.get_context("fork").Process(target=_write, args=(weight,))
    child.start()
    child.join()
    assert child.exitcode == 0
    assert weight[5, 6, 1, 1] == 7
    assert counted(weight)[0] == 1


def _write(weight):
    weight.numpy()[5, 6, 1, 1] = 7


def test_other_tensors_at_the_same_place_are_others():
    weight, vector = torch.randn(4, 3, 3, 3), torch.randn(4)
    assert counted(weight, (vector,))[0] == 1
    assert counted(weight, (vector[0].expand(4),))[0] == 1
    assert counted(weight, (vector.view(torch.int32),))[0] == 1
    assert counted(weight.view(torch.int32), (vector,))[0] == 1
    assert counted(weight.view(3, 4, 3, 3), (vector,))[0] == 1


def test_many_weights_in_one_storage():
    """As fully_shard and parameters_to_vector have them: each is found again."""
    memory = torch.randn(300, 16)
    parts = [row.view(4, 4, 1, 1) for row in memory]
    assert [counted(part)[0] for part in parts] == [1] * 300
    assert [counted(part)[0] for part in parts] == [0] * 300
    more = torch.randn(2 * prepared_weights.MOST_WEIGHTS, 16)
    for row in more:
        counted(row.view(4, 4, 1, 1))
    kept = prepared_weights._kept[id(more.untyped_storage())]
    assert len(kept.weights) == prepared_weights.MOST_WEIGHTS


def test_tensors_stay_free_of_weak_references():
    """Torch's swap_tensors, which Module.double() may use, refuses tensors that have one."""
    weight = torch.nn.Parameter(torch.randn(32, 32, 3, 3), requires_grad=False)
    x = torch.randn(1, 32, 9, 9)
    expected = fastseg.atrous_conv2d(x, weight)
    other = torch.nn.Parameter(2 * weight.detach(), requires_grad=False)
    torch.utils.swap_tensors(weight, other)
    torch.testing.assert_close(fastseg.atrous_conv2d(x, weight), 2 * expected)
    torch.testing.assert_close(fastseg.atrous_conv2d(x, other), expected)


def test_threads_that_prepare_at_once():
    weights = [torch.randn(8, 8, 3, 3) for _ in range(20)]
    wrong = []

    def work():
        for _ in range(30):
            for weight in weights:
                for form in range(MOST_FORMS + 2):
                    made = prepared(weight, (), form, lambda w=weight, f=form: w + f)
                    if not torch.equal(made, weight + form):
                        wrong.append(form)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


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
    for form in range(prepared_weights.MOST_FORMS + 1):
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
