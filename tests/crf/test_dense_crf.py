"""fastseg.dense_crf, fastseg.MeanField and fastseg.nn.DenseCRF."""

import warnings

import numpy as np
import pytest
import torch

import fastseg
from fastseg import (
    MeanField,
    PairwiseBilateral,
    PairwiseFeatures,
    PairwiseGaussian,
    PermutohedralLattice,
    dense_crf,
    reference,
)
from fastseg._core.lattice_quality import LATTICE_QUALITY
from fastseg._core.pairwise import NORMALIZATIONS, bilateral_features


def golden_unary(g):
    logits = torch.tensor(g["logits_q"]).float() / 10
    return (torch.logsumexp(logits, 0) - logits)[None]


def golden_image(g):
    return torch.tensor(g["image"]).permute(2, 0, 1)[None]


def difference(q, expected, at=slice(None)):
    return (q.flatten(2)[0][:, at] - torch.tensor(expected)).abs().max().item()


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_pydensecrf_normalizations(shared_data, normalization):
    g = np.load(shared_data("golden", "small_64x48_5labels.npz"))
    terms = [
        PairwiseGaussian(3, 3, normalization),
        PairwiseBilateral(30, 13, 10, normalization),
    ]
    unary, image = golden_unary(g), golden_image(g)
    for n in (1, 5):
        q = dense_crf(unary, image, terms, quality="compat", iterations=n)
        assert difference(q, g[f"norm_{normalization}_Q{n}"]) <= 1e-4


def test_pydensecrf_compatibilities(shared_data):
    g = np.load(shared_data("golden", "small_64x48_5labels.npz"))
    matrix = torch.tensor(g["compat_mat"])
    for name, mu in (("vec", torch.tensor(g["compat_vec"])), ("mat", (matrix + matrix.T) / 2)):
        term = PairwiseBilateral(30, 13, mu)
        q = dense_crf(golden_unary(g), golden_image(g), [term], quality="compat", iterations=5)
        assert difference(q, g[f"compat_{name}_Q5"]) <= 1e-4


@pytest.mark.parametrize(
    ("case", "spatial", "bilateral"),
    [("A", (3, 3), (80, 13, 10)), ("B", (3, 3), (49, 5, 4)), ("C", (1, 3), (67, 3, 4))],
)
def test_pydensecrf_on_a_photograph(shared_data, case, spatial, bilateral):
    g = np.load(shared_data("golden", "voc_160x120_21labels.npz"))
    terms = [PairwiseGaussian(*spatial), PairwiseBilateral(*bilateral)]
    field = MeanField(golden_unary(g), golden_image(g), terms, quality="compat")
    divergence = []
    for n in range(1, 11):
        divergence.append(field.kl_divergence().item())
        q = field.step()
        if n in (1, 2, 5, 10):
            assert difference(q, g[f"{case}_pyd_Q{n}"], g["idx"]) <= 1e-4
            assert np.array_equal(q[0].argmax(0), g[f"{case}_pyd_map{n}"])
    np.testing.assert_allclose(divergence, g[f"{case}_kl"][:10], rtol=5e-4)
    fused = dense_crf(golden_unary(g), golden_image(g), terms, quality="compat")
    assert difference(fused, g[f"{case}_pyd_Q10"], g["idx"]) <= 1e-4
    exact = dense_crf(golden_unary(g), golden_image(g), terms, quality="exact", iterations=2)
    assert difference(exact, g[f"{case}_exact_Q2"], g["idx"]) <= 1e-3


def random_problem(batch=2, labels=4, spatial=(9, 12), channels=3):
    g = torch.Generator().manual_seed(0)
    unary = torch.rand(batch, labels, *spatial, generator=g) * 4
    image = torch.rand(batch, channels, *spatial, generator=g) * 255
    return unary, image


@pytest.mark.parametrize("quality", ["compat", "high", "exact"])
@pytest.mark.parametrize("spatial", [(9, 12), (1, 1), (1, 30), (4, 5, 6)])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_batch_is_its_images(quality, spatial, channels):
    unary, image = random_problem(3, 5, spatial, channels)
    q = dense_crf(unary, image, quality=quality, iterations=3)
    torch.testing.assert_close(q.sum(1), torch.ones(3, *spatial))
    for b in range(3):
        alone = dense_crf(unary[b : b + 1], image[b : b + 1], quality=quality, iterations=3)
        torch.testing.assert_close(q[b : b + 1], alone, rtol=0, atol=2e-5)


