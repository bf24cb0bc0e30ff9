"""Run-length codes of COCO, against a decoder of the tests and pycocotools."""

from __future__ import annotations

import json

import numpy as np
import pytest

from fastseg.data.coco import coco_dataset, encode_rle


def decoded(code):
    """The mask of a code, by the description of COCO's format, character by character."""
    height, width = code["size"]
    runs, value, shift = [], 0, 0
    for character in code["counts"].encode():
        bits = character - 48
        value |= (bits & 31) << shift
        shift += 5
        if bits & 32:
            continue
        if bits & 16:
            value -= 1 << shift
        runs.append(value + (runs[-2] if len(runs) > 2 else 0))
        value = shift = 0
    flat = np.concatenate([np.full(n, k % 2, bool) for k, n in enumerate(runs)])
    return flat.reshape(width, height).T


def masks():
    rng = np.random.default_rng(0)
    yield np.ones((1, 1), bool)
    yield np.zeros((1, 1), bool)
    yield np.ones((3, 5), bool)
    yield np.zeros((4, 2), bool)
    for height, width in ((1, 7), (7, 1), (5, 6), (31, 40), (64, 3)):
        for share in (0.02, 0.5, 0.98):
            yield rng.random((height, width)) < share
    large = np.zeros((700, 900), bool)
    large[10:650, 20:21] = large[300:, 400:800] = True
    yield large


@pytest.mark.parametrize("mask", list(masks()), ids=lambda mask: "x".join(map(str, mask.shape)))
def test_a_mask_comes_back(mask):
    code = encode_rle(mask)
    assert code["size"] == list(mask.shape)
    np.testing.assert_array_equal(decoded(code), mask)
    json.dumps(code)


@pytest.mark.parametrize("mask", list(masks()), ids=lambda mask: "x".join(map(str, mask.shape)))
def test_codes_are_those_of_pycocotools(mask):
    coco = pytest.importorskip("pycocotools.mask")
    expected = coco.encode(np.asfortranarray(mask.astype(np.uint8)))
    assert encode_rle(mask)["counts"] == expected["counts"].decode()
    np.testing.assert_array_equal(coco.decode(encode_rle(mask)), mask)


def pictures():
    labels = np.zeros((6, 8), np.uint8)
    labels[1:4, 2:7] = 2
    return [("a/b.png", labels), ("c.jpg", np.full((2, 3), 1, np.uint8))]


def test_dataset():
    found = coco_dataset(pictures(), ["sky", "road", "tree"])
    assert found["categories"][2] == {"id": 2, "name": "tree"}
    assert found["images"][0] == {"id": 1, "file_name": "a/b.png", "width": 8, "height": 6}
    assert [(a["image_id"], a["category_id"]) for a in found["annotations"]] == [
        (1, 0),
        (1, 2),
        (2, 1),
    ]
    tree = found["annotations"][1]
    assert (tree["bbox"], tree["area"], tree["id"]) == ([2, 1, 5, 3], 15, 2)
    np.testing.assert_array_equal(decoded(tree["segmentation"]), pictures()[0][1] == 2)


def test_pycocotools_reads_the_dataset(tmp_path):
    coco = pytest.importorskip("pycocotools.coco")
    path = tmp_path / "coco.json"
    path.write_text(json.dumps(coco_dataset(pictures(), ["sky", "road", "tree"])))
    found = coco.COCO(str(path))
    (tree,) = found.loadAnns(found.getAnnIds(imgIds=[1], catIds=[2]))
    np.testing.assert_array_equal(found.annToMask(tree), pictures()[0][1] == 2)
