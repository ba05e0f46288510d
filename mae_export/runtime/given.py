"""Visible patches that a program hands over as arrays: booleans, or indices in an order of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from mae_export.errors import MaskError
from mae_export.runtime.visible import Plan, parse_visible

Array = npt.NDArray[Any]
Visible = str | Plan | Array | Sequence[Array]


@dataclass(frozen=True, kw_only=True)
class GivenVisible:
    """Patches of each image, or of all.

    Attributes:
        rows: int64 [K] per image, each patch at most once; one row stands for every image.
    """

    rows: tuple[npt.NDArray[np.int64], ...]

    @property
    def description(self) -> str:
        """`given`."""
        return "given"

    def check(self, rows: int, count: int) -> None:
        """Compare with the images.

        Raises:
            MaskError: when there are not as many rows as images, or a row names nothing, or a patch that is not there.
        """
        if len(self.rows) not in (1, rows):
            raise MaskError(
                f"visible has {len(self.rows)} rows for {rows} frames; expected one row each, or one for all"
            )
        for row in range(len(self.rows)):
            self._row(row, count)

    def ids_keep(self, index: int, item_id: str, count: int) -> npt.NDArray[np.int64]:  # noqa: ARG002 - the protocol
        """The image's row, in the order given.

        Raises:
            MaskError: when there is none, or it does not fit the image.
        """
        if len(self.rows) > 1 and index >= len(self.rows):
            raise MaskError(f"visible has {len(self.rows)} rows and there is a frame {index}; expected a row for each")
        return self._row(index if len(self.rows) > 1 else 0, count)

    def _row(self, index: int, count: int) -> npt.NDArray[np.int64]:
        row = self.rows[index]
        if not row.size:
            raise MaskError(f"row {index} of visible shows no patch; expected at least one. True means visible")
        if row.min() < 0 or row.max() >= count or len(np.unique(row)) < len(row):
            raise MaskError(
                f"row {index} of visible names {len(row)} patches, {len(np.unique(row))} different ones, from "
                f"{row.min()} to {row.max()}; expected indices 0..{count - 1}, each at most once"
            )
        return row


def plan_of(visible: Visible, count: int) -> Plan:
    """Read what a program says of visible patches.

    Args:
        visible: a plan or its text (`all`, `random:R[:seed]`, `file:X.npy`); or bool [N] or [B, N], True = visible; or
            whole numbers [K] or [B, K]; or a list of such rows, which may differ in length.
        count: N, patches of a full image.

    Raises:
        UsageError: when a text is no plan.
        MaskError: when an array is none of these.
    """
    if isinstance(visible, str):
        return parse_visible(visible)
    if isinstance(visible, Plan):
        return visible
    if isinstance(visible, np.ndarray):
        given = [visible] if visible.ndim == 1 else list(visible) if visible.ndim == 2 else None
    else:
        given = [np.asarray(row) for row in visible]
    if not given or any(row.ndim != 1 for row in given):
        shape = list(visible.shape) if isinstance(visible, np.ndarray) else type(visible).__name__
        raise MaskError(
            f"visible is {shape}; expected [N] or [B, N] booleans, [K] or [B, K] indices, or rows in a list"
        )
    return GivenVisible(rows=tuple(_ids(row, count) for row in given))


def _ids(row: Array, count: int) -> npt.NDArray[np.int64]:
    if row.dtype == np.bool_:
        if len(row) != count:
            raise MaskError(
                f"visible has {len(row)} booleans per image; the model has {count} patches, in raster order"
            )
        return np.flatnonzero(row).astype(np.int64)
    if row.dtype.kind not in "iu":
        raise MaskError(f"visible holds {row.dtype}; expected booleans, True = visible, or indices of patches")
    return row.astype(np.int64)
