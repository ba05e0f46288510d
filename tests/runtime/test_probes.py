"""The probes are what they say: photographs that differ, extremes, and a pattern that shows any mix-up."""

import hashlib
import itertools
import math
from importlib.resources import files

import numpy as np
import pytest
from PIL import Image

from mae_export.errors import ImageError, InputError
from mae_export.runtime.patchify import patchify
from mae_export.runtime.probes import (
    GOLDEN_RECIPE,
    PHOTOS,
    adversarial_images,
    golden_feeds,
    golden_ids,
    golden_image,
    probe_photos,
    verification_images,
)
from mae_export.spec import ImageSpec


def spec(height: int, width: int, channels: int = 3) -> ImageSpec:
    return ImageSpec(size=(height, width), channels=channels, mean=(0.5,) * channels, std=(0.2,) * channels)


def test_photos_are_photographs_and_differ():
    photos = probe_photos(spec(224, 192))
    assert photos.shape == (8, 224, 192, 3)
    assert photos.dtype == np.uint8
    for one, other in itertools.combinations(photos.astype(int), 2):
        assert np.abs(one - other).mean() > 20
    spread = photos.std(axis=(1, 2, 3))
    assert spread.min() > 10  # neither flat
    steps = np.abs(np.diff(photos.astype(int), axis=2)).mean(axis=(1, 2, 3))
    assert (steps < spread).all()  # nor noise: neighbours are alike


def test_photos_have_their_luma_in_other_numbers_of_channels():
    rgb = Image.fromarray(probe_photos(spec(256, 256))[PHOTOS.index("coffee")])
    photos = probe_photos(spec(256, 256, 4))
    assert photos.shape == (8, 256, 256, 4)
    for channel in range(4):
        np.testing.assert_array_equal(photos[PHOTOS.index("coffee"), :, :, channel], np.asarray(rgb.convert("L")))


@pytest.mark.parametrize("channels", [3, 1])
def test_verification_images_are_many_and_differ(channels):
    images = verification_images(spec(64, 96, channels))
    assert images.shape == (35, 64, 96, channels)
    np.testing.assert_array_equal(images[:8], probe_photos(spec(64, 96, channels)))
    np.testing.assert_array_equal(images[-3:], adversarial_images(spec(64, 96, channels)))
    for one, other in itertools.combinations(images.astype(int), 2):
        assert np.abs(one - other).max() > 50
    mirrored = np.abs(images[8:16].astype(int) - images[:8, :, ::-1].astype(int))
    assert mirrored.mean() < 1  # resampling is symmetric up to rounding


def test_somebodys_own_images_take_the_place_of_the_photographs(make_images, monkeypatch):
    folder = make_images(7)
    images = verification_images(spec(32, 32), folder)
    assert len(images) == 7 + 3
    np.testing.assert_array_equal(images[2], np.asarray(Image.open(folder / "002.png")))
    monkeypatch.setattr("mae_export.runtime.probes.MOST_IMAGES", 3)
    few = verification_images(spec(32, 32), folder)
    np.testing.assert_array_equal(few[:3], images[[0, 3, 6]])
    assert len(few) == 3 + 3


def test_images_that_were_used_before_are_passed_over(make_images):
    folder = make_images(4)
    used = {hashlib.sha256((folder / f"00{index}.png").read_bytes()).hexdigest() for index in (0, 2)}
    images, every = (verification_images(spec(32, 32), folder, without=names) for names in (used, ()))
    np.testing.assert_array_equal(images[:2], every[[1, 3]])
    assert len(images) == 2 + 3
    used |= {hashlib.sha256((folder / f"00{index}.png").read_bytes()).hexdigest() for index in (1, 3)}
    with pytest.raises(
        InputError, match=r"all \d+ pictures of .* were used for calibration; expected some that were not"
    ):
        verification_images(spec(32, 32), folder, without=used)


def test_a_broken_image_of_somebodys_own_is_named(make_images):
    folder = make_images(2)
    (folder / "001.png").write_bytes(b"no picture")
    with pytest.raises(ImageError, match="expected"):
        verification_images(spec(32, 32), folder)


def test_the_folder_holds_only_documented_photos_and_is_small():
    folder = files("mae_export.runtime") / "probe_photos"
    names = {file.name for file in folder.iterdir()}
    assert names == {*(f"{name}.jpg" for name in PHOTOS), "SOURCES.md"}
    sources = (folder / "SOURCES.md").read_text()
    for name in PHOTOS:
        (row,) = [line for line in sources.splitlines() if line.startswith(f"| {name}.jpg |")]
        assert row.rstrip(" |").endswith(("public domain", "CC0 1.0"))
    assert sum(len((folder / name).read_bytes()) for name in names) < 200_000


