"""Patches against plain loops over the definition of their order."""

import numpy as np
import pytest

from mae_export.errors import InputError
from mae_export.manifest import Patches
from mae_export.runtime.patchify import patchify


def by_loops(clip: np.ndarray, patch: tuple[int, int, int]) -> list[list[int]]:
    """Rows of one clip [T, H, W, C], one value at a time."""
    t, y, x = patch
    frames, height, width, channels = clip.shape
    return [
        [
            clip[f + dt, r + dy, c + dx, channel]
            for dt in range(t)
            for dy in range(y)
            for dx in range(x)
            for channel in range(channels)
        ]
        for f in range(0, frames, t)
        for r in range(0, height, y)
        for c in range(0, width, x)
    ]


@pytest.mark.parametrize(("patch", "grid"), [((1, 2, 3), (1, 4, 2)), ((2, 4, 2), (3, 2, 5)), ((1, 1, 1), (1, 1, 1))])
def test_order_of_patches_and_of_their_values(patch, grid):
    frames, height, width = (p * g for p, g in zip(patch, grid, strict=True))
    clips = np.random.default_rng(0).integers(0, 256, (2, frames, height, width, 3), dtype=np.uint8)
    geometry = Patches(patch=patch, grid=grid, prefix_tokens=1)
    expected = np.array([by_loops(clip, patch) for clip in clips])
    found = patchify(clips, geometry)
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, expected)
    if frames == 1:
        np.testing.assert_array_equal(patchify(clips[:, 0], geometry), expected)


@pytest.mark.parametrize("shape", [(1, 8, 9, 3), (1, 16, 8, 3), (8, 8, 3), (1, 2, 8, 8, 3), (1, 1, 1, 8, 8, 3)])
def test_other_sizes_are_refused(shape):
    with pytest.raises(InputError, match=r"expected \[B, 8, 8, C\]"):
        patchify(np.zeros(shape, np.uint8), Patches(patch=(1, 4, 4), grid=(1, 2, 2), prefix_tokens=1))


def test_single_pictures_are_refused_for_video():
    with pytest.raises(InputError, match="with 4 frames"):
        patchify(np.zeros((1, 8, 8, 3), np.uint8), Patches(patch=(2, 4, 4), grid=(2, 2, 2), prefix_tokens=1))
