"""The dense CRF under torch.func: vmap of each argument, grad, vjp, jacrev; errors that say why."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch.func import functional_call, grad, jacrev, jvp, stack_module_state, vjp, vmap

import fastseg
from fastseg import (
    MeanField,
    PairwiseBilateral,
    PairwiseFeatures,
    PairwiseGaussian,
    PermutohedralLattice,
    dense_crf,
)
from fastseg._core.lattice_quality import LATTICE_QUALITY
from fastseg._core.pairwise import NORMALIZATIONS

QUALITIES = ("compat", "high", "exact")
each_quality = pytest.mark.parametrize("quality", QUALITIES)
each_lattice = pytest.mark.parametrize("quality", LATTICE_QUALITY)
SAMPLES, LABELS = 3, 4


def random(*shape, seed=0, low=0.0, high=1.0, dtype=torch.float64):
    g = torch.Generator().manual_seed(seed)
    return low + (high - low) * torch.rand(shape, generator=g, dtype=dtype)


def arguments(batch, spatial=(5, 6), dtype=torch.float64):
    """What a CRF is a function of, with a first dimension of samples; batch None: unbatched."""
    lead = (SAMPLES,) if batch is None else (SAMPLES, batch)

    def make(*shape, **options):
        return random(*shape, dtype=dtype, **options)

    return {
        "unary": make(*lead, LABELS, *spatial, high=3),
        "image": make(*lead, 3, *spatial, seed=1, high=60),
        "features": make(*lead, 2, *spatial, seed=2, high=2),
        "sxy": make(SAMPLES, seed=3, low=1, high=3),
        "srgb": make(SAMPLES, 3, seed=4, low=10, high=20),
        "potts": make(SAMPLES, seed=5),
        "diagonal": make(SAMPLES, LABELS, seed=6, low=-1, high=0),
        "matrix": make(SAMPLES, LABELS, LABELS, seed=7),
    }


NAMES = tuple(arguments(None))


def terms_of(features, sxy, srgb, potts, diagonal, matrix):
    return [
        PairwiseGaussian(sxy, potts),
        PairwiseBilateral(4, srgb, matrix, "after"),
        PairwiseFeatures(features, diagonal),
    ]


def crf(unary, image, *terms, **options):
    return dense_crf(unary, image, terms_of(*terms), iterations=2, **options)


def stepped(unary, image, *terms, quality, log=False):
    field = MeanField(unary, image, terms_of(*terms), quality=quality, log=log)
    q = field.step(2)
    return torch.cat([q.flatten(), field.q.flatten(), field.kl_divergence().flatten()])


def one_by_one(function, values, batched):
    """The same in a loop; arguments that are not batched are those of sample 0."""
    return torch.stack(
        [
            function(*(v[i if name in batched else 0] for name, v in values.items()))
            for i in range(SAMPLES)
        ]
    )


def moved(values, batched, dims):
    """The arguments of vmap and their in_dims, which go through `dims` in turn."""
    turn = itertools.cycle(dims)
    tensors, in_dims = [], []
    for name, v in values.items():
        dim = next(turn) if name in batched else None
        if dim is not None and abs(dim) >= v.dim():
            dim = 0
        in_dims.append(dim)
        tensors.append(v[0] if dim is None else v.movedim(0, dim))
    return tensors, tuple(in_dims)


@pytest.mark.parametrize("function", [crf, stepped], ids=["dense_crf", "MeanField"])
@pytest.mark.parametrize("batch", [None, 1, 2])
@pytest.mark.parametrize("batched", [*[(n,) for n in NAMES], NAMES[:2], NAMES[:3], NAMES], ids=str)
@each_quality
def test_vmap_of_each_argument_and_of_several(quality, batched, batch, function):
    values = arguments(batch)
    for log, dims in ((False, (0, 1, -1)), (True, (-1, 0))):

        def at_once(*a, log=log):
            return function(*a, quality=quality, log=log)

        tensors, in_dims = moved(values, batched, dims)
        actual = vmap(at_once, in_dims)(*tensors)
        torch.testing.assert_close(actual, one_by_one(at_once, values, batched))


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
@pytest.mark.parametrize("spatial", [(5, 6), (2, 3, 4)])
@each_quality
def test_vmap_of_other_dtypes_and_volumes(quality, spatial, dtype):
    values = arguments(2, spatial)
    values["unary"] = values["unary"].to(dtype)
    values = {k: v.float() if k != "unary" else v for k, v in values.items()}
    values["image"] = values["image"].to(torch.uint8)

    def at_once(*a):
        return crf(*a, quality=quality)

    batched = ("unary", "image", "features")
    tensors, in_dims = moved(values, batched, (0,))
    actual = vmap(at_once, in_dims)(*tensors)
    assert actual.dtype == dtype
    torch.testing.assert_close(actual, one_by_one(at_once, values, batched), rtol=0, atol=1e-3)
    chunked = vmap(at_once, in_dims, chunk_size=2)(*tensors)
    torch.testing.assert_close(chunked, actual, rtol=0, atol=1e-3)


@each_quality
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_vmap_in_vmap_and_in_any_layout(quality, layout):
    unary = random(2, SAMPLES, 2, LABELS, 5, 6, high=3).flatten(0, 2)
    unary = unary.contiguous(memory_format=layout).unflatten(0, (2, SAMPLES, 2))
    image = random(SAMPLES, 2, 3, 5, 6, seed=1, high=60)

    def function(u, i):
        q = dense_crf(u, i, iterations=2, quality=quality)
        return q, MeanField(u, i, quality=quality).step(2)

    actual = vmap(vmap(function), in_dims=(0, None))(unary, image)
    for a, b in itertools.product(range(2), range(SAMPLES)):
        for got, expected in zip(actual, function(unary[a, b], image[b]), strict=True):
            torch.testing.assert_close(got[a, b], expected)


@each_quality
def test_an_ensemble_of_layers(quality):
    terms = [PairwiseGaussian(2, 1), PairwiseBilateral(4, 13, 1)]
    layers = [fastseg.nn.DenseCRF(LABELS, terms, 2, quality, log=True).double() for _ in range(3)]
    torch.manual_seed(0)
    for layer in layers:
        for p in layer.parameters():
            p.data += 0.3 * torch.rand_like(p)
    parameters, buffers = stack_module_state(layers)
    unary, image = random(2, LABELS, 5, 6, high=3), random(2, 3, 5, 6, seed=1, high=60)

    def function(p, u):
        return functional_call(layers[0], (p, buffers), (u, image))

    actual = vmap(function, (0, None))(parameters, unary)
    expected = torch.stack([layer(unary, image) for layer in layers])
    torch.testing.assert_close(actual, expected)


# Gradients.


def checked_gradients(function, tensors):
    """grad, vjp and jacrev of a function beside autograd's own gradient."""
    argnums = tuple(range(len(tensors)))
    leaves = [t.clone().requires_grad_() for t in tensors]
    out = function(*leaves)
    weight = random(*out.shape, seed=9)
    expected = torch.autograd.grad((out * weight).sum(), leaves)
    for actual in (
        grad(lambda *a: (function(*a) * weight).sum(), argnums)(*tensors),
        vjp(function, *tensors)[1](weight),
        [
            (j * weight.view(*weight.shape, *[1] * t.dim())).flatten(0, weight.dim() - 1).sum(0)
            for j, t in zip(jacrev(function, argnums)(*tensors), tensors, strict=True)
        ],
    ):
        for a, b in zip(actual, expected, strict=True):
            torch.testing.assert_close(a, b)


