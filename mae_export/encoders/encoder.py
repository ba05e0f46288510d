"""What every encoder of patches offers to export: embed, hide, place, run the blocks, finish, pool, change size.

An architecture is a subclass in a file of its own (`vit.py`, `beit.py`, ...) that says how tokens learn where they are
and what a block computes; this file holds what all of them share. An encoder starts from patches rather than images,
so that the same code runs on all patches or on the visible ones only: a patch is one row of normalised pixels in
(t, y, x, c) order, and the strided convolution of the papers is the matrix product it always was.

Sizes in comments: B batch, K kept patches, P prefix tokens, T = P + K tokens, N all patches, D width, H heads.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import Self

from mae_export.encoders.block import MASKED_LOGIT
from mae_export.encoders.decoder import TargetDecoder
from mae_export.encoders.positions import resample_table
from mae_export.encoders.predicting import decoder_of
from mae_export.spec import EncoderSpec, StoredTable

Guide = Tensor | None  # what a block knows about places: nothing, biases [1 or B, H, T, T], rotations, ...


class EncoderBlock(Protocol):
    """One block of an encoder."""

    def __call__(self, x: Tensor, mask: Tensor | None, guide: Guide) -> Tensor:
        """[B, T, D] -> [B, T, D]; `mask` is added to the attention logits."""
        ...

    def attention(self, x: Tensor, mask: Tensor | None, guide: Guide) -> Tensor:
        """Attention of the block for its input [B, T, D] after the softmax, [B, H, T, T]."""
        ...


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
    """What `encode` computes: tokens after the last block, before any final norm, and what was asked on the way."""

    tokens: Tensor  # [B, T, D]
    layers: dict[int, Tensor]  # block index -> [B, T, D]
    attentions: dict[int, Tensor]  # block index -> [B, H, T, T]


class Encoder(nn.Module):
    """An encoder without its blocks. Subclasses create `blocks`, and whatever parameters positions need."""

    blocks: nn.ModuleList

    def __init__(self, spec: EncoderSpec) -> None:
        super().__init__()
        self.spec = spec
        if spec.class_token:
            self.cls_token = nn.Parameter(torch.zeros(1, 1, spec.dim))
        if spec.mask_token:
            self.mask_token = nn.Parameter(torch.zeros(1, 1, spec.dim))
        self.patch_embed = PatchEmbed(spec)
        if spec.norm == "tokens":
            self.norm = nn.LayerNorm(spec.dim, eps=spec.eps)
        elif spec.norm == "pooled":
            self.fc_norm = nn.LayerNorm(spec.dim, eps=spec.eps)
        self.decoder: TargetDecoder | None = None if spec.decoder is None else decoder_of(spec, spec.decoder)

    @abstractmethod
    def begin(self, embedded: Tensor, ids_keep: Tensor | None) -> Tensor:
        """Add positions and prefix tokens: embedded patches [B, K, D] -> [B, T, D]."""

    def guides(self, ids_keep: Tensor | None) -> Iterable[Guide]:
        """What each block needs to know about places, one entry per block; nothing unless a subclass says so."""
        del ids_keep
        return [None] * self.spec.depth

    def encode(
        self,
        patches: Tensor,
        ids_keep: Tensor | None = None,
        *,
        hidden: Tensor | None = None,
        mask: Tensor | None = None,
        attentions: frozenset[int] = frozenset(),
    ) -> Encoded:
        """Run the blocks on normalised patches [B, K, p * p * C]; see `encode_tokens`."""
        return self.encode_tokens(self.patch_embed(patches), ids_keep, hidden=hidden, mask=mask, attentions=attentions)

    def encode_tokens(
        self,
        embedded: Tensor,
        ids_keep: Tensor | None = None,
        *,
        hidden: Tensor | None = None,
        mask: Tensor | None = None,
        attentions: frozenset[int] = frozenset(),
    ) -> Encoded:
        """Run the blocks.

        Args:
            embedded: embedded patches without positions, [B, K, D].
            ids_keep: int64 [B, K], the raster index of each patch; None when all N are there in order.
            hidden: bool [B, K], True where the learned mask token replaces the embedding; None when nowhere.
            mask: additive [B, 1, 1, T], 0 or MASKED_LOGIT; None when every token is real.
            attentions: blocks whose attention is wanted.
        """
        if hidden is not None:
            embedded = torch.where(hidden.unsqueeze(-1), self.mask_token, embedded)
        x = self.begin(embedded, ids_keep)
        layers: dict[int, Tensor] = {}
        looks: dict[int, Tensor] = {}
        for index, (module, guide) in enumerate(zip(self.blocks, self.guides(ids_keep), strict=True)):
            block = cast(EncoderBlock, module)
            if index in attentions:
                looks[index] = block.attention(x, mask, guide)
            x = block(x, mask, guide)
            layers[index] = x
        return Encoded(tokens=x, layers=layers, attentions=looks)

    def finish(self, tokens: Tensor) -> Tensor:
        """Apply the checkpoint's final norm to all tokens, when it has one: [B, T, D] -> [B, T, D]."""
        return self.norm(tokens) if self.spec.norm == "tokens" else tokens

    def pool(self, tokens: Tensor, finished: Tensor, mean: Callable[[Tensor], Tensor]) -> Tensor:
        """The authors' feature [B, D].

        Args:
            tokens: after the last block, [B, T, D].
            finished: the same after `finish`.
            mean: of the patch tokens, [B, T, D] -> [B, D], leaving out prefix tokens and padding.
        """
        spec = self.spec
        if spec.pooled == "class_token":
            feature = finished[:, 0]
        elif spec.pooled == "mean_patch":
            feature = mean(finished)
        elif spec.pooled == "norm_of_mean":
            feature = self.norm(mean(tokens))
        else:
            feature = F.layer_norm(mean(tokens), (spec.dim,), eps=spec.eps)
        return self.fc_norm(feature) if spec.norm == "pooled" else feature

    def resized(self, size: tuple[int, int]) -> Self:
        """The same weights for another image size, with positions resampled as the authors do.

        Args:
            size: height and width in pixels, multiples of the patch.

        Raises:
            InputError: when the size does not fit the patch.
        """
        if size == self.spec.image.size:
            return self
        spec = self.spec.resized(size)
        return self.from_state(spec, self.resampled(self.state_dict(), spec))

    def resampled(self, state: dict[str, Tensor], spec: EncoderSpec) -> dict[str, Tensor]:
        """`state` with tables of absolute positions resized to the grid of `spec`; subclasses add their own tables."""
        position = self.spec.position
        mode = position.resample if isinstance(position, StoredTable) else "bicubic"
        for name in ("pos_embed", "decoder.pos_embed"):
            if name in state:
                state[name] = resample_table(state[name], self.spec.grid[1:], spec.grid[1:], mode=mode)
        return state

    @classmethod
    def from_state(cls, spec: EncoderSpec, state: dict[str, Tensor]) -> Self:
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
