"""Random changes of pictures: by Pillow and by torchvision, seeded, masks never interpolated."""

import numpy as np
import pytest
import torch
from PIL import Image

from fastseg.data import Augmentation, TrainTransform
from fastseg.data.augmentation import NOTHING, resolved_augmenter
from tests.zoo.other_models import import_or_skip

IDS = (0, 100, 200)
TABLES = {
    "all": Augmentation((0.5, 2.0), 0.5, 0.5, 30.0, 0.4),
    "rotate": Augmentation((1.0, 1.0), 0.0, 0.0, 45.0, 0.0),
    "vflip": Augmentation((1.0, 1.0), 0.0, 1.0, 0.0, 0.0),
}


@pytest.fixture(params=["plain", "torchvision"])
def augmenter(request):
    if request.param == "torchvision":
        import_or_skip("torchvision")
    return request.param


def pair(size=(64, 48)):
    rng = np.random.default_rng(0)
    ids = (
        rng.choice(np.array(IDS, np.uint8), (size[1] // 8, size[0] // 8)).repeat(8, 0).repeat(8, 1)
    )
    return Image.fromarray(np.stack((ids,) * 3, -1)), Image.fromarray(ids)


@pytest.mark.parametrize("table", TABLES)
def test_masks_are_not_interpolated_and_samples_are_seeded(table, augmenter):
    transform = TrainTransform(48, (40, 56), 255, TABLES[table], augmenter)
    image, label = pair()
    samples = [transform(image, label, np.random.default_rng(seed)) for seed in (1, 1, 2)]
    for x, ids in samples:
        assert (x.shape, x.dtype) == ((3, 40, 56), torch.float32)
        assert (ids.shape, ids.dtype) == ((40, 56), torch.int64)
        assert set(ids.unique().tolist()) <= {*IDS, 255}
    assert torch.equal(samples[0][0], samples[1][0])
    assert torch.equal(samples[0][1], samples[1][1])
    if table != "vflip":
        assert not torch.equal(samples[0][1], samples[2][1])


@pytest.mark.parametrize("table", ["rotate", "vflip"])
def test_picture_and_mask_move_alike(table, augmenter):
    """Where the picture shows its ids, the mask has them; only borders are blended."""
    transform = TrainTransform(48, (48, 64), 255, TABLES[table], augmenter)
    x, ids = transform(*pair(), np.random.default_rng(3))
    shades = (x[0] * 0.229 + 0.485) * 255
    inside = ids != 255
    assert inside.float().mean() > 0.5
    right = (shades - ids).abs()[inside] < 1.5
    assert right.float().mean() > 0.75


def test_callers_generator_stays_as_it_is(augmenter):
    state = torch.get_rng_state()
    TrainTransform(48, (40, 40), 255, TABLES["all"], augmenter)(*pair(), np.random.default_rng(1))
    assert torch.equal(torch.get_rng_state(), state)


def test_elastic_needs_torchvision():
    with pytest.raises(ValueError, match="--augment elastic needs --augmenter torchvision"):
        resolved_augmenter("plain", Augmentation(elastic=5))
    import_or_skip("torchvision")
    assert resolved_augmenter("auto", Augmentation(elastic=5)) == "torchvision"
    table = Augmentation((1.0, 1.0), 0.0, colour=0.0, elastic=60.0)
    transform = TrainTransform(48, (48, 64), 255, table, "torchvision")
    image, label = pair()
    _, ids = transform(image, label, np.random.default_rng(1))
    assert set(ids.unique().tolist()) <= {*IDS, 255}
    assert not torch.equal(ids, torch.from_numpy(np.array(label)).long())


def test_without_torchvision_pillow_serves(monkeypatch):
    def missing():
        raise ImportError("there is none")

    monkeypatch.setattr("fastseg.data.augmentation._torchvision", missing)
    assert resolved_augmenter("auto", Augmentation()) == "plain"
    with pytest.raises(ValueError, match=r"needs torchvision, .* \(there is none\): pip install"):
        resolved_augmenter("torchvision", Augmentation())


def test_the_table_is_read_and_written():
    table = Augmentation.parse(["scale=0.5:2", "rotate=10", "flip=0"])
    assert table == Augmentation((0.5, 2.0), flip=0.0, rotate=10.0)
    assert Augmentation.parse(table.texts()) == table
    assert Augmentation.parse(["none"]) == NOTHING
    assert Augmentation.parse(["scale=2"]).scale == (2.0, 2.0)


@pytest.mark.parametrize(
    "text", ["shear=3", "rotate", "rotate=a", "rotate=200", "flip=2", "scale=2:1", "scale=1:2:3"]
)
def test_what_the_table_does_not_take(text):
    with pytest.raises(ValueError, match=f"--augment {text}: must be none or NAME=NUMBER"):
        Augmentation.parse([text])
