"""The pre-norm transformer block that most published encoders share, with the parameter names of facebookresearch/mae.

Sizes in comments: B batch, T tokens, D width, H heads.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class Attention(nn.Module):
    """Multi-head self-attention with one biased projection for query, key and value."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def heads_of(self, x: Tensor, guide: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Query, key and value, each [B, H, T, D / H]; `guide` is for architectures whose heads know about places."""
        del guide
        batch, tokens, dim = x.shape
        qkv = self.qkv(x).reshape(batch, tokens, 3, self.heads, dim // self.heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        return query, key, value

    def weights(self, x: Tensor, mask: Tensor | None, guide: Tensor | None = None) -> Tensor:
        """Attention after the softmax, [B, H, T, T]; row i says where token i looks."""
        query, key, _ = self.heads_of(x, guide)
        logits = (query * query.shape[-1] ** -0.5) @ key.transpose(-1, -2)
        masked: Tensor = logits if mask is None else logits + mask
        return masked.softmax(dim=-1)

    def forward(self, x: Tensor, mask: Tensor | None, guide: Tensor | None = None) -> Tensor:
        """Mix tokens [B, T, D]; `mask` is added to the logits."""
        query, key, value = self.heads_of(x, guide)
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

    def forward(self, x: Tensor, mask: Tensor | None, guide: Tensor | None = None) -> Tensor:
        """[B, T, D] -> [B, T, D]; `mask` is added to the attention logits, `guide` is for other architectures."""
        x = x + self.attn(self.norm1(x), mask, guide)
        return x + self.mlp(self.norm2(x))  # type: ignore[no-any-return]

    def attention(self, x: Tensor, mask: Tensor | None, guide: Tensor | None = None) -> Tensor:
        """Attention of the block for its input [B, T, D], [B, H, T, T]."""
        return self.attn.weights(self.norm1(x), mask, guide)
