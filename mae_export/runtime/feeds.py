"""Checking one batch against a manifest before any device sees it.

An ONNX `Gather` wraps negative indices silently and some providers read out of bounds; a wrong feed must never get
that far. Everything is vectorised: the cost is a few passes over the indices, never over the pixels.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from mae_export.errors import InputError, MaskError
from mae_export.manifest import Manifest, TensorSpec

Array = npt.NDArray[Any]


def check_feeds(manifest: Manifest, feeds: Mapping[str, Array]) -> None:
    """Check names, dtypes, shapes and patch indices of one batch.

    Args:
        manifest: of the model that is to run.
        feeds: arrays by input name.

    Raises:
        InputError: when a feed is missing, unknown, of the wrong dtype or shape, or the batch is empty.
        MaskError: when `ids_keep` or `num_keep` names patches that do not exist, or one patch twice, or `mask` hides
            every patch of a row.
    """
    names = [spec.name for spec in manifest.inputs]
    for name in feeds:
        if name not in names:
            near = difflib.get_close_matches(name, names, 1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise InputError(f"the model has no input {name!r}; it takes: {', '.join(names)}{hint}")
    extents: dict[str, tuple[int, str]] = {}
    for spec in manifest.inputs:
        if spec.name not in feeds:
            raise InputError(f"the input {spec.name!r} is missing; the model takes: {', '.join(names)}")
        _check_tensor(spec, feeds[spec.name], extents)
    if "ids_keep" in feeds:
        _check_ids(feeds["ids_keep"], feeds.get("num_keep"), manifest.patches.count)
    if "mask" in feeds:
        _check_mask(feeds["mask"])


def _check_tensor(spec: TensorSpec, array: Array, extents: dict[str, tuple[int, str]]) -> None:
    if not isinstance(array, np.ndarray):
        raise InputError(f"input {spec.name!r} is a {type(array).__name__}; expected a numpy array of {spec.dtype}")
    if array.dtype != np.dtype(spec.dtype):
        raise InputError(f"input {spec.name!r} is {array.dtype}; expected {spec.dtype}: convert it with .astype")
    expected = "[" + ", ".join(map(str, spec.shape)) + "]"
    if array.ndim != len(spec.shape):
        raise InputError(f"input {spec.name!r} has shape {list(array.shape)}; expected {expected}, batch first")
    for axis, (found, dim) in enumerate(zip(array.shape, spec.shape, strict=True)):
        if isinstance(dim, int):
            if found != dim:
                raise InputError(
                    f"input {spec.name!r} has shape {list(array.shape)}; expected {expected}: axis {axis} must be {dim}"
                )
            continue
        known, where = extents.setdefault(dim, (found, spec.name))
        if found != known:
            raise InputError(
                f"input {spec.name!r} has {dim} = {found} where {where!r} has {dim} = {known}; they must agree"
            )
    if array.shape[0] == 0:
        raise InputError(f"input {spec.name!r} is an empty batch; expected at least one row")


def _check_ids(ids: Array, num_keep: Array | None, count: int) -> None:
    rows, keep = ids.shape
    if not 1 <= keep <= count:
        raise MaskError(f"ids_keep keeps {keep} patches per row; expected 1..{count}")
    if ids.min() < 0 or ids.max() >= count:
        row, column = np.argwhere((ids < 0) | (ids >= count))[0]
        raise MaskError(
            f"ids_keep[{row}, {column}] is {ids[row, column]}; expected a patch index 0..{count - 1} "
            "(the class token is not counted)"
        )
    offsets = ids + count * np.arange(rows)[:, None]
    if num_keep is not None:
        if num_keep.min() < 1 or num_keep.max() > keep:
            row = int(np.argmax((num_keep < 1) | (num_keep > keep)))
            raise MaskError(f"num_keep[{row}] is {num_keep[row]}; expected 1..{keep}, the width of ids_keep")
        offsets = offsets[np.arange(keep) < num_keep[:, None]]
    uses = np.bincount(offsets.ravel(), minlength=rows * count)
    if uses.max() > 1:
        row, patch = divmod(int(uses.argmax()), count)
        raise MaskError(f"ids_keep names patch {patch} more than once in row {row}; each patch may be kept once")


def _check_mask(mask: Array) -> None:
    empty = mask.all(axis=1)
    if empty.any():
        raise MaskError(
            f"mask hides every patch of row {int(empty.argmax())}; expected at least one visible patch. True means "
            "masked: was the mask meant inverted (~mask)?"
        )


def output_shapes(manifest: Manifest, feeds: Mapping[str, Array], names: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """Shapes of outputs of checked feeds; a symbolic axis of an output is an input's or, as `kept+1`, a number more."""
    extents = {
        dim: size
        for spec in manifest.inputs
        for dim, size in zip(spec.shape, feeds[spec.name].shape, strict=True)
        if isinstance(dim, str)
    }
    return {name: tuple(_size(dim, extents) for dim in manifest.output(name).shape) for name in names}


def _size(dim: int | str, extents: Mapping[str, int]) -> int:
    if isinstance(dim, int):
        return dim
    name, _, more = dim.partition("+")
    return extents[name] + int(more or 0)