@pytest.mark.parametrize("log", [False, True])
@each_quality
def test_gradients_of_every_argument(quality, log):
    tensors = [v[0] for v in arguments(1, (3, 4)).values()]
    checked_gradients(lambda *a: crf(*a, quality=quality, log=log), tensors)


@each_quality
def test_gradients_of_steps(quality):
    tensors = [v[0] for v in arguments(1, (3, 4)).values()]
    checked_gradients(lambda *a: stepped(*a, quality=quality), tensors)


@each_quality
@pytest.mark.parametrize("batched", [("unary",), ("unary", "image"), NAMES], ids=str)
def test_gradients_of_each_sample(quality, batched):
    """Of all arguments, also of those that the samples have in common."""
    values = arguments(2, (3, 4))
    argnums = tuple(range(len(NAMES)))
    weight = random(2, LABELS, 3, 4, seed=9)

    def loss(*a):
        return (crf(*a, quality=quality, log=True) * weight).sum()

    tensors, in_dims = moved(values, batched, (0,))
    actual = vmap(grad(loss, argnums), in_dims)(*tensors)
    for i in range(SAMPLES):
        sample = (v[i if name in batched else 0] for name, v in values.items())
        for a, b in zip(actual, grad(loss, argnums)(*sample), strict=True):
            torch.testing.assert_close(a[i], b)


@each_quality
def test_gradients_through_vmap(quality):
    """The other way round: autograd's gradient of what vmap computed."""
    values = {k: v.requires_grad_() for k, v in arguments(2, (3, 4)).items()}
    weight = random(SAMPLES, 2, LABELS, 3, 4, seed=9)

    def function(*a):
        return crf(*a, quality=quality)

    results = [vmap(function)(*values.values()), one_by_one(function, values, NAMES)]
    grads = [torch.autograd.grad((r * weight).sum(), list(values.values())) for r in results]
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("log", [False, True])
def test_no_terms(log):
    unary = random(2, LABELS, 3, 4).requires_grad_()
    softmax = torch.log_softmax if log else torch.softmax
    for iterations in (0, 2):
        q = dense_crf(unary, None, [], iterations=iterations, log=log)
        torch.testing.assert_close(q, softmax(-unary, 1))
        assert torch.autograd.gradcheck(
            lambda u, n=iterations: dense_crf(u, None, [], iterations=n, log=log), unary
        )


