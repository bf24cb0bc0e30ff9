"""The CamVid data set, its augmentation and its class weights."""

import numpy as np
import pytest
import torch
from PIL import Image

from fastseg.data import (
    CAMVID_CLASSES,
    CAMVID_IGNORE,
    CAMVID_PALETTE,
    Augmentation,
    CamVid,
    EvalTransform,
    NotCamVidError,
    TrainTransform,
    check_is_camvid,
    class_counts,
    median_frequency_weights,
    normalise,
    resize_to_height,
)
from tests.train.foreign_masks import KINDS, make_foreign
from tests.train.synthetic_camvid import make_camvid

# The class weights in the SegNet authors' prototxt, ids 0 to 10.
AUTHORS_WEIGHTS = (
    0.2595,
    0.1826,
    4.5640,
    0.1417,
    0.9051,
    0.3826,
    9.6446,
    1.8418,
    0.6823,
    6.2478,
    7.3614,
)


@pytest.fixture
def folder(tmp_path):
    return make_camvid(tmp_path / "camvid")


def test_constants_describe_eleven_classes():
    assert len(CAMVID_CLASSES) == len(set(CAMVID_CLASSES)) == CAMVID_IGNORE == 11
    assert len(set(CAMVID_PALETTE)) == 11


def test_a_sample_is_the_image_and_its_label(folder):
    dataset = CamVid(folder, "val", EvalTransform(48))
    assert len(dataset) == 6
    image, label = dataset[2]
    assert (image.shape, image.dtype) == ((3, 48, 64), torch.float32)
    assert (label.shape, label.dtype) == ((48, 64), torch.int64)
    with Image.open(folder / "val" / "002.png") as file:
        torch.testing.assert_close(image, normalise(file))
    with Image.open(folder / "valannot" / "002.png") as file:
        np.testing.assert_array_equal(label, np.array(file))


def test_normalise_is_the_formula():
    image = Image.new("RGB", (1, 1), (255, 0, 51))
    got = normalise(image, mean=(0.5, 0.25, 0.1), std=(0.5, 0.5, 0.1)).flatten()
    torch.testing.assert_close(got, torch.tensor([1.0, -0.5, 1.0]))


@pytest.mark.parametrize(
    ("size", "height", "expected"), [((64, 48), 24, (32, 24)), ((427, 640), 240, (240, 360))]
)
def test_resize_makes_the_short_side_the_height(size, height, expected):
    assert resize_to_height(Image.new("RGB", size), height).size == expected


def test_evaluation_keeps_the_label_at_its_resolution(folder):
    image, label = CamVid(folder, "val", EvalTransform(24))[0]
    assert image.shape == (3, 24, 32)
    assert label.shape == (48, 64)


@pytest.mark.parametrize("crop", [(40, 40), (32, 64), (100, 120)])
def test_augmentation_gives_crops_padded_with_ignored_pixels(folder, crop):
    table = Augmentation(scale=(0.5, 1.2))
    dataset = CamVid(folder, "train", TrainTransform(48, crop, CAMVID_IGNORE, table))
    for epoch in range(5):
        dataset.set_epoch(epoch)
        image, label = dataset[0]
        assert image.shape == (3, *crop)
        assert label.shape == crop
        padded = (image == 0).all(0)
        assert (label[padded] == CAMVID_IGNORE).all()
        if crop == (100, 120):
            assert padded[58:, 77:].all()  # 48x64 at scale 1.2 at most


def test_augmentation_moves_image_and_label_together(tmp_path):
    root = make_camvid(tmp_path / "camvid")
    transform = TrainTransform(48, (32, 32), CAMVID_IGNORE, Augmentation(colour=0.0))
    dataset = CamVid(root, "train", transform)
    colours = torch.tensor([*CAMVID_PALETTE, (0, 0, 0)], dtype=torch.float32)
    mean = torch.tensor([0.485, 0.456, 0.406])
    std = torch.tensor([0.229, 0.224, 0.225])
    for epoch in range(6):
        dataset.set_epoch(epoch)
        image, label = dataset[1]
        pixels = (image.permute(1, 2, 0) * std + mean) * 255
        error = (pixels - colours[label]).abs().amax(-1)
        assert (error < 25).float().mean() > 0.8  # all but pixels at the blocks' borders


