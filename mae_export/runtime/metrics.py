"""How far two sets of features are apart, in the terms in which features are used: direction, noise and neighbours.

Cosines are also given after subtracting the image set's mean: an encoder whose features share one large common vector
(random ones do, trained ones often) has raw cosines near 1 whatever is wrong with it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from mae_export.errors import InputError

Array = npt.NDArray[Any]

NEIGHBOURS = 10
ENOUGH_IMAGES = 3 * NEIGHBOURS  # fewer make nearly everything a neighbour


@dataclass(frozen=True, kw_only=True)
class Quantiles:
    """Smallest value, first percentile and median."""

    minimum: float
    first_percentile: float
    median: float


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """One output of a candidate against the same output of a reference.

    Attributes:
        vectors: number of vectors compared: images, or images times tokens.
        max_error: max |a - b| / max(1, max |b|).
        sqnr: signal over quantisation noise in dB, 10 log10(sum b^2 / sum (a - b)^2), b centred.
        cosine: between raw vectors.
        centred_cosine: after subtracting the reference's mean over images, at each token's place.
        neighbours: mean share of the 10 nearest images (by centred cosine) that both agree on; None for tokens and
            for sets under 30 images.
        worst_image: row with the smallest centred cosine.
    """

    vectors: int
    max_error: float
    sqnr: float
    cosine: Quantiles
    centred_cosine: Quantiles
    neighbours: float | None
    worst_image: int


def agreement(found: Array, expected: Array) -> Agreement:
    """Compare features of the same images.

    Args:
        found: the candidate's, [n, D] or [n, K, D].
        expected: the reference's, the same shape.

    Raises:
        InputError: when the shapes differ or there is nothing to compare.
    """
    if found.shape != expected.shape or found.ndim < 2 or not found.size:
        raise InputError(f"features of shape {found.shape} and {expected.shape} cannot be compared; give equal shapes")
    a, b = (values.astype(np.float64) for values in (found, expected))
    centre = b.mean(axis=0, keepdims=True)
    centred = _cosines(a - centre, b - centre)
    return Agreement(
        vectors=int(np.prod(b.shape[:-1])),
        max_error=relative_error(found, expected),
        sqnr=_sqnr(a - centre, b - centre),
        cosine=_quantiles(_cosines(a, b)),
        centred_cosine=_quantiles(centred),
        neighbours=neighbour_overlap(a - centre, b - centre) if b.ndim == 2 and len(b) >= ENOUGH_IMAGES else None,
        worst_image=int(centred.reshape(len(b), -1).min(axis=1).argmin()),
    )


def feature_vectors(name: str, values: Array) -> Array:
    """An output as vectors along the last axis: one per image, token or place of a map; attention maps and
    reconstructions are one vector per image, because their single rows say little.

    Args:
        name: of the output.
        values: batch first.
    """
    if name == "dense":
        return np.moveaxis(values, 1, -1)
    if name.startswith(("attention_", "reconstruction")):
        return values.reshape(len(values), -1)
    return values


def relative_error(found: Array, expected: Array) -> float:
    """max |found - expected| / max(1, max |expected|); infinite when shapes differ or a value is not finite."""
    if found.shape != expected.shape:
        return float("inf")
    if not found.size:
        return 0.0
    wanted = expected.astype(np.float64)
    with np.errstate(invalid="ignore"):  # infinity minus infinity is NaN, which is what it should count as
        difference = np.abs(found.astype(np.float64) - wanted)
    error = float(difference.max() / max(1.0, float(np.abs(wanted).max())))
    return error if np.isfinite(error) else float("inf")


def neighbour_overlap(found: Array, expected: Array, count: int = NEIGHBOURS) -> float:
    """Mean share of each row's `count` nearest other rows, by cosine, that both sets of vectors [n, D] agree on."""
    near = [_nearest(vectors, count) for vectors in (found, expected)]
    shared = [len(set(a) & set(b)) for a, b in zip(*near, strict=True)]
    return float(np.mean(shared)) / count


def _nearest(vectors: Array, count: int) -> Array:
    with np.errstate(invalid="ignore", over="ignore"):  # what is not finite is nobody's neighbour
        unit = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), np.finfo(np.float64).tiny)
        similar = unit @ unit.T
    np.fill_diagonal(similar, -np.inf)
    nearest: Array = np.argsort(-similar, axis=1, kind="stable")[:, :count]
    return nearest


def _cosines(a: Array, b: Array) -> Array:
    """Cosine of each pair of vectors; 1 where both are zero, -1 where one is not finite."""
    with np.errstate(invalid="ignore", over="ignore"):
        lengths = np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1)
        cosines: Array = np.where(lengths > 0, (a * b).sum(axis=-1) / np.where(lengths > 0, lengths, 1.0), 0.0)
    cosines[(np.abs(a).max(axis=-1) == 0) & (np.abs(b).max(axis=-1) == 0)] = 1.0
    cosines[~np.isfinite(lengths)] = -1.0
    return cosines


def _quantiles(values: Array) -> Quantiles:
    low, first, median = np.quantile(values, (0.0, 0.01, 0.5))
    return Quantiles(minimum=float(low), first_percentile=float(first), median=float(median))


def _sqnr(a: Array, b: Array) -> float:
    with np.errstate(invalid="ignore", over="ignore"):
        noise, signal = float(((a - b) ** 2).sum()), float((b**2).sum())
    if noise == 0:
        return float("inf")
    return float(10 * np.log10(signal / noise)) if np.isfinite(noise) and signal > 0 else float("-inf")
