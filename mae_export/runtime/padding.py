"""Stacking arrays of unequal length: what does not fill its place is padded at the end, and taken off again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from mae_export.manifest import TensorSpec

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


def without_padding(array: Array, spec: TensorSpec, missing: int) -> Array:
    """One row of an output without the places of patches that were only padding; they are the last of their axis.

    Args:
        array: the row.
        spec: of the output; symbolic axes are those with a place per patch.
        missing: how many patches were padding.
    """
    dims = zip(array.shape, spec.shape[1:], strict=True)
    return array[tuple(slice(size - missing if isinstance(dim, str) else size) for size, dim in dims)]
