"""data2vec 2.0 against its formulas, written out in NumPy and float64, on a grid that is no square."""

import dataclasses

import numpy as np
import pytest
import torch

from mae_export.encoders.data2vec2 import Data2Vec2, PostNormBlock
from mae_export.encoders.encoder import padding_mask
from mae_export.encoders.positions import resample_table
from mae_export.spec import StoredTable
from tests.encoders import formulas
from tests.encoders.formulas import COUNT, State, attention, close, layer_norm, mlp, part, random, randomised

GRID = (3, 4)
SPEC = dataclasses.replace(
    formulas.SPEC, position=StoredTable(grid=GRID, prefix_rows=0), decoder=None, norm="none", pooled="mean_patch"
)


def block(state: State, x: np.ndarray) -> np.ndarray:
    x = layer_norm(state, "norm1", x + attention(part(state, "attn."), x, SPEC.heads))
    return layer_norm(state, "norm2", x + mlp(part(state, "mlp."), x))


def encoded(state: State, x: np.ndarray, ids: np.ndarray) -> list[np.ndarray]:
    """Tokens of one sample of embedded patches [K, D] after each block."""
    x = np.concatenate([state["cls_token"][0], x + state["pos_embed"][0, ids]])
    x, layers = layer_norm(state, "context_norm", x), []
    for index in range(SPEC.depth):
        x = block(part(state, f"blocks.{index}."), x)
        layers.append(x)
    return layers


def make() -> tuple[Data2Vec2, State]:
    model = Data2Vec2(SPEC)
    return model, randomised(model)


@pytest.mark.parametrize("ids", [None, [[5, 0, 11], [2, 3, 1]]])
def test_encoding_is_its_formula(ids) -> None:
    model, state = make()
    kept = np.tile(np.arange(COUNT), (2, 1)) if ids is None else np.array(ids)
    embedded = random(2, kept.shape[1], 12)
    found = model.encode_tokens(embedded, None if ids is None else torch.tensor(ids))
    expected = [encoded(state, sample, row) for sample, row in zip(embedded.numpy(), kept, strict=True)]
    for index in range(SPEC.depth):
        close(found.layers[index], np.stack([layers[index] for layers in expected]))
    assert torch.equal(model.finish(found.tokens), found.tokens)  # no norm follows


@pytest.mark.parametrize("fault", ["token after norm", "position on token", "pre-norm", "eps"])
def test_each_fault_shows(fault) -> None:
    """Controls of the test above: each of the usual mistakes is far above its limit."""
    model, _ = make()
    embedded = random(2, COUNT, 12)
    right = model.encode_tokens(embedded).tokens
    begin = model.begin
    if fault == "token after norm":
        model.begin = lambda x, ids: torch.cat([model.cls_token.expand(2, -1, -1), begin(x, ids)[:, 1:]], dim=1)
    elif fault == "position on token":
        model.cls_token += model.pos_embed[:, :1]
    elif fault == "eps":
        model.context_norm.eps *= 10
    else:
        for module in model.blocks:
            module.forward = lambda x, mask, guide, own=module: super(PostNormBlock, own).forward(x, mask, guide)
    assert float((model.encode_tokens(embedded).tokens - right).abs().max()) > 1e-3


def test_attention_is_looked_at_before_any_norm_of_the_block() -> None:
    model, _ = make()
    embedded = random(1, COUNT, 12)
    found = model.encode_tokens(embedded, attentions=frozenset({1}))
    own, x = model.blocks[1], found.layers[0]
    _, _, value = own.attn.heads_of(x)
    mixed = own.attn.proj((found.attentions[1] @ value).transpose(1, 2).flatten(2))
    x = own.norm1(x + mixed)
    close(own.norm2(x + own.mlp(x)), found.layers[1].numpy())


def test_padding_changes_nothing() -> None:
    model, _ = make()
    embedded, ids = random(2, 4, 12), torch.tensor([[5, 0, 7, 7], [2, 9, 1, 3]])
    _, mask = padding_mask(torch.tensor([2, 4], dtype=torch.int32), 4, 1, dtype=torch.float64)
    found = model.encode_tokens(embedded, ids, mask=mask).tokens
    close(found[:1, :3], model.encode_tokens(embedded[:1, :2], ids[:1, :2]).tokens.numpy())


def test_another_size_resamples_every_row_of_the_table() -> None:
    model, _ = make()
    other = model.resized((16, 15))
    assert torch.equal(other.pos_embed, resample_table(model.pos_embed, GRID, (4, 3)))
    assert other.encode_tokens(random(1, 12, 12)).tokens.shape == (1, 13, 12)


def test_a_fine_tuned_file_norms_the_mean_of_the_patches() -> None:
    model = Data2Vec2(dataclasses.replace(SPEC, norm="pooled"))
    state = randomised(model)
    tokens = random(2, 5, 12)
    found = model.pool(tokens, model.finish(tokens), lambda x: x[:, 1:].mean(dim=1))
    close(found, layer_norm(state, "fc_norm", tokens[:, 1:].numpy().mean(axis=1)))
