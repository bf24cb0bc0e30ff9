"""The fused mean field against pydensecrf's own results, its reference, and itself."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fastseg._core import extension
from fastseg import reference
from fastseg._core.pairwise import bilateral_features

op = torch.ops.fastseg.lattice_mean_field
NONE, BEFORE, AFTER, SYMMETRIC = range(4)
COMPAT = (0, 1.0, 0, 1, False)  # quality, refine, dilation, passes, symmetric, side
HIGH = (1, 1.0, 2, 1, True, 0.45)
needs_kernel = pytest.mark.skipif(
    not extension.available_simd_levels(), reason="the CPU kernels are not built"
)


def energies(logits):
    """As the golden files' own: negative logarithms of probabilities, in float32."""
    logits = torch.as_tensor(logits).float() / 10
    return torch.logsumexp(logits, 0) - logits


def image_features(image, sxy, srgb):
    """x, y, r, g, b over their bandwidths, (1, 5, H, W)."""
    image = torch.as_tensor(image).permute(2, 0, 1).float()
    y, x = torch.meshgrid(*map(torch.arange, image.shape[1:]), indexing="ij")
    positions = torch.stack([x.float() / sxy, y.float() / sxy])
    return torch.cat([positions, image / srgb])[None]


def potts(weight):
    return torch.tensor(float(weight))


def both_terms(image, sxy, weight, bilateral_sxy, srgb, bilateral_weight, normalization=SYMMETRIC):
    kernels = [torch.full((2,), float(sxy)), image_features(image, bilateral_sxy, srgb)]
    return kernels, [potts(weight), potts(bilateral_weight)], [normalization] * 2


def assert_close(actual, expected, atol=1e-4):
    assert actual.shape == expected.shape
    assert (actual - torch.as_tensor(expected)).abs().max() <= atol


VOC = {"A": (3, 3, 80, 13, 10), "B": (3, 3, 49, 5, 4), "C": (1, 3, 67, 3, 4)}


@pytest.mark.parametrize("iterations", [0, 1, 2, 5, 10])
@pytest.mark.parametrize("name", VOC)
def test_pydensecrf_voc(shared_data, name, iterations):
    golden = np.load(shared_data("golden", "voc_160x120_21labels.npz"))
    unary = energies(golden["logits_q"])[None]
    q = op(unary, *both_terms(golden["image"], *VOC[name]), iterations, *COMPAT)[0]
    assert_close(q.flatten(1)[:, golden["idx"]], golden[f"{name}_pyd_Q{iterations}"])
    labels = torch.from_numpy(golden[f"{name}_pyd_map{iterations}"].astype(np.int64))
    assert (q.argmax(0) != labels).float().mean() < 1e-3  # ties


@pytest.mark.parametrize("iterations", [0, 1, 2, 5])
def test_pydensecrf_two_labels(shared_data, iterations):
    golden = np.load(shared_data("golden", "im1_2labels.npz"))
    labels = torch.from_numpy(golden["labels"].astype(np.int64))
    unary = torch.full((2, *labels.shape), -float(np.log(0.5)))
    for label in (0, 1):  # unary_from_labels(labels, 2, gt_prob=0.7, zero_unsure=True)
        unary[label][labels > 0] = -float(np.log(0.3))
        unary[label][labels == label + 1] = -float(np.log(0.7))
    q = op(unary[None], *both_terms(golden["image"], 3, 3, 80, 13, 10), iterations, *COMPAT)[0]
    assert_close(q.flatten(1)[:, golden["idx"]], golden[f"Q{iterations}"])


