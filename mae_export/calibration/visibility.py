"""Which patches are visible while ranges are observed: a plan of `mae_export.runtime.visible`, or a range of shares.

`random:0.25..1.0` draws a share for each image, because a graph that will be used with different shares should be
observed with them. The draw depends on the seed and the image only. Shares come from a few levels, so that images of
equal share fill batches.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from mae_export.errors import MaskError, UsageError
from mae_export.runtime.visible import MAX_SEED, Plan, RandomVisible, parse_visible

LEVELS = 8
_RANGE = re.compile(r"random:(?P<low>[^:]*?)\.\.(?P<high>[^:]*)(:(?P<seed>[^:]*))?")


@dataclass(frozen=True, kw_only=True)
class RandomShares:
    """A random fraction of the patches, which itself differs from image to image.

    Attributes:
        low: smallest fraction kept, above 0.
        high: largest fraction kept, at most 1.
        seed: 0..2**64-1.

    Raises:
        MaskError: when a number is out of range, or low is not below high.
    """

    low: float
    high: float
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.low < self.high:
            raise MaskError(
                f"the fractions of visible patches are {self.low}..{self.high}; expected the smaller one first, "
                "for example random:0.25..1.0"
            )
        _ = self._plans

    @cached_property
    def _plans(self) -> tuple[RandomVisible, ...]:
        shares = np.linspace(self.low, self.high, LEVELS).tolist()
        return tuple(RandomVisible(ratio=share, seed=self.seed) for share in shares)

    @property
    def description(self) -> str:
        """`random:LOW..HIGH:SEED`."""
        return f"random:{self.low}..{self.high}:{self.seed}"

    def check(self, rows: int, count: int) -> None:
        """Fits any images."""

    def ids_keep(self, index: int, item_id: str, count: int) -> npt.NDArray[np.int64]:
        """The share of one of `LEVELS` equally likely levels."""
        text = f"share\0{self.seed}\0{item_id}".encode("utf-8", "surrogatepass")
        level = int.from_bytes(hashlib.shake_128(text).digest(8), "little") % LEVELS
        return self._plans[level].ids_keep(index, item_id, count)


def parse_visibility(text: str) -> Plan:
    """Read `random:LOW..HIGH[:seed]`, or what `parse_visible` reads.

    Raises:
        UsageError: when the text is no plan.
        MaskError: when a number is out of range or a file holds no masks.
    """
    match = _RANGE.fullmatch(text)
    if match is None:
        return parse_visible(text)
    seed = match["seed"] or "0"
    try:
        low, high = float(match["low"]), float(match["high"])
    except ValueError:
        raise UsageError(f"--visible {text!r} is not random:LOW..HIGH; write for example random:0.25..1.0") from None
    if not (seed.isascii() and seed.isdecimal()) or int(seed) > MAX_SEED:
        raise UsageError(f"--visible {text!r} has the seed {seed!r}; expected a whole number from 0 to {MAX_SEED}")
    return RandomShares(low=low, high=high, seed=int(seed))
