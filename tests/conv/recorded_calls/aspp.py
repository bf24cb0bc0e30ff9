"""Checks of prepared calls of aspp: its forms, its branches and its pooling."""

from __future__ import annotations

import functools

import torch

import fastseg
from fastseg._core import prepared_calls
from fastseg.ops.conv.aspp import ASPPBranch
from tests.conv.recorded_calls.checking import (
    F32,
    ONE,
    PROJECTED,
    SPLIT_IN,
    all_tensors,
    branch,
    check,
    compare,
    driver,
    pyramid,
    randn,
)


@check
def test_aspp():
    for channels, launched in ((64, PROJECTED), (512, PROJECTED | SPLIT_IN)):
        x, branches, project = randn(1, channels, 13, 13), pyramid(channels), branch(128, 1, 1, 48)
        given = all_tensors(x, *branches, project)
        compare(lambda _, given=(x, branches, project): fastseg.aspp(*given), given, launched)


@check
def test_aspp_without_vectors_and_in_float32():
    x, branches = randn(1, 64, 13, 13, dtype=F32), pyramid(vectors=False)
    branches = [b._replace(weight=b.weight.float()) for b in branches]
    project = ASPPBranch(randn(40, 128, 1, 1, dtype=F32))
    given = all_tensors(x, *branches, project)
    compare(lambda _: fastseg.aspp(x, branches, project), given, PROJECTED)


@check
def test_aspp_whose_branches_differ_in_their_vectors():
    """A vector of ones is made at every call, and vectors are cast."""
    x, branches, project = randn(1, 64, 13, 13), pyramid(), branch(128, 1, 1, 48)
    branches[0] = branches[0]._replace(scale=None)
    branches[1] = branches[1]._replace(shift=branches[1].shift.float())
    fastseg.aspp(x, branches, project)
    driver.launches()
    fastseg.aspp(x, branches, project)
    launched = driver.launches()
    assert launched
    assert not any(one.by_triton for one in launched)


@check
def test_sum_of_branches():
    for channels, launched in ((64, ONE), (512, SPLIT_IN)):
        x, branches = randn(1, channels, 13, 13), pyramid(channels)
        branches = [b._replace(scale=None) for b in branches]
        given = all_tensors(x, *branches)
        run = functools.partial(fastseg.aspp, x, branches, activation=None)
        compare(lambda _, run=run: run(), given, launched)


@check
def test_branches_that_are_launched_one_by_one():
    """Of different widths, or summed with scales: each is a call of its own."""
    x, project = randn(1, 64, 13, 13), branch(104, 1, 1, 48)
    wide = [branch(64, 3, 4), branch(64, 3, 6, 72)]
    for run in (
        lambda: fastseg.aspp(x, wide, project),
        lambda: fastseg.aspp(x, pyramid(), activation=None),
    ):
        for _ in range(3):
            driver.launches()
            run()
        last = driver.launches()
        assert len(last) >= 3
        convolutions = [one for one in last if one.kernel == "atrous_conv2d_kernel"]
        assert convolutions
        assert not any(one.by_triton for one in convolutions)


@check
def test_aspp_with_pooling():
    for pool_first in (False, True):
        x, branches = randn(2, 64, 13, 13), pyramid()
        project, pool = branch(160, 1, 1, 48), branch(64, 1, 1)
        given = all_tensors(x, *branches, project, pool)
        options = {"pool": pool, "pool_first": pool_first}
        run = functools.partial(fastseg.aspp, x, branches, project, **options)
        compare(lambda _, run=run: run(), given, PROJECTED | {"mean_kernel", "vector_kernel"})


@check
def test_a_projection_whose_columns_are_copied():
    """What is copied is a view, which a later call does not have."""
    x, branches, pool = randn(1, 64, 13, 13), pyramid(), branch(64, 1, 1)
    strided = randn(160, 48).t()[..., None, None]
    project = ASPPBranch(strided, randn(48), randn(48))
    plain = ASPPBranch(strided[:, :128], *project[1:3])
    for run in (
        lambda: fastseg.aspp(x, branches, project, pool=pool),
        lambda: fastseg.aspp(x, branches, plain),
    ):
        prepared_calls.forget()
        for _ in range(2):
            driver.launches()
            run()
            assert all(one.by_triton for one in driver.launches())


@check
def test_aspp_in_another_layout():
    x, branches = randn(1, 64, 13, 13, layout=torch.contiguous_format), pyramid()
    project, pool = branch(160, 1, 1, 48), branch(64, 1, 1)
    for _ in range(3):
        driver.launches()
        y = fastseg.aspp(x, branches, project, pool=pool)
        assert y.is_contiguous()
    assert not any(one.by_triton for one in driver.launches())