def test_steps_are_iterations():
    unary, image = random_problem()
    field = MeanField(unary, image, quality="high")
    torch.testing.assert_close(field.q, torch.softmax(-unary, 1))
    q = field.step(4)
    torch.testing.assert_close(q, dense_crf(unary, image, iterations=4), rtol=0, atol=2e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_dtypes(dtype):
    unary, image = random_problem()
    q = dense_crf(unary.to(dtype), image.to(torch.uint8), iterations=2)
    assert q.dtype == dtype
    expected = dense_crf(unary.to(dtype).float(), image.to(torch.uint8), iterations=2)
    torch.testing.assert_close(q.float(), expected, rtol=0, atol=1e-2)


def test_compiles_without_a_break():
    unary, image = random_problem()
    unary = unary.double().requires_grad_()  # of float32's roundings, two orders of a sum show
    layer = fastseg.nn.DenseCRF(4, iterations=2).double()
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    grads = []
    for f in (layer, compiled):
        q = f(unary, image)
        grads.append(torch.autograd.grad(q.square().sum(), [unary, *layer.parameters()]))
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b)


def test_the_layer_begins_as_dense_crf_and_learns():
    unary, image = random_problem()
    image /= 10  # of pixels unlike all others, the roundings of the layer's logarithms show
    layer = fastseg.nn.DenseCRF(4)
    torch.testing.assert_close(
        layer(unary, image), dense_crf(unary, image, iterations=5), rtol=0, atol=1e-5
    )
    terms = [PairwiseGaussian(2, 0.5)]
    layer = fastseg.nn.DenseCRF(4, terms, quality="exact")
    labels = unary.argmin(1)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.05)
    losses = []
    for _ in range(6):
        optimizer.zero_grad()
        loss = torch.nn.functional.nll_loss(layer(unary, image, log=True), labels)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


def test_infinity_forbids_a_label():
    unary, image = random_problem()
    unary[:, 1] = torch.inf
    q = dense_crf(unary, image, iterations=2)
    assert (q[:, 1] == 0).all()
    assert q.isfinite().all()


@pytest.mark.parametrize("srgb", [1e-3, 1e6])
def test_extreme_bandwidths_are_right(srgb):
    unary, image = random_problem(spatial=(20, 21))
    terms = [PairwiseBilateral(10, srgb, 2)]
    q = dense_crf(unary, image, terms, iterations=2, quality="compat")
    exact = dense_crf(unary, image, terms, iterations=2, quality="exact")
    assert q.isfinite().all()
    torch.testing.assert_close(q, exact, rtol=0, atol=0.15)


def spoilt(value, index=(0, 0, 0, 0)):
    unary, _ = random_problem()
    unary[index] = value
    return unary


