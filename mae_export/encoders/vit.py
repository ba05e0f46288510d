"""The plain vision transformer of MAE and its pre-training decoder, readable from top to bottom.

Parameter names are those of facebookresearch/mae. The encoder starts from patches rather than images, so that the
same code runs on all patches or on the visible ones only: a patch is one row of normalised pixels in (t, y, x, c)
order, and the strided convolution of the paper is the matrix product it always was.

Sizes in comments: B batch, K kept patches, P prefix tokens, T = P + K tokens, N all patches, D width, H heads.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mae_export.encoders.positions import resample_table
from mae_export.errors import InputError
from mae_export.spec import EncoderSpec

# Added to the attention logits of padded tokens. Finite, so that a row without any valid key stays free of NaN, and
# inside float16; exp(-3e4) is zero in every float type.
MASKED_LOGIT = -3e4


class Attention(nn.Module):
    """Multi-head self-attention with one biased projection for query, key and value."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def heads_of(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Query, key and value, each [B, H, T, D / H]."""
        batch, tokens, dim = x.shape
        qkv = self.qkv(x).reshape(batch, tokens, 3, self.heads, dim // self.heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        return query, key, value

    def weights(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """Attention after the softmax, [B, H, T, T]; row i says where token i looks."""
        query, key, _ = self.heads_of(x)
        logits = (query * query.shape[-1] ** -0.5) @ key.transpose(-1, -2)
        masked: Tensor = logits if mask is None else logits + mask
        return masked.softmax(dim=-1)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """Mix tokens [B, T, D]; `mask` is added to the logits."""
        query, key, value = self.heads_of(x)
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        return self.proj(mixed.transpose(1, 2).reshape(x.shape))  # type: ignore[no-any-return]


class Mlp(nn.Module):
    """Two linear layers around an exact (erf) GELU."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, D] -> [B, T, D]."""
        return self.fc2(F.gelu(self.fc1(x)))  # type: ignore[no-any-return]


class Block(nn.Module):
    """Pre-norm transformer block."""

    def __init__(self, dim: int, heads: int, hidden: int, eps: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=eps)
        self.attn = Attention(dim, heads)
        self.norm2 = nn.LayerNorm(dim, eps=eps)
        self.mlp = Mlp(dim, hidden)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """[B, T, D] -> [B, T, D]; `mask` is added to the attention logits."""
        x = x + self.attn(self.norm1(x), mask)
        return x + self.mlp(self.norm2(x))  # type: ignore[no-any-return]


class PatchEmbed(nn.Module):
    """Linear embedding of patches; keeps the convolution's weight so that checkpoints load as published."""

    def __init__(self, spec: EncoderSpec) -> None:
        super().__init__()
        _, height, width = spec.patch
        self.proj = nn.Conv2d(spec.image.channels, spec.dim, (height, width), (height, width))

    def matrix(self) -> Tensor:
        """The convolution as a matrix [p * p * C, D] for patches in (y, x, c) order."""
        weight = self.proj.weight  # [D, C, p, p]
        return weight.permute(2, 3, 1, 0).reshape(-1, weight.shape[0])

    def forward(self, patches: Tensor) -> Tensor:
        """Normalised patches [B, K, p * p * C] -> [B, K, D]."""
        return F.linear(patches, self.matrix().T, self.proj.bias)


@dataclass(frozen=True)
class Encoded:
    """What `ViT.encode` computes: tokens after the last block, before any final norm, and what was asked on the way."""

    tokens: Tensor  # [B, T, D]
    layers: dict[int, Tensor]  # block index -> [B, T, D]
    attentions: dict[int, Tensor]  # block index -> [B, H, T, T]


class Decoder(nn.Module):
    """MAE's pre-training decoder: visible tokens and mask tokens to pixel values of every patch."""

    def __init__(self, spec: EncoderSpec) -> None:
        super().__init__()
        if spec.decoder is None:
            raise InputError("this encoder has no decoder: its checkpoint holds none")
        decoder = spec.decoder
        self.prefix = spec.prefix_tokens
        self.embed = nn.Linear(spec.dim, decoder.dim)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, decoder.dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, self.prefix + spec.patches, decoder.dim), requires_grad=False)
        self.blocks = nn.ModuleList(
            Block(decoder.dim, decoder.heads, decoder.mlp_hidden, spec.eps) for _ in range(decoder.depth)
        )
        self.norm = nn.LayerNorm(decoder.dim, eps=spec.eps)
        self.pred = nn.Linear(decoder.dim, spec.patch_values)

    def forward(self, tokens: Tensor, ids_keep: Tensor | None, valid: Tensor | None = None) -> Tensor:
        """Predict every patch.

        Args:
            tokens: normalised encoder output, [B, P + K, D].
            ids_keep: int64 [B, K], which patch each row of tokens is; None when all patches are there in order.
            valid: bool [B, K], False for padding; None when nothing is padded.

        Returns:
            [B, N, p * p * C] in raster order, values in (y, x, c) order.
        """
        x = self.embed(tokens)
        prefix, patches = x[:, : self.prefix], x[:, self.prefix :]
        if ids_keep is not None:
            patches = self.restore(patches, ids_keep, valid)
        x = torch.cat([prefix, patches], dim=1) + self.pos_embed
        for block in self.blocks:
            x = block(x, None)
        return self.pred(self.norm(x))[:, self.prefix :]  # type: ignore[no-any-return]

    def restore(self, patches: Tensor, ids_keep: Tensor, valid: Tensor | None) -> Tensor:
        """Put kept tokens back to their places, [B, K, d] -> [B, N, d], with mask tokens elsewhere.

        A product with a one-hot matrix instead of a scatter: exact, because every other term is zero; padding cannot
        overwrite a patch; and every runtime has it.
        """
        count = self.pos_embed.shape[1] - self.prefix
        places = torch.arange(count, device=ids_keep.device)
        one_hot = places[None, :, None] == ids_keep[:, None, :]  # [B, N, K]
        if valid is not None:
            one_hot = one_hot & valid[:, None, :]
        placed = one_hot.to(patches.dtype)
        seen = placed.sum(dim=-1, keepdim=True)  # [B, N, 1], 1 where visible
        return placed @ patches + (1 - seen) * self.mask_token


