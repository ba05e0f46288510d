"""The plain vision transformer of MAE and of those who kept its encoder, readable with `encoder.py` and `block.py`."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mae_export.encoders.block import Block
from mae_export.encoders.encoder import Encoder
from mae_export.spec import EncoderSpec


class ViT(Encoder):
    """Absolute positions added to patches and class token, then pre-norm blocks.

    Parameter names are those of facebookresearch/mae. Separate query and value biases (EVA-01, MFM) are loaded as one
    bias with zeros for the key.
    """

    def __init__(self, spec: EncoderSpec) -> None:
        super().__init__(spec)
        self.pos_embed = nn.Parameter(torch.zeros(1, spec.prefix_tokens + spec.patches, spec.dim))
        self.blocks = nn.ModuleList(Block(spec.dim, spec.heads, spec.mlp_hidden, spec.eps) for _ in range(spec.depth))

    def begin(self, embedded: Tensor, ids_keep: Tensor | None) -> Tensor:
        """Add positions, then put the class token in front."""
        prefix = self.spec.prefix_tokens
        positions = self.pos_embed[:, prefix:]
        x = embedded + (positions if ids_keep is None else F.embedding(ids_keep, positions[0]))
        if not self.spec.class_token:
            return x
        first = self.cls_token + self.pos_embed[:, :prefix]
        return torch.cat([first.expand(x.shape[0], -1, -1), x], dim=1)
