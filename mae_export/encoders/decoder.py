"""What predicts the training target from an encoder's tokens: MAE's decoder, one linear layer, and what all share.

Other architectures are in files of their own (`predictor.py`, `regresser.py`, `convolutions.py`).

Sizes in comments: B batch, K kept patches, P prefix tokens, N all patches, d width, V values predicted per patch.
"""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor, nn

from mae_export.decoder_spec import DecoderSpec, HeadSpec
from mae_export.encoders.block import Block
from mae_export.spec import EncoderSpec


class TargetDecoder(nn.Module):
    """Predicts the training target of patches from the tokens of an encoder."""

    @abstractmethod
    def forward(self, tokens: Tensor, ids_keep: Tensor | None, valid: Tensor | None = None) -> Tensor:
        """Predict every patch, or every hidden one where the spec's `hiding` is `required`.

        Args:
            tokens: after the encoder's final norm, [B, P + K, D].
            ids_keep: int64 [B, K], which patch each row of tokens is; None when all patches are there in order.
            valid: bool [B, K], False for padding; None when nothing is padded.

        Returns:
            [B, N, V] in raster order; pixels are in (y, x, c) order; zero where nothing is predicted.
        """


def put_back(patches: Tensor, ids_keep: Tensor, valid: Tensor | None, count: int) -> tuple[Tensor, Tensor]:
    """Put kept tokens back to their places.

    A product with a one-hot matrix instead of a scatter: exact, because every other term is zero; padding cannot
    overwrite a patch; and every runtime has it.

    Args:
        patches: [B, K, d].
        ids_keep: int64 [B, K], the place of each.
        valid: bool [B, K], False for padding; None when nothing is padded.
        count: N.

    Returns:
        The tokens [B, N, d], zero where none was kept, and [B, N, 1] of the same dtype, 1 where one was.
    """
    places = torch.arange(count, device=ids_keep.device)
    one_hot = places[None, :, None] == ids_keep[:, None, :]  # [B, N, K]
    if valid is not None:
        one_hot = one_hot & valid[:, None, :]
    placed = one_hot.to(patches.dtype)
    return placed @ patches, placed.sum(dim=-1, keepdim=True)


class Decoder(TargetDecoder):
    """MAE's pre-training decoder: visible tokens and mask tokens to a prediction for every patch."""

    def __init__(self, spec: EncoderSpec, decoder: DecoderSpec) -> None:
        super().__init__()
        self.prefix = spec.prefix_tokens
        self.embed = nn.Linear(spec.dim, decoder.dim)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, decoder.dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, self.prefix + spec.patches, decoder.dim), requires_grad=False)
        self.blocks = nn.ModuleList(
            Block(decoder.dim, decoder.heads, decoder.mlp_hidden, spec.eps) for _ in range(decoder.depth)
        )
        self.norm = nn.LayerNorm(decoder.dim, eps=spec.eps)
        self.pred = nn.Linear(decoder.dim, decoder.values or spec.patch_values)

    def forward(self, tokens: Tensor, ids_keep: Tensor | None, valid: Tensor | None = None) -> Tensor:
        """Predict every patch; see `TargetDecoder.forward`."""
        x = self.embed(tokens)
        prefix, patches = x[:, : self.prefix], x[:, self.prefix :]
        if ids_keep is not None:
            patches = self.restore(patches, ids_keep, valid)
        x = torch.cat([prefix, patches], dim=1) + self.pos_embed
        for block in self.blocks:
            x = block(x, None)
        return self.pred(self.norm(x))[:, self.prefix :]  # type: ignore[no-any-return]

    def restore(self, patches: Tensor, ids_keep: Tensor, valid: Tensor | None) -> Tensor:
        """Put kept tokens back to their places, [B, K, d] -> [B, N, d], with mask tokens elsewhere."""
        placed, seen = put_back(patches, ids_keep, valid, self.pos_embed.shape[1] - self.prefix)
        return placed + (1 - seen) * self.mask_token


class Head(TargetDecoder):
    """A linear layer on every patch token, as SimMIM and BEiT train with."""

    def __init__(self, spec: EncoderSpec, head: HeadSpec) -> None:
        super().__init__()
        self.prefix = spec.prefix_tokens
        self.pred = nn.Linear(spec.dim, head.values, bias=head.bias)

    def forward(self, tokens: Tensor, ids_keep: Tensor | None, valid: Tensor | None = None) -> Tensor:
        """Predict every patch, all of which must be there in order; see `TargetDecoder.forward`."""
        del ids_keep, valid
        return self.pred(tokens[:, self.prefix :])  # type: ignore[no-any-return]
