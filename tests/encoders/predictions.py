"""What I-JEPA's predictor, CAE's regresser and data2vec 2.0's decoder compute, one sample at a time, as the papers say.

Hidden patches are gathered by their indices and follow the visible ones, as the authors' code has it, where the package
keeps every patch at its place. `state` holds a decoder's tensors by our names, in any floating-point type.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F  # noqa: N812 (torch's own spelling)
from torch import Tensor

State = Mapping[str, Tensor]


def complement(keep: Tensor, count: int) -> Tensor:
    """The hidden patches of one sample, in raster order."""
    return torch.tensor([place for place in range(count) if place not in keep.tolist()], dtype=torch.int64)


def linear(state: State, name: str, x: Tensor) -> Tensor:
    return F.linear(x, state[f"{name}.weight"], state.get(f"{name}.bias"))


def norm(state: State, name: str, x: Tensor, eps: float) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    scaled = centred / (centred.square().mean(-1, keepdim=True) + eps).sqrt()
    return scaled * state[f"{name}.weight"] + state[f"{name}.bias"]


def mlp(state: State, name: str, x: Tensor) -> Tensor:
    hidden = linear(state, f"{name}.fc1", x)
    return linear(state, f"{name}.fc2", hidden * 0.5 * (1 + torch.erf(hidden / math.sqrt(2))))


def mixed(query: Tensor, key: Tensor, value: Tensor, heads: int) -> Tensor:
    """[Q, w], [T, w], [T, w] -> [Q, w], head by head."""
    parts = zip(query.chunk(heads, -1), key.chunk(heads, -1), value.chunk(heads, -1), strict=True)
    return torch.cat([(q @ k.T / math.sqrt(q.shape[-1])).softmax(-1) @ v for q, k, v in parts], dim=-1)


def block(state: State, name: str, x: Tensor, heads: int, eps: float) -> Tensor:
    """A pre-norm block on [T, d], with LayerScale where there are scales."""
    query, key, value = linear(state, f"{name}.attn.qkv", norm(state, f"{name}.norm1", x, eps)).chunk(3, -1)
    one = torch.ones((), dtype=x.dtype)
    x = x + state.get(f"{name}.gamma_1", one) * linear(state, f"{name}.attn.proj", mixed(query, key, value, heads))
    return x + state.get(f"{name}.gamma_2", one) * mlp(state, f"{name}.mlp", norm(state, f"{name}.norm2", x, eps))


def depth(state: State, blocks: str) -> int:
    return len({name.split(".")[1] for name in state if name.startswith(f"{blocks}.")})


def predicted(state: State, tokens: Tensor, keep: Tensor, asked: Tensor, heads: int, eps: float = 1e-6) -> Tensor:
    """I-JEPA: tokens [K, D] of the patches `keep` to a prediction [A, V] of the patches `asked`."""
    positions = state["pos_embed"][0]
    x = torch.cat([linear(state, "embed", tokens) + positions[keep], state["mask_token"][0] + positions[asked]])
    for index in range(depth(state, "blocks")):
        x = block(state, f"blocks.{index}", x, heads, eps)
    return linear(state, "pred", norm(state, "norm", x[len(keep) :], eps))


def narrowed(state: State, tokens: Tensor, eps: float) -> Tensor:
    """CAE: tokens as the regresser takes them."""
    return norm(state, "embed_norm", linear(state, "embed", tokens), eps) if "embed.weight" in state else tokens


def regressed(state: State, visible: Tensor, keep: Tensor, hidden: Tensor, heads: int, eps: float = 1e-6) -> Tensor:
    """CAE: visible patches [K, d] to those that are hidden [M, d], before any norm."""
    positions = state["pos_embed"][0, -(len(keep) + len(hidden)) :]
    x = state["mask_token"][0].expand(len(hidden), -1)
    places = torch.cat([positions[keep], positions[hidden]])
    for index in range(depth(state, "regressor_blocks")):
        name = f"regressor_blocks.{index}"
        context = torch.cat([visible, x])
        query = linear(state, f"{name}.cross_attn.query", norm(state, f"{name}.norm1_q", x + positions[hidden], eps))
        key = linear(state, f"{name}.cross_attn.key", norm(state, f"{name}.norm1_k", context + places, eps))
        value = linear(state, f"{name}.cross_attn.value", norm(state, f"{name}.norm1_v", context, eps))
        looked = linear(state, f"{name}.cross_attn.proj", mixed(query, key, value, heads))
        x = norm(state, f"{name}.norm2_cross", x + state[f"{name}.gamma_1_cross"] * looked, eps)
        x = x + state[f"{name}.gamma_2_cross"] * mlp(state, f"{name}.mlp_cross", x)
    return x


def decoded(state: State, latent: Tensor, hidden: Tensor, count: int, heads: int, eps: float = 1e-6) -> Tensor:
    """CAE: regressed patches [M, d] to logits [M, V]."""
    x = norm(state, "regressor_norm", latent, eps) + state["pos_embed"][0, -count:][hidden]
    for index in range(depth(state, "blocks")):
        x = block(state, f"blocks.{index}", x, heads, eps)
    return linear(state, "pred", norm(state, "norm", x, eps))


def aligned(state: State, tokens: Tensor, eps: float = 1e-6) -> Tensor:
    """CAE v2: tokens [T, d] of the regresser, or regressed ones, to features [T, V] of length one."""
    x = linear(state, "pred", norm(state, "norm", tokens, eps))
    return x / x.square().sum(-1, keepdim=True).sqrt()


def convolved(state: State, x: Tensor, groups: int) -> Tensor:
    """data2vec 2.0: the map [D, h, w] to a prediction [h * w, V], summing over the kernel's places one by one."""
    for index in range(depth(state, "blocks")):
        weight, bias = state[f"blocks.{index}.weight"], state[f"blocks.{index}.bias"]
        (_, rows, columns), side = x.shape, weight.shape[-1]
        around = F.pad(x, (side // 2,) * 4)
        y = bias[:, None, None].expand(-1, rows, columns)
        for row in range(side):
            for column in range(side):
                seen = around[:, row : row + rows, column : column + columns].chunk(groups)
                parts = zip(weight[:, :, row, column].chunk(groups), seen, strict=True)
                y = y + torch.cat([torch.einsum("oi,ihw->ohw", w, part) for w, part in parts])
        centred = y - y.mean(0)
        y = centred / (centred.square().mean(0) + 1e-5).sqrt()
        y = y * 0.5 * (1 + torch.erf(y / math.sqrt(2)))
        x = y + x if len(y) == len(x) else y
    return linear(state, "pred", x.flatten(1).T)
