"""The plain vision transformer with LayerScale: CAE, and BEiT where it has absolute positions."""

from __future__ import annotations

from torch import nn

from mae_export.encoders.block import LayerScaleBlock
from mae_export.encoders.vit import ViT
from mae_export.spec import EncoderSpec


class LayerScaleViT(ViT):
    """Absolute positions added to patches and class token, then blocks with LayerScale."""

    def __init__(self, spec: EncoderSpec) -> None:
        super().__init__(spec)
        self.blocks = nn.ModuleList(
            LayerScaleBlock(spec.dim, spec.heads, spec.mlp_hidden, spec.eps) for _ in range(spec.depth)
        )
