"""fastseg.aspp: the op against its reference, the function against the formula."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from functorch.compile import make_boxed_func
from torch._dynamo.backends.common import aot_autograd
from torch._subclasses import FakeTensorMode

import fastseg
from fastseg import ASPPBranch, reference
from tests.conv.conv_cases import assert_close, double, largest
from tests.pool.pool_cases import FLOATS, LAYOUTS, assert_layout

ops = torch.ops.fastseg
each_layout = pytest.mark.parametrize("layout", LAYOUTS, ids=("contiguous", "channels_last"))
each_dtype = pytest.mark.parametrize("dtype", FLOATS, ids=lambda d: str(d)[6:])
RATES = (1, 2, 6, 12)


def arguments(
    dtype=torch.float32,
    *,
    shape=(2, 5, 13, 9),
    project=True,
    pool=True,
    vectors=True,
    activation="relu",
    layout=LAYOUTS[0],
    branches=4,
):
    """What the op takes; branches of different widths where a projection follows."""
    n, ci = shape[:2]

    def t(*size):
        return torch.randn(size).to(dtype)

    x = t(*shape).contiguous(memory_format=layout)
    widths = ((4, 3, 6, 4) if project else (4, 4, 4, 4))[:branches]
    weights = [t(w, ci, k, k) for w, k in zip(widths, (1, 3, 3, 3), strict=False)]
    scales = [t(w).float() if vectors else None for w in widths]
    shifts = [t(w).float() if vectors else None for w in widths]
    end = (None, None, None, None, "")
    if project:
        given = [torch.randn(7) if vectors else None for _ in range(2)]
        bias = torch.randn(n, 7) if pool else None
        end = (t(7, sum(widths), 1, 1), *given, bias, activation)
    return (x, weights, scales, shifts, RATES[:branches], *end)


def widened(args):
    """The same in float64."""
    return [
        [double(t) for t in a] if isinstance(a, list) else double(a) if torch.is_tensor(a) else a
        for a in args
    ]


FORMS = (
    {},
    {"pool": False},
    {"vectors": False},
    {"activation": "hardswish"},
    {"activation": ""},
    {"project": False},
    {"project": False, "vectors": False},
    {"shape": (0, 5, 8, 8)},
    {"shape": (1, 5, 1, 1)},
)
each_form = pytest.mark.parametrize("form", FORMS, ids=str)


@each_layout
@each_dtype
@each_form
def test_the_op_is_its_reference(form, dtype, layout):
    args = arguments(dtype, layout=layout, **form)
    y, expected = ops.aspp(*args), reference.aspp(*widened(args))
    assert y.dtype == dtype
    assert_layout(y, layout)
    if dtype in (torch.float32, torch.float64):
        assert_close(y, expected)
    else:  # partial sums are rounded, to 5 times half an ulp of the largest
        bound = 2 * 5 * torch.finfo(dtype).eps / 2 * largest(expected)
        assert largest(y.double() - expected) <= bound


def test_a_scale_belongs_to_the_whole_sum():
    """By hand: act(scale * (b_1 w_1 + b_2 w_2 + pool) + shift)."""
    x = torch.full((1, 1, 2, 2), 3.0)
    one = torch.ones(1, 1, 1, 1)
    y = ops.aspp(
        x,
        [one, -2 * one],
        [None, None],
        [None, torch.tensor([7.0])],
        (1, 1),
        torch.tensor([5.0, 11.0]).view(1, 2, 1, 1),
        torch.tensor([-2.0]),
        torch.tensor([100.0]),
        torch.tensor([[4.0]]),
        "relu",
    )
    assert (y == -2 * (3 * 5 + 1 * 11 + 4) + 100).all()


@pytest.mark.parametrize("form", [{}, {"project": False}], ids=str)
def test_opcheck(form):
    args = arguments(**form, branches=2)
    torch.library.opcheck(ops.aspp.default, args, rtol=1e-4, atol=1e-4)
    leaves = [
        [t.requires_grad_() if torch.is_tensor(t) else t for t in a]
        if isinstance(a, list)
        else a.requires_grad_()
        if torch.is_tensor(a)
        else a
        for a in args
    ]
    torch.library.opcheck(ops.aspp.default, tuple(leaves), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("form", [{}, {"project": False}, {"activation": "silu"}], ids=str)
def test_gradcheck_of_the_op(form):
    args = arguments(torch.float64, shape=(2, 3, 5, 4), branches=2, **form)
    flat, spec = torch.utils._pytree.tree_flatten(list(args))
    where = [i for i, t in enumerate(flat) if torch.is_tensor(t)]
    leaves = [flat[i].double().requires_grad_() for i in where]

    def function(*tensors):
        values = dict(zip(where, tensors, strict=True))
        given = [values.get(i, v) for i, v in enumerate(flat)]
        return ops.aspp(*torch.utils._pytree.tree_unflatten(given, spec))

    assert torch.autograd.gradcheck(function, leaves, fast_mode=True)
    assert torch.autograd.gradgradcheck(function, leaves, fast_mode=True)


def test_vmap():
    x, *others = arguments()
    batch = torch.stack([x, 2 * x, -x])
    for form in ((x, *others), arguments(project=False)):
        _, *rest = form
        y = torch.vmap(lambda x, r=rest: ops.aspp(x, *r))(batch)
        for a, one in zip(y, batch, strict=True):
            torch.testing.assert_close(a, ops.aspp(one, *rest), rtol=1e-4, atol=1e-4)


def graph_ops(function, *args):
    """The names of this library's ops in what torch.compile runs forward."""
    names = []

    def compiler(graph, _):
        names.extend(str(n.target) for n in graph.graph.nodes if "fastseg" in str(n.target))
        return make_boxed_func(graph.forward)

    backend = aot_autograd(fw_compiler=compiler)
    torch._dynamo.reset()
    y = torch.compile(function, fullgraph=True, backend=backend)(*args)
    torch.testing.assert_close(y, function(*args), rtol=1e-4, atol=1e-4)
    return names


