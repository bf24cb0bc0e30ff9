"""The ASPP modules against torchvision's as plain modules; other projects' keys."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.export import Dim, export

from fastseg.nn import ASPP, ASPPSum, convert_aspp_keys
from tests.conv import aspp_of_torch as plain
from tests.conv.aspp_of_torch import unsettle
from tests.conv.conv_cases import largest
from tests.pool.pool_cases import LAYOUTS, assert_identical, assert_layout

each_layout = pytest.mark.parametrize("layout", LAYOUTS, ids=("contiguous", "channels_last"))


def pair_of(options=None, *, rates=(2, 4, 7), **other):
    """Ours and the plain one, with the same state."""
    options = options or {}
    theirs = unsettle(plain.ASPP(6, rates, 5, **other))
    ours = ASPP(6, rates, 5, dropout=0.0, **options)
    ours.load_state_dict(theirs.state_dict())
    assert list(ours.state_dict()) == list(theirs.state_dict())
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs


PAIRS = (
    ({}, {}),
    ({"separable": True}, {"branch": plain.separable}),
    (
        {"separable": True, "depthwise_batch_norm": True},
        {"branch": plain.separable_with_two_batch_norms},
    ),
    ({"image_pooling": False}, {"pool": False}),
    ({"project_kernel_size": 3}, {"project": 3}),
)


def name_of(value):
    """The same name in every process, which a function's address is not."""
    return str(list(value) if isinstance(value, dict) else value)


each_pair = pytest.mark.parametrize(("options", "other"), PAIRS, ids=name_of)


@each_layout
@pytest.mark.parametrize("training", [True, False])
@each_pair
def test_results_gradients_and_statistics(options, other, training, layout):
    ours, theirs = pair_of(options, **other)
    ours.train(training), theirs.train(training)
    x = torch.randn(3, 6, 9, 10).contiguous(memory_format=layout).requires_grad_()
    y, expected = ours(x), theirs(x)
    torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-4)
    assert_layout(y, layout)
    grad = torch.randn_like(expected)
    names = ["x", *(n for n, _ in ours.named_parameters())]
    actual = torch.autograd.grad(y, [x, *ours.parameters()], grad)
    wanted = torch.autograd.grad(expected, [x, *theirs.parameters()], grad)
    for name, a, e in zip(names, actual, wanted, strict=True):
        atol = 2e-4 * max(1, largest(e))
        torch.testing.assert_close(a, e, rtol=1e-3, atol=atol, msg=lambda m, n=name: f"{n}: {m}")
    for (name, a), e in zip(ours.named_buffers(), theirs.buffers(), strict=True):
        torch.testing.assert_close(a, e, rtol=1e-4, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")
    if not training:
        with torch.no_grad():
            torch.testing.assert_close(ours(x), expected, rtol=1e-4, atol=1e-4)


@each_pair
def test_float64_is_the_same_to_rounding(options, other):
    ours, theirs = (m.double() for m in pair_of(options, **other))
    x = torch.randn(2, 6, 9, 10, dtype=torch.float64)
    for training in (True, False):
        ours.train(training), theirs.train(training)
        torch.testing.assert_close(ours(x), theirs(x))


def test_any_number_of_rates():
    for rates in ((), (3,), (1, 2, 3, 4, 5)):
        theirs = unsettle(plain.ASPP(4, rates, 3)).eval()
        ours = ASPP(4, rates, 3).eval()
        ours.load_state_dict(theirs.state_dict())
        x = torch.randn(1, 4, 7, 5)
        torch.testing.assert_close(ours(x), theirs(x), rtol=1e-4, atol=1e-5)


def test_frozen_branches():
    """Some batch norms in evaluation, others in training."""
    ours, theirs = pair_of()
    for m in (ours, theirs):
        m.train()
        for module in (m.convs[1], m.convs[4], m.project):
            module.eval()
    x = torch.randn(2, 6, 9, 10)
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-4, atol=1e-4)
    assert ours.project[1].num_batches_tracked == 0
    assert ours.convs[0][1].num_batches_tracked == 1


