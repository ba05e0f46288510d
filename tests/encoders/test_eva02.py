"""EVA-02 against its formulas, written out in NumPy and float64, on a grid that is no square."""

import dataclasses
import re

import numpy as np
import pytest
import torch

from mae_export.encoders.encoder import padding_mask
from mae_export.encoders.eva02 import EVA02, NormedEVA02, NormedSwiGLU, SwiGLU
from mae_export.encoders.positions import resample_table
from mae_export.encoders.rotary import rotations
from mae_export.errors import InputError
from mae_export.spec import Rotary, StoredTable
from tests.encoders import formulas
from tests.encoders.formulas import COUNT, State, close, layer_norm, linear, part, random, randomised

GRID, WIDTH = (3, 4), 12
SPEC = dataclasses.replace(
    formulas.SPEC,
    dim=24,
    heads=2,
    position=Rotary(table=StoredTable(grid=GRID), trained_grid=(6, 4)),
    decoder=None,
    mask_token=True,
)
IDS = [[5, 0, 11], [2, 3, 1]]
both = pytest.mark.parametrize("kind", [EVA02, NormedEVA02])


def turned(x: np.ndarray, patch: int) -> np.ndarray:
    """One head of one patch with its pairs as complex numbers, the first half turned by the row."""
    row, column = divmod(patch, GRID[1])
    speeds = 10000.0 ** (-np.arange(3) / 3)
    angles = np.concatenate([row / 3 * 6 * speeds, column / 4 * 4 * speeds])
    return ((x[0::2] + 1j * x[1::2]) * np.exp(1j * angles)).view(float)