def test_adversarial_images_are_black_white_and_one_pixel():
    black, white, hot = adversarial_images(spec(30, 40, 5))
    assert black.shape == (30, 40, 5)
    assert (black == 0).all()
    assert (white == 255).all()
    assert hot.sum() == 255 * 5
    assert (hot[10, 10] == 255).all()


@pytest.mark.parametrize("shape", [(224, 224, 3), (32, 32, 3), (64, 96, 1), (48, 48, 4)])
def test_the_golden_image_has_every_value_no_symmetry_and_no_equal_patches(shape):
    image = golden_image(spec(*shape))
    assert image.shape == shape
    assert len(np.unique(image)) == 256
    moved = [image[::-1], image[:, ::-1], np.rot90(image, 2)]
    if shape[0] == shape[1]:
        moved += [image.swapaxes(0, 1), np.rot90(image), np.rot90(image, -1), np.rot90(image.swapaxes(0, 1), 2)]
    moved += [
        image[..., list(order)] for order in itertools.permutations(range(shape[2])) if order != tuple(range(shape[2]))
    ]
    for other in moved:
        assert (other != image).mean() > 0.45  # exchanging two of four channels changes half
    cells = image.reshape(shape[0] // 16, 16, shape[1] // 16, 16, -1).swapaxes(1, 2).reshape(-1, 256 * shape[2])
    assert len(np.unique(cells, axis=0)) == len(cells)


def test_the_golden_image_follows_its_formula_and_never_changes():
    image = golden_image(spec(224, 224))
    for y, x, c in [(0, 0, 0), (0, 0, 2), (7, 5, 1), (100, 3, 0), (223, 223, 2)]:
        assert image[y, x, c] == ((y * (3 * y + 5 * x + 7) + 2 * x * x) // 16 + 11 * x + 53 * c) % 256
    assert GOLDEN_RECIPE == "pattern-1"
    assert (
        hashlib.sha256(image.tobytes()).hexdigest()
        == "1e54e3d292703d8b6e1024be04e34fb273e4642d2bc64726287da2906d5d7eb0"
    )


@pytest.mark.parametrize("count", [1, 2, 3, 4, 8, 16, 49, 196, 256, 1568])
def test_golden_ids_are_distinct_and_out_of_order(count):
    ids = golden_ids(count)
    assert ids.dtype == np.int64
    assert len(set(ids.tolist())) == len(ids) == max(1, count // 4)
    assert ids.min() >= 0
    assert ids.max() < count
    if len(ids) > 1:
        stride = (ids[1] - ids[0]) % count
        assert math.gcd(int(stride), count) == 1
    if len(ids) > 2:
        assert (np.diff(ids) < 0).any()


def test_golden_feeds_follow_the_inputs_of_each_mode(make_manifest):
    image = golden_image(ImageSpec(size=(32, 32)))
    assert list(golden_feeds(make_manifest("none"))) == ["images"]
    masked = golden_feeds(make_manifest("mask-token"))
    assert list(masked) == ["images", "mask"]
    assert sorted(np.flatnonzero(~masked["mask"][0])) == sorted(golden_ids(16))
    for mode in ("keep", "patches"):
        for ragged in (False, True):
            manifest = make_manifest(mode, ragged=ragged)
            feeds = golden_feeds(manifest)
            sizes = {"B": 1, "K": 4}
            assert list(feeds) == [tensor.name for tensor in manifest.inputs]
            for tensor in manifest.inputs:
                assert feeds[tensor.name].dtype.name == tensor.dtype
                assert feeds[tensor.name].shape == tuple(sizes.get(size, size) for size in tensor.shape)
            if mode == "keep":
                np.testing.assert_array_equal(feeds["images"][0], image)
            else:
                kept = patchify(image[None], manifest.patches)[0][feeds["ids_keep"][0]]
                np.testing.assert_array_equal(feeds["patches"][0], kept)
            if ragged:
                assert feeds["num_keep"].tolist() == [4]


@pytest.mark.parametrize("probe", [probe_photos, adversarial_images, golden_image, verification_images])
def test_video_has_no_probes(probe):
    with pytest.raises(InputError, match="16 frames"):
        probe(ImageSpec(size=(32, 32), frames=16))
