"""torch.vmap of every op, beside the op on each slice, whatever tensors have vmap's dimension."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch.func import vmap

from fastseg._core import library
from fastseg.ops.crf.permutohedral_filter import permutohedral_filter
from fastseg.ops.crf.permutohedral_lattice import permutohedral_lattice
from tests.core.op_samples import Sample, assert_close, samples

pytestmark = pytest.mark.usefixtures("one_thread")

SLICES = 2


def test_every_op_has_a_sample():
    assert {sample.name for sample in samples()} == set(library.NAMES)


def other_values(t: torch.Tensor, i: int) -> torch.Tensor:
    """Of the same kind: positions, and numbers of a lattice's parts, stay what they are."""
    if not t.is_floating_point():
        return t
    if t.dim() == 1 and bool((t > 0).all()):  # bandwidths
        return t * (1 + i)
    return t * (1 - 0.5 * i) + 0.25 * i


def batched(sample: Sample, names: tuple[str, ...], dim: int) -> dict[str, torch.Tensor]:
    """The named tensors, SLICES of each along dim, or before it in what has fewer dimensions."""
    return {
        leaf.name: torch.stack(
            [other_values(leaf.tensor, i) for i in range(SLICES)], min(dim, leaf.tensor.dim())
        )
        for leaf in sample.leaves()
        if leaf.name in names
    }


def subsets(sample: Sample) -> list[tuple[str, ...]]:
    """Every tensor alone, every pair, all but one, all."""
    names = [leaf.name for leaf in sample.leaves()]
    sizes = {1, 2, len(names) - 1, len(names)} & set(range(1, len(names) + 1))
    return [c for size in sorted(sizes) for c in itertools.combinations(names, size)]


@pytest.mark.parametrize("dim", [0, 2])
@pytest.mark.parametrize("sample", samples(), ids=str)
def test_vmap(sample, dim):
    for names in subsets(sample):
        if dim > 0 and 1 < len(names) < len(sample.leaves()):
            continue  # where the dimension is does not depend on others
        tensors = batched(sample, names, dim)
        in_dims = tuple(min(dim, t.dim() - 1) for t in tensors.values())
        function = sample.as_function(tuple(tensors))
        actual = vmap(function, in_dims)(*tensors.values())
        slices = [
            function(*(t.select(d, i) for t, d in zip(tensors.values(), in_dims, strict=True)))
            for i in range(SLICES)
        ]
        for i, (outputs, expected) in enumerate(
            zip(actual, map(list, zip(*slices, strict=True)), strict=True)
        ):
            if sample.name == "permutohedral_lattice" and 2 <= i <= 6:
                continue  # of as many rows and vertices: test_lattices_of_different_sizes
            assert_close(outputs, torch.stack(expected), 1e-4, f"output {i}, vmap of {names}")


@pytest.mark.parametrize("sample", samples(), ids=str)
def test_vmap_of_vmap(sample):
    leaf = sample.leaves()[0]
    t = torch.stack([torch.stack([leaf.tensor, leaf.tensor]), torch.stack([leaf.tensor] * 2)])
    outputs = vmap(vmap(sample.as_function((leaf.name,))))(t)
    for output, expected in zip(outputs, sample(), strict=True):
        torch.testing.assert_close(output, expected.expand(2, 2, *expected.shape))


@pytest.mark.parametrize(
    "sample",
    [s for s in samples() if not s.name.startswith("permutohedral_filter")],  # of no lattice
    ids=str,
)
def test_vmap_of_no_slice(sample):
    leaf = sample.leaves()[0]
    outputs = vmap(sample.as_function((leaf.name,)))(leaf.tensor.expand(0, *leaf.tensor.shape))
    if sample.name == "permutohedral_lattice":
        assert {len(t) for t in outputs} == {0}
        return
    assert [t.shape for t in outputs] == [(0, *t.shape) for t in sample()]


@pytest.mark.parametrize("dilation", [0, 2])
def test_lattices_of_different_sizes(dilation):
    """Slices whose lattices have different numbers of vertices, and two tiles each."""
    features = torch.randn(3, 2, 3, 9000) * torch.tensor([1.0, 6.0, 0.1]).view(3, 1, 1, 1)
    values = torch.randn(3, 2, 2, 9000)

    def smooth(features, values):
        lattice = permutohedral_lattice(features, dilation=dilation)
        return permutohedral_filter(values, lattice, symmetric=dilation > 0)

    expected = torch.stack([smooth(f, v) for f, v in zip(features, values, strict=True)])
    torch.testing.assert_close(vmap(smooth)(features, values), expected)
    expected = torch.stack([smooth(features[0], v) for v in values])
    torch.testing.assert_close(vmap(smooth, (None, 0))(features[0], values), expected)


@pytest.mark.parametrize("sample", samples(), ids=str)
def test_vmap_of_channels_last(sample):
    """No rule asks a tensor of vmap's for its memory format."""
    tensors = {
        leaf.name: leaf.tensor.contiguous(memory_format=torch.channels_last)
        if leaf.tensor.dim() == 4
        else leaf.tensor
        for leaf in sample.leaves()
    }
    expected = sample.with_tensors(tensors)()
    for names in (list(tensors)[:1], list(tensors)):
        stacked = [torch.stack([tensors[name]] * SLICES) for name in names]
        outputs = vmap(sample.with_tensors(tensors).as_function(names))(*stacked)
        for actual, e in zip(outputs, expected, strict=True):
            assert_close(actual, e.expand(SLICES, *e.shape), 1e-4, str(names))