def attention(state: State, x: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """Mix one sample's tokens [1 + K, D]: the class token and patches `ids`."""
    query, key, value = np.split(linear(state, "qkv", x), 3, axis=-1)
    mixed = []
    for head in range(SPEC.heads):
        columns = slice(head * WIDTH, (head + 1) * WIDTH)
        q, k = query[:, columns].copy(), key[:, columns].copy()
        for token, patch in enumerate(ids, start=1):
            q[token], k[token] = turned(q[token], patch), turned(k[token], patch)
        scores = np.exp(q @ k.T / np.sqrt(WIDTH))
        mixed.append(scores / scores.sum(axis=-1, keepdims=True) @ value[:, columns])
    return linear(state, "proj", np.concatenate(mixed, axis=-1))


def gated(state: State, x: np.ndarray) -> np.ndarray:
    gate, value = np.split(linear(state, "w12", x), 2, axis=-1)
    hidden = gate / (1 + np.exp(-gate)) * value
    return linear(state, "w3", layer_norm(state, "ffn_ln", hidden) if "ffn_ln.weight" in state else hidden)


def encoded(state: State, x: np.ndarray, ids: np.ndarray) -> list[np.ndarray]:
    """Tokens of one sample of embedded patches [K, D] after each block."""
    x = np.concatenate([state["cls_token"][0] + state["pos_embed"][0, :1], x + state["pos_embed"][0, 1 + ids]])
    layers = []
    for index in range(SPEC.depth):
        own = part(state, f"blocks.{index}.")
        x = x + attention(part(own, "attn."), layer_norm(own, "norm1", x), ids)
        x = x + gated(part(own, "mlp."), layer_norm(own, "norm2", x))
        layers.append(x)
    return layers


def make(kind: type[EVA02]) -> tuple[EVA02, State]:
    """An encoder in float64, with the table of rotations in float64 too."""
    model = kind(SPEC)
    state = randomised(model)
    model.turns = rotations(GRID, (6, 4), width=WIDTH, base=10000.0, prefix=1)
    return model, state


@both
@pytest.mark.parametrize("ids", [None, IDS])
def test_encoding_is_its_formula(kind, ids) -> None:
    model, state = make(kind)
    kept = np.tile(np.arange(COUNT), (2, 1)) if ids is None else np.array(ids)
    embedded = random(2, kept.shape[1], 24)
    found = model.encode_tokens(embedded, None if ids is None else torch.tensor(ids))
    expected = [encoded(state, sample, row) for sample, row in zip(embedded.numpy(), kept, strict=True)]
    for index in range(SPEC.depth):
        close(found.layers[index], np.stack([layers[index] for layers in expected]))


@pytest.mark.parametrize("fault", ["gate swapped", "rows and columns swapped", "values turned", "eps"])
def test_each_fault_shows(fault) -> None:
    """Controls of the test above: each of the usual mistakes is far above its limit."""
    model, _ = make(NormedEVA02)
    embedded = random(2, COUNT, 24)
    right = model.encode_tokens(embedded).tokens
    for block in model.blocks:
        if fault == "gate swapped":
            block.mlp.w12.weight.copy_(block.mlp.w12.weight.roll(SPEC.mlp_hidden, 0))
            block.mlp.w12.bias.copy_(block.mlp.w12.bias.roll(SPEC.mlp_hidden, 0))
        elif fault == "eps":
            block.mlp.ffn_ln.eps *= 10
        elif fault == "values turned":
            heads_of = block.attn.heads_of
            block.attn.heads_of = lambda x, guide, heads_of=heads_of: (*heads_of(x, guide)[:2], heads_of(x, guide)[0])
    if fault == "rows and columns swapped":
        model.turns = model.turns.reshape(13, 2, 2, 6).flip(2).reshape(13, 24)
    assert float((model.encode_tokens(embedded).tokens - right).abs().max()) > 1e-3


def test_the_gate_is_the_first_half_and_passes_through_silu() -> None:
    module = SwiGLU(2, 1, 1e-6)
    module.w12.weight.data, module.w12.bias.data = torch.eye(2), torch.zeros(2)
    module.w3.weight.data, module.w3.bias.data = torch.ones(2, 1), torch.zeros(2)
    x = torch.tensor([[-1.0, 2.0]])
    assert torch.allclose(module(x), torch.full((1, 2), -2 / (1 + np.e)))


def test_only_base_and_large_norm_inside_the_mlp() -> None:
    names = {kind: {name for name in kind(SPEC).state_dict() if "ffn_ln" in name} for kind in (EVA02, NormedEVA02)}
    assert names[EVA02] == set()
    assert names[NormedEVA02] == {f"blocks.{i}.mlp.ffn_ln.{part}" for i in range(2) for part in ("weight", "bias")}
    assert NormedSwiGLU(4, 6, 1e-3).ffn_ln.eps == 1e-3


@both
def test_attention_is_looked_at_after_the_rotation(kind) -> None:
    model, _ = make(kind)
    embedded = random(1, COUNT, 24)
    found = model.encode_tokens(embedded, attentions=frozenset({1}))
    block, before = model.blocks[1], found.layers[0]
    normed, guide = block.norm1(before), list(model.guides(None))[1]
    _, _, value = block.attn.heads_of(normed, guide)
    mixed = block.attn.proj((found.attentions[1] @ value).transpose(1, 2).flatten(2))
    close(block.attn(normed, None, guide), mixed.numpy())


def test_the_mask_token_takes_the_place_of_embeddings_but_not_of_positions() -> None:
    model, state = make(EVA02)
    embedded, hidden = random(1, COUNT, 24), torch.arange(COUNT)[None] % 3 == 0
    x = embedded[0].numpy().copy()
    x[::3] = state["mask_token"][0, 0]
    found = model.encode_tokens(embedded, hidden=hidden).tokens
    close(found[0], encoded(state, x, np.arange(COUNT))[-1])


def test_padding_changes_nothing() -> None:
    model, _ = make(EVA02)
    embedded, ids = random(2, 4, 24), torch.tensor([[5, 0, 7, 7], [2, 9, 1, 3]])
    _, mask = padding_mask(torch.tensor([2, 4], dtype=torch.int32), 4, 1, dtype=torch.float64)
    found = model.encode_tokens(embedded, ids, mask=mask).tokens
    close(found[:1, :3], model.encode_tokens(embedded[:1, :2], ids[:1, :2]).tokens.numpy())
    close(found[1:], model.encode_tokens(embedded[1:], ids[1:]).tokens.numpy())


def test_another_size_computes_rotations_anew_and_resamples_the_table() -> None:
    model, state = make(EVA02)
    model.float()
    other = model.resized((16, 15))
    assert isinstance(other, EVA02)
    assert torch.equal(other.pos_embed, resample_table(model.pos_embed, GRID, (4, 3)))
    assert torch.equal(other.turns, rotations((4, 3), (6, 4), width=WIDTH, base=10000.0, prefix=1).float())
    assert set(other.state_dict()) == set(state)  # the table of rotations is no weight


def test_an_encoder_built_around_tensors_has_its_rotations() -> None:
    _, state = make(EVA02)
    model = EVA02.from_state(SPEC, {name: torch.from_numpy(value).float() for name, value in state.items()})
    assert not model.turns.is_meta
    assert model.encode_tokens(torch.zeros(1, COUNT, 24)).tokens.isfinite().all()


def test_specs_without_rotations_are_refused() -> None:
    message = "EVA-02 needs rotary positions; the spec says StoredTable"
    with pytest.raises(InputError, match=re.escape(message)):
        EVA02(formulas.SPEC)