def test_dropout():
    ours = ASPP(6, (2,), 5, dropout=0.5)
    x = torch.randn(2, 6, 9, 10)
    zeros = (ours(x) == 0).float().mean()
    ours.dropout.p = 0.0
    assert zeros > (ours(x) == 0).float().mean() + 0.1
    ours.dropout.p = 0.5
    ours.eval()
    assert_identical(ours(x), ours(x))
    assert ASPP(6, (2,), 5).dropout.p == 0.5


def test_training_keeps_less_than_the_concatenation():
    """What autograd keeps of activations: no concatenation beside the branches."""
    ours, theirs = pair_of()
    x = torch.randn(2, 6, 40, 40)

    def kept(module):
        sizes = {}

        def pack(t):
            sizes[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
            return t

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            y = module(x)
        return sum(sizes.values()), y

    (a, _), (b, _) = kept(ours), kept(theirs)
    assert a < 0.8 * b


@pytest.mark.parametrize("training", [True, False])
def test_autocast(training):
    ours, theirs = (m.train(training) for m in pair_of())
    x = torch.randn(2, 6, 9, 10)
    with torch.autocast("cpu", torch.bfloat16):
        y, expected = ours(x), theirs(x)
    assert y.dtype == expected.dtype == torch.bfloat16
    torch.testing.assert_close(y, expected, rtol=0.1, atol=0.15)
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        torch.testing.assert_close(ours(x), expected, rtol=0.1, atol=0.15)


@torch.no_grad()
def test_changes_and_copies():
    ours, theirs = (m.eval() for m in pair_of())
    x = torch.randn(2, 6, 9, 10)
    before = ours(x)
    for other in (copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
        assert_identical(other(x), before)
        for name in ("convs.0.1", "convs.2.1", "convs.4.2", "project.1"):
            y = other(x)
            other.get_submodule(name).running_var.mul_(3)
            assert not torch.equal(other(x), y), name
        theirs.load_state_dict(other.state_dict())
        torch.testing.assert_close(other(x), theirs(x), rtol=1e-4, atol=1e-5)
    assert_identical(ours(x), before)
    torch.testing.assert_close(ours.double()(x.double()).float(), before, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "other", "training"),
    [(*PAIRS[0], True), (*PAIRS[0], False), (*PAIRS[1], False)],
    ids=name_of,
)
def test_compile(options, other, training):
    ours, _ = pair_of(options, rates=(2,), **other)
    ours.train(training)
    torch._dynamo.reset()
    compiled = torch.compile(copy.deepcopy(ours), fullgraph=True, backend="aot_eager")
    x = torch.randn(2, 6, 9, 10).requires_grad_()
    results = []
    for m in (ours, compiled):
        y = m(x)
        results.append([y, *torch.autograd.grad(y.square().sum(), [x, *m.parameters()])])
    for a, e in zip(*results, strict=True):
        torch.testing.assert_close(a, e, rtol=1e-3, atol=1e-3)
    if not training:
        with torch.no_grad():
            torch.testing.assert_close(compiled(x), ours(x), rtol=1e-4, atol=1e-4)


@each_pair
def test_export(options, other):
    ours, _ = pair_of(options, **other)
    ours.eval()
    torch._dynamo.reset()
    dynamic = ({0: Dim.AUTO, 2: Dim.AUTO, 3: Dim.AUTO},)
    with torch.no_grad():
        exported = export(ours, (torch.randn(2, 6, 9, 10),), dynamic_shapes=dynamic)
        for size in ((2, 9, 10), (1, 14, 12)):
            x = torch.randn(size[0], 6, *size[1:])
            torch.testing.assert_close(exported.module()(x), ours(x), rtol=1e-4, atol=1e-4)
    called = [str(n.target) for n in exported.graph.nodes if "fastseg" in str(n.target)]
    assert ("fastseg.aspp.default" in called) == (not options or "image_pooling" in options)


def test_aspp_sum():
    """DeepLab v2's."""
    ours = ASPPSum(6, 4, (2, 4, 9))
    assert list(ours.state_dict()) == [f"c{i}.{k}" for i in range(3) for k in ("weight", "bias")]
    convs = list(ours.children())
    assert all((c.bias == 0).all() and 0.008 < c.weight.std() < 0.012 for c in convs)
    for c in convs:
        nn.init.normal_(c.bias)
    x = torch.randn(2, 6, 9, 11).requires_grad_()
    expected = sum(c(x) for c in convs)
    y = ours(x)
    torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-6)
    with torch.no_grad():
        torch.testing.assert_close(ours(x), expected, rtol=1e-4, atol=1e-6)
    leaves, grad = [x, *ours.parameters()], torch.randn_like(y)
    for a, e in zip(
        torch.autograd.grad(y, leaves, grad),
        torch.autograd.grad(expected, leaves, grad),
        strict=True,
    ):
        torch.testing.assert_close(a, e, rtol=1e-3, atol=1e-4)


