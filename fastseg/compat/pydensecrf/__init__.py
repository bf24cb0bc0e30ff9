"""Drop-in for ``pydensecrf.densecrf``: the same classes on numpy arrays, on all processors.

A script written for pydensecrf runs by changing its imports::

    import fastseg.compat.pydensecrf as dcrf
    from fastseg.compat.pydensecrf.utils import unary_from_softmax

The lattice is the same, and so is the result up to float32 rounding; where pydensecrf crashes or is
silently wrong (sizes that do not fit, NaN, tiny bandwidths) there is a clear error. Threads are
torch's (``torch.set_num_threads``); other Python threads run meanwhile. `fastseg.dense_crf` has
batches, gradients, GPUs and a better filter.

Kraehenbuehl and Koltun, Efficient Inference in Fully Connected CRFs with Gaussian Edge Potentials,
NIPS 2011; the interface is that of https://github.com/lucasb-eyer/pydensecrf.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from enum import IntEnum

import numpy as np
import torch

from fastseg.compat.pydensecrf import utils
from fastseg.compat.pydensecrf._arguments import (
    bandwidths,
    buffer,
    compatibility,
    count,
    index,
    member,
)

try:
    from fastseg import _host
except ImportError as error:  # not built, or for another Python; utils work without
    _host, _why = None, str(error)

__all__ = [
    "CONST_KERNEL",
    "DIAG_KERNEL",
    "FULL_KERNEL",
    "NORMALIZE_AFTER",
    "NORMALIZE_BEFORE",
    "NORMALIZE_SYMMETRIC",
    "NO_NORMALIZATION",
    "ConstUnary",
    "DenseCRF",
    "DenseCRF2D",
    "KernelType",
    "LogisticUnary",
    "NormalizationType",
    "Unary",
    "utils",
]


class NormalizationType(IntEnum):
    """The divisors of a filtered Q, K1 being the filter's sum of weights at a point."""

    NO_NORMALIZATION = 0  # nothing
    NORMALIZE_BEFORE = 1  # K1, before the filter
    NORMALIZE_AFTER = 2  # K1, after it
    NORMALIZE_SYMMETRIC = 3  # sqrt(K1), on both sides


class KernelType(IntEnum):
    """The parameters of a Gaussian that pydensecrf's C++ could learn; all give one result."""

    CONST_KERNEL = 0
    DIAG_KERNEL = 1
    FULL_KERNEL = 2


NO_NORMALIZATION = NormalizationType.NO_NORMALIZATION
NORMALIZE_BEFORE = NormalizationType.NORMALIZE_BEFORE
NORMALIZE_AFTER = NormalizationType.NORMALIZE_AFTER
NORMALIZE_SYMMETRIC = NormalizationType.NORMALIZE_SYMMETRIC
CONST_KERNEL = KernelType.CONST_KERNEL
DIAG_KERNEL = KernelType.DIAG_KERNEL
FULL_KERNEL = KernelType.FULL_KERNEL


class Unary:
    """Energies for ``DenseCRF.setUnary``; make one of its subclasses."""

    energies: np.ndarray


class ConstUnary(Unary):
    """Fixed energies.

    Args:
        u: the energies, float32 (L, n).
    """

    def __init__(self, u: np.ndarray) -> None:
        self.energies = buffer("u", u, np.float32, 2)


class LogisticUnary(Unary):
    """Energies L @ f, linear in features of the points.

    Args:
        L: the factors, float32 (L, k), a row for each label.
        f: the features, float32 (k, n), a column for each point.
    """

    def __init__(self, L: np.ndarray, f: np.ndarray) -> None:
        L, f = buffer("L", L, np.float32, 2), buffer("f", f, np.float32, 2)
        if L.shape[1] != f.shape[0]:
            raise ValueError(f"f must have {L.shape[1]} rows, as L has columns, got {f.shape}")
        self.energies = L @ f


