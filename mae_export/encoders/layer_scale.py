"""The plain vision transformer with LayerScale: CAE, and BEiT where it has absolute positions.

Sizes in comments: B batch, T tokens, D width, H heads.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mae_export.encoders.block import Block
from mae_export.encoders.vit import ViT
from mae_export.spec import EncoderSpec


class LayerScaleBlock(Block):
    """A pre-norm block whose two branches are scaled per channel before they are added (Touvron et al., ICCV 2021).

    The scales stay parameters: folded into half-precision weights, those of 1e-5 in large models would cost bits.
    """

    def __init__(self, dim: int, heads: int, hidden: int, eps: float) -> None:
        super().__init__(dim, heads, hidden, eps)
        self.gamma_1 = nn.Parameter(torch.ones(dim))
        self.gamma_2 = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor, mask: Tensor | None, guide: Tensor | None = None) -> Tensor:
        """[B, T, D] -> [B, T, D]; `mask` and `guide`, which broadcast to [B, H, T, T], are added to the logits."""
        x = x + self.gamma_1 * self.attn(self.norm1(x), _both(mask, guide))
        return x + self.gamma_2 * self.mlp(self.norm2(x))  # type: ignore[no-any-return]

    def attention(self, x: Tensor, mask: Tensor | None, guide: Tensor | None = None) -> Tensor:
        """Attention of the block for its input [B, T, D], [B, H, T, T]."""
        return self.attn.weights(self.norm1(x), _both(mask, guide))


def _both(mask: Tensor | None, guide: Tensor | None) -> Tensor | None:
    if mask is None or guide is None:
        return guide if mask is None else mask
    return guide + mask


class LayerScaleViT(ViT):
    """Absolute positions added to patches and class token, then blocks with LayerScale."""

    def __init__(self, spec: EncoderSpec) -> None:
        super().__init__(spec)
        self.blocks = nn.ModuleList(
            LayerScaleBlock(spec.dim, spec.heads, spec.mlp_hidden, spec.eps) for _ in range(spec.depth)
        )