@pytest.mark.parametrize("iterations", [1, 5])
@pytest.mark.parametrize("name", ["none", "before", "after", "symmetric"])
def test_pydensecrf_normalizations(shared_data, name, iterations):
    golden = np.load(shared_data("golden", "small_64x48_5labels.npz"))
    unary = energies(golden["logits_q"])[None]
    code = ["none", "before", "after", "symmetric"].index(name)
    terms = both_terms(golden["image"], 3, 3, 30, 13, 10, code)
    q = op(unary, *terms, iterations, *COMPAT)[0]
    assert_close(q.flatten(1), golden[f"norm_{name}_Q{iterations}"])


@pytest.mark.parametrize("name", ["vec", "mat"])
def test_pydensecrf_compatibilities(shared_data, name):
    golden = np.load(shared_data("golden", "small_64x48_5labels.npz"))
    unary = energies(golden["logits_q"])[None]
    mu = torch.from_numpy(golden[f"compat_{name}"])
    if name == "mat":
        mu = 0.5 * (mu + mu.mT)
    features = image_features(golden["image"], 30, 13)
    q = op(unary, [features], [mu], [SYMMETRIC], 5, *COMPAT)[0]
    assert_close(q.flatten(1), golden[f"compat_{name}_Q5"])


def smooth_image(size, channels, seed=0, low=6):
    g = torch.Generator().manual_seed(seed)
    small = torch.rand(1, channels, *[low] * len(size), generator=g)
    mode = "bilinear" if len(size) == 2 else "trilinear"
    image = torch.nn.functional.interpolate(small, size, mode=mode)
    return image + 0.05 * torch.rand(image.shape, generator=g)


def problem(batch, labels, size, seed=0):
    """Energies and two terms that move the labels of smooth images with noise."""
    images = torch.cat([smooth_image(size, 3, seed + b) for b in range(batch)])
    unary = 4 * torch.cat([smooth_image(size, labels, 100 + seed + b) for b in range(batch)])
    sigma = torch.tensor([2.0, 3.0, 2.5][: len(size)])
    kernels = [sigma, bilateral_features("", images, 12.0, 0.2, torch.float32)]
    return unary, kernels, [potts(1.5), potts(2)], [SYMMETRIC, SYMMETRIC]


QUALITIES = pytest.mark.parametrize("quality", [COMPAT, HIGH], ids=["compat", "high"])


@needs_kernel
@QUALITIES
@pytest.mark.parametrize("size", [(1, 1), (1, 7), (5, 1), (13, 17), (37, 41), (5, 6, 7)], ids=str)
def test_sizes(size, quality):
    arguments = (*problem(2, 5, size), 3, *quality)
    assert_close(op(*arguments), reference.lattice_mean_field(*arguments), 1e-5)


@needs_kernel
@QUALITIES
@pytest.mark.parametrize("labels", [1, 2, 3, 4, 5, 8, 9, 16, 21, 24, 32, 33, 64, 150, 256])
def test_labels(labels, quality, simd_level):
    arguments = (*problem(1, labels, (19, 23)), 2, *quality)
    actual = op(*arguments)
    assert_close(actual, reference.lattice_mean_field(*arguments), 1e-5)
    if labels == 1:
        assert_close(actual, torch.ones_like(actual), 1e-6)


@needs_kernel
@QUALITIES
@pytest.mark.parametrize("kind", ["potts", "diagonal", "full"])
@pytest.mark.parametrize("normalization", [NONE, BEFORE, AFTER, SYMMETRIC])
def test_normalization_and_compatibility(normalization, kind, quality):
    unary, kernels, _, _ = problem(2, 6, (19, 23))
    shape = {"potts": (), "diagonal": (6,), "full": (6, 6)}[kind]
    mu = [torch.randn(shape), torch.randn(shape)]
    arguments = (unary, kernels, mu, [normalization, SYMMETRIC], 3, *quality)
    assert_close(op(*arguments), reference.lattice_mean_field(*arguments), 1e-5)


