"""torch.func's transforms of every op and public function, beside autograd and torch's ops."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call, grad, hessian, jacrev, jvp, vjp, vmap
from torch.utils.checkpoint import checkpoint

import fastseg
from tests.core.op_samples import (
    CONSTANT_OUTPUTS,
    DIFFERENTIABLE,
    OF_INTEGERS,
    ONCE,
    TO_INTEGERS,
    TWICE_IN_VALUES,
    Sample,
    samples,
)

pytestmark = pytest.mark.usefixtures("one_thread")

DOUBLE = [s for s in samples(torch.float64) if s.name in DIFFERENTIABLE]
each_op = pytest.mark.parametrize("sample", DOUBLE, ids=str)


def loss_of(sample: Sample, *, curved: bool = False):
    """A number that depends on all floating-point outputs, as a function of such tensors."""
    names = tuple(sample.floats())
    function = sample.as_function(names)
    weights = [torch.randn(y.shape).to(y) for y in sample()]

    def loss(*tensors: Tensor) -> Tensor:
        total = torch.zeros((), dtype=torch.float64)
        for y, weight in zip(function(*tensors), weights, strict=True):
            if y.is_floating_point():
                total = total + ((y.sin() if curved else y) * weight).sum()
        return total

    return loss


def by_autograd(loss, tensors):
    """The gradients of all tensors; zeros for those that the loss does not depend on."""
    leaves = [t.detach().clone().requires_grad_() for t in tensors]
    return torch.autograd.grad(loss(*leaves), leaves, allow_unused=True, materialize_grads=True)


def assert_same(actual, expected, **tolerance):
    for a, b in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, b, **tolerance)


@each_op
def test_grad(sample):
    tensors, loss = tuple(sample.floats().values()), loss_of(sample, curved=True)
    expected = by_autograd(loss, tensors)
    assert any(bool(g.count_nonzero()) for g in expected)
    every = tuple(range(len(tensors)))
    assert_same(grad(loss, every)(*tensors), expected)
    for i in every:  # of one tensor alone: others need no gradient
        torch.testing.assert_close(grad(loss, i)(*tensors), expected[i])


@each_op
def test_vjp(sample):
    names = tuple(sample.floats())
    tensors, function = tuple(sample.floats().values()), sample.as_function(names)

    def floats(*tensors):
        outputs = function(*tensors)
        outputs = outputs[: len(outputs) - CONSTANT_OUTPUTS.get(sample.name, 0)]
        return [y for y in outputs if y.is_floating_point()]

    outputs, pull_back = vjp(floats, *tensors)
    cotangents = [torch.randn_like(y) for y in outputs]
    leaves = [t.clone().requires_grad_() for t in tensors]
    expected = torch.autograd.grad(
        floats(*leaves), leaves, cotangents, allow_unused=True, materialize_grads=True
    )
    assert_same(pull_back(cotangents), expected)


@each_op
def test_vmap_of_grad(sample):
    """Gradients of each example of a batch."""
    tensors, loss = tuple(sample.floats().values()), loss_of(sample, curved=True)
    every = tuple(range(len(tensors)))
    examples = torch.stack([tensors[0], tensors[0].flip(-1) * 0.5])
    in_dims = (0, *(None for _ in tensors[1:]))
    actual = vmap(grad(loss, every), in_dims)(examples, *tensors[1:])
    expected = [grad(loss, every)(example, *tensors[1:]) for example in examples]
    assert_same(actual, [torch.stack(g) for g in zip(*expected, strict=True)])


@each_op
def test_grad_of_vmap(sample):
    tensors, loss = tuple(sample.floats().values()), loss_of(sample)
    in_dims = (0, *(None for _ in tensors[1:]))

    def total(example, *others):
        return vmap(loss, in_dims)(torch.stack([example, example * 0.5]), *others).sum()

    def by_loop(example, *others):
        return loss(example, *others) + loss(example * 0.5, *others)

    every = tuple(range(len(tensors)))
    assert_same(grad(total, every)(*tensors), by_autograd(by_loop, tensors))


@pytest.mark.parametrize("sample", [s for s in DOUBLE if s.name not in ONCE], ids=str)
def test_grad_of_grad(sample):
    tensors, loss = tuple(sample.floats().values()), loss_of(sample, curved=True)
    if sample.name in TWICE_IN_VALUES:
        all_of_them, others = loss, tensors[1:]
        tensors, loss = tensors[:1], lambda values: all_of_them(values, *others)
    every = tuple(range(len(tensors)))
    directions = [torch.randn_like(t) for t in tensors]

    def slope(gradients):
        return sum((g * d).sum() for g, d in zip(gradients, directions, strict=True))

    def by_double_backward(*tensors):
        gradients = torch.autograd.grad(
            loss(*tensors), tensors, create_graph=True, materialize_grads=True, allow_unused=True
        )
        return slope(gradients)

    actual = grad(lambda *t: slope(grad(loss, every)(*t)), every)(*tensors)
    assert_same(actual, by_autograd(by_double_backward, tensors))


@each_op
def test_jacrev(sample):
    """Rows of the Jacobian by vmap over the op's own gradient."""
    tensors, loss = tuple(sample.floats().values()), loss_of(sample)
    scales = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    rows = jacrev(lambda *t: loss(*t) * scales, argnums=0)(*tensors)
    expected = by_autograd(loss, tensors)[0]
    torch.testing.assert_close(rows, scales.view(-1, *[1] * expected.dim()) * expected)