def test_one_op_where_no_gradient_is_needed():
    """Eager and compiled, by whether a gradient is recorded; the differentiable parts elsewhere."""
    args = arguments()
    branches = [ASPPBranch(*b) for b in zip(*args[1:5], strict=True)]
    project = ASPPBranch(*args[5:8])

    def function(x):
        return fastseg.aspp(x, branches, project)

    x = args[0]
    assert graph_ops(function, x) == ["fastseg.aspp.default"]
    leaf = x.clone().requires_grad_()
    with torch.no_grad():
        assert graph_ops(function, leaf) == ["fastseg.aspp.default"]
    assert graph_ops(function, leaf) == ["fastseg.atrous_conv2d.default"] * 8
    torch.testing.assert_close(function(leaf), function(x), rtol=1e-5, atol=1e-5)


# The function.


each_order = pytest.mark.parametrize("pool_first", [False, True], ids=["pool last", "pool first"])


@each_order
def test_three_dimensions_and_pool(pool_first):
    """The pooling's average against the formula, without a batch."""
    x = torch.randn(3, 6, 7)
    branch = ASPPBranch(torch.randn(4, 3, 3, 3), dilation=2)
    pool = ASPPBranch(torch.randn(5, 3, 1, 1), torch.randn(5), torch.randn(5))
    project = ASPPBranch(torch.randn(2, 9, 1, 1), shift=torch.randn(2))
    y = fastseg.aspp(x, [branch], project, pool=pool, pool_first=pool_first, activation="relu6")
    b = F.conv2d(x, branch.weight, padding=2, dilation=2).clamp(0, 6)
    p = (pool.weight[..., 0, 0] @ x.mean((1, 2)) * pool.scale + pool.shift).clamp(0, 6)
    parts = [b, p[:, None, None].expand(-1, 6, 7)]
    joined = torch.cat(parts[::-1] if pool_first else parts)
    expected = F.conv2d(joined, project.weight, project.shift).clamp(0, 6)
    torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kernel", [1, 3])
