"""Cuts samples into patches in the order in which encoders number them: time-major, then raster."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from mae_export.errors import InputError
from mae_export.manifest import Patches


def patchify(images: npt.NDArray[np.uint8], patches: Patches) -> npt.NDArray[np.uint8]:
    """Cut each sample into its N patches.

    Args:
        images: uint8 [B, H, W, C], or [B, T, H, W, C] for video.
        patches: geometry; T, H and W must be `patch * grid`.

    Returns:
        uint8 [B, N, t*p*p*C]: patches time-major then raster, the values of each in (t, y, x, c) order.

    Raises:
        InputError: when the samples do not have that size.
    """
    (t, y, x), (frames, rows, columns) = patches.patch, patches.grid
    expected = (frames * t, rows * y, columns * x)
    found = (1, *images.shape[1:3]) if images.ndim == 4 else images.shape[1:4]
    if images.ndim not in (4, 5) or found != expected:
        raise InputError(
            f"images have shape {images.shape}; expected [B, {expected[1]}, {expected[2]}, C]"
            f"{f' with {expected[0]} frames after B' if expected[0] > 1 else ''} for this model's patches; "
            "prepare the images with the model's own image spec"
        )
    batch, channels = images.shape[0], images.shape[-1]
    cells = images.reshape(batch, frames, t, rows, y, columns, x, channels)
    return cells.transpose(0, 1, 3, 5, 2, 4, 6, 7).reshape(batch, patches.count, t * y * x * channels)
