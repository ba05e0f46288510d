"""Stacking arrays of unequal length: what does not fill its place is padded at the end."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


def stack_padded(arrays: Sequence[Array], *, fill: int = 0) -> Array:
    """Stack along a new first axis.

    Args:
        arrays: at least one; equal in dtype and rank.
        fill: value of the padding.

    Returns:
        C-contiguous array [len(arrays), *longest extent of each axis].
    """
    if len({array.shape for array in arrays}) == 1:
        return np.stack(arrays)
    shape = tuple(map(max, zip(*(array.shape for array in arrays), strict=True)))
    stacked = np.full((len(arrays), *shape), fill, arrays[0].dtype)
    for place, array in zip(stacked, arrays, strict=True):
        place[tuple(map(slice, array.shape))] = array
    return stacked


def concatenate_padded(arrays: Sequence[Array], *, fill: int = 0) -> Array:
    """Concatenate along the first axis; the other axes are padded to the longest.

    Args:
        arrays: at least one; equal in dtype and rank.
        fill: value of the padding.
    """
    shape = tuple(map(max, zip(*(array.shape[1:] for array in arrays), strict=True)))
    joined = np.full((sum(map(len, arrays)), *shape), fill, arrays[0].dtype)
    start = 0
    for array in arrays:
        joined[(slice(start, start + len(array)), *map(slice, array.shape[1:]))] = array
        start += len(array)
    return joined
