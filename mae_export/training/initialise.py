"""The weights that pre-training starts from: those of models_mae.py."""

from __future__ import annotations

import math

import torch
from torch import nn

from mae_export.encoders.decoder import Decoder
from mae_export.encoders.positions import sincos_table
from mae_export.encoders.vit import ViT
from mae_export.spec import EncoderSpec

TOKEN_STD = 0.02


def initialise(spec: EncoderSpec, *, seed: int) -> ViT:
    """A fresh encoder, with a decoder when the spec has one, ready to be trained.

    Position tables are fixed sin-cos and take no gradient; matrices are Xavier-uniform, the patch embedding as the
    matrix it is; class and mask token are normal; norms are the identity. PyTorch's global generator is not touched.

    Args:
        spec: sizes; the position table takes the grid of `spec.image`.
        seed: equal seeds give equal weights.

    Returns:
        The model in float32 on the CPU, in training mode.

    Raises:
        InputError: when a width is not divisible by 4.
    """
    with torch.device("meta"):
        model = ViT(spec)
    model.to_empty(device="cpu")
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight, generator=generator)
            nn.init.zeros_(module.bias)
        elif isinstance(module, nn.LayerNorm):
            module.reset_parameters()
    projection = model.patch_embed.proj
    nn.init.xavier_uniform_(projection.weight.view(spec.dim, -1), generator=generator)
    if projection.bias is not None:
        bound = 1 / math.sqrt(spec.patch_values)
        nn.init.uniform_(projection.bias, -bound, bound, generator=generator)
    nn.init.normal_(model.cls_token, std=TOKEN_STD, generator=generator)
    _fix_positions(model.pos_embed, spec)
    if isinstance(model.decoder, Decoder):
        nn.init.normal_(model.decoder.mask_token, std=TOKEN_STD, generator=generator)
        _fix_positions(model.decoder.pos_embed, spec)
    return model.train()


def _fix_positions(table: nn.Parameter, spec: EncoderSpec) -> None:
    rows, columns = spec.grid[1:]
    table.data.copy_(sincos_table(table.shape[-1], (rows, columns), prefix_rows=spec.prefix_tokens))
    table.requires_grad_(False)
