"""Choosing which patches of each image are visible: all, a random fraction, or a file of masks.

A plan knows nothing of batches or threads, so an image sees the same patches however the work is cut up.
"""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from mae_export.errors import MaskError, UsageError

MAX_SEED = 2**64 - 1


@runtime_checkable
class Plan(Protocol):
    """Says for each image which patches are visible."""

    @property
    def description(self) -> str:
        """The plan as it is written on the command line."""
        ...

    def check(self, rows: int, count: int) -> None:
        """Make sure that the plan fits `rows` images of `count` patches each.

        Raises:
            MaskError: when it does not.
        """
        ...

    def ids_keep(self, index: int, item_id: str, count: int) -> npt.NDArray[np.int64]:
        """Visible patches of one image.

        Args:
            index: position of the image in the listing, from 0.
            item_id: identity of the image.
            count: number N of patches of a full image.

        Returns:
            int64 [K], raster indices in 0..N-1, ascending, 1 <= K <= N.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class AllVisible:
    """Every patch of every image."""

    @property
    def description(self) -> str:
        """`all`."""
        return "all"

    def check(self, rows: int, count: int) -> None:
        """Fits any images."""

    def ids_keep(self, index: int, item_id: str, count: int) -> npt.NDArray[np.int64]:  # noqa: ARG002 - the protocol
        """0..N-1."""
        return np.arange(count, dtype=np.int64)


@dataclass(frozen=True, kw_only=True)
class RandomVisible:
    """A random fraction of the patches, drawn from the seed and the image's identity and from nothing else.

    K = int(N * ratio), as MAE's `len_keep`, and at least 1. The encoder does not depend on the order of the patches,
    so they are returned in raster order, which is easier to read where it is stored.

    Attributes:
        ratio: fraction KEPT, 0 < ratio <= 1; MAE's pre-training keeps 0.25.
        seed: 0..2**64-1.

    Raises:
        MaskError: when either is out of range.
    """

    ratio: float
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.ratio <= 1:  # refuses NaN as well
            raise MaskError(
                f"the fraction of visible patches is {self.ratio}; expected 0 < fraction <= 1. "
                "It is the fraction KEPT: MAE's masking ratio of 0.75 is random:0.25"
            )
        if not 0 <= self.seed <= MAX_SEED:
            raise MaskError(f"the seed is {self.seed}; expected a whole number from 0 to {MAX_SEED}")

    @property
    def description(self) -> str:
        """`random:RATIO:SEED`."""
        return f"random:{self.ratio}:{self.seed}"

    def check(self, rows: int, count: int) -> None:
        """Fits any images."""

    def ids_keep(self, index: int, item_id: str, count: int) -> npt.NDArray[np.int64]:  # noqa: ARG002 - the protocol
        """The K patches with the smallest noise, in raster order."""
        keep = max(1, int(count * self.ratio))
        # SHAKE rather than a library's generator: the draw is the same in every numpy version and every language.
        text = f"{self.seed}\0{item_id}".encode("utf-8", "surrogatepass")
        noise = np.frombuffer(hashlib.shake_128(text).digest(8 * count), dtype="<u8")
        return np.sort(np.argsort(noise, kind="stable")[:keep]).astype(np.int64)


@dataclass(frozen=True, kw_only=True)
class FileVisible:
    """Masks from a `.npy` file: bool [n, N], True = visible, one row per image in listing order, or one for all.

    Attributes:
        path: where the masks are.
        masks: the memory-mapped array.
    """

    path: Path
    masks: npt.NDArray[np.bool_]

    @classmethod
    def open(cls, path: Path) -> FileVisible:
        """Map the file without reading it.

        Raises:
            MaskError: when it is not a .npy file of bool [n, N].
        """
        try:
            masks = np.load(path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise MaskError(f"{path} cannot be read as masks ({error}); expected a .npy file of bool [n, N]") from error
        if not isinstance(masks, np.ndarray):
            raise MaskError(f"{path} is an archive of arrays; expected one .npy array, written by np.save")
        if masks.dtype != np.bool_:
            raise MaskError(
                f"{path} holds {masks.dtype}; expected bool, True = visible. Convert it once: "
                "np.save(path, mask.astype(bool))"
            )
        if masks.ndim != 2:
            raise MaskError(
                f"{path} has shape {list(masks.shape)}; expected [n, N], one value per patch in raster order. "
                "Flatten grids: mask.reshape(n, -1)"
            )
        return cls(path=path, masks=masks)

    @property
    def description(self) -> str:
        """`file:NAME`."""
        return f"file:{self.path.name}"

    def check(self, rows: int, count: int) -> None:
        """Compare the shape with the images, and look for unusable rows.

        Raises:
            MaskError: when shapes differ, a row shows nothing, or a byte is neither 0 nor 1.
        """
        found, width = self.masks.shape
        if width != count:
            raise MaskError(
                f"{self.path} has {width} values per image; the graph has {count} patches{_why(width, count)}"
            )
        if found not in (1, rows):
            raise MaskError(
                f"{self.path} has {found} rows; expected {rows}, one per image in listing order, or 1 for all"
            )
        if self.masks.view(np.uint8).max(initial=0) > 1:
            raise MaskError(f"{self.path} holds bytes other than 0 and 1 in a bool array; the file is damaged")
        empty = np.flatnonzero(~self.masks.any(axis=1))
        if empty.size:
            raise MaskError(
                f"{self.path} shows no patch in {empty.size} of {found} rows, first in row {empty[0]}; "
                "an image needs at least one visible patch. True means visible: was the mask meant inverted (~mask)?"
            )

    def ids_keep(self, index: int, item_id: str, count: int) -> npt.NDArray[np.int64]:  # noqa: ARG002 - the protocol
        """Positions of True in the image's row."""
        row = self.masks[index if len(self.masks) > 1 else 0]
        return np.flatnonzero(row).astype(np.int64)


