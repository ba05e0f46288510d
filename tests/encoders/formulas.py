"""Transformers written out in NumPy and float64, one sample at a time: what the encoders' parts are compared with."""

import math

import numpy as np
import torch

from mae_export.decoder_spec import DecoderSpec
from mae_export.encoders.vit import ViT
from mae_export.spec import EncoderSpec, ImageSpec, StoredTable

SPEC = EncoderSpec(
    family="mae",
    image=ImageSpec(size=(12, 20)),
    patch=(1, 4, 5),
    dim=12,
    depth=2,
    heads=3,
    mlp_hidden=20,
    eps=1e-2,  # large enough that forgetting it shows
    position=StoredTable(grid=(3, 4)),
    decoder=DecoderSpec(dim=8, depth=2, heads=2, mlp_hidden=14),
)
COUNT = 12
State = dict[str, np.ndarray]
erf = np.vectorize(math.erf)


def randomised(module: torch.nn.Module, seed: int = 0) -> State:
    """Fill a module with float64 numbers and return them."""
    module.double().eval().requires_grad_(False)
    draws = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        parameter.normal_(std=0.5, generator=draws)
    return {name: value.numpy().copy() for name, value in module.state_dict().items()}


def random(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def part(state: State, prefix: str) -> State:
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


def linear(state: State, name: str, x: np.ndarray) -> np.ndarray:
    return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]


def layer_norm(state: State, name: str, x: np.ndarray, eps: float = SPEC.eps) -> np.ndarray:
    centred = x - x.mean(axis=-1, keepdims=True)
    scaled = centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + eps)
    return scaled * state[f"{name}.weight"] + state[f"{name}.bias"]


def attention(
    state: State, x: np.ndarray, heads: int, valid: np.ndarray | None = None, bias: np.ndarray | None = None
) -> np.ndarray:
    """One sample [T, D], head by head; `valid` [T] says which keys exist, `bias` [H, T, T] is added to the logits."""
    dim = x.shape[-1]
    size = dim // heads
    query, key, value = np.split(linear(state, "qkv", x), 3, axis=-1)
    mixed = []
    for head in range(heads):
        columns = slice(head * size, (head + 1) * size)
        logits = query[:, columns] @ key[:, columns].T / math.sqrt(size)
        scores = np.exp(logits if bias is None else logits + bias[head])
        if valid is not None:
            scores = scores * valid
        mixed.append(scores / scores.sum(axis=-1, keepdims=True) @ value[:, columns])
    return linear(state, "proj", np.concatenate(mixed, axis=-1))


def mlp(state: State, x: np.ndarray) -> np.ndarray:
    hidden = linear(state, "fc1", x)
    return linear(state, "fc2", hidden * 0.5 * (1 + erf(hidden / math.sqrt(2))))


def block(state: State, x: np.ndarray, heads: int, valid: np.ndarray | None = None) -> np.ndarray:
    x = x + attention(part(state, "attn."), layer_norm(state, "norm1", x), heads, valid)
    return x + mlp(part(state, "mlp."), layer_norm(state, "norm2", x))


def encoded(state: State, patches: np.ndarray, ids: np.ndarray) -> list[np.ndarray]:
    """Tokens of one sample [K, p * p * C] after each block."""
    weight = state["patch_embed.proj.weight"].transpose(2, 3, 1, 0).reshape(-1, SPEC.dim)
    x = patches @ weight + state["patch_embed.proj.bias"] + state["pos_embed"][0, 1 + ids]
    x = np.concatenate([state["cls_token"][0] + state["pos_embed"][0, :1], x])
    layers = []
    for index in range(SPEC.depth):
        x = block(part(state, f"blocks.{index}."), x, SPEC.heads)
        layers.append(x)
    return layers


def decoded(state: State, tokens: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """All patches of one sample from its visible tokens [1 + K, D], by scattering them among mask tokens."""
    x = linear(state, "embed", tokens)
    placed = np.repeat(state["mask_token"][0], COUNT, axis=0)
    placed[ids] = x[1:]
    x = np.concatenate([x[:1], placed]) + state["pos_embed"][0]
    for index in range(2):
        x = block(part(state, f"blocks.{index}."), x, heads=2)
    return linear(state, "pred", layer_norm(state, "norm", x))[1:]


def close(found: torch.Tensor, expected: np.ndarray, limit: float = 1e-12) -> None:
    assert found.shape == expected.shape
    assert float(np.abs(found.numpy() - expected).max()) < limit * max(1.0, float(np.abs(expected).max()))


def make(spec: EncoderSpec = SPEC) -> tuple[ViT, State]:
    model = ViT(spec)
    return model, randomised(model)