@needs_kernel
@QUALITIES
def test_other_sets_of_terms(quality):
    unary, (sigma, features), _, _ = problem(2, 5, (19, 23))
    full = torch.randn(5, 5)
    for kernels in (
        [], [sigma], [features], [features[:1]], [sigma, sigma / 2], [features, features[1:] / 2],
        [sigma, features, features[:, :3], sigma / 2, features[:1, :4]],
    ):  # fmt: skip
        mu = [potts(1.3), full, torch.linspace(-1, 0, 5), potts(-1), potts(0)][: len(kernels)]
        norms = [SYMMETRIC, AFTER, BEFORE, NONE, AFTER][: len(kernels)]
        arguments = (unary, kernels, mu, norms, 3, *quality)
        assert_close(op(*arguments), reference.lattice_mean_field(*arguments), 1e-5)


@needs_kernel
@QUALITIES
def test_a_batch_is_its_images(quality):
    unary, (sigma, features), mu, norms = problem(3, 4, (70, 90))
    whole = op(unary, [sigma, features], mu, norms, 3, *quality)
    for b in range(3):
        alone = op(unary[b : b + 1], [sigma, features[b : b + 1]], mu, norms, 3, *quality)
        assert torch.equal(whole[b : b + 1], alone)


@needs_kernel
@pytest.mark.parametrize("size", [(19, 23), (5, 6, 7), (31,), (1, 9), (9, 1)], ids=str)
def test_layouts(size):
    unary = 3 * torch.rand(2, 5, *size)
    features = torch.rand(2, 3, *size)
    terms = ([features], [potts(2)], [SYMMETRIC])
    expected = op(unary, *terms, 3, *COMPAT)
    assert expected.is_contiguous()
    apart = torch.stack([unary, unary], -1)[..., 0]
    moved = unary.transpose(2, -1).contiguous().transpose(2, -1)
    layouts = [apart, moved]
    if len(size) > 1:
        last = torch.channels_last if len(size) == 2 else torch.channels_last_3d
        layouts.append(unary.contiguous(memory_format=last))
        assert op(layouts[-1], *terms, 3, *COMPAT).is_contiguous(memory_format=last)
    for x in layouts:
        assert torch.equal(op(x, *terms, 3, *COMPAT), expected)


@needs_kernel
def test_an_error_among_threads_reaches_the_caller():
    arguments = (*problem(2, 21, (160, 120)), 3, *COMPAT)
    bad_unary, bad_features = arguments[0].clone(), [k.clone() for k in arguments[1]]
    bad_unary[1, 20, 159, 119] = bad_features[1][1, 2, 159, 119] = float("nan")
    torch.set_num_threads(3)
    expected = op(*arguments)
    for _ in range(3):
        with pytest.raises(RuntimeError, match="unary must not be NaN"):
            op(bad_unary, *arguments[1:])
        with pytest.raises(RuntimeError, match="features must be finite"):
            op(arguments[0], bad_features, *arguments[2:])
        assert torch.equal(op(*arguments), expected)


@needs_kernel
@QUALITIES
def test_the_number_of_threads_does_not_matter(quality):
    arguments = (*problem(2, 21, (160, 120)), 3, *quality)
    expected = None
    for threads in (1, 2, 3, 7):
        torch.set_num_threads(threads)
        actual = op(*arguments)
        expected = actual if expected is None else expected
        assert torch.equal(actual, expected)


@needs_kernel
@QUALITIES
def test_simd_levels_agree(quality):
    arguments = (*problem(1, 21, (70, 90)), 5, *quality)
    results = []
    for level in extension.available_simd_levels():
        with extension.use_simd_level(level):
            results.append(op(*arguments))
    for q in results:
        assert_close(q, results[0], 1e-5)


