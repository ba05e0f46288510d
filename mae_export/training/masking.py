"""Which patches the encoder sees during pre-training: MAE's random masking, drawn anew for every image and step."""

from __future__ import annotations

import torch
from torch import Tensor

from mae_export.errors import MaskError


def kept_patches(patches: int, mask_ratio: float) -> int:
    """Number of visible patches, `len_keep = int(N * (1 - mask_ratio))` of models_mae.py.

    Raises:
        MaskError: when none would be visible or none hidden.
    """
    kept = int(patches * (1 - mask_ratio))
    if not 0 < kept < patches:
        raise MaskError(
            f"a mask ratio of {mask_ratio} keeps {kept} of {patches} patches; expected at least one visible and one "
            "hidden: choose a ratio nearer 0.75, or more patches per image"
        )
    return kept


def random_masking(batch: int, patches: int, kept: int, generator: torch.Generator) -> Tensor:
    """Draw the visible patches of each image.

    Args:
        batch: number of images B.
        patches: number N of patches of a full image.
        kept: number K of patches that stay visible.
        generator: source of the noise.

    Returns:
        int64 [B, K], raster indices, distinct in a row, in the order of their noise.
    """
    noise = torch.rand(batch, patches, generator=generator, device=generator.device)
    return noise.argsort(dim=1)[:, :kept]
