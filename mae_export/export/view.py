"""The encoder as a graph sees it: uint8 pixels and indices in, named outputs out.

This module exists only to be traced. The pixel normalisation is folded into the patch embedding: with pixels x in
0..255, W' = W / (255 std) and b' = b - W mean / std give W' x + b' = W (x / 255 - mean) / std + b. The fold is computed
in float64; against a float64 reference on photographs it costs 3e-7 root mean square (an explicit normalisation 2e-7)
and removes every operation on pixels. Patches are cut, and the visible ones taken, before they are embedded, so that
the cost of the embedding follows what is visible too.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812 (torch's own spelling)
from torch import Tensor, nn

from mae_export.encoders.encoder import Encoded, Encoder, padding_mask
from mae_export.manifest import MaskMode

PREDICTIONS = ("reconstruction", "prediction")  # of pixels, and of any other training target; a graph has one of them


@dataclass(frozen=True, kw_only=True)
class _Request:
    features: tuple[str, ...]
    attentions: frozenset[int]


def folded_embedding(encoder: Encoder) -> tuple[Tensor, Tensor]:
    """Weight [p * p * C, D] and bias [D] of the patch embedding for raw pixels 0..255, float32."""
    image = encoder.spec.image
    repeats = encoder.spec.patch_values // image.channels
    mean = torch.tensor(image.mean, dtype=torch.float64).repeat(repeats)
    std = torch.tensor(image.std, dtype=torch.float64).repeat(repeats)
    weight = encoder.patch_embed.matrix().double()
    bias = torch.zeros(weight.shape[1], dtype=torch.float64)
    if encoder.patch_embed.proj.bias is not None:
        bias = encoder.patch_embed.proj.bias.double()
    return (weight / (255 * std)[:, None]).float(), (bias - (mean / std) @ weight).float()


class ExportView(nn.Module):
    """One mask mode and one list of outputs of an encoder; see design of the graph's inputs in `Manifest`.

    Args:
        encoder: in evaluation mode.
        mask: mask mode.
        ragged: whether rows keep different numbers of patches.
        features: names of the outputs, in order; checked by the caller.
    """

    def __init__(self, encoder: Encoder, mask: MaskMode, *, ragged: bool, features: tuple[str, ...]) -> None:
        super().__init__()
        self.encoder = encoder
        self.mask = mask
        self.ragged = ragged
        attentions = frozenset(int(name.split("_")[1]) for name in features if name.startswith("attention_"))
        self.request = _Request(features=features, attentions=attentions)
        weight, bias = folded_embedding(encoder)
        self.register_buffer("embed_weight", weight)
        self.register_buffer("embed_bias", bias)

    def forward(
        self, pixels: Tensor, chosen: Tensor | None = None, num_keep: Tensor | None = None
    ) -> tuple[Tensor, ...]:
        """Compute the requested outputs, in order.

        Args:
            pixels: uint8 `images` [B, H, W, C] or `patches` [B, K, p * p * C].
            chosen: `ids_keep` int64 [B, K]; or `mask` bool [B, N], True where masked; None in mode `none`.
            num_keep: int32 [B] when ragged.
        """
        ids_keep, hidden = (None, chosen) if self.mask == "mask-token" else (chosen, None)
        patches = pixels.to(self.get_buffer("embed_weight").dtype)
        if self.mask != "patches":
            patches = self.cut(patches, ids_keep)
        embedded = patches @ self.get_buffer("embed_weight") + self.get_buffer("embed_bias")
        valid = mask = None
        if num_keep is not None:
            prefix = self.encoder.spec.prefix_tokens
            valid, mask = padding_mask(num_keep, embedded.shape[1], prefix, dtype=embedded.dtype)
        encoded = self.encoder.encode_tokens(
            embedded, ids_keep, hidden=hidden, mask=mask, attentions=self.request.attentions
        )
        named = self.outputs(encoded, ids_keep, valid)
        return tuple(named[name] for name in self.request.features)

    def cut(self, images: Tensor, ids_keep: Tensor | None) -> Tensor:
        """Images [B, H, W, C] to patches [B, K, p * p * C] in the order of `ids_keep`, or all in raster order."""
        spec = self.encoder.spec
        _, rows, columns = spec.grid
        _, height, width = spec.patch
        cells = images.reshape(-1, rows, height, columns, width, spec.image.channels).permute(0, 1, 3, 2, 4, 5)
        if ids_keep is None:
            return cells.reshape(-1, spec.patches, spec.patch_values)
        # One gather of whole rows from all images at once, which every runtime does as plain copies.
        first = torch.arange(ids_keep.shape[0]).unsqueeze(1) * spec.patches
        flat = cells.reshape(-1, spec.patch_values)
        return F.embedding(ids_keep + first, flat)

    def outputs(self, encoded: Encoded, ids_keep: Tensor | None, valid: Tensor | None) -> dict[str, Tensor]:
        """Every requested output by name; what is not requested may be left out."""
        encoder, spec = self.encoder, self.encoder.spec
        prefix = spec.prefix_tokens
        # Padding leaves no trace: its tokens become zero, and the mean counts real patches only.
        real = None if valid is None else valid.unsqueeze(-1).to(encoded.tokens.dtype)

        def patches_of(tokens: Tensor) -> Tensor:
            return tokens[:, prefix:] if real is None else tokens[:, prefix:] * real

        def mean(tokens: Tensor) -> Tensor:
            patches = patches_of(tokens)
            return patches.mean(dim=1) if real is None else patches.sum(dim=1) / real.sum(dim=1)

        finished = encoder.finish(encoded.tokens)
        patch_tokens = patches_of(finished)
        wanted = self.request.features
        named = {"mean_patch": mean(finished), "patch_tokens": patch_tokens}
        if "pooled" in wanted:
            named["pooled"] = encoder.pool(encoded.tokens, finished, mean)
        if spec.class_token:
            named["class_token"] = finished[:, 0]
        for index, tokens in encoded.layers.items():
            named[f"layer_{index}"] = tokens if real is None else tokens * F.pad(real, (0, 0, prefix, 0), value=1.0)
        for index, attention in encoded.attentions.items():
            named[f"attention_{index}"] = attention
        if "dense" in wanted:
            _, rows, columns = spec.grid
            named["dense"] = patch_tokens.transpose(1, 2).reshape(-1, spec.dim, rows, columns)
        if encoder.decoder is not None and not set(PREDICTIONS).isdisjoint(wanted):
            named.update(dict.fromkeys(PREDICTIONS, encoder.decoder(finished, ids_keep, valid)))
        return named
