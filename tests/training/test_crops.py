import math

import numpy as np
import pytest
from PIL import Image

from mae_export.errors import ImageError, InputError
from mae_export.training.crops import RandomCrops, random_box


def test_boxes_keep_area_aspect_and_place() -> None:
    generator = np.random.default_rng(0)
    boxes = np.array([random_box((240, 300), min_area=0.2, generator=generator) for _ in range(2000)])
    left, upper, right, lower = boxes.T
    width, height = right - left, lower - upper
    assert left.min() == 0
    assert upper.min() == 0
    assert right.max() == 300
    assert lower.max() == 240
    share, aspect = width * height / 72_000, width / height
    assert 0.19 < share.min() < 0.21
    assert share.max() > 0.95
    assert 0.74 < aspect.min() < 0.78
    assert 1.3 < aspect.max() < 1.35
    assert np.median(np.log(aspect)) == pytest.approx(0, abs=0.06)  # log-uniform: as often wide as high


def test_an_image_too_narrow_for_any_box_is_taken_whole() -> None:
    assert random_box((10, 1000), min_area=0.9, generator=np.random.default_rng(0)) == (0, 0, 1000, 10)


def test_a_whole_image_is_resized_as_pillow_does() -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (10, 1000, 3), dtype=np.uint8)
    expected = np.asarray(Image.fromarray(pixels).resize((8, 8), Image.Resampling.BICUBIC))
    crops = RandomCrops([pixels], size=(8, 8), min_area=0.9, seed=0).batch(40)
    assert crops.shape == (40, 8, 8, 3)
    assert crops.dtype == np.uint8
    mirrored = [np.array_equal(crop, expected[:, ::-1]) for crop in crops]
    assert all(mirror or np.array_equal(crop, expected) for crop, mirror in zip(crops, mirrored, strict=True))
    assert abs(sum(mirrored) - 20) < 4 * math.sqrt(40 / 4)


def test_crops_depend_on_the_seed_only() -> None:
    images = [np.random.default_rng(2).integers(0, 256, (40, 50, 3), dtype=np.uint8)] * 3
    first, second, other = (RandomCrops(images, size=(16, 16), min_area=0.2, seed=seed) for seed in (5, 5, 6))
    batch = first.batch(4)
    np.testing.assert_array_equal(batch, second.batch(4))
    assert not np.array_equal(batch, other.batch(4))
    assert not np.array_equal(batch, first.batch(4))  # the next batch is another one


def test_no_images() -> None:
    with pytest.raises(InputError, match="there are no images to train on"):
        RandomCrops([], size=(8, 8), min_area=0.2, seed=0)


@pytest.mark.parametrize(
    "pixels",
    [np.zeros((8, 8), np.uint8), np.zeros((8, 8, 4), np.uint8), np.zeros((8, 8, 3)), np.zeros((0, 8, 3), np.uint8)],
)
def test_arrays_that_are_no_rgb_image(pixels: np.ndarray) -> None:
    good = np.zeros((8, 8, 3), np.uint8)
    with pytest.raises(ImageError, match=r"image 1 is \w+ \[.*\]; expected uint8 \[h, w, 3\], RGB"):
        RandomCrops([good, pixels], size=(8, 8), min_area=0.2, seed=0)