class DenseCRF:
    """A fully connected CRF over n points with features of any kind.

    Args:
        nvar: number of points n.
        nlabels: number of labels L.
    """

    def __init__(self, nvar: int, nlabels: int) -> None:
        self._allocate((count("nvar", nvar),), nlabels)

    def _allocate(self, size: tuple[int, ...], nlabels: int) -> None:
        if _host is None:
            raise ImportError(
                f"fastseg.compat.pydensecrf needs its compiled module ({_why}): 'pip install .' in "
                "fastseg's source folder builds it; fastseg.dense_crf runs without"
            )
        self._nlabel = count("nlabels", nlabels)
        self._nvar = math.prod(size)
        self._crf = _host.DenseCRF(list(size), self._nlabel)

    def setUnaryEnergy(self, u: np.ndarray, f: np.ndarray | None = None) -> None:
        """Sets the energies: negative log-probabilities. They are copied.

        Args:
            u: the energies, C-contiguous float32 (L, n). +inf rules a label out.
            f: if given, the energies are u @ f, see `LogisticUnary`.

        Raises:
            ValueError: dtype, layout, shape, NaN, -inf, or a point with no finite energy.
            TypeError: not an array.
        """
        self.setUnary(ConstUnary(u) if f is None else LogisticUnary(u, f))

    def setUnary(self, u: Unary) -> None:
        """Sets the energies to those of a `ConstUnary` or a `LogisticUnary`; they are copied."""
        if not isinstance(u, Unary):
            raise TypeError(f"u must be a Unary, got {type(u).__name__}")
        if u.energies.shape != (self._nlabel, self._nvar):
            raise ValueError(
                f"Bad shape for unary energy u (Need {(self._nlabel, self._nvar)}, got "
                f"{u.energies.shape})"
            )
        self._crf.set_unary(u.energies, threads=torch.get_num_threads())

    def addPairwiseEnergy(
        self,
        features: np.ndarray,
        compat: float | np.ndarray,
        kernel: int = DIAG_KERNEL,
        normalization: int = NORMALIZE_SYMMETRIC,
    ) -> None:
        """Adds a term with the Gaussian ``exp(-1/2 |f_i - f_j|^2)``.

        Args:
            features: the features, C-contiguous float32 (d, n), d 1 to 8, in units of their
                bandwidths. `utils.create_pairwise_gaussian` and `utils.create_pairwise_bilateral`
                make some.
            compat: a number w: labels that agree lower the energy by w. Float32 (L,): energy of
                each label beside itself. Float32 (L, L): of each pair; made symmetric,
                (compat + compat.T) / 2.
            kernel: one of `KernelType`; no influence on the result.
            normalization: one of `NormalizationType`.

        Raises:
            ValueError: dtype, layout, shape, NaN or infinite features, features so large that
                the lattice cannot number its vertices, an unknown kernel or normalization.
            TypeError: not an array or not a number.
        """
        features = buffer("features", features, np.float32, 2)
        if features.shape[1] != self._nvar:
            raise ValueError(
                f"Bad shape for pairwise energy features (Need (?, {self._nvar}), got "
                f"{features.shape})"
            )
        self._crf.add_features(features, *self._term(compat, kernel, normalization))

    def inference(self, niter: int) -> np.ndarray:
        """The probabilities after a mean field's iterations from Q = softmax(-u).

        Args:
            niter: the number of iterations, 0 or more.

        Returns:
            The probabilities Q, float32 (L, n). Without a unary, its energies are zero.
        """
        niter = index("niter", niter)
        if niter < 0:
            raise ValueError(f"niter must not be negative, got {niter}")
        return self._crf.inference(niter, threads=torch.get_num_threads())

    def startInference(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Q = softmax(-u), float32 (L, n), and two empty arrays that `stepInference` takes."""
        q = self._crf.inference(0, threads=torch.get_num_threads())
        return q, np.empty((0, 0), np.float32), np.empty((0, 0), np.float32)

    def stepInference(self, Q: np.ndarray, tmp1: object = None, tmp2: object = None) -> None:
        """Makes one iteration in place.

        Args:
            Q: the array that `startInference` returns, or a writable float32 (L, n).
            tmp1: not used.
            tmp2: not used.
        """
        self._check_q(Q)
        if not Q.flags.writeable:
            raise ValueError("Q must be writable, as startInference returns it")
        q = np.ascontiguousarray(Q)
        self._crf.step(q, threads=torch.get_num_threads())
        if q is not Q:
            Q[...] = q

    def klDivergence(self, Q: np.ndarray) -> float:
        """The divergence of Q from the CRF's distribution, up to a constant.

        sum Q log Q + sum u Q + the pairwise energies, each pair counted in both orders.
        """
        self._check_q(Q)
        return self._crf.kl_divergence(Q, threads=torch.get_num_threads())

    def _check_q(self, q: object) -> None:
        if not isinstance(q, np.ndarray) or q.dtype != np.float32:
            raise TypeError(f"Q must be a float32 array, got {getattr(q, 'dtype', type(q))}")
        if q.shape != (self._nlabel, self._nvar):
            raise ValueError(f"Q must be of shape {(self._nlabel, self._nvar)}, got {q.shape}")

    def _term(self, compat: object, kernel: int, normalization: int) -> tuple:
        """The last arguments of every method add_... of `_host.DenseCRF`."""
        member("kernel", kernel, KernelType)
        normalization = member("normalization", normalization, NormalizationType)
        compat = compatibility(compat, self._nlabel)
        return compat, int(normalization), torch.get_num_threads()

    def gradient(self, *args: object, **kwargs: object) -> None:
        """Raises NotImplementedError: learning is not part of this interface."""
        raise NotImplementedError(
            "fastseg.compat.pydensecrf does not learn, as pydensecrf does not; fastseg.dense_crf "
            "and fastseg.nn.DenseCRF have every gradient"
        )

    unaryParameters = setUnaryParameters = gradient
    labelCompatibilityParameters = setLabelCompatibilityParameters = gradient
    kernelParameters = setKernelParameters = gradient


class DenseCRF2D(DenseCRF):
    """A fully connected CRF over an image's pixels; point y * w + x is pixel (x, y).

    Args:
        w: width in pixels.
        h: height in pixels.
        nlabels: number of labels L.
    """

    def __init__(self, w: int, h: int, nlabels: int) -> None:
        self._w, self._h = count("w", w), count("h", h)
        self._allocate((self._h, self._w), nlabels)

    def addPairwiseGaussian(
        self,
        sxy: float | Sequence[float],
        compat: float | np.ndarray,
        kernel: int = DIAG_KERNEL,
        normalization: int = NORMALIZE_SYMMETRIC,
    ) -> None:
        """Adds a term of positions: smoothness.

        Args:
            sxy: the standard deviation in pixels, positive; one, or (x, y).
            compat: a number, float32 (L,) or float32 (L, L), see `addPairwiseEnergy`.
            kernel: one of `KernelType`; no influence on the result.
            normalization: one of `NormalizationType`.
        """
        sxy = bandwidths("sxy", sxy, 2)
        self._crf.add_gaussian(sxy, *self._term(compat, kernel, normalization))

    def addPairwiseBilateral(
        self,
        sxy: float | Sequence[float],
        srgb: float | Sequence[float],
        rgbim: np.ndarray,
        compat: float | np.ndarray,
        kernel: int = DIAG_KERNEL,
        normalization: int = NORMALIZE_SYMMETRIC,
    ) -> None:
        """Adds a term of positions and colours: similar pixels get similar labels.

        Args:
            sxy: the standard deviation in pixels, positive; one, or (x, y).
            srgb: the standard deviation of the colours, positive; one, or (r, g, b).
            rgbim: the image, C-contiguous uint8 (h, w, 3).
            compat: a number, float32 (L,) or float32 (L, L), see `addPairwiseEnergy`.
            kernel: one of `KernelType`; no influence on the result.
            normalization: one of `NormalizationType`.
        """
        sxy, srgb = bandwidths("sxy", sxy, 2), bandwidths("srgb", srgb, 3)
        image = buffer("rgbim", rgbim, np.uint8, 3)
        if image.shape[:2] != (self._h, self._w):
            raise ValueError(
                f"Bad shape for pairwise bilateral rgbim (Need {(self._h, self._w, 3)}, got "
                f"{image.shape})"
            )
        if image.shape[2] != 3:
            raise ValueError(
                f"rgbim must have 3 channels, got {image.shape[2]}; for others give the features "
                "of utils.create_pairwise_bilateral to addPairwiseEnergy"
            )
        self._crf.add_bilateral(sxy, srgb, image, *self._term(compat, kernel, normalization))
