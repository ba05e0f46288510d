"""How a picture is resized and cropped to the size an encoder takes."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from PIL import Image

from mae_export.errors import ImageError
from mae_export.spec import ImageSpec

MAX_PIXELS = 8192 * 8192  # neither a picture nor its resized version may have more
_FILTERS = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}


def fit(image: Image.Image, spec: ImageSpec) -> npt.NDArray[np.uint8]:
    """Resize and crop an RGB picture with Pillow's antialiased filters.

    `stretch` resizes to `spec.size`. `cover` resizes to the smallest size, aspect ratio kept and sides rounded down,
    that covers `int(side / crop_fraction)` along both axes, then crops the centre at `round((resized - side) / 2)`.
    For square sizes that is torchvision's `Resize(short side)` and `CenterCrop`, as in MAE's evaluation (256 and 224).

    Returns:
        uint8 [H, W, 3] with (H, W) = `spec.size`.

    Raises:
        ImageError: `extreme-aspect` when the resized picture would have more than `MAX_PIXELS` pixels.
    """
    height, width = spec.size
    resized = _resized_size(image.size, spec)
    if resized[0] * resized[1] > max(MAX_PIXELS, height * width):
        raise ImageError(
            "extreme-aspect",
            f"a picture of {image.width}x{image.height} pixels would be resized to {resized[0]}x{resized[1]} before "
            f"its centre is cropped; expected at most {MAX_PIXELS} pixels. Crop it first",
        )
    if image.size != resized:
        image = image.resize(resized, _FILTERS[spec.interpolation])
    left, top = round((resized[0] - width) / 2.0), round((resized[1] - height) / 2.0)
    return np.array(image.crop((left, top, left + width, top + height)))


def _resized_size(size: tuple[int, int], spec: ImageSpec) -> tuple[int, int]:
    """Width and height before the crop, from width and height of the picture."""
    height, width = spec.size
    if spec.resize == "stretch":
        return width, height
    needed_width, needed_height = int(width / spec.crop_fraction), int(height / spec.crop_fraction)
    if needed_width * size[1] >= needed_height * size[0]:
        return needed_width, needed_width * size[1] // size[0]
    return needed_height * size[0] // size[1], needed_height
