"""Whatever is given for a tensor: every public call's own words, or what torch makes of it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import fastseg
from tests.core.op_samples import samples
from tests.core.public_calls import PublicCall, public_calls

CALLS = public_calls()
each_call = pytest.mark.parametrize("call", CALLS, ids=str)
pytestmark = pytest.mark.usefixtures("one_thread")


OTHER_NAMES = {  # of the op that builds a lattice, and of that which reads it
    "PermutohedralLattice": r"PermutohedralLattice|fastseg::permutohedral_lattice",
    "PermutohedralLattice.filter": r"PermutohedralLattice.filter|fastseg::permutohedral_filter",
}


def named(name: str) -> str:
    """How errors name an argument; those of ASPP's parts after their branch."""
    branch, _, field = name.rpartition(".")
    if not branch:
        return rf"\b{name}\b"
    branch = re.sub(r"branches.(\d).", r"branch \1", branch)
    return rf"{branch}\b.*\b{field}\b|{branch}_{field}\b|branches .* weight"


def no_tensors(t: Tensor) -> Iterator[tuple[str, Any]]:
    """What is no tensor, and what an error must call it."""
    yield "NoneType", None
    yield "ndarray", t.numpy()
    yield "list", t.tolist()
    yield "float", 2.5
    yield "str", "tensor"