class ViT(nn.Module):
    """The encoder. See the module's docstring for names and sizes."""

    def __init__(self, spec: EncoderSpec) -> None:
        super().__init__()
        self.spec = spec
        self.cls_token = nn.Parameter(torch.zeros(1, 1, spec.dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, spec.prefix_tokens + spec.patches, spec.dim))
        self.patch_embed = PatchEmbed(spec)
        self.blocks = nn.ModuleList(Block(spec.dim, spec.heads, spec.mlp_hidden, spec.eps) for _ in range(spec.depth))
        if spec.norm == "tokens":
            self.norm = nn.LayerNorm(spec.dim, eps=spec.eps)
        else:
            self.fc_norm = nn.LayerNorm(spec.dim, eps=spec.eps)
        self.decoder = None if spec.decoder is None else Decoder(spec)

    def encode(
        self,
        patches: Tensor,
        ids_keep: Tensor | None = None,
        *,
        mask: Tensor | None = None,
        attentions: frozenset[int] = frozenset(),
    ) -> Encoded:
        """Run the blocks on normalised patches [B, K, p * p * C]; see `encode_tokens`."""
        return self.encode_tokens(self.patch_embed(patches), ids_keep, mask=mask, attentions=attentions)

    def encode_tokens(
        self,
        embedded: Tensor,
        ids_keep: Tensor | None = None,
        *,
        mask: Tensor | None = None,
        attentions: frozenset[int] = frozenset(),
    ) -> Encoded:
        """Run the blocks.

        Args:
            embedded: embedded patches without positions, [B, K, D].
            ids_keep: int64 [B, K], the raster index of each patch; None when all N are there in order.
            mask: additive [B, 1, 1, T], 0 or MASKED_LOGIT; None when every token is real.
            attentions: blocks whose attention is wanted.
        """
        prefix = self.spec.prefix_tokens
        positions = self.pos_embed[:, prefix:]
        x = embedded + (positions if ids_keep is None else F.embedding(ids_keep, positions[0]))
        first = self.cls_token + self.pos_embed[:, :prefix]
        x = torch.cat([first.expand(x.shape[0], -1, -1), x], dim=1)
        layers: dict[int, Tensor] = {}
        looks: dict[int, Tensor] = {}
        for index, module in enumerate(self.blocks):
            block = cast(Block, module)
            if index in attentions:
                looks[index] = block.attn.weights(block.norm1(x), mask)
            x = block(x, mask)
            layers[index] = x
        return Encoded(tokens=x, layers=layers, attentions=looks)

    def finish(self, tokens: Tensor) -> Tensor:
        """Apply the checkpoint's final norm to all tokens, when it has one: [B, T, D] -> [B, T, D]."""
        return self.norm(tokens) if self.spec.norm == "tokens" else tokens

    def pool(self, finished: Tensor, mean_patch: Tensor) -> Tensor:
        """The authors' feature [B, D] from finished tokens [B, T, D] and the mean of their patch tokens [B, D]."""
        feature = finished[:, 0] if self.spec.pooled == "class_token" else mean_patch
        return self.fc_norm(feature) if self.spec.norm == "pooled" else feature

    def resized(self, size: tuple[int, int]) -> ViT:
        """The same weights for another image size, with position tables resampled as the authors do.

        Args:
            size: height and width in pixels, multiples of the patch.

        Raises:
            InputError: when the size does not fit the patch.
        """
        if size == self.spec.image.size:
            return self
        spec = self.spec.resized(size)
        state = self.state_dict()
        for name in ("pos_embed", "decoder.pos_embed"):
            if name in state:
                state[name] = resample_table(
                    state[name], self.spec.grid[1:], spec.grid[1:], mode=spec.position.resample
                )
        return ViT.from_state(spec, state)

    @classmethod
    def from_state(cls, spec: EncoderSpec, state: dict[str, Tensor]) -> ViT:
        """Build the encoder around existing tensors, without copying them; evaluation mode, no gradients.

        Raises:
            RuntimeError: when names or shapes differ; callers check them first to say so in their own words.
        """
        with torch.device("meta"):
            model = cls(spec)
        model.load_state_dict(state, strict=True, assign=True)
        return model.eval().requires_grad_(False)


def padding_mask(num_keep: Tensor, kept: int, prefix: int, *, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Which of K padded rows are real.

    Args:
        num_keep: int [B], real patches per sample; they come first.
        kept: K.
        prefix: P prefix tokens, always real.
        dtype: of the additive mask.

    Returns:
        valid, bool [B, K], and the additive attention mask [B, 1, 1, P + K].
    """
    order = torch.arange(kept, device=num_keep.device)
    valid = order[None, :] < num_keep[:, None].to(order.dtype)
    logits = torch.where(valid, 0.0, MASKED_LOGIT).to(dtype)
    return valid, F.pad(logits, (prefix, 0))[:, None, None, :]
