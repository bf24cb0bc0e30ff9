"""vmap, torch.func and autograd's modes: gradients are right or refused, never lost."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch.autograd import forward_ad
from torch.func import grad, jacfwd, jacrev, jvp, vjp, vmap

import fastseg
from tests.pool.pool_cases import assert_identical

ops = torch.ops.fastseg
WINDOW = ((2, 2), (2, 2), (0, 0), (1, 1))


def batches(*tensors):
    """All in_dims of tensors that hold vmap's dimension first: (arguments, in_dims)."""
    for dims in itertools.product(("batched", "moved", "shared"), repeat=len(tensors)):
        if all(d == "shared" for d in dims):
            continue
        arguments, in_dims = [], []
        for t, d in zip(tensors, dims, strict=True):
            arguments.append({"batched": t, "moved": t.movedim(0, 1), "shared": t[0]}[d])
            in_dims.append({"batched": 0, "moved": 1, "shared": None}[d])
        yield arguments, tuple(in_dims)


def check_vmap(function, *tensors):
    for arguments, in_dims in batches(*tensors):
        actual = vmap(function, in_dims)(*arguments)
        slices = []
        for k in range(len(tensors[0])):
            slices.append(
                function(
                    *(
                        a if d is None else a.select(d, k)
                        for a, d in zip(arguments, in_dims, strict=True)
                    )
                )
            )
        if not isinstance(actual, tuple):
            actual, slices = (actual,), [(s,) for s in slices]
        for got, *expected in zip(actual, *slices, strict=True):
            assert_identical(got, torch.stack(expected))


@pytest.mark.parametrize("dims", [3, 4])
def test_vmap_of_every_op(dims):
    x = torch.randn(3, 2, 4, 6, 8)
    scale, shift = torch.randn(3, 4), torch.randn(3, 4)
    if dims == 3:
        x = x[:, 0]
    values, codes = vmap(lambda x: fastseg.max_pool2d(x, 2))(x)
    indices = torch.stack([fastseg.codes_to_indices(c, (6, 8), 2) for c in codes])
    packed = torch.stack([ops.pack_codes(c, -1) for c in codes])
    check_vmap(lambda x: fastseg.max_pool2d(x, 2), x)
    check_vmap(lambda x: fastseg.max_pool2d(x, 3, 2, 1), x)
    check_vmap(lambda *a: fastseg.batch_norm_relu_max_pool2d(*a, 2), x, scale, shift)
    check_vmap(lambda v, c: fastseg.max_unpool2d(v, c, 2), values, codes)
    check_vmap(lambda v, i: fastseg.max_unpool2d(v, i, 2), values, indices)
    check_vmap(lambda c: fastseg.codes_to_indices(c, (6, 8), 2), codes)
    check_vmap(lambda i: fastseg.indices_to_codes(i, (6, 8), 2), indices)
    check_vmap(lambda c: ops.pack_codes(c, -1), codes)
    check_vmap(lambda v, c: ops.max_pool2d_backward(v, c, (6, 8), *WINDOW), values, codes)
    check_vmap(lambda v, c: ops.max_pool2d_backward(v, c, (6, 8), *WINDOW, -1), values, packed)
    for positions in (codes, indices):
        check_vmap(lambda g, p: ops.max_unpool2d_backward(g, p, (3, 4), *WINDOW), x, positions)


def test_vmap_of_vmap():
    x = torch.randn(2, 3, 4, 6, 8)
    values, codes = vmap(vmap(lambda x: fastseg.max_pool2d(x, 2)))(x)
    for a, b in itertools.product(range(2), range(3)):
        assert_identical(values[a, b], fastseg.max_pool2d(x[a, b], 2)[0])
        assert_identical(codes[a, b], fastseg.max_pool2d(x[a, b], 2)[1])


def test_the_gradient_of_vmap():
    x = torch.randn(3, 2, 4, 6, 8, requires_grad=True)
    expected = torch.stack([gradient(pooled, s.detach()) for s in x])
    vmap(pooled)(x).sum().backward()
    assert_identical(x.grad, expected)


# Functions of one tensor, and what their gradient must be: torch's.

CODES = torch.randint(0, 4, (1, 2, 4, 6), dtype=torch.uint8)
INDICES = fastseg.codes_to_indices(CODES, (8, 12), 2)
SCALE, SHIFT = torch.tensor([1.5, -0.5]), torch.tensor([0.3, 0.2])


def pooled(x):
    return fastseg.max_pool2d(x, 2)[0].square().sum()


def pooled_by_torch(x):
    return F.max_pool2d(x, 2).square().sum()


def normed(x):
    return fastseg.batch_norm_relu_max_pool2d(x, SCALE, SHIFT, 2)[0].square().sum()


def normed_by_torch(x):
    y = x * SCALE[:, None, None] + SHIFT[:, None, None]
    return F.max_pool2d(y.relu(), 2).square().sum()


def unpooled(x):
    return fastseg.max_unpool2d(x, CODES, 2).square().sum()


def unpooled_by_torch(x):
    return F.max_unpool2d(x, INDICES, 2).square().sum()


PAIRS = [
    (pooled, pooled_by_torch),
    (normed, normed_by_torch),
    (unpooled, unpooled_by_torch),
]
each_pair = pytest.mark.parametrize(("ours", "theirs"), PAIRS, ids=("pool", "batch_norm", "unpool"))


