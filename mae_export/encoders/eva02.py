"""EVA-02's transformer: rotary positions besides a table of absolute ones, and gated MLPs.

Sizes in comments: B batch, K kept patches, P prefix tokens, T = P + K tokens, D width, H heads.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from mae_export.encoders.block import Attention
from mae_export.encoders.encoder import Guide
from mae_export.encoders.rotary import rotate, rotations
from mae_export.encoders.vit import ViT
from mae_export.errors import InputError
from mae_export.spec import EncoderSpec, Rotary


class RotaryAttention(Attention):
    """Attention whose queries and keys are turned to their places; the guide holds cosines and sines."""

    def heads_of(self, x: Tensor, guide: Guide = None) -> tuple[Tensor, Tensor, Tensor]:
        """Query, key and value, each [B, H, T, D / H]; `guide` is [1 or B, 1, T, 2 * D / H]."""
        query, key, value = super().heads_of(x)
        if guide is None:
            return query, key, value
        return rotate(query, guide), rotate(key, guide), value


class SwiGLU(nn.Module):
    """Two linear layers around a product of two halves, of which the first passes through SiLU (tiny and small)."""

    def __init__(self, dim: int, hidden: int, eps: float) -> None:
        super().__init__()
        del eps
        self.w12 = nn.Linear(dim, 2 * hidden)  # gate, then value
        self.w3 = nn.Linear(hidden, dim)

    def gated(self, x: Tensor) -> Tensor:
        """[B, T, D] -> [B, T, hidden]."""
        gate, value = self.w12(x).chunk(2, dim=-1)
        return F.silu(gate) * value  # type: ignore[no-any-return]

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, D] -> [B, T, D]."""
        return self.w3(self.gated(x))  # type: ignore[no-any-return]


class NormedSwiGLU(SwiGLU):
    """The same with a norm before the last layer (base and large)."""

    def __init__(self, dim: int, hidden: int, eps: float) -> None:
        super().__init__(dim, hidden, eps)
        self.ffn_ln = nn.LayerNorm(hidden, eps=eps)

    def gated(self, x: Tensor) -> Tensor:
        """[B, T, D] -> [B, T, hidden]."""
        return self.ffn_ln(super().gated(x))  # type: ignore[no-any-return]


class EVA02(ViT):
    """EVA-02 tiny and small: absolute positions as in ViT, then blocks with rotary attention and gated MLPs.

    Parameter names are those of baaivision/EVA. Query, key and value are one projection, gate and value of the MLP
    another, however the checkpoint splits them.

    Raises:
        InputError: when the spec says nothing about rotations, or its heads are not a multiple of 4 values wide.
    """

    mlp: type[SwiGLU] = SwiGLU

    def __init__(self, spec: EncoderSpec) -> None:
        super().__init__(spec)
        position = spec.position
        if not isinstance(position, Rotary):
            raise InputError(f"EVA-02 needs rotary positions; the spec says {type(position).__name__}")
        for block in self.blocks:
            block.attn = RotaryAttention(spec.dim, spec.heads)
            block.mlp = self.mlp(spec.dim, spec.mlp_hidden, spec.eps)
        _, rows, columns = spec.grid
        table = rotations(
            (rows, columns),
            position.trained_grid,
            width=spec.dim // spec.heads,
            base=position.base,
            prefix=spec.prefix_tokens,
        )
        self.register_buffer("turns", table.float(), persistent=False)  # follows from the spec

    def guides(self, ids_keep: Tensor | None) -> Sequence[Guide]:
        """Rotations of every token, [1 or B, 1, T, 2 * D / H], the same in all blocks."""
        table = self.get_buffer("turns")
        prefix = self.spec.prefix_tokens
        # Row 0 serves every prefix token: none of them turns.
        turns = table[None] if ids_keep is None else F.embedding(F.pad(ids_keep + prefix, (prefix, 0)), table)
        return [turns.unsqueeze(1)] * self.spec.depth


class NormedEVA02(EVA02):
    """EVA-02 base and large: the same with a norm inside the MLP."""

    mlp = NormedSwiGLU
