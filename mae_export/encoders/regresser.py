"""What CAE (Chen et al., IJCV 2024, section 3) and CAE v2 (Zhang et al., 2022) predict with: regresser and decoder.

The regresser's blocks have one query per hidden patch, which looks at the visible patches and at all queries; the class
token takes no part. Keys and values are then one row per patch whatever is hidden: the visible token, or the query, of
each place, in raster order. CAE's decoder sees the regressed patches alone, so the others are masked out of its keys.

Sizes in comments: B batch, K kept patches, P prefix tokens, N all patches, D width of the encoder, d of the regresser.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mae_export.decoder_spec import AlignedRegresserSpec, RegresserSpec
from mae_export.encoders.block import MASKED_LOGIT, LayerScaleBlock, Mlp
from mae_export.encoders.decoder import TargetDecoder, put_back
from mae_export.spec import EncoderSpec


class CrossAttention(nn.Module):
    """Multi-head attention between two sets of tokens; the key has no bias."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.width = dim // heads * heads  # of all heads together; d, but for the rest
        self.query = nn.Linear(dim, self.width)
        self.key = nn.Linear(dim, self.width, bias=False)
        self.value = nn.Linear(dim, self.width)
        self.proj = nn.Linear(self.width, dim)

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """[B, Q, d], [B, T, d], [B, T, d] -> [B, Q, d]."""
        query, key, value = (
            x.reshape(*x.shape[:2], self.heads, self.width // self.heads).transpose(1, 2)  # [B, H, T, d / H]
            for x in (self.query(query), self.key(key), self.value(value))
        )
        mixed = F.scaled_dot_product_attention(query, key, value).transpose(1, 2)
        return self.proj(mixed.reshape(*mixed.shape[:2], self.width))  # type: ignore[no-any-return]


class RegresserBlock(nn.Module):
    """Cross-attention and MLP with LayerScale; the norm before the MLP is on the residual path as well."""

    def __init__(self, dim: int, heads: int, hidden: int, eps: float) -> None:
        super().__init__()
        self.norm1_q = nn.LayerNorm(dim, eps=eps)
        self.norm1_k = nn.LayerNorm(dim, eps=eps)
        self.norm1_v = nn.LayerNorm(dim, eps=eps)
        self.cross_attn = CrossAttention(dim, heads)
        self.norm2_cross = nn.LayerNorm(dim, eps=eps)
        self.mlp_cross = Mlp(dim, hidden)
        self.gamma_1_cross = nn.Parameter(torch.ones(dim))
        self.gamma_2_cross = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor, context: Tensor, positions: Tensor) -> Tensor:
        """Queries [B, N, d] look at `context` [B, N, d]; positions [1, N, d] are added to queries and keys."""
        mixed = self.cross_attn(self.norm1_q(x + positions), self.norm1_k(context + positions), self.norm1_v(context))
        x = self.norm2_cross(x + self.gamma_1_cross * mixed)
        return x + self.gamma_2_cross * self.mlp_cross(x)  # type: ignore[no-any-return]


class _Regressing(TargetDecoder):
    """The part that CAE and CAE v2 share: up to the tokens of hidden patches."""

    def __init__(self, spec: EncoderSpec, regresser: RegresserSpec | AlignedRegresserSpec) -> None:
        super().__init__()
        dim = regresser.dim
        self.prefix = spec.prefix_tokens
        if dim != spec.dim:
            self.embed = nn.Linear(spec.dim, dim)
            self.embed_norm = nn.LayerNorm(dim, eps=spec.eps)
        self.narrowed = dim != spec.dim
        self.mask_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, self.prefix + spec.patches, dim), requires_grad=False)
        self.regressor_blocks = nn.ModuleList(
            RegresserBlock(dim, regresser.heads, regresser.mlp_hidden, spec.eps) for _ in range(regresser.depth)
        )
        self.norm = nn.LayerNorm(dim, eps=spec.eps)
        self.pred = nn.Linear(dim, regresser.values)

    @property
    def positions(self) -> Tensor:
        """[1, N, d]; the class token's row of the table serves nothing."""
        return self.pos_embed[:, self.prefix :]

    def embedded(self, tokens: Tensor) -> Tensor:
        """Tokens of the encoder as the regresser takes them, without the class token: [B, P + K, D] -> [B, K, d]."""
        patches = tokens[:, self.prefix :]
        return self.embed_norm(self.embed(patches)) if self.narrowed else patches

    def regress(self, placed: Tensor, seen: Tensor) -> Tensor:
        """Tokens of the hidden patches; rows of visible ones mean nothing.

        Args:
            placed: visible tokens in raster order, zero elsewhere, [B, N, d].
            seen: [B, N, 1], 1 where visible.

        Returns:
            [B, N, d].
        """
        x = self.mask_token.expand(placed.shape)
        for block in self.regressor_blocks:
            x = block(x, placed + (1 - seen) * x, self.positions)
        return x


class Regresser(_Regressing):
    """CAE's regresser and decoder: logits of visual tokens for the hidden patches."""

    def __init__(self, spec: EncoderSpec, regresser: RegresserSpec) -> None:
        super().__init__(spec, regresser)
        self.regressor_norm = nn.LayerNorm(regresser.dim, eps=spec.eps)
        self.blocks = nn.ModuleList(
            LayerScaleBlock(regresser.dim, regresser.heads, regresser.mlp_hidden, spec.eps)
            for _ in range(regresser.decoder_depth)
        )

    def forward(self, tokens: Tensor, ids_keep: Tensor | None, valid: Tensor | None = None) -> Tensor:
        """Predict the hidden patches, [B, P + K, D] -> [B, N, V], zero where visible; see `TargetDecoder.forward`."""
        count = self.positions.shape[1]
        if ids_keep is None:  # nothing is hidden
            return tokens.new_zeros(len(tokens), count, self.pred.out_features)
        placed, seen = put_back(self.embedded(tokens), ids_keep, valid, count)
        return self.decode(self.regressor_norm(self.regress(placed, seen)), seen) * (1 - seen)

    def decode(self, latent: Tensor, seen: Tensor) -> Tensor:
        """The decoder on regressed tokens [B, N, d], of which those where `seen` [B, N, 1] is 1 are not looked at."""
        logits = torch.where(seen > 0, MASKED_LOGIT, 0.0).to(latent.dtype)  # constants, which fp16 holds
        mask = logits.transpose(1, 2).unsqueeze(1)  # [B, 1, 1, N]
        x = latent + self.positions
        for block in self.blocks:
            x = block(x, mask)
        return self.pred(self.norm(x))  # type: ignore[no-any-return]


class AlignedRegresser(_Regressing):
    """CAE v2's regresser: features of length one, of hidden patches by regression and of visible ones directly."""

    def forward(self, tokens: Tensor, ids_keep: Tensor | None, valid: Tensor | None = None) -> Tensor:
        """Predict every patch, [B, P + K, D] -> [B, N, V]; see `TargetDecoder.forward`."""
        x = self.embedded(tokens)
        if ids_keep is not None:
            placed, seen = put_back(x, ids_keep, valid, self.positions.shape[1])
            x = placed + (1 - seen) * self.regress(placed, seen)
        return F.normalize(self.pred(self.norm(x)), dim=-1)