def other_dtypes(t: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Tensors of t's shape, and what an error must say of their dtypes."""
    for dtype in (
        torch.float64,
        torch.float32,
        torch.int32,
        torch.bool,
        torch.complex64,
        torch.float8_e4m3fn,
    ):
        if dtype != t.dtype:
            yield name_of(dtype), t.float().to(dtype)
    if t.is_floating_point():
        quantized = torch.quantize_per_tensor(t, 0.1, 0, torch.qint8)
        yield "torch.qint8|QInt8", quantized


def name_of(dtype: torch.dtype) -> str:
    """Torch's name, or that of the compiled ops."""
    word = str(dtype).removeprefix("torch.")
    native = {"float64": "Double", "float32": "Float", "int32": "Int", "complex64": "ComplexFloat"}
    return rf"{word}\b|\b{native.get(word, word.capitalize())}\b"


def other_layouts(t: Tensor) -> Iterator[tuple[str, Tensor]]:
    yield r"sparse_coo", t.to_sparse()
    if t.dim() == 2:
        yield r"sparse_csr", t.to_sparse_csr()
    if t.dim() == 4 and t.dtype == torch.float32:
        yield r"_mkldnn", t.to_mkldnn()


def other_shapes(t: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Of another number of dimensions, longer, or empty in each of them."""
    yield "one dimension more", t[None]
    yield "two more", t[None, None]
    yield "none", t.flatten()[0]
    if t.dim() > 1:
        yield "one less", t[0]
    for d in range(t.dim()):
        yield f"longer in {d}", torch.cat([t, t], d)
        yield f"empty in {d}", t.narrow(d, 0, 0)


def refused(call: PublicCall, name: str, value: Any, errors, *words: str) -> None:
    """An error of the function itself that names the argument and says what came."""
    with pytest.raises(errors) as caught:
        call(**{name: value})
    message = str(caught.value)
    assert re.match(OTHER_NAMES.get(call.name, re.escape(call.name)), message), message
    for word in (named(name), *words):
        assert re.search(word, message), f"{word!r} in {message!r}"


@each_call
def test_what_is_no_tensor(call):
    for name, t in call.tensors.items():
        for kind, value in no_tensors(t):
            if value is None and name in call.optional:
                call(**{name: None})
            else:
                refused(call, name, value, TypeError, "must be", rf"got {kind}")


@each_call
def test_dtypes(call):
    for name, t in call.tensors.items():
        for kind, value in other_dtypes(t):
            if takes(call, name, value.dtype):
                call(**{name: value})
            else:
                refused(call, name, value, (RuntimeError, ValueError), "must|expected", kind)


LOSSES = [f"fastseg::upsample_{name}" for name in ("cross_entropy", "dice_loss", "focal_loss")]
LOSSES.append("fastseg::upsample_ohem_cross_entropy")


def takes(call: PublicCall, name: str, dtype: torch.dtype) -> bool:
    """Vectors and losses of any floats; alone, or with no other, float64 too; pooling all."""
    if name.endswith(("bias", "scale", "shift")) or call.name == "fastseg::fold_batch_norm":
        return dtype in (torch.float64, torch.float32)
    if call.name == "fastseg::distance_transform":
        return dtype in (torch.float64, torch.int32, torch.bool)
    if call.name in ("fastseg.nn.BoundaryLoss", "fastseg.nn.HausdorffDTLoss"):
        real = (torch.float64, torch.float32, torch.int32, torch.bool)
        return dtype in (real if name == "target" else (torch.float64,))
    if call.name in ("fastseg::max_pool2d",):
        return dtype in (torch.float64, torch.int32)
    if call.name == "fastseg::pixel_adaptive_refinement":
        return dtype == torch.float64
    if name == "indices":
        return False
    if call.name in LOSSES:
        floats = (torch.float64, torch.float32)
        return dtype == torch.int32 if name == "target" else dtype in floats
    if name == "logits":
        return dtype == torch.float64
    if call.name in ("fastseg::confusion_matrix", "fastseg::upsample_confusion_matrix"):
        return dtype in (torch.int32, torch.bool)
    alone = name == "x" and set(call.tensors) <= {"x", "scale", "shift"} and "pool" in call.name
    alone |= name in ("values", "sigma") and call.name in (
        "fastseg::max_unpool2d",
        "fastseg::spatial_gaussian_filter",
    )
    alone |= name == "features" and "exact" not in call.name
    return alone and dtype == torch.float64


@each_call
def test_layouts(call):
    for name, t in call.tensors.items():
        for kind, value in other_layouts(t):
            refused(call, name, value, RuntimeError, "dense", kind)


@each_call
def test_nested_tensors(call):
    """Theirs or torch's own words."""
    for name, t in call.tensors.items():
        if t.dim() > 1:
            nested = torch.nested.nested_tensor([t[0], t[0]])
            with pytest.raises((RuntimeError, NotImplementedError), match=r"(?i)nested"):
                call(**{name: nested})


@each_call
def test_devices(call):
    """With all others on the CPU; what is alone on meta has an output there."""
    for name, t in call.tensors.items():
        if len(call.tensors) == 1 and "module" not in call.note and "ermutohedral" not in call.name:
            assert all(y.is_meta for y in call(**{name: t.to("meta")}))
        elif len(call.tensors) > 1:
            refused(call, name, t.to("meta"), (RuntimeError, ValueError), "device", "meta")


@each_call
def test_shapes(call):
    """Right or refused by a name among the arguments', with the shape or the size that came."""
    names = "|".join(map(named, call.tensors))
    for name, t in call.tensors.items():
        for what, value in other_shapes(t):
            message = error_of(call, name, value)
            if message is not None:
                assert re.search(names, message), f"{name} {what}: {message}"
                assert re.search(r"got|is too small|hold an? (code|index)", message), message


def error_of(call: PublicCall, name: str, value: Tensor) -> str | None:
    """What an error says, which must be of the function's own; None: there is none."""
    try:
        call(**{name: value})
    except (RuntimeError, ValueError) as error:
        return str(error)
    return None


# Empty sizes, as torch takes or refuses them.


def outcome(function, *tensors) -> torch.Size | None:
    """The output's shape, None for an error."""
    try:
        out = function(*tensors)
    except RuntimeError:
        return None
    return (out[0] if isinstance(out, tuple) else out).shape


@pytest.mark.parametrize("gradient", [False, True])
@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize("empty", [*range(4), None])
def test_empty_convolutions(empty, kernel, gradient):
    """As torch's; but torch makes an output without channels of an input without."""
    x, weight = torch.randn(2, 4, 6, 5), torch.randn(3, 4, kernel, kernel)
    for t, d in ((x, empty), (weight, empty)):
        tensors = [x, weight]
        if d is not None:
            tensors = [t.narrow(d, 0, 0) if t is s else s for s in tensors]
            if d == 1:
                tensors = [s.narrow(1, 0, 0) for s in (x, weight)]
        tensors = [s.requires_grad_(gradient) for s in (s.detach() for s in tensors)]
        expected = outcome(lambda x, w: F.conv2d(x, w, padding=kernel // 2), *tensors)
        if d == 1:
            expected = None
        assert outcome(fastseg.atrous_conv2d, *tensors) == expected
        if gradient and expected is not None:
            fastseg.atrous_conv2d(*tensors).sum().backward()
            grads = [s.grad for s in tensors]
            for s in tensors:
                s.grad = None
            F.conv2d(*tensors, padding=kernel // 2).sum().backward()
            for g, s in zip(grads, tensors, strict=True):
                torch.testing.assert_close(g, s.grad, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shape", [(0, 3, 6, 4), (2, 0, 6, 4), (2, 3, 0, 4), (3, 6, 0), (0, 6, 4)])
def test_empty_poolings(shape):
    x = torch.randn(shape)
    pooled = outcome(lambda x: F.max_pool2d(x, 2, return_indices=True), x)
    assert outcome(lambda x: fastseg.max_pool2d(x, 2), x) == pooled
    scale = torch.ones(shape[-3])
    assert outcome(lambda x: fastseg.batch_norm_relu_max_pool2d(x, scale, scale, 2), x) == pooled
    indices = torch.zeros(shape, dtype=torch.int64)
    expected = outcome(lambda x: F.max_unpool2d(x, indices, 2), x)
    for positions in (indices, indices.byte()):
        assert outcome(lambda x, p=positions: fastseg.max_unpool2d(x, p, 2), x) == expected
        if expected is not None:
            leaf = x.clone().requires_grad_()
            fastseg.max_unpool2d(leaf, positions, 2).sum().backward()
            assert leaf.grad.shape == x.shape


@pytest.mark.parametrize("sample", samples(), ids=str)
def test_ops_called_directly(sample):
    """What is no tensor: torch's words, which name the argument, or the op's own."""
    for leaf in sample.leaves():
        schema = sample.op._schema.arguments[leaf.argument]
        for value in (leaf.tensor.numpy(), 2.5, "tensor"):
            with pytest.raises((RuntimeError, TypeError), match=schema.name):
                sample.with_tensors({leaf.name: value})()
        if str(schema.type) == "Tensor":
            with pytest.raises(TypeError, match=rf"{schema.name} must be a tensor, got None"):
                sample.with_tensors({leaf.name: None})()


def test_an_aspp_of_other_things():
    x, branch = torch.randn(1, 4, 8, 8), fastseg.ASPPBranch(torch.randn(3, 4, 1, 1))
    for branches, project, words in (
        (branch, None, r"branches must be a list"),
        ([], None, r"branches must not be empty"),
        ([branch, branch.weight], None, r"branches\[1\] must be an ASPPBranch, got Tensor"),
        ([branch], np.ones(3), r"project must be an ASPPBranch, got ndarray"),
    ):
        with pytest.raises((TypeError, RuntimeError), match=words):
            fastseg.aspp(x, branches, project)
    with pytest.raises(TypeError, match=r"pool must be an ASPPBranch, got Tensor"):
        fastseg.aspp(x, [branch], branch, pool=branch.weight)