@needs_kernel
def test_energies_of_any_size():
    """Messages beyond the range of exp, labels that are ruled out, energies far from zero."""
    unary, kernels, _, norms = problem(1, 5, (19, 23))
    unary = unary + 1000
    unary[:, 2, 3:9] = torch.inf
    unary[:, :, 5, 5:7] = torch.tensor([1.0, 0, 0, 0, 0])[:, None].log().neg()
    for weight in (0.0, 3.0, -300.0, 300.0, 1e5):
        arguments = (unary, kernels, [potts(weight), potts(weight)], norms, 2, *COMPAT)
        q = op(*arguments)
        assert torch.isfinite(q).all()
        assert_close(q.sum(1), torch.ones_like(q[:, 0]), 1e-5)
        assert (q[:, 2, 3:9] == 0).all()
        if weight < 10:  # else a rounding decides between labels
            assert_close(q, reference.lattice_mean_field(*arguments), 2e-4)


def test_no_iterations_and_no_images():
    unary, kernels, mu, norms = problem(2, 5, (19, 23))
    assert_close(op(unary, kernels, mu, norms, 0, *COMPAT), torch.softmax(-unary, 1), 1e-6)
    none = [kernels[0], kernels[1][:0]]
    assert op(unary[:0], none, mu, norms, 3, *COMPAT).shape == (0, 5, 19, 23)


def assert_log_is(actual, expected):
    """To 3e-4, as `confident` energies are rounded; labels are ruled out alike."""
    assert actual.is_contiguous()
    ruled_out = expected == -torch.inf
    assert torch.equal(actual == -torch.inf, ruled_out)
    torch.testing.assert_close(
        actual.masked_fill(ruled_out, 0), expected.masked_fill(ruled_out, 0), rtol=0, atol=3e-4
    )


def confident(labels, size=(13, 17)):
    """A problem whose Q underflows, with labels that are ruled out, and a pixel of one label."""
    unary, kernels, mu, norms = problem(2, labels, size)
    unary = unary * 100 + 1000
    if labels > 1:
        unary[:, 1, 3:6] = torch.inf
        unary[:, 1:, 0, 0] = torch.inf
    return unary, kernels, mu, norms


@needs_kernel
@QUALITIES
@pytest.mark.parametrize("labels", [1, 2, 4, 5, 8, 21, 33, 256])
def test_log_q(labels, quality, simd_level):
    arguments = (*confident(labels), 2, *quality)
    actual = op(*arguments, log=True)
    expected = reference.lattice_mean_field(*arguments, log=True)
    assert labels == 1 or expected.masked_fill(expected == -torch.inf, 0).min() < -150
    assert_log_is(actual, expected)


@needs_kernel
@QUALITIES
@pytest.mark.parametrize("normalization", [NONE, BEFORE, AFTER, SYMMETRIC])
def test_log_q_of_any_normalization_and_layout(normalization, quality):
    unary, kernels, _, _ = confident(5)
    full = torch.randn(5, 5, generator=torch.Generator().manual_seed(0)) / 9
    for iterations in (0, 1, 3):
        others = (kernels, [potts(0.2), full], [normalization] * 2, iterations, *quality)
        expected = reference.lattice_mean_field(unary, *others, log=True)
        last = unary.contiguous(memory_format=torch.channels_last)
        apart = torch.stack([unary, unary], -1)[..., 0]
        for x in (unary, last, apart):
            assert_log_is(op(x, *others, log=True), expected)
            torch.testing.assert_close(
                op(x, *others, log=True).exp(), op(x, *others), rtol=0, atol=2e-6
            )


@needs_kernel
def test_outputs_are_written_entirely(garbage_in_new_memory):
    arguments = (*problem(2, 21, (37, 41)), 3, *HIGH)
    assert_close(op(*arguments), reference.lattice_mean_field(*arguments), 1e-5)
    assert_log_is(op(*arguments, log=True), reference.lattice_mean_field(*arguments, log=True))


def test_opcheck():
    unary, kernels, mu, norms = problem(2, 5, (9, 11))
    torch.library.opcheck(op.default, (unary, kernels, mu, norms, 2, *COMPAT))
    last = unary.contiguous(memory_format=torch.channels_last)
    torch.library.opcheck(op.default, (last, kernels, mu, norms, 2, *HIGH))
    torch.library.opcheck(op.default, (last, kernels, mu, norms, 2, *HIGH), {"log": True})


