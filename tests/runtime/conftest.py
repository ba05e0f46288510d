"""Builders shared by the tests of the deployed half."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mae_export.manifest import Golden, Manifest, MaskMode, Patches, TensorSpec
from mae_export.spec import ImageSpec

SIZE, PATCH, DIM = 32, 8, 6  # 4 x 4 = 16 patches of 192 values


def build_manifest(
    mode: MaskMode = "keep",
    *,
    ragged: bool = False,
    outputs: tuple[str, ...] = ("pooled", "patch_tokens"),
    golden: Golden | None = None,
) -> Manifest:
    """A manifest such as `export` writes, for 32x32 images in 16 patches, width 6."""
    grid = SIZE // PATCH
    keep = grid * grid if mode == "none" else "K"
    inputs = {
        "none": [TensorSpec(name="images", dtype="uint8", shape=("B", SIZE, SIZE, 3))],
        "keep": [TensorSpec(name="images", dtype="uint8", shape=("B", SIZE, SIZE, 3))],
        "patches": [TensorSpec(name="patches", dtype="uint8", shape=("B", "K", PATCH * PATCH * 3))],
    }[mode]
    if mode != "none":
        inputs.append(TensorSpec(name="ids_keep", dtype="int64", shape=("B", "K")))
    if ragged:
        inputs.append(TensorSpec(name="num_keep", dtype="int32", shape=("B",)))
    shapes: dict[str, tuple[int | str, ...]] = {"pooled": ("B", DIM), "patch_tokens": ("B", keep, DIM)}
    return Manifest(
        family="mae",
        encoder={},
        image=ImageSpec(size=(SIZE, SIZE)),
        patches=Patches(patch=(1, PATCH, PATCH), grid=(1, grid, grid), prefix_tokens=1),
        mask_mode=mode,
        ragged=ragged,
        inputs=tuple(inputs),
        outputs=tuple(TensorSpec(name=name, dtype="float32", shape=shapes[name]) for name in outputs),
        precision="fp32",
        made_from=(),
        golden=golden,
    )


@pytest.fixture
def make_manifest() -> Callable[..., Manifest]:
    return build_manifest


@pytest.fixture
def make_images(tmp_path: Path) -> Callable[[int], Path]:
    """Writes so many different 32x32 PNG files, `000.png` and up, into a folder and returns the folder."""

    def make(count: int) -> Path:
        folder = tmp_path / "images"
        folder.mkdir(exist_ok=True)
        for number in range(count):
            pixels = np.random.default_rng(number).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"{number:03}.png")
        return folder

    return make