@each_order
@each_dtype
def test_separable_branches_and_kernels_of_the_projection(kernel, dtype, pool_first):
    t = lambda *size: torch.randn(size).to(dtype)  # noqa: E731
    x = t(2, 4, 8, 9)
    branches = [
        ASPPBranch(t(3, 4, 1, 1), t(3), t(3)),
        ASPPBranch(t(5, 4, 1, 1), t(5), t(5), 3, t(4, 1, 3, 3), t(4), t(4), "relu6"),
    ]
    pool = ASPPBranch(t(2, 4, 1, 1), t(2), t(2))
    project = ASPPBranch(t(6, 10, kernel, kernel), t(6), t(6))
    y = fastseg.aspp(x, branches, project, pool=pool, pool_first=pool_first)
    wide = [double(v) if torch.is_tensor(v) else v for v in branches[1]]
    x64 = x.double()

    def norm(y, scale, shift):
        return y * scale.double().view(-1, 1, 1) + shift.double().view(-1, 1, 1)

    a = norm(F.conv2d(x64, branches[0].weight.double()), *branches[0][1:3]).relu()
    h = norm(F.conv2d(x64, wide[4], None, 1, 3, 3, 4), *wide[5:7]).clamp(0, 6)
    b = norm(F.conv2d(h, wide[0]), *wide[1:3]).relu()
    p = norm(F.conv2d(x64.mean((2, 3), True), pool.weight.double()), *pool[1:3]).relu()
    p = p.expand(-1, -1, 8, 9)
    joined = torch.cat([p, a, b] if pool_first else [a, b, p], 1)
    expected = norm(F.conv2d(joined, project.weight.double(), padding=kernel // 2), *project[1:3])
    expected = expected.relu()
    assert y.dtype == dtype
    if torch.finfo(dtype).bits == 16:
        assert largest(y.double() - expected) <= 8 * torch.finfo(dtype).eps * largest(expected)
    else:
        assert_close(y, expected)


CALLS = {
    "no branch": (lambda x, b, p: fastseg.aspp(x, []), "branches must not be empty"),
    "pool without projection": (
        lambda x, b, p: fastseg.aspp(x, [b], pool=b, activation=None),
        "pool needs a projection",
    ),
    "a sum with an activation": (
        lambda x, b, p: fastseg.aspp(x, [b]),
        "activation must be None for a sum",
    ),
    "projection of fewer": (
        lambda x, b, p: fastseg.aspp(x, [b, b], p),
        r"project's weight must .*\(Co, 8, kh, kw\)",
    ),
    "projection without pool": (
        lambda x, b, p: fastseg.aspp(x, [b], p, pool=b),
        r"project's weight must .*Co, 8",
    ),
    "unknown activation": (
        lambda x, b, p: fastseg.aspp(x, [b], p, activation="tanh"),
        "activation must be one of",
    ),
    "other channels": (
        lambda x, b, p: fastseg.aspp(x[:, 1:], [b], p),
        "branch 0: x must have weight's 3",
    ),
    "scale of another length": (
        lambda x, b, p: fastseg.aspp(x, [b._replace(scale=x.new_zeros(5))], p),
        r"branch 0: scale must have the shape \(Co,\) = \(4,\)",
    ),
    "even kernel": (
        lambda x, b, p: fastseg.aspp(x, [b._replace(weight=x.new_zeros(4, 3, 2, 2))], p),
        "branch 0: weight must have an odd kernel",
    ),
    "dilation 0": (
        lambda x, b, p: fastseg.aspp(x, [b._replace(dilation=0)], p),
        "branch 0: dilation must be at least 1",
    ),
    "x of rank 2": (
        lambda x, b, p: fastseg.aspp(x[0, 0], [b], p),
        "branch 0: x must have the shape",
    ),
    "sum of different widths": (
        lambda x, b, p: fastseg.aspp(
            x, [b, b._replace(weight=x.new_zeros(5, 3, 1, 1))], activation=None
        ),
        "without a projection branches must have as many channels",
    ),
    "other dtype": (
        lambda x, b, p: fastseg.aspp(x, [b], p._replace(weight=p.weight.double())),
        "project_weight must have x's dtype",
    ),
    "lengths": (
        lambda x, b, p: ops.aspp(x, [b.weight], [None], [], [1], *p[:3], None, ""),
        r"must be as many, at least one each, got \[1, 1, 0, 1\]",
    ),
    "pool_bias of one image": (
        lambda x, b, p: ops.aspp(x, [b.weight], [None], [None], [1], *p[:3], x.new_zeros(1, 6), ""),
        r"pool_bias must have the shape \(N, Co\) = \(2, 6\)",
    ),
    "projection of 3x3 in the op": (
        lambda x, b, p: ops.aspp(
            x, [b.weight], [None], [None], [1], x.new_zeros(6, 4, 3, 3), None, None, None, ""
        ),
        r"project_weight must have the shape \(Co, 4, 1, 1\)",
    ),
}


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("fake", [False, True])
def test_bad_input(fake, name):
    call, pattern = CALLS[name]

    def run():
        with pytest.raises(RuntimeError, match=f"(?s)fastseg::.*{pattern}"):
            call(
                torch.zeros(2, 3, 6, 6),
                ASPPBranch(torch.zeros(4, 3, 3, 3)),
                ASPPBranch(torch.zeros(6, 4, 1, 1)),
            )

    if fake:
        with FakeTensorMode():
            run()
    else:
        run()


def test_a_plain_tuple_is_no_branch():
    """Even after a call with a branch of the same fields, to which it is equal."""
    x, branch = torch.zeros(2, 3, 6, 6), ASPPBranch(torch.zeros(4, 3, 3, 3))
    project = ASPPBranch(torch.zeros(6, 4, 1, 1))
    fastseg.aspp(x, [branch], project)
    with pytest.raises(TypeError, match=r"branches\[0\]"):
        fastseg.aspp(x, [tuple(branch)], project)
    with pytest.raises(TypeError, match="project"):
        fastseg.aspp(x, [branch], tuple(project))