U, IMAGE = random_problem()
BAD = {
    "unary rank": (lambda: dense_crf(U[0, 0], IMAGE), "unary"),
    "unary dtype": (lambda: dense_crf(U.int(), IMAGE), "unary"),
    "no labels": (lambda: dense_crf(U[:, :0], IMAGE), "unary"),
    "no pixels": (lambda: dense_crf(U[..., :0], IMAGE[..., :0]), "unary|image"),
    "unary NaN": (lambda: dense_crf(spoilt(torch.nan), IMAGE), "unary"),
    "unary -inf": (lambda: dense_crf(spoilt(-torch.inf), IMAGE), "unary"),
    "all labels ruled out": (
        lambda: dense_crf(spoilt(torch.inf, (0, slice(None), 0, 0)), IMAGE),
        "unary",
    ),
    "no image": (lambda: dense_crf(U, None, [PairwiseBilateral()]), "image"),
    "image size": (lambda: dense_crf(U, IMAGE[..., 1:]), "image"),
    "image batch": (lambda: dense_crf(U, torch.cat([IMAGE, IMAGE[:1]])), "image"),
    "image rank": (lambda: dense_crf(U, IMAGE[0]), "image"),
    "image NaN": (lambda: dense_crf(U, IMAGE * torch.nan), "NaN|finite"),
    "image infinite": (lambda: dense_crf(U, IMAGE * torch.inf), "NaN|finite"),
    "complex image": (lambda: dense_crf(U, IMAGE + 1j), "image"),
    "sxy 0": (lambda: dense_crf(U, IMAGE, [PairwiseGaussian(0)]), "sxy"),
    "sxy negative": (lambda: dense_crf(U, IMAGE, [PairwiseGaussian(-3)]), "sxy"),
    "sxy NaN": (lambda: dense_crf(U, IMAGE, [PairwiseGaussian(float("nan"))]), "sxy"),
    "sxy length": (lambda: dense_crf(U, IMAGE, [PairwiseGaussian((1, 2, 3))]), "sxy"),
    "srgb 0": (lambda: dense_crf(U, IMAGE, [PairwiseBilateral(3, 0)]), "srgb"),
    "srgb length": (lambda: dense_crf(U, IMAGE, [PairwiseBilateral(3, (1, 2))]), "srgb"),
    "compatibility length": (
        lambda: dense_crf(U, IMAGE, [PairwiseGaussian(3, torch.ones(3))]),
        "compatibility",
    ),
    "compatibility rank": (
        lambda: dense_crf(U, IMAGE, [PairwiseGaussian(3, torch.ones(1, 4, 4))]),
        "compatibility",
    ),
    "normalization": (
        lambda: dense_crf(U, IMAGE, [PairwiseGaussian(3, 3, "sum")]),
        "normalization",
    ),
    "quality": (lambda: dense_crf(U, IMAGE, quality="best"), "quality"),
    "iterations": (lambda: dense_crf(U, IMAGE, iterations=-1), "iterations"),
    "checkpoints": (lambda: dense_crf(U, IMAGE, checkpoints=-1), "checkpoints"),
    "features size": (
        lambda: dense_crf(U, IMAGE, [PairwiseFeatures(IMAGE[..., 1:], 1)]),
        "features",
    ),
    "unary of numpy": (lambda: dense_crf(U.numpy(), IMAGE), "unary must be a tensor"),
    "image of numpy": (lambda: dense_crf(U, IMAGE.numpy()), "image must be uint8 as an array"),
    "image of lists": (lambda: dense_crf(U, IMAGE.tolist()), "image must be a tensor"),
    "image without channels": (lambda: dense_crf(U, IMAGE[:, :0]), "image must have a channel"),
    "image on another device": (lambda: dense_crf(U, IMAGE.to("meta")), "image must be on unary's"),
    "terms of text": (lambda: dense_crf(U, IMAGE, "gaussian"), r"pairwise\[0\] must be a"),
    "terms of numbers": (lambda: dense_crf(U, IMAGE, [(3, 3)]), r"pairwise\[0\] must be a"),
    "iterations 2.5": (lambda: dense_crf(U, IMAGE, iterations=2.5), "iterations must be an int"),
    "sxy of text": (lambda: PairwiseGaussian("3"), "sxy must be a number"),
    "sxy NaN in a tensor": (lambda: PairwiseGaussian(torch.tensor(torch.nan)), "sxy must be pos"),
    "sxy tiny": (
        lambda: dense_crf(U, IMAGE, [PairwiseGaussian(1e-30)], quality="compat"),
        "features must be smaller, .* use a larger bandwidth",
    ),
    "srgb tiny": (
        lambda: dense_crf(U, IMAGE, [PairwiseBilateral(3, 1e-12)]),
        "features must be smaller, .* use a larger bandwidth",
    ),
    "compatibility NaN": (lambda: PairwiseGaussian(3, torch.nan), "compatibility must be finite"),
    "compatibility oblong": (
        lambda: PairwiseGaussian(3, torch.ones(4, 3)),
        r"compatibility must be a number, \(L,\) or \(L, L\)",
    ),
    "features NaN": (
        lambda: dense_crf(U, None, [PairwiseFeatures(IMAGE * torch.nan, 1)]),
        "features must be finite, got nan in dimension 0",
    ),
    "nine features": (
        lambda: dense_crf(U, None, [PairwiseFeatures(IMAGE.repeat(1, 3, 1, 1), 1)]),
        "1 to 8 features, got 9",
    ),
    "steps of NaN": (lambda: MeanField(spoilt(torch.nan), IMAGE), "MeanField: unary must hold no"),
    "steps without image": (lambda: MeanField(U, None, [PairwiseBilateral()]), "needs an image"),
    "steps back": (lambda: MeanField(U, IMAGE).step(-1), "n must not be negative, got -1"),
    "half a step": (lambda: MeanField(U, IMAGE).step(0.5), "n must be an integer, got 0.5"),
    "lattice of numpy": (
        lambda: PermutohedralLattice(IMAGE.numpy()),
        "features must be a tensor, got ndarray",
    ),
    "lattice NaN": (
        lambda: PermutohedralLattice(IMAGE * torch.nan),
        "features must be finite, got nan",
    ),
    "values of numpy": (
        lambda: PermutohedralLattice(IMAGE).filter(U.numpy()),
        "values must be a tensor, got ndarray",
    ),
    "values dtype": (
        lambda: PermutohedralLattice(IMAGE).filter(U.double()),
        "values must be torch.float32 as the features are, got torch.float64",
    ),
    "values size": (
        lambda: PermutohedralLattice(IMAGE).filter(U[..., 1:]),
        r"values must have shape \(B, C, 9, 12\)",
    ),
    "layer of numpy": (lambda: fastseg.nn.DenseCRF(4)(U.numpy(), IMAGE), "unary must be a tensor"),
    "layer label count": (lambda: fastseg.nn.DenseCRF(2.5), "num_labels must be an integer"),
    "layer terms": (lambda: fastseg.nn.DenseCRF(4, [3]), r"pairwise\[0\] must be a Pairwise"),
    "layer labels": (lambda: fastseg.nn.DenseCRF(5)(U, IMAGE), "labels"),
    "layer without labels": (lambda: fastseg.nn.DenseCRF(0), "num_labels"),
    "layer trainable": (lambda: fastseg.nn.DenseCRF(4, trainable="all"), "trainable"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_a_clear_error(case):
    call, word = BAD[case]
    with pytest.raises((ValueError, TypeError, RuntimeError), match=word):
        call()


RIGHT = {
    "one pixel": ((1, 3, 1, 1), (1, 3, 1, 1)),
    "one label": ((1, 1, 5, 6), (1, 3, 5, 6)),
    "no images": ((0, 3, 5, 6), (0, 3, 5, 6)),
    "a long strip": ((1, 2, 4, 30000), (1, 3, 4, 30000), 2, 300),
    "a high strip": ((1, 2, 30000, 4), (1, 3, 30000, 4), 2, 300),
    "one image for all": ((2, 3, 5, 6), (1, 3, 5, 6)),
    "six channels": ((1, 3, 5, 6), (1, 6, 5, 6)),
    "256 labels": ((1, 256, 5, 7), (1, 3, 5, 7)),
    "negative weights": ((1, 3, 9, 7), (1, 3, 9, 7), -0.2, 13),
    "srgb 1e30": ((1, 3, 9, 7), (1, 3, 9, 7), 0.5, 1e30),
}


@pytest.mark.parametrize("quality", ["compat", "high", "exact"])
@pytest.mark.parametrize("shape", [(), (4,), (4, 4)])
def test_compatibilities_are_numbers_lists_arrays_or_tensors_of_any_strides(shape, quality):
    unary, image = random_problem()
    mu = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    strided = torch.zeros([2 * n for n in shape])[(slice(None, None, 2),) * len(shape)]
    strided.copy_(mu)
    given = [mu.tolist(), mu.numpy(), mu.double(), strided]
    given += [mu.mT.contiguous().mT] if len(shape) == 2 else []

    def refined(mu):
        terms = [PairwiseGaussian(2, mu), PairwiseBilateral(5, 60, mu)]
        return dense_crf(unary, image, terms, iterations=2, quality=quality)

    expected = refined(mu)
    for other in given:
        assert torch.equal(refined(other), expected)


def by_reference(unary, image, terms, iterations, quality):
    """The same by the plain programs: all pairs for "exact", a lattice else."""
    gaussian, bilateral = terms
    kernels = [
        torch.full((2,), gaussian.sxy),
        bilateral_features("", image, bilateral.sxy, bilateral.srgb, torch.float32),
    ]
    weights = [torch.tensor(float(term.compatibility)) for term in terms]
    arguments = (unary, kernels, weights, [3, 3], iterations)
    if quality == "exact":
        return reference.mean_field(*arguments).float()
    *options, _ = LATTICE_QUALITY[quality]
    code = ("compat", "high").index(quality)
    return reference.lattice_mean_field(*arguments, code, *options)


@pytest.mark.parametrize("case", RIGHT)
@pytest.mark.parametrize("quality", ["compat", "high", "exact"])
def test_unusual_input_is_right(case, quality):
    size, image_size, *numbers = RIGHT[case]
    weight, srgb = numbers or (2, 13)
    if quality == "exact" and "strip" in case:
        pytest.skip("120,000 pixels: too many pairs for a test")
    g = torch.Generator().manual_seed(1)
    unary, image = torch.rand(size, generator=g), torch.rand(image_size, generator=g) * 99
    terms = [PairwiseGaussian(3, weight), PairwiseBilateral(8, srgb, weight)]
    q = dense_crf(unary, image, terms, iterations=2, quality=quality)
    assert q.shape == unary.shape
    expected = by_reference(unary, image, terms, 2, quality) if unary.numel() else unary
    torch.testing.assert_close(q, expected, rtol=0, atol=1e-4)


def test_numbers_and_arrays_of_numpy():
    unary, image = random_problem(1)
    array = np.ascontiguousarray(unary.numpy())
    array.setflags(write=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns that the memory is read-only
        q = dense_crf(torch.from_numpy(array), image, iterations=np.int64(2))
    assert torch.equal(q, dense_crf(unary, image, iterations=2))


def test_a_layer_of_one_term():
    unary, image = random_problem()
    layer = fastseg.nn.DenseCRF(4, PairwiseBilateral(8, 13, 2), iterations=2)
    expected = dense_crf(unary, image, PairwiseBilateral(8, 13, 2), iterations=2)
    torch.testing.assert_close(layer(unary, image), expected, rtol=0, atol=1e-5)


def test_strided_input():
    unary, image = random_problem(spatial=(12, 9))
    expected = dense_crf(unary, image, iterations=2)
    strided = unary.transpose(2, 3).contiguous().transpose(2, 3)
    q = dense_crf(strided, image.flip(1).flip(1)[:, :, ::1], iterations=2)
    assert torch.equal(q, expected)
