"""Grouping images into the batches that a graph takes: which rows travel together, and with which feeds.

Graphs without `num_keep` need the same number of visible patches in every row, so rows are grouped by that number;
ragged graphs take rows as they come, padded to the longest, and graphs with mask tokens take any. In `patches` mode the
visible pixels are gathered before anything is stacked, so only they are held and copied.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from mae_export.errors import UsageError
from mae_export.manifest import Manifest
from mae_export.runtime.padding import stack_padded
from mae_export.runtime.patchify import patchify
from mae_export.runtime.visible import AllVisible, Plan, hidden_patches

Array = npt.NDArray[Any]
PENDING_BATCHES = 16  # open groups hold at most this many batches of rows, however many different counts there are


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Rows that run together.

    Attributes:
        indices: position of each row in the listing.
        ids: identity of each row.
        feeds: the graph's inputs, C-contiguous, rows in this order.
        ids_keep: int64 [K] of each row, without padding.
        width: K of the longest row, to which the feeds are padded.
    """

    indices: tuple[int, ...]
    ids: tuple[str, ...]
    feeds: dict[str, Array]
    ids_keep: tuple[npt.NDArray[np.int64], ...]
    width: int

    def __len__(self) -> int:
        return len(self.ids)

    def row(self, at: int) -> Batch:
        """One row as a batch of its own; a ragged row keeps its padding."""
        return Batch(
            indices=self.indices[at : at + 1],
            ids=self.ids[at : at + 1],
            feeds={name: array[at : at + 1] for name, array in self.feeds.items()},
            ids_keep=self.ids_keep[at : at + 1],
            width=self.width,
        )


@dataclass(frozen=True, kw_only=True)
class _Row:
    index: int
    item_id: str
    pixels: npt.NDArray[np.uint8]  # [H, W, C], or [K, t*p*p*C] in `patches` mode
    ids_keep: npt.NDArray[np.int64]


def check_plan(manifest: Manifest, plan: Plan) -> None:
    """Refuse a plan that the graph cannot follow.

    Raises:
        UsageError: when the graph has no mask input and the plan hides patches.
    """
    if manifest.mask_mode == "none" and not isinstance(plan, AllVisible):
        raise UsageError(
            f"--visible {plan.description} hides patches, but this graph has no mask input; "
            "export with --mask keep or mask-token, or pass --visible all"
        )


class Batcher:
    """Collects rows and gives a batch back whenever one is full.

    Args:
        manifest: of the graph that will run.
        size: rows per batch.
    """

    def __init__(self, manifest: Manifest, size: int) -> None:
        self._manifest = manifest
        self._size = size
        self._open: dict[int, list[_Row]] = {}

    def add(
        self, *, index: int, item_id: str, pixels: npt.NDArray[np.uint8], ids_keep: npt.NDArray[np.int64]
    ) -> Batch | None:
        """Take one row.

        Args:
            index: position in the listing.
            item_id: identity.
            pixels: uint8 [H, W, C], or [T, H, W, C] for video.
            ids_keep: int64 [K], visible patches.

        Returns:
            A full batch, or None while none is.
        """
        if self._manifest.mask_mode == "patches":
            pixels = patchify(pixels[None], self._manifest.patches)[0, ids_keep]
        group = 0 if self._manifest.ragged or self._manifest.mask_mode == "mask-token" else len(ids_keep)
        rows = self._open.setdefault(group, [])
        rows.append(_Row(index=index, item_id=item_id, pixels=pixels, ids_keep=ids_keep))
        if len(rows) == self._size:
            return self._close(group)
        if sum(map(len, self._open.values())) >= PENDING_BATCHES * self._size:
            return self._close(max(self._open, key=lambda key: len(self._open[key])))
        return None

    def rest(self) -> Iterator[Batch]:
        """Batches of what is left, smaller than full."""
        for group in list(self._open):
            yield self._close(group)

    def _close(self, group: int) -> Batch:
        rows = self._open.pop(group)
        return Batch(
            indices=tuple(row.index for row in rows),
            ids=tuple(row.item_id for row in rows),
            feeds=self._feeds(rows),
            ids_keep=tuple(row.ids_keep for row in rows),
            width=max(len(row.ids_keep) for row in rows),
        )

    def _feeds(self, rows: list[_Row]) -> dict[str, Array]:
        mode = self._manifest.mask_mode
        feeds = {"patches" if mode == "patches" else "images": stack_padded([row.pixels for row in rows])}
        if mode == "mask-token":
            feeds["mask"] = hidden_patches([row.ids_keep for row in rows], self._manifest.patches.count)
        elif mode != "none":  # padding repeats patch 0, a valid index that `num_keep` hides
            feeds["ids_keep"] = stack_padded([row.ids_keep for row in rows])
        if self._manifest.ragged:
            feeds["num_keep"] = np.array([len(row.ids_keep) for row in rows], dtype=np.int32)
        return feeds
