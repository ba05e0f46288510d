"""How finely numbers are stored in 8 bits: the scale of every activation and of every channel of every weight.

Scales are numbers that float16 holds, so that converting the rest of a graph to half precision leaves them, and with
them every stored integer, as they are. INT8 steps are equal, so a scale trades clipping against rounding and is
searched; the steps of FP8 grow with the number, so the largest value decides.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from mae_export.calibration.table import TensorRange
from mae_export.calibration.wanted import Eight

Array = npt.NDArray[Any]
SHRINK = (1.0, 0.95, 0.9, 0.85, 0.8, 0.7)  # of the largest weight; with 127 steps clipping more never pays
SMALLEST = 2.0**-24  # positive number of float16


@dataclass(frozen=True, kw_only=True)
class Grid:
    """An 8-bit type: how ONNX calls it, and the largest number it holds; zero points are 0."""

    dtype: ir.DataType
    largest: float

    def store(self, array: Array, scale: Array) -> Array:
        """Numbers divided by their scale, rounded to the type."""
        scaled = np.clip(array / scale, -self.largest, self.largest)
        if self.dtype == ir.DataType.INT8:
            return np.rint(scaled).astype(np.int8)
        return scaled.astype(ml_dtypes.float8_e4m3fn)

    def rounded(self, array: Array, scale: Array) -> Array:
        """The numbers that `store` stands for."""
        return self.store(array, scale).astype(np.float32) * scale


GRIDS: dict[Eight, Grid] = {
    "int8": Grid(dtype=ir.DataType.INT8, largest=127.0),
    "fp8": Grid(dtype=ir.DataType.FLOAT8E4M3FN, largest=448.0),
}


def half_scale(scale: Array | float) -> Array:
    """The nearest positive scales that float16 holds, as float32."""
    with np.errstate(over="ignore"):
        halves = np.asarray(scale, np.float64).astype(np.float16).astype(np.float32)
    clipped: Array = np.clip(halves, np.float32(SMALLEST), np.float32(np.finfo(np.float16).max))
    return clipped


def activation_scale(found: TensorRange, grid: Grid) -> Array:
    """The scale of one activation, float32 scalar: by the table's range in INT8, by the largest value in FP8."""
    return half_scale((found.high if grid.dtype == ir.DataType.INT8 else found.reach) / grid.largest)


def weight_scales(weight: Array, axis: int, grid: Grid) -> Array:
    """A scale for each output channel of a weight: in INT8 that of `SHRINK` with the smallest squared error.

    Args:
        weight: any shape.
        axis: of the output channels.
        grid: the type.

    Returns:
        float32 [channels].
    """
    rows = np.moveaxis(weight, axis, -1).reshape(-1, weight.shape[axis])
    largest = np.abs(rows).max(axis=0, initial=0)
    best, least = half_scale(largest / grid.largest), np.full(largest.shape, np.inf, np.float32)
    for factor in SHRINK if grid.dtype == ir.DataType.INT8 else ():
        scale = half_scale(factor * largest / grid.largest)
        error = ((grid.rounded(rows, scale) - rows) ** 2).sum(axis=0)
        best, least = np.where(error < least, scale, best), np.minimum(error, least)
    return best
