"""Ranges of shares: drawn per image from few levels, the same everywhere; other plans are left to the runtime."""

import numpy as np
import pytest

from mae_export.calibration.visibility import LEVELS, RandomShares, parse_visibility
from mae_export.errors import MaskError, UsageError
from mae_export.runtime.visible import AllVisible, RandomVisible


def shares(plan, images=400, count=196):
    return np.array([len(plan.ids_keep(0, f"image {index}", count)) / count for index in range(images)])


def test_shares_cover_the_range_evenly():
    found = shares(RandomShares(low=0.25, high=1.0))
    levels, counts = np.unique(found, return_counts=True)
    np.testing.assert_allclose(levels, np.floor(196 * np.linspace(0.25, 1, LEVELS)) / 196)
    assert counts.min() > 400 / LEVELS / 2


def test_a_draw_depends_on_seed_and_image_only():
    plan, other = RandomShares(low=0.25, high=0.75, seed=1), RandomShares(low=0.25, high=0.75, seed=2)
    np.testing.assert_array_equal(plan.ids_keep(0, "a", 64), plan.ids_keep(9, "a", 64))
    assert (shares(plan) != shares(other)).any()


def test_patches_are_drawn_as_for_a_single_share():
    kept = RandomShares(low=0.25, high=1.0, seed=3).ids_keep(0, "a", 64)
    share = np.linspace(0.25, 1.0, LEVELS)
    assert any(np.array_equal(kept, RandomVisible(ratio=r, seed=3).ids_keep(0, "a", 64)) for r in share.tolist())


@pytest.mark.parametrize(
    ("text", "plan"),
    [
        ("all", AllVisible()),
        ("random:0.25:7", RandomVisible(ratio=0.25, seed=7)),
        ("random:0.25..1.0", RandomShares(low=0.25, high=1.0)),
        ("random:.5..1:7", RandomShares(low=0.5, high=1.0, seed=7)),
    ],
)
def test_plans_are_read(text, plan):
    assert parse_visibility(text) == plan
    assert parse_visibility(plan.description) == plan


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("random:1..0.5", MaskError, "the smaller one first"),
        ("random:0.5..0.5", MaskError, "the smaller one first"),
        ("random:0..1", MaskError, "0 < fraction <= 1"),
        ("random:0.5..1.5", MaskError, "0 < fraction <= 1"),
        ("random:nan..1", MaskError, "the smaller one first"),
        ("random:a..1", UsageError, r"not random:LOW\.\.HIGH"),
        ("random:..", UsageError, r"not random:LOW\.\.HIGH"),
        ("random:0.5..1:x", UsageError, "seed 'x'"),
        ("random:0.5..1:" + "9" * 30, UsageError, "expected a whole number"),
        ("randm:0.5..1", UsageError, "did you mean 'random'"),
    ],
)
def test_what_is_no_plan_is_refused(text, error, message):
    with pytest.raises(error, match=message):
        parse_visibility(text)
