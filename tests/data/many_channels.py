"""Small pictures of many channels, and their masks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.data.own_pictures import true_ids

REASON = "TIFFs of more than four channels are written and read by tifffile"


def import_tifffile():
    return pytest.importorskip("tifffile", reason=REASON)


def write_tiff(path: Path, pixels: np.ndarray, **options) -> Path:
    """Write (H, W, channels), pixel by pixel unless the options say otherwise."""
    tifffile = import_tifffile()
    kind = {"photometric": "minisblack", "planarconfig": "contig", **options}
    if pixels.shape[-1] == 1:
        pixels, kind["planarconfig"] = pixels[..., 0], None
    elif kind["planarconfig"] != "contig":
        pixels = np.moveaxis(pixels, -1, 0)
    tifffile.imwrite(path, pixels, **{k: v for k, v in kind.items() if v is not None})
    return path


def pixels_of(index: int, channels: int = 5, size=(40, 48), dtype=np.uint16) -> np.ndarray:
    """Values about 1000, of which the last channel but one alone shows class 1."""
    rng = np.random.default_rng(index)
    pixels = rng.integers(900, 1100, (*size, channels))
    pixels[..., -2 if channels > 1 else 0] += 3000 * true_ids(index, 2, size)
    return pixels.astype(dtype)


def make_tiffs(root: Path, count: int = 6, **kind) -> Path:
    """Write root/img/pK.tif, root/mask/pK.png and root/names.txt; return root."""
    for folder in ("img", "mask"):
        (root / folder).mkdir(parents=True)
    for k in range(count):
        pixels = pixels_of(k, **kind)
        write_tiff(root / "img" / f"p{k}.tif", pixels)
        ids = true_ids(k, 2, pixels.shape[:2]).astype(np.uint8)
        Image.fromarray(ids).save(root / "mask" / f"p{k}.png")
    (root / "names.txt").write_text("other\nfield\n")
    return root
