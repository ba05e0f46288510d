"""Resizing against an independent antialiased filter, and cropping against torchvision's published formulas."""

import numpy as np
import pytest
from PIL import Image

from mae_export.errors import ImageError
from mae_export.runtime.resize import fit
from mae_export.spec import ImageSpec

EVALUATION = ImageSpec(size=(224, 224), crop_fraction=224 / 256)


def picture(width: int, height: int) -> Image.Image:
    """Smooth waves with noise, between 40 and 215 so that bicubic overshoot never saturates."""
    y, x = np.mgrid[:height, :width]
    waves = np.sin(x[..., None] / (7, 11, 17)) * np.cos(y[..., None] / (13, 5, 9))
    noise = np.random.default_rng(width * 10007 + height).uniform(-1, 1, (height, width, 3))
    return Image.fromarray((127.5 + 60 * waves + 25 * noise).astype(np.uint8))


def cubic(x):
    x = np.abs(x)
    inner, outer = 1.5 * x**3 - 2.5 * x**2 + 1, -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2  # Keys, a = -0.5
    return np.where(x < 1, inner, np.where(x < 2, outer, 0))


def triangle(x):
    return np.maximum(0, 1 - np.abs(x))


def resample(array, length: int, kernel):
    """Antialiased resampling of the first axis: the kernel is widened by the reduction factor."""
    scale = array.shape[0] / length
    centres = (np.arange(length) + 0.5) * scale
    weights = kernel((np.arange(array.shape[0]) + 0.5 - centres[:, None]) / max(scale, 1.0))
    weights /= weights.sum(1, keepdims=True)
    return np.tensordot(weights, array, 1)


@pytest.mark.parametrize(("interpolation", "kernel"), [("bicubic", cubic), ("bilinear", triangle)])
@pytest.mark.parametrize("size", [(48, 60), (150, 210), (97, 31), (16, 400)])
def test_pixels_match_an_independent_filter_within_one_level(interpolation, kernel, size):
    image = picture(120, 90)
    found = fit(image, ImageSpec(size=size, resize="stretch", interpolation=interpolation)).astype(int)
    rows = resample(np.asarray(image, float), size[0], kernel)
    expected = resample(rows.transpose(1, 0, 2), size[1], kernel).transpose(1, 0, 2)
    assert found.shape == (*size, 3)
    assert np.abs(found - np.clip(np.rint(expected), 0, 255)).max() <= 1


@pytest.mark.parametrize(
    ("size", "resized", "left", "top"),  # (width, height), torchvision's Resize(256) and CenterCrop(224)
    [
        ((500, 375), (341, 256), 58, 16),  # 117 / 2 rounds half to even
        ((375, 500), (256, 341), 16, 58),
        ((640, 427), (383, 256), 80, 16),  # 159 / 2 = 79.5 rounds to 80
        ((256, 256), (256, 256), 16, 16),
        ((33, 20), (422, 256), 99, 16),
    ],
)
def test_the_evaluation_of_mae_is_reproduced_exactly(size, resized, left, top):
    image = picture(*size)
    expected = image.resize(resized, Image.Resampling.BICUBIC).crop((left, top, left + 224, top + 224))
    np.testing.assert_array_equal(fit(image, EVALUATION), np.asarray(expected))


@pytest.mark.parametrize("size", [(1, 1), (1, 50), (50, 1), (31, 97), (300, 300), (801, 333)])
@pytest.mark.parametrize("target", [(160, 320), (320, 160), (97, 97)])
@pytest.mark.parametrize("fraction", [1.0, 0.95, 0.875])
def test_cover_gives_the_size_and_leaves_no_border(size, target, fraction):
    image = Image.new("RGB", size, (10, 200, 99))
    pixels = fit(image, ImageSpec(size=target, crop_fraction=fraction))
    assert pixels.dtype == np.uint8
    assert (pixels.reshape(-1, 3) == (10, 200, 99)).all()  # a crop beyond the picture would be black
    assert pixels.shape == (*target, 3)


def test_cover_for_oblong_sizes_is_the_smallest_and_central():
    image = picture(100, 100)
    expected = image.resize((320, 320), Image.Resampling.BICUBIC).crop((0, 80, 320, 240))
    np.testing.assert_array_equal(fit(image, ImageSpec(size=(160, 320))), np.asarray(expected))


def test_stretch_ignores_the_aspect_ratio():
    image = picture(90, 30)
    expected = image.resize((64, 48), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(fit(image, ImageSpec(size=(48, 64), resize="stretch")), np.asarray(expected))


@pytest.mark.parametrize("spec", [EVALUATION, ImageSpec(size=(256, 256)), ImageSpec(size=(256, 256), resize="stretch")])
def test_a_picture_of_the_right_size_is_not_resampled(spec, monkeypatch):
    monkeypatch.delattr(Image.Image, "resize")
    image = picture(256, 256)
    top = (256 - spec.size[0]) // 2
    pixels = fit(image, spec)
    np.testing.assert_array_equal(pixels, np.asarray(image)[top : 256 - top, top : 256 - top])
    assert pixels.flags.writeable
    assert pixels.flags.c_contiguous


@pytest.mark.parametrize("size", [(1, 65500), (65500, 1)])
def test_an_extreme_aspect_is_refused_instead_of_filling_memory(size):
    with pytest.raises(ImageError, match=f"{size[0]}x{size[1]}.*16768000.*Crop it first") as caught:
        fit(Image.new("RGB", size), EVALUATION)
    assert caught.value.reason == "extreme-aspect"