# Lattices.


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
@each_lattice
def test_lattices(quality, normalization):
    features = random(SAMPLES, 2, 3, 4, 5, high=3)
    values = random(SAMPLES, 2, 2, 4, 5, seed=1)

    def both(f, v):
        return PermutohedralLattice(f, quality=quality).filter(v, normalization)

    for in_dims in ((0, 0), (0, None), (None, 0)):
        tensors = [t if d == 0 else t[0] for t, d in zip((features, values), in_dims, strict=True)]
        actual = vmap(both, in_dims)(*tensors)
        for i in range(SAMPLES):
            sample = (
                t[i if d == 0 else 0] for t, d in zip((features, values), in_dims, strict=True)
            )
            torch.testing.assert_close(actual[i], both(*sample))
    checked_gradients(both, (features[0, :1, :2], values[0, :1]))
    lattice = PermutohedralLattice(features[0], quality=quality)
    expected = torch.stack([lattice.filter(v, normalization) for v in values])
    fresh = PermutohedralLattice(features[0], quality=quality)
    actual = vmap(lambda v: fresh.filter(v, normalization), 1, 2)(values.movedim(0, 1))
    torch.testing.assert_close(actual.movedim(2, 0), expected)
    torch.testing.assert_close(fresh.filter(values[0], normalization), expected[0])


# What cannot work says so.


def bad(name, value, index=0):
    values = arguments(2)
    values[name].flatten()[index] = value
    return values


@pytest.mark.parametrize("function", [crf, stepped], ids=["dense_crf", "MeanField"])
@pytest.mark.parametrize(
    ("values", "message"),
    [
        (bad("unary", torch.nan, 7), "unary must"),
        (bad("unary", -torch.inf, 7), "unary must"),
        (bad("image", torch.nan, 7), "features must be finite|finite"),
        (bad("sxy", -1.0), "PairwiseGaussian: sxy must be positive and finite"),
        (bad("srgb", torch.inf), "PairwiseBilateral: srgb must be positive and finite"),
        (bad("matrix", torch.nan), "compatibility must be finite"),
    ],
    ids=str,
)
@pytest.mark.parametrize("transform", ["vmap", "grad", "vmap of grad"])
def test_bad_values_are_told_in_transforms(transform, values, message, function):
    def loss(*a):
        return function(*a, quality="high").sum()

    tensors = list(values.values())
    if transform == "grad":
        tensors = [t[0] for t in tensors]
    transformed = {"vmap": vmap(loss), "grad": grad(loss), "vmap of grad": vmap(grad(loss))}
    with pytest.raises((ValueError, RuntimeError), match=message):
        transformed[transform](*tensors)


def test_a_pixel_whose_labels_are_all_ruled_out_is_told_in_vmap():
    values = arguments(2)
    values["unary"][1, 0, :, 2, 3] = torch.inf
    for function in (crf, stepped):
        for dim in (0, 2, 4):
            tensors = [values["unary"].movedim(0, dim), *list(values.values())[1:]]
            with pytest.raises(RuntimeError, match=r"unary must (have a finite|leave every)"):
                vmap(
                    lambda *a, f=function: f(*a, quality="high"),
                    (dim, *[0] * (len(NAMES) - 1)),
                )(*tensors)


def test_what_there_is_not():
    unary, image = random(1, LABELS, 3, 4), random(1, 3, 3, 4, high=60)

    def loss(u):
        return dense_crf(u, image, iterations=1).square().sum()

    with pytest.raises(NotImplementedError, match="no second derivative"):
        jacrev(jacrev(loss))(unary)
    with pytest.raises(NotImplementedError, match="no forward-mode derivative"):
        jvp(loss, (unary,), (unary,))
    with pytest.raises(RuntimeError, match="num_vertices differs between the samples of vmap"):
        vmap(lambda f: torch.tensor(PermutohedralLattice(f).num_vertices))(image)


def test_the_number_of_vertices_under_grad():
    features = random(2, 3, 40, high=3)
    counts = []

    def loss(f):
        lattice = PermutohedralLattice(f)
        counts.append(lattice.num_vertices)
        return lattice.ones().sum()

    grad(loss)(features)
    assert counts == [PermutohedralLattice(features).num_vertices]