def test_no_gradient_of_its_own():
    unary, kernels, mu, norms = problem(1, 5, (9, 11))
    q = op(unary.requires_grad_(), kernels, mu, norms, 2, *COMPAT)
    with pytest.raises(NotImplementedError, match="mean_field have"):
        q.sum().backward()


UNARY = torch.rand(2, 3, 8, 9)
FEATURES = torch.rand(2, 4, 8, 9)
BAD = {
    "two axes": ((UNARY[0, 0], [], [], [], 1), "unary must be .B, L"),
    "float64": ((UNARY.double(), [], [], [], 1), "unary must be float32"),
    "no label": ((UNARY[:, :0], [], [], [], 1), "unary must have a label"),
    "NaN": ((UNARY * torch.nan, [], [], [], 1), "unary must not be NaN"),
    "-inf": ((UNARY - torch.inf, [], [], [], 1), "unary must not be -infinity"),
    "+inf": ((UNARY + torch.inf, [], [], [], 1), "unary must leave every point a label"),
    "lengths": ((UNARY, [FEATURES], [], [3], 1), "must be of one length, got 1, 0 and 1"),
    "kernel": ((UNARY, [torch.ones(3)], [potts(1)], [3], 1), "kernels must hold a bandwidth"),
    "sigma": ((UNARY, [torch.zeros(2)], [potts(1)], [3], 1), "sigma must be positive"),
    "NaN sigma": ((UNARY, [torch.ones(2) * torch.nan], [potts(1)], [3], 1), "sigma must be"),
    "size": ((UNARY, [FEATURES[..., 1:]], [potts(1)], [3], 1), "kernels must be bandwidths or"),
    "batch": ((UNARY[:1], [FEATURES], [potts(1)], [3], 1), "kernels must be bandwidths or"),
    "kernel dtype": ((UNARY, [FEATURES.double()], [potts(1)], [3], 1), "kernels must be float32"),
    "NaN feature": ((UNARY, [FEATURES * torch.nan], [potts(1)], [3], 1), "features must be finite"),
    "far feature": ((UNARY, [FEATURES * 1e30], [potts(1)], [3], 1), "lattice_mean_field"),
    "9 features": ((UNARY, [FEATURES.repeat(1, 3, 1, 1)], [potts(1)], [3], 1), "1 to 8|1..8"),
    "mu": ((UNARY, [FEATURES], [torch.ones(2)], [3], 1), "compatibility must have shape"),
    "NaN mu": ((UNARY, [FEATURES], [potts(torch.nan)], [3], 1), "compatibility must be finite"),
    "mu dtype": ((UNARY, [FEATURES], [potts(1).double()], [3], 1), "compatibility must be float"),
    "norm": ((UNARY, [FEATURES], [potts(1)], [4], 1), "normalization must be 0 to 3"),
    "iterations": ((UNARY, [], [], [], -1), "iterations must not be negative"),
    "quality": ((UNARY, [], [], [], 1, 2), "quality must be 0 or 1"),
    "refine": ((UNARY, [], [], [], 1, 0, 0.0), "refine must be positive"),
    "dilation": ((UNARY, [], [], [], 1, 0, 1.0, 3), "dilation must be 0, 1 or 2"),
    "passes": ((UNARY, [], [], [], 1, 0, 1.0, 0, 0), "passes must be"),
}


@needs_kernel
@pytest.mark.parametrize("name", BAD)
def test_bad_input(name):
    arguments, message = BAD[name]
    if len(arguments) == 5:
        arguments = (*arguments, 0)
    with pytest.raises(RuntimeError, match=message) as error:
        op(*arguments)
    assert "lattice_mean_field" in str(error.value)
