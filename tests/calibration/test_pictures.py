"""Which images are used: a draw that neither order nor copies nor damaged files change, and enough of them."""

import hashlib
import shutil

import numpy as np
import pytest
from PIL import Image

from mae_export.calibration.pictures import Pictures
from mae_export.errors import InputError
from mae_export.spec import ImageSpec

SPEC = ImageSpec(size=(64, 64))


def ids(pictures):
    return [picture.item.id for picture in pictures]


def test_a_draw_takes_as_many_as_asked_and_depends_on_the_seed(images):
    first = ids(Pictures([images], SPEC, samples=10))
    assert len(set(first)) == 10
    assert first == ids(Pictures([images], SPEC, samples=10, threads=1))
    assert first != ids(Pictures([images], SPEC, samples=10, seed=1))


def test_a_larger_draw_begins_with_the_smaller_one(images):
    assert ids(Pictures([images], SPEC, samples=20))[:9] == ids(Pictures([images], SPEC, samples=9))


def test_pictures_carry_position_pixels_and_digest(images):
    pictures = Pictures([images], SPEC, samples=9)
    found = list(pictures)
    assert pictures.listed == 24
    for picture in found:
        assert picture.index == int(picture.item.id.removesuffix(".png"))  # the listing is in natural order
        assert picture.sha256 == hashlib.sha256((images / picture.item.id).read_bytes()).hexdigest()
        assert picture.pixels.shape == (64, 64, 3)
    assert pictures.used == tuple(picture.sha256 for picture in found)


def test_a_second_pass_gives_the_same(images):
    pictures = Pictures([images], SPEC, samples=9)
    first, second = list(pictures), list(pictures)
    assert [(p.index, p.sha256) for p in first] == [(p.index, p.sha256) for p in second]
    for a, b in zip(first, second, strict=True):
        np.testing.assert_array_equal(a.pixels, b.pixels)


def test_damaged_files_and_copies_are_passed_over_and_counted(images, tmp_path):
    folder = tmp_path / "mixed"
    shutil.copytree(images, folder)
    (folder / "broken.png").write_bytes(b"not a picture")
    (folder / "cut.png").write_bytes((images / "0.png").read_bytes()[:300])
    Image.open(images / "3.png").save(folder / "copy.bmp")
    pictures = Pictures([folder], SPEC, samples=100)
    assert len(ids(pictures)) == 24
    assert sum(pictures.failures.values()) == 2
    assert pictures.repeated == 1


def test_reserved_images_are_never_used(images):
    taken = Pictures([images], SPEC, samples=10)
    list(taken)
    rest = Pictures([images], SPEC, samples=100, without=frozenset(taken.used))
    list(rest)
    assert len(rest.used) == 14
    assert not set(taken.used) & set(rest.used)


def test_too_few_are_refused_with_the_reasons(images, tmp_path):
    for index in range(6):
        shutil.copy(images / f"{index}.png", tmp_path)
    shutil.copy(images / "0.png", tmp_path / "again.png")
    (tmp_path / "broken.png").write_bytes(b"")
    with pytest.raises(InputError, match=r"6 of 8 images can be used \(1 repeat others, 1 .*\); expected at least 8"):
        list(Pictures([tmp_path], SPEC, samples=100))
    with pytest.raises(InputError, match=r"6 of 8 images can be used \(1 repeat others, 1 .*\); expected at least 8"):
        list(Pictures([tmp_path], SPEC, samples=100, without=frozenset({"ab"})))  # none of these


def test_images_that_calibration_used_are_named_as_such(images, tmp_path):
    for index in range(8):
        shutil.copy(images / f"{index}.png", tmp_path)
    calibrated = Pictures([tmp_path], SPEC, samples=100)
    list(calibrated)
    for more, found in ((0, 0), (7, 7)):
        for index in range(8, 8 + more):
            shutil.copy(images / f"{index}.png", tmp_path)
        (tmp_path / "broken.png").write_bytes(b"")
        held_out = Pictures([tmp_path], SPEC, samples=100, without=frozenset(calibrated.used))
        with pytest.raises(InputError) as caught:
            list(held_out)
        assert str(caught.value) == (
            f"{found} of {9 + more} images can be used (8 were used for calibration, 1 empty); expected at least 8 "
            "that calibration did not use: give other images, or calibrate with fewer (--samples) and keep the rest "
            "for this"
        )
        assert held_out.calibrated == 8


def test_images_that_all_show_the_same_are_named_as_such(tmp_path):
    for index in range(12):  # files of different size and digest
        Image.new("RGB", (70 + index, 70 + index), (9, 99, 199)).save(tmp_path / f"{index}.png")
    with pytest.raises(InputError, match="all 12 images show the same pixels"):
        list(Pictures([tmp_path], SPEC, samples=100))


def test_a_file_that_vanishes_between_passes_is_named(images, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(images, folder)
    pictures = Pictures([folder], SPEC, samples=9)
    gone = ids(pictures)[4]
    (folder / gone).unlink()
    with pytest.raises(InputError, match=f"{gone} could be read at first"):
        list(pictures)
