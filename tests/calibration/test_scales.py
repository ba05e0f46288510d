"""Scales against what the 8-bit types themselves can hold, and against an exhaustive search."""

import ml_dtypes
import numpy as np
import pytest

from mae_export.calibration.scales import GRIDS, SHRINK, activation_scale, half_scale, weight_scales
from mae_export.calibration.table import TensorRange

INT8, FP8 = GRIDS["int8"], GRIDS["fp8"]


def test_int8_rounds_half_to_even_and_clips_symmetrically():
    array = np.array([-1000.0, -128.0, -127.5, -1.5, -0.5, 0.5, 1.5, 2.5, 127.4, 1000.0], np.float32) * 0.25
    np.testing.assert_array_equal(INT8.store(array, np.float32(0.25)), [-127, -127, -127, -2, 0, 0, 2, 2, 127, 127])
    np.testing.assert_array_equal(INT8.rounded(array, np.float32(0.25))[3:6], [-0.5, 0.0, 0.0])


def test_fp8_holds_its_own_numbers_and_never_overflows():
    every = np.arange(256, dtype=np.uint8).view(ml_dtypes.float8_e4m3fn).astype(np.float32)
    finite = every[np.isfinite(every)]
    assert finite.max() == FP8.largest == 448
    np.testing.assert_array_equal(FP8.rounded(finite * 0.5, np.float32(0.5)), finite * 0.5)
    np.testing.assert_array_equal(FP8.rounded(np.array([1e6, -1e6]), np.float32(1)), [448, -448])


@pytest.mark.parametrize("scale", [1e-12, 3e-7, 0.0123, 1.0, 7e4, 1e9])
def test_every_scale_survives_float16(scale):
    found = half_scale(scale)
    assert found.dtype == np.float32
    assert found > 0
    assert np.float32(np.float16(found)) == found
    if 6e-5 < scale < 6e4:
        assert found == pytest.approx(scale, rel=2**-11)


def test_int8_represents_the_chosen_range_and_fp8_everything_seen():
    found = TensorRange(low=-2.0, high=2.0, minimum=-1.0, maximum=8.0)
    assert activation_scale(found, INT8) == pytest.approx(2 / 127, rel=1e-3)
    assert activation_scale(found, FP8) == pytest.approx(8 / 448, rel=1e-3)


@pytest.mark.parametrize("axis", [0, 1])
def test_weight_scales_are_the_best_of_the_search(axis):
    weight = np.random.default_rng(0).uniform(-1, 1, (20_000, 2)).astype(np.float32)
    weight[7] = (1.0, 1.2)  # the second is worth clipping for the finer steps of the others
    found = weight_scales(weight.T if axis == 0 else weight, axis, INT8)
    for channel, scale in zip(weight.T, found, strict=True):
        errors = {
            factor: ((INT8.rounded(channel, step) - channel) ** 2).sum()
            for factor in SHRINK
            for step in half_scale(factor * np.abs(channel).max() / 127)[None]
        }
        best = min(errors, key=errors.get)
        assert scale == half_scale(best * np.abs(channel).max() / 127)
    clipped = found < 0.99 * np.abs(weight).max(axis=0) / 127
    assert clipped.tolist() == [False, True]


def test_convolutions_have_a_scale_for_each_output_and_fp8_takes_the_largest():
    weight = np.random.default_rng(1).standard_normal((6, 3, 4, 4)).astype(np.float32)
    np.testing.assert_allclose(weight_scales(weight, 0, FP8), np.abs(weight).max(axis=(1, 2, 3)) / 448, rtol=1e-3)
    assert weight_scales(weight, 0, INT8).shape == (6,)


def test_an_empty_channel_gets_a_harmless_scale():
    weight = np.zeros((8, 2), np.float32)
    scale = weight_scales(weight, 1, INT8)
    assert (scale > 0).all()
    assert not INT8.rounded(weight, scale).any()
