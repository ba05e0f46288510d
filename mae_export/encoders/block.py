"""The pre-norm transformer block that most published encoders share, with the parameter names of facebookresearch/mae,
and the same with LayerScale.

Sizes in comments: B batch, T tokens, D width, H heads.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Added to the attention logits of padded tokens. Finite, so that a row without any valid key stays free of NaN, and
# inside float16; exp(-3e4) is zero in every float type.
MASKED_LOGIT = -3e4


class Attention(nn.Module):
    """Multi-head self-attention with one biased projection for query, key and value.

    A head is `dim // heads` wide: where that leaves a rest, as in CAE's decoders, all heads together are narrower than
    the tokens.
    """

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.width = dim // heads * heads  # D, but for the rest
        self.qkv = nn.Linear(dim, 3 * self.width)
        self.proj = nn.Linear(self.width, dim)

    def heads_of(self, x: Tensor, guide: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Query, key and value, each [B, H, T, D / H]; `guide` is for architectures whose heads know about places."""
        del guide
        batch, tokens, _ = x.shape
        qkv = self.qkv(x).reshape(batch, tokens, 3, self.heads, self.width // self.heads)
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
        return self.proj(mixed.transpose(1, 2).reshape(*x.shape[:2], self.width))  # type: ignore[no-any-return]


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


class LayerScaleBlock(Block):
    """A pre-norm block whose two branches are scaled per channel before they are added (Touvron et al., ICCV 2021).

    The scales stay parameters: folded into half-precision weights, those of 1e-5 in large models would cost bits.
    """

    def __init__(self, dim: int, heads: int, hidden: int, eps: float) -> None:
        super().__init__(dim, heads, hidden, eps)
        self.gamma_1 = nn.Parameter(torch.ones(dim))
        self.gamma_2 = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor, mask: Tensor | None, guide: Tensor | None = None) -> Tensor:
        """[B, T, D] -> [B, T, D]; `mask` and `guide`, which broadcast to [B, H, T, T], are added to the logits."""
        x = x + self.gamma_1 * self.attn(self.norm1(x), _both(mask, guide))
        return x + self.gamma_2 * self.mlp(self.norm2(x))  # type: ignore[no-any-return]

    def attention(self, x: Tensor, mask: Tensor | None, guide: Tensor | None = None) -> Tensor:
        """Attention of the block for its input [B, T, D], [B, H, T, T]."""
        return self.attn.weights(self.norm1(x), _both(mask, guide))


def _both(mask: Tensor | None, guide: Tensor | None) -> Tensor | None:
    if mask is None or guide is None:
        return guide if mask is None else mask
    return guide + mask
