"""How many floating-point operations a graph costs, from the sizes in its manifest: its matrix products, exactly.

For K kept of N patches, T tokens of width D with P in front, hidden width M, and a multiply-add counted as two, one
image costs `2 K V D` for the embedding of V pixel values and `8 T D^2 + 4 T^2 D + 2 m T D M` per block, with m = 2
matrices of an MLP (3 where it is gated). Norms, activations and softmax, some 1 %, are not counted, as is usual.
"""

from __future__ import annotations

import math
from typing import Any

from mae_export.manifest import Manifest

PREDICTIONS = ("reconstruction", "prediction")
GATED = "trained_grid"  # of rotary positions, which only EVA-02's encoders with gated MLPs have


def flops_per_image(manifest: Manifest, kept: int) -> float | None:
    """Operations of all outputs for one image with `kept` visible patches; None when the manifest lacks the sizes."""
    spec = manifest.encoder
    try:
        dim, depth, hidden = int(spec["dim"]), int(spec["depth"]), int(spec["mlp_hidden"])
        gated = GATED in spec["position"]
        tokens = kept + int(spec["class_token"])
        values = math.prod(spec["patch"]) * int(spec["image"]["channels"])
        total = 2 * kept * values * dim + depth * _block(tokens, dim, hidden, gated=gated)
        if any(output.name in PREDICTIONS for output in manifest.outputs):
            total += _prediction(manifest, spec["decoder"], kept=kept, values=values)
    except (KeyError, TypeError, ValueError):  # an architecture that is sized by other numbers
        return None
    return float(total)


def _block(tokens: int, dim: int, hidden: int, *, gated: bool = False) -> int:
    return 8 * tokens * dim**2 + 4 * tokens**2 * dim + 2 * (3 if gated else 2) * tokens * dim * hidden


def _prediction(manifest: Manifest, decoder: dict[str, Any], *, kept: int, values: int) -> int:
    """The decoder on tokens of every patch, whose kept ones are put back by a product; or the head that predicts."""
    count, dim, predicted = manifest.patches.count, int(manifest.encoder["dim"]), decoder["values"] or values
    if "depth" not in decoder:
        return 2 * kept * dim * int(predicted)
    width, prefix = int(decoder["dim"]), int(manifest.encoder["class_token"])
    embed = 2 * (kept + prefix) * dim * width
    restore = 0 if manifest.mask_mode in ("none", "mask-token") else 2 * count * kept * width
    blocks = int(decoder["depth"]) * _block(count + prefix, width, int(decoder["mlp_hidden"]))
    return embed + restore + blocks + 2 * (count + prefix) * width * int(predicted)
