"""The table of limits: complete, ordered from strict to loose, and never a way around the finite."""

import dataclasses
import itertools
import math

import pytest

from mae_export.runtime.thresholds import CONVERSION, LIMITS, limits_of


def test_limits_loosen_with_the_precision():
    for strict, loose in itertools.pairwise(LIMITS[name] for name in ("fp32", "fp16", "bf16", "int8", "fp8")):
        for field in ("error", "consistency", "golden"):
            assert getattr(strict, field) <= getattr(loose, field)
        for field in ("minimum", "first_percentile", "sqnr", "neighbours"):
            assert getattr(strict, field) >= getattr(loose, field)


@pytest.mark.parametrize("limits", LIMITS.values(), ids=LIMITS)
def test_every_limit_can_be_failed(limits):
    assert limits.minimum < limits.first_percentile < limits.median < 1
    assert 0 < limits.neighbours < 1
    assert all(math.isfinite(value) for value in dataclasses.astuple(limits))
    assert limits.consistency <= limits.error < 1


def test_the_documented_numbers():
    assert (limits_of("fp16").median, limits_of("fp16").first_percentile) == (0.9999, 0.9995)
    assert (limits_of("int8").median, limits_of("int8").first_percentile) == (0.995, 0.98)
    assert (limits_of("fp32").error, limits_of("fp32").consistency) == (1e-4, 1e-5)


def test_an_unnamed_precision_is_some_8_bit_kind():
    assert limits_of("int4") == LIMITS["int8"]


def test_converting_is_judged_more_strictly_than_running():
    assert set(CONVERSION) == set(LIMITS) - {"fp32"}
    assert all(LIMITS[name].minimum < cosine < 1 for name, cosine in CONVERSION.items())
