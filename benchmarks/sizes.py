"""Checkpoints of published sizes with random weights: for speed and memory they are as good as trained ones."""

from __future__ import annotations

from pathlib import Path

from mae_export.spec import EncoderSpec, ImageSpec, StoredTable
from mae_export.training.checkpoint import save_checkpoint
from mae_export.training.initialise import initialise

SIZES = {  # name: (width, depth, heads, patch); "tiny" is not published, it serves quick runs of the same code
    "tiny": (192, 2, 3, 16),
    "base": (768, 12, 12, 16),
    "large": (1024, 24, 16, 16),
    "huge": (1280, 32, 16, 14),
}


def spec_of(size: str, image: int = 224) -> EncoderSpec:
    """The spec of a published size."""
    dim, depth, heads, patch = SIZES[size]
    return EncoderSpec(
        family="mae",
        image=ImageSpec(size=(image, image), crop_fraction=224 / 256),
        patch=(1, patch, patch),
        dim=dim,
        depth=depth,
        heads=heads,
        mlp_hidden=4 * dim,
        eps=1e-6,
        position=StoredTable(grid=(image // patch, image // patch)),
    )


def write_checkpoint(size: str, path: Path) -> Path:
    """Write an encoder-only checkpoint of that size."""
    return save_checkpoint(initialise(spec_of(size), seed=0), path)


def gflops(size: str, kept: int, *, embedded: int | None = None) -> float:
    """Floating-point operations of one image in units of 1e9, counting a multiply-add as two.

    2 e 3 p^2 d + L (24 T d^2 + 4 T^2 d) for T = kept + 1 tokens of width d, with e patches embedded.
    """
    dim, depth, _, patch = SIZES[size]
    tokens = kept + 1
    embed = 2 * (kept if embedded is None else embedded) * 3 * patch**2 * dim
    return (embed + depth * (24 * tokens * dim**2 + 4 * tokens**2 * dim)) / 1e9