def test_augmentation_is_a_function_of_seed_epoch_and_index(folder):
    def sample(seed, epoch, index):
        dataset = CamVid(folder, "train", TrainTransform(48, (32, 32), CAMVID_IGNORE), seed=seed)
        dataset.set_epoch(epoch)
        return dataset[index][0]

    assert torch.equal(sample(0, 1, 2), sample(0, 1, 2))
    for other in ((1, 1, 2), (0, 2, 2), (0, 1, 3)):
        assert not torch.equal(sample(0, 1, 2), sample(*other))


def test_both_orientations_occur(folder):
    table = Augmentation(scale=(1.0, 1.0), colour=0.0)
    transform = TrainTransform(48, (48, 64), CAMVID_IGNORE, table)
    dataset = CamVid(folder, "train", transform)
    with Image.open(folder / "trainannot" / "000.png") as file:
        plain = torch.from_numpy(np.array(file)).long()
    flips = []
    for epoch in range(20):
        dataset.set_epoch(epoch)
        label = dataset[0][1]
        assert torch.equal(label, plain) or torch.equal(label, plain.flip(1))
        flips.append(torch.equal(label, plain.flip(1)))
    assert 4 <= sum(flips) <= 16


def test_an_unknown_split_is_refused(folder):
    with pytest.raises(ValueError, match=r"split must be one of .*, got 'dev'"):
        CamVid(folder, "dev", EvalTransform(48))


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere/train is not a folder; root must be"):
        CamVid(tmp_path / "nowhere", "train", EvalTransform(48))


def test_a_folder_without_images_is_refused(folder):
    for image in (folder / "train").iterdir():
        image.unlink()
    with pytest.raises(ValueError, match="train has no images"):
        CamVid(folder, "train", EvalTransform(48))