@pytest.mark.parametrize(
    "sample",
    [s for s in samples() if s.name not in DIFFERENTIABLE | OF_INTEGERS | TO_INTEGERS],
    ids=str,
)
def test_ops_without_a_gradient_say_so(sample):
    tensors, loss = tuple(sample.floats().values()), loss_of(sample)
    name = sample.name.removesuffix("_backward")
    with pytest.raises(NotImplementedError, match=name):
        grad(loss)(*tensors)
    with pytest.raises(NotImplementedError, match=name):
        by_autograd(loss, tensors)


@pytest.mark.parametrize("sample", [s for s in samples() if s.name not in OF_INTEGERS], ids=str)
def test_forward_mode_is_refused(sample):
    names, tensors = tuple(sample.floats()), tuple(sample.floats().values())
    with pytest.raises(NotImplementedError, match=r"fastseg::.*forward-mode"):
        jvp(sample.as_function(names), tensors, tuple(map(torch.randn_like, tensors)))


# Public functions, beside torch's own.


def block(x, weight, depth, point, scale, shift):
    y = fastseg.atrous_conv2d(x, weight, dilation=2, scale=scale, shift=shift, activation="relu")
    y = fastseg.separable_atrous_conv2d(y, depth, point, dilation=3, activation="silu", residual=x)
    values, codes = fastseg.max_pool2d(y, 2)
    return fastseg.max_unpool2d(values, codes, 2, output_size=y.shape[-2:]).sin()


def block_of_torch(x, weight, depth, point, scale, shift):
    y = F.conv2d(x, weight, padding=2, dilation=2)
    y = F.relu(y * scale.view(-1, 1, 1) + shift.view(-1, 1, 1))
    y = F.conv2d(y, depth, padding=3, dilation=3, groups=depth.shape[0])
    y = F.silu(F.conv2d(y, point) + x)
    values, indices = F.max_pool2d(y, 2, return_indices=True)
    return F.max_unpool2d(values, indices, 2, output_size=y.shape[-2:]).sin()


def inputs(dtype=torch.float64):
    shapes = (2, 4, 8, 6), (6, 4, 3, 3), (6, 1, 3, 3), (4, 6, 1, 1), (6,), (6,)
    return [torch.randn(shape, dtype=dtype) for shape in shapes]


TRANSFORMS = {
    "grad": lambda f, x, *w: grad(lambda *t: f(*t).sum(), tuple(range(6)))(x, *w),
    "vjp": lambda f, x, *w: vjp(f, x, *w)[1](torch.ones_like(x)),
    "vmap(grad)": lambda f, x, *w: vmap(
        grad(lambda x, *w: f(x, *w).sum(), (0, 1, 2, 3, 4, 5)), (0, *[None] * 5)
    )(torch.stack([x, -x]), *w),
    "vmap(grad) of (C, H, W)": lambda f, x, *w: vmap(
        grad(lambda x, *w: f(x, *w).sum(), (0, 1, 2, 3, 4, 5)), (0, *[None] * 5)
    )(x, *w),
    "jacrev": lambda f, x, *w: [jacrev(lambda s: f(x[:1, :, :4, :4], *w[:3], s, w[4]))(w[3])],
    "jacrev(jacrev)": lambda f, x, *w: [
        jacrev(jacrev(lambda s: f(x[:1, :, :4, :4], *w[:3], w[3], s).sum()))(w[4])
    ],
    "grad(vmap)": lambda f, x, *w: [
        grad(lambda x: vmap(lambda x: f(x, *w))(torch.stack([x, x * 2])).square().sum())(x)
    ],
    "grad(grad)": lambda f, x, *w: [
        grad(lambda x: grad(lambda x: f(x, *w).square().sum())(x).square().sum())(x)
    ],
}


