"""What the dense CRF takes behind a network: small logits, arrays, pictures; what it returns."""

from __future__ import annotations

import copy
import pickle
import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

import fastseg
from fastseg import MeanField, PairwiseBilateral, PairwiseGaussian, dense_crf

TERMS = [PairwiseGaussian(2, 1), PairwiseBilateral(8, 20, 2)]
LABELS, H, W = 4, 18, 23


def logits(batch=2, h=5, w=6, scale=3.0, **options):
    return scale * torch.randn(batch, LABELS, h, w, **options)


def photo(batch=2):
    return (torch.rand(batch, 3, H, W) * 255).to(torch.uint8)


def pixels(image):
    """The image (3, H, W) as an array (H, W, 3)."""
    return np.ascontiguousarray(image.permute(1, 2, 0).numpy())


def crf(unary, image, **options):
    return dense_crf(unary, image, TERMS, iterations=3, **options)


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_small_logits_are_upsampled(align_corners, dtype):
    small, image = logits().to(dtype), photo()
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    large = F.interpolate(small.to(wide), (H, W), mode="bilinear", align_corners=align_corners)
    expected = crf(-large, image).to(dtype)
    assert torch.equal(crf(-small, image, align_corners=align_corners), expected)
    field = MeanField(-small, image, TERMS, align_corners=align_corners)
    torch.testing.assert_close(field.step(3), expected)
    layer = fastseg.nn.DenseCRF(LABELS, TERMS, 3, align_corners=align_corners)
    assert layer(-small, image).shape == (2, LABELS, H, W)
    assert crf(-small[0], image[0], align_corners=align_corners).shape == (LABELS, H, W)


def test_small_logits_of_volumes():
    small, image = torch.randn(1, 3, 2, 3, 4), torch.rand(1, 1, 4, 5, 8) * 255
    large = F.interpolate(small, (4, 5, 8), mode="trilinear", align_corners=False)
    assert torch.equal(crf(-small, image, align_corners=False), crf(-large, image))


def test_logits_of_the_images_size_stay_as_they_are():
    full, image = logits(h=H, w=W), photo()
    assert torch.equal(crf(-full, image, align_corners=False), crf(-full, image))


def test_the_gradient_goes_through_the_upsampling():
    small, image = logits(1, dtype=torch.float64).requires_grad_(), photo(1)
    labels = torch.randint(0, LABELS, (1, H, W))
    large = F.interpolate(small, (H, W), mode="bilinear", align_corners=False)
    grads = []
    for log_q in (
        crf(-small, image, align_corners=False, output="log_prob"),
        crf(-large, image, output="log_prob"),
    ):
        grads += torch.autograd.grad(F.nll_loss(log_q, labels), small)
    torch.testing.assert_close(*grads)


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("quality", ["high", "exact"])
def test_a_label_forbidden_in_a_small_unary(quality, align_corners):
    """It is so wherever its pixel has a share, and nowhere is NaN: 0 * infinity is no share."""
    small, image = logits(), photo()
    small[0, 1, 2, 3] = small[1, 0, 0, 0] = small[1, 0, :, -1] = -torch.inf
    forbidden = (small == -torch.inf).double()
    forbidden = F.interpolate(forbidden, (H, W), mode="bilinear", align_corners=align_corners) > 0
    options = {"align_corners": align_corners, "quality": quality}
    q = crf(-small, image, **options)
    assert torch.equal(q == 0, forbidden)
    torch.testing.assert_close(q.sum(1), torch.ones(2, H, W))
    assert torch.equal(MeanField(-small, image, TERMS, **options).step(3) == 0, forbidden)
    leaf = small.requires_grad_()
    log_q = crf(-leaf, image, output="log_prob", **options)
    log_q[~forbidden].sum().backward()
    assert leaf.grad.isfinite().all()
    assert leaf.grad.count_nonzero() > 0


def test_labels_forbidden_on_both_sides_leave_none_between():
    small = torch.zeros(1, 2, 2, 2)
    small[0, 0, :, 0] = small[0, 1, :, 1] = torch.inf
    with pytest.raises(RuntimeError, match="unary must leave every point a label of finite"):
        crf(small, photo(1), align_corners=False)


def test_forbidden_labels_of_a_small_unary_compile():
    small, image = logits(), photo()
    small[0, 1, 2, 3] = -torch.inf

    def refined(small, image):
        return crf(-small, image, align_corners=False)

    compiled = torch.compile(refined, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(small, image), refined(small, image))


