"""Which images a calibration uses: a fixed draw from what was given, every one readable and different from the others.

The draw depends on the seed and on the ids alone, so a longer listing or another order gives comparable tables. An
image that cannot be decoded is passed over and counted, never used; so is a picture whose pixels were seen before.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from mae_export.calibration.options import LEAST
from mae_export.errors import InputError
from mae_export.runtime.inputs import Item, list_items
from mae_export.runtime.loading import load
from mae_export.spec import ImageSpec


@dataclass(frozen=True, kw_only=True)
class Picture:
    """An image that is used.

    Attributes:
        index: position in the listing.
        item: where it is.
        sha256: of the bytes of its file.
        pixels: uint8 [H, W, C].
    """

    index: int
    item: Item
    sha256: str
    pixels: npt.NDArray[np.uint8]


@dataclass
class Pictures:
    """A draw of images, decoded anew on each pass.

    Args:
        inputs: files, folders, lists and tars, as `extract` takes them.
        spec: how to prepare them.
        samples: how many to use, if there are as many.
        seed: of the draw.
        threads: that decode; 0 chooses.
        without: digests of the image files that calibration used, of which none must judge what it led to.

    Attributes:
        listed: number of images given.
        failures: of those looked at, how many could not be decoded, by reason.
        repeated: of those looked at, how many showed what another one shows.
        calibrated: of those looked at, how many are in `without`.
        used: SHA-256 of the files used, in order; known after the first pass.
    """

    inputs: Sequence[str | Path]
    spec: ImageSpec
    samples: int
    seed: int = 0
    threads: int = 0
    without: frozenset[str] = frozenset()
    failures: Counter[str] = field(default_factory=Counter)
    repeated: int = 0
    calibrated: int = 0
    used: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        items = list_items(self.inputs)
        self.listed = len(items)
        self._draw = sorted(enumerate(items), key=lambda entry: _rank(self.seed, entry[1].id))
        self._passed = False

    def __iter__(self) -> Generator[Picture, None, None]:
        """The pictures, in the same order on every pass.

        Raises:
            InputError: at the end of the first pass, when fewer than `LEAST` were different and readable; on a later
                pass, when a file has changed.
        """
        if self._passed:
            return self._again()
        return self._first()

    def _first(self) -> Generator[Picture, None, None]:
        shown: set[bytes] = set()
        used: list[tuple[int, Item]] = []
        digests: list[str] = []
        with closing(load([item for _, item in self._draw], self.spec, threads=self.threads)) as stream:
            for (index, item), loaded in zip(self._draw, stream, strict=True):
                if loaded.pixels is None:
                    self.failures[loaded.error.reason if loaded.error else "no-pixels"] += 1
                    continue
                shows, digest = (
                    hashlib.sha256(loaded.pixels.tobytes()).digest(),
                    hashlib.sha256(item.read()).hexdigest(),
                )
                if shows in shown:
                    self.repeated += 1
                    continue
                if digest in self.without:
                    self.calibrated += 1
                    continue
                shown.add(shows)
                used.append((index, item))
                digests.append(digest)
                yield Picture(index=index, item=item, sha256=digest, pixels=loaded.pixels)
                if len(used) == self.samples:
                    break
        self._require_enough(len(used))
        self._draw, self.used, self._passed = used, tuple(digests), True

    def _again(self) -> Generator[Picture, None, None]:
        with closing(load([item for _, item in self._draw], self.spec, threads=self.threads)) as stream:
            for (index, item), digest, loaded in zip(self._draw, self.used, stream, strict=True):
                if loaded.pixels is None:
                    raise InputError(f"{item.id} could be read at first and not again; keep the images as they are")
                yield Picture(index=index, item=item, sha256=digest, pixels=loaded.pixels)

    def _require_enough(self, found: int) -> None:
        if found >= LEAST:
            return
        if found == 1 and self.repeated:
            raise InputError(
                f"all {self.listed} images show the same pixels; expected different ones, such as those that the model "
                "will be used on"
            )
        passed_over = {"were used for calibration": self.calibrated, "repeat others": self.repeated, **self.failures}
        reasons = ", ".join(f"{count} {reason}" for reason, count in passed_over.items() if count)
        what = f"{found} of {self.listed} images can be used" + (f" ({reasons})" if reasons else "")
        if self.calibrated:
            raise InputError(
                f"{what}; expected at least {LEAST} that calibration did not use: give other images, or calibrate with "
                "fewer (--samples) and keep the rest for this"
            )
        raise InputError(f"{what}; expected at least {LEAST} different ones. Some hundred are usual")


def _rank(seed: int, item_id: str) -> tuple[bytes, str]:
    """Where an image comes in the draw."""
    text = f"draw\0{seed}\0{item_id}".encode("utf-8", "surrogatepass")
    return hashlib.shake_128(text).digest(8), item_id