@pytest.mark.parametrize("name", TRANSFORMS)
def test_public_functions(name):
    transform, tensors = TRANSFORMS[name], inputs()
    assert_same(transform(block, *tensors), transform(block_of_torch, *tensors))


@pytest.mark.parametrize("name", ["vmap(grad)", "vmap(grad) of (C, H, W)", "grad(vmap)"])
def test_public_functions_in_float32_and_channels_last(name):
    transform, tensors = TRANSFORMS[name], inputs(torch.float32)
    tensors[0] = tensors[0].contiguous(memory_format=torch.channels_last)
    actual, expected = transform(block, *tensors), transform(block_of_torch, *tensors)
    assert_same(actual, expected, rtol=1e-3, atol=1e-3)


def test_hessian_says_that_it_needs_the_forward_mode():
    x, weight = (torch.randn(s, dtype=torch.float64) for s in ((1, 2, 4, 4), (2, 2, 3, 3)))
    with pytest.raises(NotImplementedError, match="forward-mode"):
        hessian(lambda w: fastseg.atrous_conv2d(x, w).square().sum())(weight)


def test_grad_mode_inside_and_around():
    """A gradient through a gradient, and no_grad on either side of torch.func.grad."""
    x, *others = inputs()
    leaf = x.clone().requires_grad_()

    def both(f):
        inner = grad(lambda x: f(x, *others).square().sum())
        (outer,) = torch.autograd.grad(inner(leaf).square().sum(), leaf)
        with torch.no_grad():
            without = inner(leaf)

        def half(x):
            with torch.no_grad():
                y = f(x, *others)
            return (y * x).sum()

        return outer, without, grad(half)(leaf)

    actual, expected = both(block), both(block_of_torch)
    assert_same(actual, expected)
    assert not actual[1].requires_grad


def test_modules():
    """Gradients of each example, by functional_call, in training and in evaluation."""
    theirs = torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 3, padding=1, bias=False), torch.nn.BatchNorm2d(4), torch.nn.ReLU()
    )
    ours = fastseg.nn.AtrousConvBNAct(3, 4)
    state = {name: t.double() for name, t in ours.state_dict().items()}
    x = torch.randn(5, 3, 8, 8, dtype=torch.float64)
    parameters = {name: t for name, t in state.items() if t.dim() > 0 and "running" not in name}
    buffers = {name: t for name, t in state.items() if name not in parameters}
    results = []
    for module in (ours, theirs):
        module.double().eval()

        def loss(parameters, x, module=module):
            return functional_call(module, (parameters, buffers), (x[None],)).square().sum()

        results.append(vmap(grad(loss), (None, 0))(parameters, x))
    for name in parameters:
        torch.testing.assert_close(results[0][name], results[1][name])


@pytest.mark.parametrize("name", ["grad", "vmap(grad)", "grad(vmap)"])
def test_compiled_transforms(name):
    tensors = inputs()
    compiled = torch.compile(
        lambda *t: TRANSFORMS[name](block, *t), fullgraph=True, backend="aot_eager"
    )
    assert_same(compiled(*tensors), TRANSFORMS[name](block_of_torch, *tensors))


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing(reentrant):
    def gradients(f):
        tensors = [t.requires_grad_() for t in (t.clone() for t in given)]
        return torch.autograd.grad(f(*tensors).square().sum(), tensors)

    def checkpointed(*tensors):
        return checkpoint(block, *tensors, use_reentrant=reentrant)

    given = inputs()
    if reentrant:  # which wants .backward()
        tensors = [t.clone().requires_grad_() for t in given]
        checkpointed(*tensors).square().sum().backward()
        actual = [t.grad for t in tensors]
    else:
        actual = gradients(checkpointed)
    assert_same(actual, gradients(block_of_torch))
