"""How weights move: MAE's learning-rate schedule, and which parameters decay."""

from __future__ import annotations

import math
from typing import Any

from torch import nn

BETAS = (0.9, 0.95)  # main_pretrain.py


def learning_rate(progress: float, *, peak: float, warmup: float) -> float:
    """Learning rate at a point of the training: linear warm-up, then half a cosine down to zero.

    Args:
        progress: share of the training that is done, 0..1.
        peak: the rate at the end of the warm-up.
        warmup: share of the training that warms up, 0 <= warmup < 1.
    """
    if progress < warmup:
        return peak * progress / warmup
    return peak * 0.5 * (1 + math.cos(math.pi * (progress - warmup) / (1 - warmup)))


def scaled_rate(base_lr: float, batch: int) -> float:
    """The peak rate by the linear scaling rule, `base_lr * batch / 256` (`blr` of main_pretrain.py)."""
    return base_lr * batch / 256


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Groups for the optimiser: weight matrices decay; biases and norms do not.

    Vectors are free of decay. The class and mask tokens are stored with three dimensions, so they decay, as they
    do in MAE.
    """
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return [
        {"params": [parameter for parameter in trained if parameter.ndim > 1], "weight_decay": weight_decay},
        {"params": [parameter for parameter in trained if parameter.ndim <= 1], "weight_decay": 0.0},
    ]
