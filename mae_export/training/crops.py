"""What the model looks at: MAE's only augmentation, a random crop resized to the input size and perhaps mirrored."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image

from mae_export.errors import ImageError, InputError

ASPECT = (3 / 4, 4 / 3)
TRIES = 10  # boxes drawn before the whole image is taken

Pixels = npt.NDArray[np.uint8]
Box = tuple[int, int, int, int]  # left, upper, right, lower in pixels


class RandomCrops:
    """Batches of random crops from a few images held in memory.

    Args:
        images: uint8 [h, w, 3] each, RGB.
        size: height and width of a crop in pixels.
        min_area: smallest share of an image's area that a crop covers; the largest is all of it.
        seed: equal seeds give equal batches.

    Raises:
        InputError: when there is no image.
        ImageError: when an array is not uint8 [h, w, 3].
    """

    def __init__(self, images: Sequence[Pixels], *, size: tuple[int, int], min_area: float, seed: int) -> None:
        if not images:
            raise InputError("there are no images to train on; give at least one uint8 array [h, w, 3]")
        for index, image in enumerate(images):
            if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
                raise ImageError(
                    "not-rgb", f"image {index} is {image.dtype} {list(image.shape)}; expected uint8 [h, w, 3], RGB"
                )
        self._images = [Image.fromarray(image) for image in images]
        self._size = size
        self._min_area = min_area
        self._generator = np.random.default_rng(seed)

    def batch(self, count: int) -> Pixels:
        """The next crops, uint8 [count, height, width, 3]."""
        return np.stack([self._crop() for _ in range(count)])

    def _crop(self) -> Pixels:
        image = self._images[self._generator.integers(len(self._images))]
        box = random_box((image.height, image.width), min_area=self._min_area, generator=self._generator)
        height, width = self._size
        pixels = np.asarray(image.resize((width, height), Image.Resampling.BICUBIC, box=box))
        return pixels[:, ::-1] if self._generator.random() < 0.5 else pixels


def random_box(size: tuple[int, int], *, min_area: float, generator: np.random.Generator) -> Box:
    """Part of an image of `size` (height, width): uniform in area, log-uniform in aspect, uniform in place.

    Falls back to the whole image when no box of `TRIES` fits.
    """
    height, width = size
    for _ in range(TRIES):
        area = height * width * generator.uniform(min_area, 1)
        aspect = math.exp(generator.uniform(math.log(ASPECT[0]), math.log(ASPECT[1])))
        box_width, box_height = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < box_width <= width and 0 < box_height <= height:
            left = int(generator.integers(width - box_width + 1))
            upper = int(generator.integers(height - box_height + 1))
            return left, upper, left + box_width, upper + box_height
    return 0, 0, width, height