def hidden_patches(visible: Sequence[npt.NDArray[np.int64]], count: int) -> npt.NDArray[np.bool_]:
    """What is not visible, as the `mask` input of a graph takes it.

    Args:
        visible: int64 [K], raster indices of the visible patches, for each row.
        count: number N of patches of a full image.

    Returns:
        bool [rows, N], True where the patch is hidden.
    """
    hidden = np.ones((len(visible), count), dtype=np.bool_)
    for row, ids in zip(hidden, visible, strict=True):
        row[ids] = False
    return hidden


def parse_visible(text: str) -> Plan:
    """Read `all`, `random:R[:seed]` (R is the fraction kept) or `file:X.npy`.

    Raises:
        UsageError: when the text is none of these.
        MaskError: when a number is out of range or the file holds no masks.
    """
    kind, _, rest = text.partition(":")
    if kind == "all" and not rest:
        return AllVisible()
    if kind == "random":
        return _parse_random(text, rest.split(":"))
    if kind == "file" and rest:
        return FileVisible.open(Path(rest))
    near = difflib.get_close_matches(kind, ("all", "random", "file"), 1)
    hint = f"; did you mean {near[0]!r}?" if near and near[0] != kind else ""
    raise UsageError(f"--visible {text!r} is not a plan; write all, random:R[:seed] or file:X.npy{hint}")


def _parse_random(text: str, parts: list[str]) -> RandomVisible:
    usage = UsageError(f"--visible {text!r} is not random:R[:seed]; write for example random:0.25 or random:0.25:7")
    if len(parts) > 2:
        raise usage
    try:
        ratio = float(parts[0])
    except ValueError:
        raise usage from None
    seed = parts[1] if len(parts) == 2 else "0"
    if not (seed.isascii() and seed.isdecimal()):
        raise UsageError(f"--visible {text!r} has the seed {seed!r}; expected a whole number from 0 to {MAX_SEED}")
    return RandomVisible(ratio=ratio, seed=int(seed))


def _why(width: int, count: int) -> str:
    if width == count + 1:
        return "; one too many: the class token is not a patch, drop its column"
    if width > count and width % count == 0:
        return f"; {width} looks like pixels or finer cells: give one value per patch (visible if any pixel is)"
    return "; give one value per patch, in raster order"
