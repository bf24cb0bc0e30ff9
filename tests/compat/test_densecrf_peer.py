"""Random problems, solved by pydensecrf and by fastseg's two interfaces.

The lattices are the same, vertex by vertex; what differs is the order of float32 sums. Weights are
such that the iteration damps that rounding: with repelling labels both programs drift by more than
any tolerance from a computation in float64.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch

pytest.importorskip("fastseg._host", reason="the compiled library was not built")
pytest.importorskip("pydensecrf.densecrf", reason="pydensecrf is not installed")

import pydensecrf.densecrf as peer
import pydensecrf.utils as peer_utils

import fastseg
import fastseg.compat.pydensecrf as dcrf
from fastseg import PairwiseBilateral, PairwiseFeatures, PairwiseGaussian
from fastseg._core.pairwise import NORMALIZATIONS
from fastseg.compat.pydensecrf import utils

TOLERANCE = 1e-4
SEEDS = range(16)
LABELS = (2, 3, 5, 8, 16, 17, 21, 33, 100, 255, 256)


@dataclass
class Term:
    """One pairwise term; `kind` says which of the fields it uses."""

    kind: str  # gaussian, bilateral or features
    compat: float | np.ndarray
    normalization: int
    kernel: int = 1
    deviations: tuple[float, ...] = ()  # of x, y or of the axes
    colours: float | tuple[float, ...] = ()
    image: np.ndarray | None = None
    channel_axis: int = -1
    features: np.ndarray | None = None


@dataclass
class Problem:
    spatial: tuple[int, ...]
    energies: np.ndarray
    terms: list[Term]
    iterations: int

    @property
    def labels(self) -> int:
        return len(self.energies)

    @property
    def points(self) -> int:
        return int(np.prod(self.spatial))


def spread(rng, low, high):
    """A number between, in every order of magnitude alike."""
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))


def compatibility(rng, labels):
    """A number, a vector or an unsymmetric matrix: labels attract themselves."""
    kind = rng.integers(3)
    if kind == 0:
        return float(rng.uniform(0.5, 10))
    if kind == 1:
        return -rng.uniform(0, 3, labels).astype(np.float32)
    matrix = rng.uniform(0, 1, (labels, labels)) / labels - 2 * np.eye(labels)
    return matrix.astype(np.float32)


def picture(rng, shape):
    """Patches and a little noise, uint8."""
    patches = np.indices(shape[:-1]).sum(0)[..., None] // rng.integers(2, 12)
    return (patches * rng.integers(1, 60, shape[-1]) + rng.integers(0, 20, shape)).astype(np.uint8)


def energies_of(rng, module, labels, points):
    """By the module's own functions, or scores."""
    kind = rng.integers(3)
    if kind == 0:
        unsure = bool(rng.integers(2))
        annotation = rng.integers(0, labels + unsure, points)
        return module.unary_from_labels(annotation, labels, 0.6, zero_unsure=unsure)
    if kind == 1:
        probabilities = rng.dirichlet(np.full(labels, 0.5), points).T
        return np.ascontiguousarray(module.unary_from_softmax(probabilities, scale=0.9))
    return rng.uniform(0, 5, (labels, points)).astype(np.float32)


def random_problem(seed, axes, module):
    """The same for every module: `module` makes the energies."""
    rng = np.random.default_rng(seed)
    labels = int(rng.choice(LABELS))
    largest = {1: 1500, 2: 45, 3: 13}[axes]
    spatial = tuple(int(n) for n in rng.integers(1, largest, axes))
    if seed % 6 == 0:
        spatial = (1,) * (axes - 1) + spatial[-1:]  # one row
    points = int(np.prod(spatial))
    energies = energies_of(rng, module, labels, points)
    terms = []
    for kind in rng.choice(["gaussian", "bilateral", "features"], rng.integers(1, 4)):
        term = Term(kind, compatibility(rng, labels), int(rng.integers(4)), int(rng.integers(3)))
        if term.normalization == 0:  # sums of weights: far from one
            term.compat = term.compat * np.float32(0.01)
        each = rng.integers(2)
        if kind == "gaussian":
            term.deviations = tuple(spread(rng, 0.05, 300) for _ in spatial)
        elif kind == "bilateral":
            channels = 3 if axes == 2 else int(rng.integers(1, 4))
            term.deviations = tuple(spread(rng, 0.5, 300) for _ in spatial)
            term.colours = tuple(spread(rng, 1, 200) for _ in range(channels if each else 1))
            term.image = picture(rng, (*spatial, channels))
            if axes != 2:
                term.channel_axis = int(rng.integers(0, axes + 1))
                term.image = np.moveaxis(term.image, -1, term.channel_axis).astype(np.float64)
        else:
            shape = (int(rng.integers(1, 9)), points)
            term.features = (rng.standard_normal(shape) * spread(rng, 0.05, 100)).astype(np.float32)
        terms.append(term)
    return Problem(spatial, energies, terms, int(rng.integers(0, 11)))