def test_small_logits_compile():
    small, image = logits(), photo()

    def refined(small, image):
        return crf(-small, image, align_corners=False, output="log_prob")

    compiled = torch.compile(refined, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(small, image), refined(small, image))


def test_compiled_for_all_sizes():
    compiled = torch.compile(crf, fullgraph=True, dynamic=True, backend="aot_eager")
    for batch, labels, height, width in ((2, 4, 8, 8), (3, 4, 9, 11), (2, 5, 12, 7)):
        unary = torch.randn(batch, labels, height, width)
        image = torch.rand(batch, 3, height, width) * 255
        torch.testing.assert_close(compiled(unary, image), crf(unary, image))


@pytest.mark.parametrize(
    ("unary", "image", "message"),
    [
        (logits(), None, "align_corners needs an image, which has the size, got None"),
        (logits(h=H + 1), photo(), "image must not be smaller than the unary, which is upsampled"),
        (logits(), photo()[0], r"image must be \(2 or 1, C, 18, 23\)|image must be"),
        (logits(), photo(3), r"image must be \(2 or 1, C, 18, 23\) for a unary of shape"),
    ],
)
def test_bad_sizes_of_upsampling(unary, image, message):
    with pytest.raises(ValueError, match=f"dense_crf: {message}"):
        dense_crf(unary, image, align_corners=False)


def test_without_the_option_sizes_must_agree():
    with pytest.raises(ValueError, match=r"image must be \(2 or 1, C, 5, 6\) for a unary of shape"):
        dense_crf(logits(), photo())


def test_outputs():
    unary, image = -logits(h=H, w=W), photo()
    q, log_q = crf(unary, image), crf(unary, image, log=True)
    assert torch.equal(crf(unary, image, output="prob"), q)
    assert torch.equal(crf(unary, image, output="log_prob"), log_q)
    assert torch.equal(crf(unary, image, output="log_prob", log=True), log_q)
    field = MeanField(unary, image, TERMS, output="log_prob")
    torch.testing.assert_close(field.step(3), log_q)
    layer = fastseg.nn.DenseCRF(LABELS, TERMS, 3, output="log_prob")
    plain = fastseg.nn.DenseCRF(LABELS, TERMS, 3)
    for a, b in (
        (layer(unary, image), plain(unary, image, output="log_prob")),
        (layer(unary, image), plain(unary, image, log=True)),
        (layer(unary, image, output="prob"), plain(unary, image)),
        (layer(unary, image, log=False), plain(unary, image)),
    ):
        assert torch.equal(a, b)
    for call in (
        lambda: crf(unary, image, output="logit"),
        lambda: MeanField(unary, image, output="logit"),
        lambda: fastseg.nn.DenseCRF(LABELS, output="logit"),
        lambda: plain(unary, image, output="logit"),
    ):
        with pytest.raises(ValueError, match="output must be one of prob, log_prob, got 'logit'"):
            call()


@pytest.mark.parametrize("quality", ["compat", "high", "exact"])
def test_no_gradient_is_dead_where_q_underflows(quality):
    """A network that is wrong with confidence learns from log Q, and from Q nothing."""
    scores = torch.zeros(1, LABELS, 6, 7)
    scores[:, 0] = 300.0
    scores.requires_grad_()
    labels, image = torch.ones(1, 6, 7, dtype=torch.long), torch.rand(1, 3, 6, 7) * 255
    q = dense_crf(-scores, image, TERMS, quality=quality)
    assert (q[:, 1] == 0).all()
    log_q = dense_crf(-scores, image, TERMS, quality=quality, output="log_prob")
    (alive,) = torch.autograd.grad(F.nll_loss(log_q, labels), scores)
    assert log_q.isfinite().all()
    assert (alive[:, 1] < 0).all()
    assert (alive[:, 0] > 0).all()
    dead = F.nll_loss(q.clamp_min(1e-30).log(), labels)
    assert not torch.autograd.grad(dead, scores)[0][:, 1].any()


