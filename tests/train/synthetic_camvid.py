"""A small CamVid folder with random images, for tests."""

from pathlib import Path

import numpy as np
from PIL import Image

from fastseg.data import CAMVID_PALETTE


def make_camvid(root: Path, images: int = 6, size: tuple[int, int] = (48, 64)) -> Path:
    """Write ``images`` images of (height, width) ``size`` for each split; return ``root``.

    A label is two by two blocks of random ids, 0 to 11; an image is its label in the palette's
    colours (black where unlabelled) with noise, so that there is something to learn.
    """
    rng = np.random.default_rng(0)
    colours = np.array([*CAMVID_PALETTE, (0, 0, 0)])
    for split in ("train", "val", "test"):
        for folder in (split, f"{split}annot"):
            (root / folder).mkdir(parents=True)
        for index in range(images):
            blocks = rng.integers(0, 12, (2, 2), dtype=np.uint8)
            label = blocks.repeat(size[0] // 2, 0).repeat(size[1] // 2, 1)
            noise = rng.integers(-20, 21, (*label.shape, 3))
            image = (colours[label] + noise).clip(0, 255).astype(np.uint8)
            Image.fromarray(image).save(root / split / f"{index:03}.png")
            Image.fromarray(label).save(root / f"{split}annot" / f"{index:03}.png")
    return root