def solve(lib, module, problem):
    """Q after all iterations, Q after up to three steps, and the divergences on the way."""
    image = len(problem.spatial) == 2
    if image:
        height, width = problem.spatial
        d = lib.DenseCRF2D(width, height, problem.labels)
    else:
        d = lib.DenseCRF(problem.points, problem.labels)
    d.setUnaryEnergy(problem.energies)
    for term in problem.terms:
        options = {
            "compat": term.compat,
            "kernel": lib.KernelType(term.kernel),
            "normalization": lib.NormalizationType(term.normalization),
        }
        colours = term.colours[0] if len(term.colours) == 1 else term.colours
        if term.kind == "features":
            d.addPairwiseEnergy(term.features, **options)
        elif image and term.kind == "gaussian":
            d.addPairwiseGaussian(sxy=term.deviations, **options)
        elif image:
            d.addPairwiseBilateral(sxy=term.deviations, srgb=colours, rgbim=term.image, **options)
        elif term.kind == "gaussian":
            features = module.create_pairwise_gaussian(term.deviations, problem.spatial)
            d.addPairwiseEnergy(features, **options)
        else:
            features = module.create_pairwise_bilateral(
                term.deviations, colours, term.image, term.channel_axis
            )
            d.addPairwiseEnergy(np.ascontiguousarray(features), **options)
    q, *memory = d.startInference()
    divergences = [d.klDivergence(q)]
    for _ in range(min(3, problem.iterations)):
        d.stepInference(q, *memory)
        divergences.append(d.klDivergence(q))
    return np.array(d.inference(problem.iterations)), np.array(q), divergences


def energy_scale(problem, q):
    """What a divergence is a difference of."""
    return 1 + float((np.abs(problem.energies) * q).sum())


@pytest.mark.parametrize("axes", [2, 1, 3])
@pytest.mark.parametrize("seed", SEEDS)
def test_numpy_interface(seed, axes):
    theirs = random_problem(seed, axes, peer_utils)
    ours = random_problem(seed, axes, utils)
    np.testing.assert_array_equal(ours.energies, theirs.energies)
    expected, expected_step, expected_divergences = solve(peer, peer_utils, theirs)
    q, step, divergences = solve(dcrf, utils, ours)
    np.testing.assert_allclose(q, expected, rtol=0, atol=TOLERANCE)
    np.testing.assert_allclose(step, expected_step, rtol=0, atol=TOLERANCE)
    tolerance = 1e-5 * energy_scale(theirs, expected_step)
    np.testing.assert_allclose(divergences, expected_divergences, rtol=5e-4, atol=tolerance)


def tensor_term(term, problem):
    """The same term for fastseg.dense_crf."""
    compat = term.compat
    if isinstance(compat, np.ndarray) and compat.ndim == 2:
        compat = (compat + compat.T) / 2
    compat = torch.from_numpy(compat) if isinstance(compat, np.ndarray) else float(compat)
    normalization = NORMALIZATIONS[term.normalization]
    deviations = term.deviations[::-1] if len(problem.spatial) == 2 else term.deviations
    if term.kind == "gaussian":
        return PairwiseGaussian(deviations, compat, normalization)
    if term.kind == "bilateral":
        colours = term.colours[0] if len(term.colours) == 1 else term.colours
        return PairwiseBilateral(deviations, colours, compat, normalization)
    features = torch.from_numpy(term.features).view(1, -1, *problem.spatial)
    return PairwiseFeatures(features, compat, normalization)


@pytest.mark.parametrize("axes", [2, 3])
@pytest.mark.parametrize("seed", SEEDS)
def test_torch_interface(seed, axes):
    problem = random_problem(100 + seed, axes, utils)
    images = [t for t in problem.terms if t.kind == "bilateral"]
    others = [t for t in problem.terms if t.kind != "bilateral"]
    problem.terms = images[:1] + others  # dense_crf takes one image
    image = None
    if images:
        channels_first = np.moveaxis(images[0].image, images[0].channel_axis, 0)
        image = torch.from_numpy(channels_first.astype(np.float32))[None]
    expected, expected_step, expected_divergences = solve(peer, peer_utils, problem)
    unary = torch.from_numpy(problem.energies).view(1, -1, *problem.spatial)
    terms = [tensor_term(term, problem) for term in problem.terms]

    def flat(q):
        return q[0].flatten(1).numpy()

    q = fastseg.dense_crf(unary, image, terms, iterations=problem.iterations, quality="compat")
    np.testing.assert_allclose(flat(q), expected, rtol=0, atol=TOLERANCE)
    field = fastseg.MeanField(unary, image, terms, quality="compat")
    divergences = [field.kl_divergence().item()]
    for _ in range(min(3, problem.iterations)):
        field.step()
        divergences.append(field.kl_divergence().item())
    np.testing.assert_allclose(flat(field.q), expected_step, rtol=0, atol=TOLERANCE)
    tolerance = 1e-5 * energy_scale(problem, expected_step)
    np.testing.assert_allclose(divergences, expected_divergences, rtol=5e-4, atol=tolerance)