def test_arrays_and_pictures():
    unary, image = -logits(h=H, w=W), photo()
    expected = crf(unary, image)
    first = crf(unary[0], image[0])
    arrays = np.stack([pixels(image[0]), pixels(image[1])])
    assert torch.equal(crf(unary, arrays), expected)
    for one in (
        pixels(image[0]),
        np.asfortranarray(pixels(image[0])),
        pixels(image[0])[::-1][::-1],
        Image.fromarray(pixels(image[0])),
    ):
        assert torch.equal(crf(unary[0], one), first)
        assert torch.equal(crf(unary[:1], one)[0], first)
    grey = pixels(image[0])[..., 0]
    of_grey = crf(unary[0], image[0, :1])
    for one in (grey, grey[..., None], Image.fromarray(grey)):
        assert torch.equal(crf(unary[0], one), of_grey)
    small = -logits()[0]
    assert torch.equal(
        crf(small, pixels(image[0]), align_corners=False), crf(small, image[0], align_corners=False)
    )
    field = MeanField(unary[0], pixels(image[0]), TERMS)
    torch.testing.assert_close(field.step(3), first)


def test_read_only_arrays_are_taken_without_a_warning():
    array = pixels(photo()[0])
    array.flags.writeable = False
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        crf(-logits(1, H, W), array)


ARRAY = np.zeros((H, W, 3), np.uint8)


@pytest.mark.parametrize(
    ("image", "error", "message"),
    [
        (ARRAY.astype(np.float32), ValueError, "image must be uint8 as an array, got float32"),
        (
            ARRAY.transpose(2, 0, 1),
            ValueError,
            r"got shape \(3, 18, 23\), which seems to be",
        ),
        (
            ARRAY[:-1],
            ValueError,
            r"image must be \(1 or 1, C, 18, 23\) .* got shape \(1, 3, 17",
        ),
        (ARRAY[0, 0], ValueError, r"image must be \(H, W, C\) as an array, got shape \(3,\)"),
        (ARRAY.tolist(), TypeError, "image must be a tensor, a uint8 array .* or None, got list"),
        ("photo.jpg", TypeError, "got str"),
        (Image.fromarray(ARRAY).convert("P"), ValueError, r"got P; give image.convert\('RGB'\)"),
        (Image.fromarray(ARRAY).convert("RGBA"), ValueError, "mode L or RGB, got RGBA"),
    ],
)
def test_bad_images(image, error, message):
    for function in (dense_crf, MeanField):
        with pytest.raises(error, match=f"{function.__name__}: .*{message}"):
            function(-logits(1, H, W), image)


@pytest.mark.parametrize("size", [(3, 3, 3), (5, 5, 5)])
def test_ambiguous_arrays(size):
    unary = torch.zeros(2, *size[:2])
    with pytest.raises(ValueError, match=r"\(H, W, C\) as an array.* may be \(C, H, W\), too"):
        dense_crf(unary, np.zeros(size, np.uint8))
    batch = np.zeros((1, *size), np.uint8)
    with pytest.raises(ValueError, match=r"may be \(C, H, W\), too"):
        dense_crf(unary[None], batch)


def test_volumes_are_tensors():
    with pytest.raises(ValueError, match=r"image must be \(H, W, C\) as an array"):
        dense_crf(torch.zeros(1, 2, 3, 4, 5), np.zeros((4, 5, 3), np.uint8))


def test_warns_of_an_image_from_0_to_1():
    unary = -logits(1, H, W)
    with pytest.warns(UserWarning, match=r"image holds values from .* srgb = 13 makes all") as seen:
        dense_crf(unary, torch.rand(1, 3, H, W))
    assert seen[0].filename == __file__
    with pytest.warns(UserWarning, match="MeanField: image holds values"):
        MeanField(unary, torch.rand(1, 3, H, W))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        dense_crf(unary, torch.rand(1, 3, H, W), [PairwiseBilateral(8, 0.05, 2)])
        dense_crf(unary, torch.rand(1, 3, H, W), [PairwiseGaussian()])
        dense_crf(unary, torch.rand(1, 3, H, W) * 255)
        dense_crf(unary, torch.randn(1, 3, H, W))
        dense_crf(unary, torch.zeros(1, 3, H, W))
        dense_crf(unary, torch.randint(0, 2, (1, 3, H, W), dtype=torch.uint8))


def test_layers_of_before_have_no_align_corners():
    layer = fastseg.nn.DenseCRF(LABELS, TERMS)
    del layer.__dict__["align_corners"]
    unary, image = -logits(h=H, w=W), photo()
    for old in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert old(unary, image).shape == unary.shape
