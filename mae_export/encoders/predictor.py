"""I-JEPA's predictor (Assran et al., CVPR 2023, section 3): tokens of hidden patches from those of visible ones.

The authors run it on the visible tokens, followed by one query (a learned vector plus a position) per patch that is
asked for. Self-attention does not depend on the order of tokens, so with all hidden patches asked for at once it is
the same on N tokens in raster order: the visible token, or the query, of each place. Shapes are then static, no mask is
needed, and padding takes no part.

Sizes in comments: B batch, K kept patches, N all patches, D width of the encoder, d of the predictor.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mae_export.decoder_spec import PredictorSpec
from mae_export.encoders.block import Block
from mae_export.encoders.decoder import TargetDecoder, put_back
from mae_export.spec import EncoderSpec


class Predictor(TargetDecoder):
    """A narrow pre-norm transformer; the encoders that it follows have no prefix tokens."""

    def __init__(self, spec: EncoderSpec, predictor: PredictorSpec) -> None:
        super().__init__()
        self.embed = nn.Linear(spec.dim, predictor.dim)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, predictor.dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, spec.patches, predictor.dim), requires_grad=False)
        self.blocks = nn.ModuleList(
            Block(predictor.dim, predictor.heads, predictor.mlp_hidden, spec.eps) for _ in range(predictor.depth)
        )
        self.norm = nn.LayerNorm(predictor.dim, eps=spec.eps)
        self.pred = nn.Linear(predictor.dim, predictor.values)

    def forward(self, tokens: Tensor, ids_keep: Tensor | None, valid: Tensor | None = None) -> Tensor:
        """Predict the hidden patches, [B, K, D] -> [B, N, V], zero where visible; see `TargetDecoder.forward`."""
        count = self.pos_embed.shape[1]
        if ids_keep is None:  # nothing is hidden
            return tokens.new_zeros(len(tokens), count, self.pred.out_features)
        placed, seen = put_back(self.embed(tokens), ids_keep, valid, count)
        return self.transform(placed + (1 - seen) * self.mask_token + self.pos_embed) * (1 - seen)

    def transform(self, x: Tensor) -> Tensor:
        """Embedded visible tokens and queries, with their positions and in any order: [B, T, d] -> [B, T, V]."""
        for block in self.blocks:
            x = block(x, None)
        return self.pred(self.norm(x))  # type: ignore[no-any-return]
