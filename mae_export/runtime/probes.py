"""Pictures that show whether a model is right, the same on every machine: photographs, extremes, and a pattern."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Container
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from mae_export.errors import InputError
from mae_export.manifest import Manifest
from mae_export.runtime.images import decode, fit, prepare
from mae_export.runtime.inputs import list_items
from mae_export.runtime.patchify import patchify
from mae_export.runtime.visible import hidden_patches
from mae_export.spec import IMAGENET_MEAN, IMAGENET_STD, ImageSpec

GOLDEN_RECIPE = "pattern-1"  # names the formula of `golden_image` and `golden_ids`; change it with either
PHOTOS = ("astronaut", "brick", "chelsea", "coffee", "grass", "gravel", "hubble_deep_field", "rocket")
MOST_IMAGES = 256  # of somebody's own; more would only take longer


def probe_photos(spec: ImageSpec) -> npt.NDArray[np.uint8]:
    """The photographs shipped with the package, prepared for an encoder.

    Returns:
        uint8 [8, H, W, C] in the order of `PHOTOS`; for C other than 3, their luma in every channel.

    Raises:
        InputError: when the encoder takes several frames per sample.
    """
    _require_still(spec)
    return _fitted(_photos(), spec)


def verification_images(
    spec: ImageSpec, source: str | Path | None = None, *, without: Container[str] = ()
) -> npt.NDArray[np.uint8]:
    """Images enough for percentiles and neighbours, and the adversarial ones at the end.

    Args:
        spec: how to prepare them.
        source: a folder, list or tar of pictures, of which at most `MOST_IMAGES` are read, evenly spread. None means
            the photographs of `probe_photos`, each whole, mirrored, and as two overlapping crops (the upper left and,
            mirrored, the lower right three fifths): 32 in all.
        without: SHA-256 of image files to pass over, such as those that a graph was calibrated on.

    Returns:
        uint8 [n, H, W, C].

    Raises:
        InputError: when the encoder takes several frames per sample, the source does not exist, or nothing of it is
            left.
        ImageError: when a picture cannot be used.
    """
    _require_still(spec)
    if source is None:
        photos = _photos()
        images = np.concatenate([_fitted([change(photo) for photo in photos], spec) for change in VIEWS])
    else:
        listed = list_items([source])
        items = [item for item in listed if hashlib.sha256(item.read()).hexdigest() not in without]
        if not items:
            raise InputError(
                f"all {len(listed)} pictures of {source} were used for calibration; expected some that were not"
            )
        images = np.stack([prepare(item.read(), spec) for item in items[:: -(-len(items) // MOST_IMAGES)]])
    return np.concatenate([images, adversarial_images(spec)])


def _upper_left(image: Image.Image) -> Image.Image:
    return image.crop((0, 0, image.width * 3 // 5, image.height * 3 // 5))


def _lower_right(image: Image.Image) -> Image.Image:
    return image.crop((image.width * 2 // 5, image.height * 2 // 5, image.width, image.height))


VIEWS: tuple[Callable[[Image.Image], Image.Image], ...] = (
    lambda image: image,
    ImageOps.mirror,
    _upper_left,
    lambda image: ImageOps.mirror(_lower_right(image)),
)


def _photos() -> list[Image.Image]:
    return [decode((files(__package__) / "probe_photos" / f"{name}.jpg").read_bytes()) for name in PHOTOS]


def _fitted(images: list[Image.Image], spec: ImageSpec) -> npt.NDArray[np.uint8]:
    """Prepared for an encoder of any number of channels, uint8 [n, H, W, C]."""
    rgb = replace(spec, channels=3, mean=IMAGENET_MEAN, std=IMAGENET_STD)
    if spec.channels == 3:
        return np.stack([fit(image, rgb) for image in images])
    grey = np.stack([fit(image.convert("L").convert("RGB"), rgb) for image in images])
    return grey[..., :1].repeat(spec.channels, axis=-1)


def adversarial_images(spec: ImageSpec) -> npt.NDArray[np.uint8]:
    """Extremes: black, white, and black but for one white pixel at row H // 3, column W // 4.

    Returns:
        uint8 [3, H, W, C].

    Raises:
        InputError: when the encoder takes several frames per sample.
    """
    _require_still(spec)
    height, width = spec.size
    images = np.zeros((3, height, width, spec.channels), np.uint8)
    images[1] = 255
    images[2, height // 3, width // 4] = 255
    return images


def golden_image(spec: ImageSpec) -> npt.NDArray[np.uint8]:
    """A pattern in integer arithmetic, so that it is bit for bit the same everywhere.

    The value at row y, column x, channel c is `((y*(3*y + 5*x + 7) + 2*x*x) // 16 + 11*x + 53*c) mod 256`: bands
    whose width and direction change over the image, so no two patches are equal and no flip, turn or exchange of
    channels leaves it unchanged. Every byte value occurs from about 32x32 pixels on.

    Returns:
        uint8 [H, W, C].

    Raises:
        InputError: when the encoder takes several frames per sample.
    """
    _require_still(spec)
    y, x, c = np.ogrid[: spec.size[0], : spec.size[1], : spec.channels]
    values: npt.NDArray[np.int64] = (y * (3 * y + 5 * x + 7) + 2 * x * x) // 16 + 11 * x + 53 * c
    return (values % 256).astype(np.uint8)


def golden_ids(count: int) -> npt.NDArray[np.int64]:
    """Patches kept of the golden image: K = max(1, N // 4) ids, far apart and not in raster order.

    Id i is `(i * s + 1) mod N`, with s the smallest number from N * 5 // 8 on that has no factor in common with N.

    Args:
        count: N, patches of a full sample.

    Returns:
        int64 [K], without repetition.
    """
    stride = max(1, count * 5 // 8)
    while math.gcd(stride, count) > 1:
        stride += 1
    return (np.arange(max(1, count // 4)) * stride + 1) % count


def golden_feeds(manifest: Manifest) -> dict[str, npt.NDArray[Any]]:
    """Feeds of one row for the manifest's golden check: the golden image, of which a mask mode shows `golden_ids`.

    Returns:
        Arrays by input name, with the dtypes and shapes of the manifest's mask mode and B = 1.

    Raises:
        InputError: when the encoder takes several frames per sample.
    """
    images = golden_image(manifest.image)[None]
    if manifest.mask_mode == "none":
        return {"images": images}
    ids = golden_ids(manifest.patches.count)[None]
    if manifest.mask_mode == "mask-token":
        return {"images": images, "mask": hidden_patches(list(ids), manifest.patches.count)}
    feeds: dict[str, npt.NDArray[Any]] = {"images": images, "ids_keep": ids}
    if manifest.mask_mode == "patches":
        feeds = {"patches": patchify(images, manifest.patches)[:, ids[0]], "ids_keep": ids}
    if manifest.ragged:
        feeds["num_keep"] = np.array([ids.shape[1]], np.int32)
    return feeds


def _require_still(spec: ImageSpec) -> None:
    if spec.frames != 1:
        raise InputError(f"the probes are single pictures, and this encoder takes {spec.frames} frames per sample")