# Other projects' keys.


def renamed(state, names):
    """A state_dict under other keys; names: (our prefix, theirs)."""
    return {
        next(new + key[len(old) :] for old, new in names if key.startswith(old)): t
        for key, t in state.items()
    }


@pytest.mark.parametrize(
    ("source", "prefix"),
    [
        ("torchvision", "classifier.0."),
        ("vainf", "classifier.aspp."),
        ("vainf", "classifier.classifier.0."),
        ("smp", "decoder.aspp.0."),
        ("smp", "decoder.aspp."),
        ("smp", ""),
    ],
)
def test_keys_under_a_prefix(source, prefix):
    theirs = unsettle(plain.ASPP(6, (2, 4, 7), 5, branch=plain.separable)).eval()
    state = {prefix + k: v for k, v in theirs.state_dict().items()}
    if prefix:
        state |= {"backbone.conv1.weight": torch.zeros(1), "classifier.4.weight": torch.zeros(1)}
        state |= {"decoder.aspp.1.0.weight": torch.zeros(1), "decoder.conv.weight": torch.zeros(1)}
    ours = ASPP(6, (2, 4, 7), 5, separable=True).eval()
    ours.load_state_dict(convert_aspp_keys(state, source))
    x = torch.randn(1, 6, 9, 10)
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-4, atol=1e-5)


def test_keys_of_mmsegmentation():
    """Its bottleneck is 3x3, and its pooling comes first."""
    theirs = unsettle(plain.ASPP(6, (2, 4, 7), 5, project=3, pool_first=True)).eval()
    names = [("convs.4.1.", "image_pool.1.conv."), ("convs.4.2.", "image_pool.1.bn.")]
    for i in range(4):
        names += [(f"convs.{i}.0.", f"aspp_modules.{i}.conv.")]
        names += [(f"convs.{i}.1.", f"aspp_modules.{i}.bn.")]
    names += [("project.0.", "bottleneck.conv."), ("project.1.", "bottleneck.bn.")]
    state = {f"decode_head.{k}": v for k, v in renamed(theirs.state_dict(), names).items()}
    state["decode_head.conv_seg.weight"] = torch.zeros(1)
    ours = ASPP(6, (2, 4, 7), 5, project_kernel_size=3).eval()
    ours.load_state_dict(convert_aspp_keys(state, "mmseg"))
    x = torch.randn(1, 6, 9, 10)
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("prefix", ["aspp.", "aspp.stages.", "base.aspp."])
def test_keys_of_kazuto(prefix):
    ours = ASPPSum(6, 4, (2, 4))
    state = {prefix + k: v + 1 for k, v in ours.state_dict().items()}
    state["layer1.conv1.weight"] = torch.zeros(1)
    ours.load_state_dict(convert_aspp_keys(state, "kazuto"))
    assert_identical(ours.c1.weight, state[f"{prefix}c1.weight"])


def test_keys_that_are_not_there():
    with pytest.raises(ValueError, match=r"source must be one of torchvision, .*, got 'tf'"):
        convert_aspp_keys({}, "tf")
    for source in ("torchvision", "vainf", "smp", "mmseg", "kazuto"):
        with pytest.raises(ValueError, match=f"no ASPP of {source}"):
            convert_aspp_keys({"backbone.conv1.weight": torch.zeros(1)}, source)
