"""Frames that a program hands over as arrays of any size, made into what an encoder takes by the manifest's rule.

A frame is resized and cropped as the picture in a file would be, so `extract` on a decoded photograph and the command
line on its file give the same features.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from mae_export.errors import InputError
from mae_export.runtime.resize import fit
from mae_export.spec import ImageSpec

Frame = npt.NDArray[np.uint8]
Frames = npt.NDArray[np.uint8] | Sequence[Frame]


def frames_of(frames: Frames | Iterable[Frame], spec: ImageSpec) -> Iterable[Frame]:
    """Frames one by one.

    Args:
        frames: uint8 [B, H, W, C], or [B, T, H, W, C] for clips; or single ones in a list, of any sizes.
        spec: of the encoder.

    Raises:
        InputError: when an array holds one frame where several are expected.
    """
    rank = 3 if spec.frames == 1 else 4
    if isinstance(frames, np.ndarray) and frames.ndim != rank + 1:
        raise InputError(
            f"frames has shape {list(frames.shape)}; expected a batch {_layout(spec, 'B, ')}. Give one as [frame]"
        )
    return frames


def prepare_frame(frame: Any, spec: ImageSpec, *, prepared: bool) -> Frame:
    """Fit one frame to the encoder.

    Args:
        frame: uint8 [H, W, C], or a clip [T, H, W, C].
        spec: of the encoder.
        prepared: the frame is as the encoder takes it and stays as it is.

    Returns:
        uint8 with (H, W) = `spec.size`.

    Raises:
        InputError: when the frame is not such an array.
        ImageError: when resizing would take a picture of absurd size.
    """
    rank = 3 if spec.frames == 1 else 4
    if not isinstance(frame, np.ndarray) or frame.dtype != np.uint8:
        found = frame.dtype if isinstance(frame, np.ndarray) else type(frame).__name__
        raise InputError(f"a frame is {found}; expected a numpy array of uint8, RGB as decoded, values 0..255")
    wrong = frame.ndim != rank or frame.shape[-1] != spec.channels or 0 in frame.shape
    if wrong or (rank == 4 and frame.shape[0] != spec.frames):
        raise InputError(f"a frame has shape {list(frame.shape)}; expected {_layout(spec)}, channels last")
    if prepared:
        if frame.shape[-3:-1] != spec.size:
            raise InputError(f"a prepared frame has shape {list(frame.shape)}; expected height and width {spec.size}")
        return frame
    if rank == 4:
        return np.stack([_fit(still, spec) for still in frame])
    return _fit(frame, spec)


def _fit(still: Frame, spec: ImageSpec) -> Frame:
    if spec.channels == 3:
        return fit(Image.fromarray(still), spec)
    return np.stack([fit(Image.fromarray(still[..., channel]), spec) for channel in range(spec.channels)], axis=-1)


def _layout(spec: ImageSpec, batch: str = "") -> str:
    return f"[{batch}{f'{spec.frames}, ' if spec.frames > 1 else ''}H, W, {spec.channels}]"
