"""BEiT's vision transformer, which knows places by biases of the attention alone: BEiT v1 and v2, SimMIM's ViT,
data2vec 1.0, and dBOT with a CLIP teacher.

Sizes in comments: B batch, K kept patches, T = 1 + K tokens, D width, H heads, R rows of a table of biases.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from mae_export.encoders.block import LayerScaleBlock
from mae_export.encoders.encoder import Encoder, Guide
from mae_export.encoders.relative import bias_of, kept_index, relative_index, resample_bias, table_rows
from mae_export.spec import EncoderSpec, RelativeBias

TABLE = "relative_position_bias_table"


class BEiT(Encoder):
    """A class token, blocks with LayerScale, and one table of relative positions, shared or for each block.

    Hidden patches are replaced by a mask token in training. Leaving them out instead is as well defined: a bias
    depends on the places of its two patches and on nothing else.
    """

    def __init__(self, spec: EncoderSpec) -> None:
        super().__init__(spec)
        rows, columns = spec.grid[1:]
        self.blocks = nn.ModuleList(
            LayerScaleBlock(spec.dim, spec.heads, spec.mlp_hidden, spec.eps) for _ in range(spec.depth)
        )
        shared = isinstance(spec.position, RelativeBias) and spec.position.shared
        for owner in (self,) if shared else self.blocks:
            owner.register_parameter(TABLE, nn.Parameter(torch.zeros(table_rows((rows, columns)), spec.heads)))
        self.shared = shared

    def begin(self, embedded: Tensor, ids_keep: Tensor | None) -> Tensor:
        """Put the class token in front: [B, K, D] -> [B, T, D]."""
        del ids_keep
        return torch.cat([self.cls_token.expand(embedded.shape[0], -1, -1), embedded], dim=1)

    def guides(self, ids_keep: Tensor | None) -> Iterable[Guide]:
        """Biases of each block, [1, H, T, T] for all patches and [B, H, T, T] for kept ones."""
        rows, columns = self.spec.grid[1:]
        index = relative_index((rows, columns)).to(self.cls_token.device)
        if ids_keep is not None:
            index = kept_index(index, ids_keep)
        if self.shared:
            return [bias_of(self.get_parameter(TABLE), index)] * self.spec.depth
        # One after the other, so that those of all blocks are never in memory together.
        return (bias_of(block.get_parameter(TABLE), index) for block in self.blocks)

    def resampled(self, state: dict[str, Tensor], spec: EncoderSpec) -> dict[str, Tensor]:
        """`state` with the tables of biases resized to the grid of `spec` as well."""
        (old_rows, old_columns), (rows, columns) = self.spec.grid[1:], spec.grid[1:]
        state = super().resampled(state, spec)
        for name in state:
            if name.endswith(TABLE):
                state[name] = resample_bias(state[name], (old_rows, old_columns), (rows, columns))
        return state