def test_an_image_without_label_is_named(folder):
    (folder / "trainannot" / "004.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"1 of 6 images .* the first is 004\.png"):
        CamVid(folder, "train", EvalTransform(48))


@pytest.mark.parametrize(
    ("label", "message"),
    [
        (Image.new("L", (10, 10)), "is 10x10, its image 64x48"),
        (Image.new("RGB", (64, 48)), "has mode RGB, expected 8-bit ids"),
        (Image.new("L", (64, 48), 12), "has id 12, expected 0 to 11"),
    ],
)
def test_a_label_that_does_not_fit_is_named(folder, label, message):
    label.save(folder / "trainannot" / "001.png")
    with pytest.raises(ValueError, match=rf"001\.png {message}"):
        CamVid(folder, "train", EvalTransform(48))[1]


def test_class_counts_count_pixels_and_the_images_that_have_the_class(folder):
    labels = [np.array(Image.open(path)) for path in sorted((folder / "trainannot").iterdir())]
    pixels, present = class_counts(CamVid(folder, "train", EvalTransform(48)))
    for c in range(11):
        assert pixels[c] == sum((label == c).sum() for label in labels)
        assert present[c] == sum(label.size for label in labels if (label == c).any())


def test_median_frequency_weights_worked_out_by_hand():
    # frequencies 0.5, 0.1, 0.2, and a class that never occurs; the median is 0.2
    weights = median_frequency_weights([50, 10, 10, 0], [100, 100, 50, 0])
    torch.testing.assert_close(weights, torch.tensor([0.4, 2.0, 1.0, 0.0]))


def test_the_median_of_an_even_number_is_the_mean_of_the_middle_two():
    weights = median_frequency_weights([10, 20, 30, 40], [100] * 4)
    torch.testing.assert_close(weights, torch.tensor([2.5, 1.25, 0.25 / 0.3, 0.625]))


@pytest.mark.parametrize(
    ("pixels", "present", "message"),
    [([1, 2], [1], "must be of one shape"), ([0, 0], [0, 0], "must have a class that occurs")],
)
def test_median_frequency_weights_refuse_bad_counts(pixels, present, message):
    with pytest.raises(ValueError, match=message):
        median_frequency_weights(pixels, present)


@pytest.mark.parametrize(("split", "images"), [("train", 367), ("val", 101), ("test", 233)])
def test_camvid_has_the_papers_split(split, images, shared_data):
    assert len(CamVid(shared_data("data", "camvid"), split, EvalTransform(240))) == images


def test_weights_agree_with_the_authors(shared_data):
    dataset = CamVid(shared_data("data", "camvid"), "train", EvalTransform(240))
    labels = [np.asarray(dataset.load_label(index)) for index in range(len(dataset))]
    counts = np.stack([np.bincount(label.ravel(), minlength=12) for label in labels])
    present = (counts > 0).sum(0) * labels[0].size
    # The authors' median is over twelve classes, the unlabelled one included.
    weights = median_frequency_weights(counts.sum(0), present)[:11]
    ratio = weights / torch.tensor(AUTHORS_WEIGHTS)
    # The labels were revised since: signs have 2.7 times the pixels, the others differ by 11 %.
    same = [c for c, name in enumerate(CAMVID_CLASSES) if name != "signsymbol"]
    torch.testing.assert_close(ratio[same], torch.ones(10), rtol=0, atol=0.11)
    pixels, _ = class_counts(dataset)
    assert pixels.tolist() == counts.sum(0)[:11].tolist()


def changed(folder, change):
    """The message with which a folder of CamVid is refused after the change."""
    change(folder)
    with pytest.raises(NotCamVidError) as error:
        check_is_camvid(CamVid(folder, "train", EvalTransform(48)))
    return str(error.value)


def test_camvid_is_taken_for_camvid(folder, shared_data):
    for split in ("train", "val", "test"):
        check_is_camvid(CamVid(folder, split, EvalTransform(48)))
    check_is_camvid(CamVid(shared_data("data", "camvid"), "val", EvalTransform(240)))


@pytest.mark.parametrize("colours", [[*CAMVID_PALETTE, (0, 0, 0)], [(k, k, k) for k in range(12)]])
def test_camvid_in_its_colours_is_camvid(folder, colours):
    for path in (folder / "trainannot").iterdir():
        label = Image.open(path)
        label.putpalette([c for colour in colours for c in colour])
        label.save(path)
    check_is_camvid(CamVid(folder, "train", EvalTransform(48)))


@pytest.mark.parametrize("kind", KINDS)
def test_masks_of_somebodys_own_are_no_camvid(tmp_path, kind):
    root = make_foreign(tmp_path / "own", kind)
    for split in ("train", "val", "test"):
        with pytest.raises(NotCamVidError) as error:
            check_is_camvid(CamVid(root, split, EvalTransform(48)))
        assert str(error.value).startswith(f"{root} has CamVid's folders, but is not CamVid")
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "text", "refused"),
    [
        ("classes.txt", "background\ncat\ndog\n", True),
        ("labelmap.txt", "# label:color_rgb:parts:actions\ncrack:255,0,0::\n", True),
        ("data.yaml", "nc: 2\nnames: [weed, crop]\n", True),
        ("obj.names", "tumour\n", True),
        ("classes.json", '["sky", "building", "wall"]', True),
        ("classes.txt", "\n".join(CAMVID_CLASSES), False),
        (
            "label_colors.txt",
            "Sky Building Column_Pole Road Sidewalk Tree SignSymbol Fence Car",
            False,
        ),
        ("train.txt", "train/000.png trainannot/000.png\n", False),
    ],
)
def test_a_file_that_lists_other_classes(folder, name, text, refused):
    if refused:
        message = changed(folder, lambda root: (root / name).write_text(text))
        assert f"{folder / name} lists other classes" in message
    else:
        (folder / name).write_text(text)
        check_is_camvid(CamVid(folder, "train", EvalTransform(48)))


def test_a_damaged_picture_or_label_is_named(folder):
    def cut(path):
        path.write_bytes(path.read_bytes()[:60])

    assert "train/002.png: damaged or truncated" in changed(
        folder, lambda root: cut(root / "train/002.png")
    )
    assert "trainannot/001.png cannot be read" in changed(
        folder, lambda root: cut(root / "trainannot/001.png")
    )


def test_more_pictures_than_camvid_has(tmp_path):
    root = make_camvid(tmp_path / "camvid", images=1)
    for index in range(1, 702):
        for part in ("train", "trainannot"):
            (root / part / f"{index}.png").hardlink_to(root / part / "000.png")
    assert "702 pictures, where CamVid has 701" in changed(root, lambda root: None)
