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
            total += _prediction(manifest, spec["decoder"], kept=kept, pixels=values)
    except (KeyError, TypeError, ValueError):  # an architecture that is sized by other numbers
        return None
    return float(total)


def _block(tokens: int, dim: int, hidden: int, *, width: int | None = None, gated: bool = False) -> int:
    """`width` is that of all heads together where it is not `dim`."""
    width = dim if width is None else width
    return 8 * tokens * dim * width + 4 * tokens**2 * width + 2 * (3 if gated else 2) * tokens * dim * hidden


def _prediction(manifest: Manifest, decoder: dict[str, Any], *, kept: int, pixels: int) -> int:
    """What predicts the training target; all but a head put the kept tokens back to their places by a product."""
    dim, values = int(manifest.encoder["dim"]), int(decoder["values"] or pixels)
    kind = decoder.get("kind", "decoder" if "depth" in decoder else "head")  # as older graphs do not say
    if kind == "head":
        return 2 * kept * dim * values
    count, width = manifest.patches.count, int(decoder["dim"])
    drops = manifest.mask_mode not in ("none", "mask-token")
    restored = 2 * count * kept * (dim if kind == "convolutions" else width) if drops else 0
    if kind == "convolutions":
        return restored + _convolutions(decoder, count, dim) + 2 * count * width * values
    prefix = int(manifest.encoder["class_token"]) if kind == "decoder" else 0
    tokens = count + prefix
    embed = 2 * (kept + prefix) * dim * width if width != dim or "regresser" not in kind else 0
    return embed + restored + _blocks(decoder, tokens, drops=drops) + 2 * tokens * width * values


def _blocks(decoder: dict[str, Any], tokens: int, *, drops: bool) -> int:
    """The transformer blocks of a decoder; a regresser has nothing to do where no patch is hidden."""
    dim, heads, depth = int(decoder["dim"]), int(decoder["heads"]), int(decoder["depth"])
    if decoder.get("kind") == "aligned-regresser" and not drops:
        return 0
    depth += int(decoder.get("decoder_depth", 0))
    return depth * _block(tokens, dim, int(decoder["mlp_hidden"]), width=dim // heads * heads)


def _convolutions(decoder: dict[str, Any], places: int, dim: int) -> int:
    """Of a kernel k and g groups, each 2 k^2 N (channels in / g) (channels out)."""
    channels, area = int(decoder["dim"]), int(decoder["kernel"]) ** 2
    inputs = dim + (int(decoder["depth"]) - 1) * channels
    return 2 * area * places * inputs // int(decoder["groups"]) * channels
