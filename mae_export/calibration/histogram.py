"""How much of an activation's reach is worth representing: histograms of |x| that never keep the values, and the rules.

The range of a histogram is the smallest power of two above every value seen, and its bins are equal parts of that.
Doubling the range merges pairs of bins, which gives exactly the counts that the larger range would have given from
the start: the result depends on the values alone, not on their order or on how they were cut into batches.

The rules choose a threshold T; 8 bits then represent -T..T in 127 steps to each side.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from mae_export.calibration.table import Method
from mae_export.errors import InputError

Array = npt.NDArray[Any]
Counts = npt.NDArray[np.int64]

BINS = 8192
SMALLEST = -100  # exponent of a range; below it, the scale to bins would leave float32
STEPS = 127  # of a symmetric int8 on each side of zero
CHUNK = 1 << 18  # values at a time: what fits in a core's cache
ENTROPY_BINS = 2048  # TensorRT's number; more would make its rule see noise
ENTROPY_LEVELS = 128
ENTROPY_STRIDE = 8
MSE_CANDIDATES = 256
MSE_LOWEST = 64  # thresholds below 1/64 of the reach would have steps as narrow as the bins


class Histogram:
    """Counts of |x| in `BINS` equal bins from zero."""

    def __init__(self) -> None:
        self.counts: Counts = np.zeros(BINS, np.int64)
        self._exponent: int | None = None  # the range is 2 to this

    @property
    def width(self) -> float:
        """Of one bin; 0 before the first value."""
        return 0.0 if self._exponent is None else math.ldexp(1.0, self._exponent) / BINS

    def add(self, values: Array) -> None:
        """Count values.

        Args:
            values: float32 of any shape, all finite.
        """
        flat = values.reshape(-1)
        if not flat.size:
            return
        self._reach(max(float(flat.max()), -float(flat.min())))
        scale = np.float32(0 if self.width == 0 else 1 / self.width)
        for first in range(0, flat.size, CHUNK):
            bins = (np.abs(flat[first : first + CHUNK]) * scale).astype(np.intp)  # exact: the scale is a power of two
            self.counts += np.bincount(bins, minlength=BINS)

    def _reach(self, largest: float) -> None:
        """Double the range until a value fits."""
        if largest == 0:
            return
        exponent = max(math.frexp(largest)[1], SMALLEST)  # largest < 2 ** exponent
        if self._exponent is None:
            self._exponent = exponent
        for _ in range(exponent - self._exponent):
            self.counts = np.concatenate([self.counts.reshape(-1, 2).sum(axis=1), np.zeros(BINS // 2, np.int64)])
        self._exponent = max(exponent, self._exponent)


def threshold(histogram: Histogram, reach: float, *, method: Method, percentile: float) -> float:
    """The largest |x| to represent.

    Args:
        histogram: of |x|; not needed for `minmax`.
        reach: largest |x| seen, which the result never exceeds.
        method: the rule.
        percentile: of |x| that must be covered, 0 < percentile <= 100; for the method of that name.

    Raises:
        InputError: when no value differs from zero.
    """
    if reach <= 0:
        raise InputError("all values are zero, so there is no range to choose")
    rules: dict[Method, Callable[[Counts], float]] = {
        "percentile": lambda counts: percentile_of(counts, percentile),
        "entropy": least_divergence,
        "mse": least_error,
    }
    if method == "minmax":
        return reach
    return min(reach, rules[method](histogram.counts) * histogram.width)


def percentile_of(counts: Counts, percentile: float) -> float:
    """Where a share of the values lies below, in bins, interpolated within the bin."""
    total = np.cumsum(counts)
    wanted = percentile / 100 * float(total[-1])
    at = int(np.searchsorted(total, wanted))
    before = float(total[at - 1]) if at else 0.0
    return at + (wanted - before) / max(1.0, float(counts[at]))


def least_error(counts: Counts) -> float:
    """The threshold, in bins, of the smallest mean squared error after rounding to int8 and clipping."""
    used = int(np.flatnonzero(counts)[-1]) + 1
    weights, centres = counts[:used].astype(np.float64), np.arange(used) + 0.5
    candidates = used * np.geomspace(1 / MSE_LOWEST, 1.0, MSE_CANDIDATES)
    errors = []
    for limit in candidates:
        step = limit / STEPS
        rounded = np.minimum(np.rint(centres / step), STEPS) * step
        errors.append(weights @ (rounded - centres) ** 2)
    return float(candidates[int(np.argmin(errors))])


def least_divergence(counts: Counts) -> float:
    """The threshold, in bins, whose 128 levels keep the distribution's shape best (Kullback and Leibler).

    The rule of TensorRT's entropy calibrator: for each threshold, values beyond it are clipped into its last bin, and
    compared with the same bins after averaging them into 128 levels, empty bins staying empty.
    """
    merged = counts.reshape(ENTROPY_BINS, -1).sum(axis=1).astype(np.float64)
    used = int(np.flatnonzero(merged)[-1]) + 1
    merge = BINS // ENTROPY_BINS
    if used <= ENTROPY_LEVELS:
        return float(used * merge)
    candidates = [*range(ENTROPY_LEVELS, used, ENTROPY_STRIDE), used]
    divergences = [_divergence(merged, limit) for limit in candidates]
    return float(candidates[int(np.argmin(divergences))] * merge)


def _divergence(counts: Array, limit: int) -> float:
    """Of the first `limit` bins, with everything beyond clipped into the last, from their 128 levels; in nats."""
    kept = counts[:limit]
    clipped = kept.copy()
    clipped[-1] += counts[limit:].sum()
    levels = np.arange(limit) * ENTROPY_LEVELS // limit
    present = kept > 0
    if not present.any():
        return math.inf
    sums = np.bincount(levels, kept, ENTROPY_LEVELS)
    filled = np.bincount(levels, present, ENTROPY_LEVELS)
    averaged = np.where(present, (sums / np.maximum(filled, 1))[levels], 0.0)
    seen = clipped > 0
    p, q = clipped[seen] / clipped.sum(), averaged[seen] / averaged.sum()
    with np.errstate(divide="ignore"):
        return float((p * np.log(p / q)).sum())
