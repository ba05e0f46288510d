"""What the decoder is asked for: the pixels of the hidden patches, as they are or normalised within each patch."""

from __future__ import annotations

import torch
from torch import Tensor

PATCH_EPS = 1e-6  # models_mae.py, forward_loss


def reconstruction_loss(predicted: Tensor, patches: Tensor, ids_keep: Tensor, *, patch_normalised: bool) -> Tensor:
    """Mean squared error over the hidden patches.

    Args:
        predicted: the decoder's output, float [B, N, p * p * C].
        patches: the image's normalised pixels, float [B, N, p * p * C].
        ids_keep: int64 [B, K], K < N; the visible patches, which do not count.
        patch_normalised: whether the target is each patch minus its mean over its standard deviation
            (`norm_pix_loss`), with the unbiased variance.

    Returns:
        A scalar.
    """
    target = normalise_patches(patches) if patch_normalised else patches
    hidden = torch.ones(patches.shape[:2], dtype=patches.dtype, device=patches.device).scatter(1, ids_keep, 0.0)
    error = (predicted - target).square().mean(dim=-1)  # [B, N]
    return (error * hidden).sum() / hidden.sum()


def normalise_patches(patches: Tensor) -> Tensor:
    """Give each patch [.., p * p * C] zero mean and, but for a small constant, unit unbiased variance."""
    variance, mean = torch.var_mean(patches, dim=-1, keepdim=True)
    return (patches - mean) / (variance + PATCH_EPS).sqrt()