def example():
    return torch.randn(1, 2, 4, 6)


def gradient(function, x):
    leaf = x.clone().requires_grad_()
    return torch.autograd.grad(function(leaf), leaf)[0]


def directional(function, x, tangent):
    with forward_ad.dual_level():
        out = forward_ad.unpack_dual(function(forward_ad.make_dual(x, tangent)))
    return torch.zeros(()) if out.tangent is None else out.tangent


TRANSFORMS = {
    "grad": lambda f, x: grad(f)(x),
    "vjp": lambda f, x: vjp(f, x)[1](torch.ones(()))[0],
    "jacrev": lambda f, x: jacrev(f)(x),
    "jacfwd": lambda f, x: jacfwd(f)(x),
    "jvp": lambda f, x: jvp(f, (x,), (torch.ones_like(x),))[1],
    "jvp of vmap": lambda f, x: jvp(vmap(f), (x[None],), (torch.ones_like(x[None]),))[1],
    "vmap of grad": lambda f, x: vmap(grad(f))(x[None]),
    "grad of vmap": lambda f, x: grad(lambda x: vmap(f)(x).sum())(x[None]),
    "grad of grad": lambda f, x: grad(lambda x: grad(f)(x).square().sum())(x),
    "hessian": lambda f, x: jacfwd(jacrev(f))(x),
    "dual": lambda f, x: directional(f, x, torch.ones_like(x)),
    "dual and backward": lambda f, x: directional(f, x.requires_grad_(), torch.ones_like(x)),
}


@each_pair
@pytest.mark.parametrize("transform", TRANSFORMS)
def test_transforms_are_right_or_refused(transform, ours, theirs):
    """torch.library's ops know no torch.func.grad and no forward mode: an error, not a zero."""
    x = example()
    expected = TRANSFORMS[transform](theirs, x.clone())
    assert expected.abs().sum() > 0
    try:
        actual = TRANSFORMS[transform](ours, x.clone())
    except (RuntimeError, NotImplementedError) as error:
        refusal = "forward-mode|functorch transforms|_unpack_dual"
        assert any(part in str(error) for part in refusal.split("|"))  # noqa: PT017
    else:
        torch.testing.assert_close(actual, expected)


def test_functions_of_other_tensors_can_be_transformed():
    """A call on constants inside of a transform is neither refused nor differentiated."""
    x, weight = example(), torch.tensor(2.0)
    values = fastseg.max_pool2d(x, 2)[0].sum()
    for transform in (grad, jacfwd, jacrev):
        torch.testing.assert_close(
            transform(lambda w: w * fastseg.max_pool2d(x, 2)[0].sum())(weight), values
        )


@each_pair
def test_leaves_and_intermediates_have_gradients(ours, theirs):
    x = example()
    expected = gradient(theirs, x)
    assert_close = torch.testing.assert_close
    assert_close(gradient(ours, x), expected)
    assert_close(gradient(lambda x: ours(x * 1), x), expected)
    assert_close(gradient(lambda x: ours(x.view_as(x)), x), expected)
    parameter = torch.nn.Parameter(x.clone())
    ours(parameter).backward()
    assert_close(parameter.grad, expected)
    leaf = x.clone().requires_grad_()
    with torch.no_grad(), torch.enable_grad():
        y = ours(leaf)
    assert_close(torch.autograd.grad(y, leaf)[0], expected)
    leaf = x.clone().requires_grad_()
    (first,) = torch.autograd.grad(ours(leaf), leaf, create_graph=True)
    assert first.requires_grad


def test_each_argument_alone_asks_for_gradients():
    tensors = [example(), SCALE.clone(), SHIFT.clone()]
    for number in range(3):
        arguments = [t.clone().requires_grad_(k == number) for k, t in enumerate(tensors)]
        values, codes = fastseg.batch_norm_relu_max_pool2d(*arguments, 2)
        assert values.requires_grad
        assert not codes.requires_grad
        values.sum().backward()
        assert arguments[number].grad is not None


@each_pair
def test_no_grad_and_inference_mode(ours, theirs):
    x = example().requires_grad_()
    with torch.no_grad():
        y = ours(x)
        assert not y.requires_grad
    assert y.grad_fn is None
    with torch.inference_mode():
        y = ours(x)
        assert y.is_inference()
        made_inside = example()
        inside = ours(made_inside)
    torch.testing.assert_close(inside, theirs(made_inside))
    torch.testing.assert_close(ours(made_inside), inside)  # an inference tensor, outside
    torch.testing.assert_close(y, theirs(x).detach())


def test_values_of_inference_mode_cannot_be_saved_for_backward():
    with torch.inference_mode():
        values, codes = fastseg.max_pool2d(example(), 2)
        indices = fastseg.codes_to_indices(codes, (4, 6), 2)
    with pytest.raises(RuntimeError, match="Inference tensors cannot be saved"):
        fastseg.max_unpool2d(values.clone().requires_grad_(), indices, 2)


def test_a_changed_input_of_backward_is_noticed():
    values, codes = example().requires_grad_(), CODES.long() * 0
    out = fastseg.max_unpool2d(values, codes, 2)
    codes.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


def test_checkpointing():
    x = example()
    checkpoint = torch.utils.checkpoint.checkpoint
    assert_identical(
        gradient(lambda x: checkpoint(pooled, x, use_reentrant=False), x), gradient(pooled, x)
    )
