"""The transformer of data2vec 2.0 for images: norms after the additions, one before all blocks, and none at the end."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mae_export.encoders.block import Block
from mae_export.encoders.encoder import Encoder
from mae_export.spec import EncoderSpec


class PostNormBlock(Block):
    """A transformer block whose norms follow the additions."""

    def forward(self, x: Tensor, mask: Tensor | None, guide: Tensor | None = None) -> Tensor:
        """[B, T, D] -> [B, T, D]; `mask` is added to the attention logits."""
        x = self.norm1(x + self.attn(x, mask, guide))
        return self.norm2(x + self.mlp(x))  # type: ignore[no-any-return]

    def attention(self, x: Tensor, mask: Tensor | None, guide: Tensor | None = None) -> Tensor:
        """Attention of the block for its input [B, T, D], [B, H, T, T]."""
        return self.attn.weights(x, mask, guide)


class Data2Vec2(Encoder):
    """Positions added to patches, an extra token without position in front, a norm of all, then post-norm blocks.

    The blocks that fairseq keeps in the modality's context encoder are the first ones; both kinds are alike.
    """

    def __init__(self, spec: EncoderSpec) -> None:
        super().__init__(spec)
        self.pos_embed = nn.Parameter(torch.zeros(1, spec.patches, spec.dim))
        self.context_norm = nn.LayerNorm(spec.dim, eps=spec.eps)
        self.blocks = nn.ModuleList(
            PostNormBlock(spec.dim, spec.heads, spec.mlp_hidden, spec.eps) for _ in range(spec.depth)
        )

    def begin(self, embedded: Tensor, ids_keep: Tensor | None) -> Tensor:
        """Add positions, put the extra token in front, and norm: [B, K, D] -> [B, 1 + K, D]."""
        x = embedded + (self.pos_embed if ids_keep is None else F.embedding(ids_keep, self.pos_embed[0]))
        return self.context_norm(torch.cat([self.cls_token.expand(x.shape[0], -1, -1), x], dim=1))  # type: ignore[no-any-return]
