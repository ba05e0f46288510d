"""BEiT against its formulas, written out in NumPy and float64, on a grid that is no square."""

import dataclasses

import numpy as np
import pytest
import torch

from mae_export.encoders.beit import TABLE, BEiT
from mae_export.encoders.encoder import padding_mask
from mae_export.encoders.relative import resample_bias
from mae_export.spec import RelativeBias
from tests.encoders import formulas
from tests.encoders.formulas import COUNT, State, attention, close, layer_norm, mlp, part, random, randomised

GRID = (3, 4)
SPEC = dataclasses.replace(formulas.SPEC, position=RelativeBias(grid=GRID), decoder=None, mask_token=True)
OWN = dataclasses.replace(SPEC, position=RelativeBias(grid=GRID, shared=False))
IDS = [[5, 0, 11], [2, 3, 1]]
both = pytest.mark.parametrize("spec", [SPEC, OWN], ids=["shared table", "tables of blocks"])


def bias(table: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """[H, T, T] of the class token and patches `ids`, pair by pair."""
    found = np.empty((len(ids) + 1, len(ids) + 1, table.shape[1]))
    found[0, 1:], found[1:, 0], found[0, 0] = table[-3], table[-2], table[-1]
    for i, query in enumerate(ids):
        for j, key in enumerate(ids):
            down, right = np.subtract(divmod(query, GRID[1]), divmod(key, GRID[1]))
            found[i + 1, j + 1] = table[:-3].reshape(5, 7, -1)[down + 2, right + 3]
    return found.transpose(2, 0, 1)


def encoded(state: State, x: np.ndarray, ids: np.ndarray) -> list[np.ndarray]:
    """Tokens of one sample of embedded patches [K, D] after each block."""
    x, layers = np.concatenate([state["cls_token"][0], x]), []
    for index in range(SPEC.depth):
        own = part(state, f"blocks.{index}.")
        biases = bias(state.get(TABLE, own.get(TABLE)), ids)
        x = x + own["gamma_1"] * attention(part(own, "attn."), layer_norm(own, "norm1", x), SPEC.heads, bias=biases)
        x = x + own["gamma_2"] * mlp(part(own, "mlp."), layer_norm(own, "norm2", x))
        layers.append(x)
    return layers


def make(spec=SPEC) -> tuple[BEiT, State]:
    model = BEiT(spec)
    return model, randomised(model)


@both
@pytest.mark.parametrize("ids", [None, IDS])
def test_encoding_is_its_formula(spec, ids) -> None:
    model, state = make(spec)
    kept = np.tile(np.arange(COUNT), (2, 1)) if ids is None else np.array(ids)
    embedded = random(2, kept.shape[1], 12)
    found = model.encode_tokens(embedded, None if ids is None else torch.tensor(ids))
    expected = [encoded(state, sample, row) for sample, row in zip(embedded.numpy(), kept, strict=True)]
    for index in range(SPEC.depth):
        close(found.layers[index], np.stack([layers[index] for layers in expected]))
    close(model.finish(found.tokens), np.stack([layer_norm(state, "norm", layers[-1]) for layers in expected]))


def test_tables_belong_to_all_blocks_or_to_each() -> None:
    shared, own = make()[1], make(OWN)[1]
    assert [name for name in shared if TABLE in name] == [TABLE]
    assert [name for name in own if TABLE in name] == [f"blocks.{index}.{TABLE}" for index in range(SPEC.depth)]
    assert shared[TABLE].shape == (5 * 7 + 3, 3)


@both
@pytest.mark.parametrize("fault", ["last rows", "transposed"])
def test_a_wrong_bias_shows(spec, fault: str) -> None:
    model, _ = make(spec)
    embedded = random(1, COUNT, 12)
    right = model.encode_tokens(embedded).tokens
    for name, table in model.named_parameters():
        if name.endswith(TABLE):
            table.copy_(
                table[[*range(35), 36, 35, 37]] if fault == "last rows" else table[[*range(34, -1, -1), 35, 36, 37]]
            )
    assert float((model.encode_tokens(embedded).tokens - right).abs().max()) > 1e-3


def test_the_order_of_patches_is_the_order_of_tokens() -> None:
    """Permuted patches with their indices give the same tokens, permuted."""
    model, _ = make()
    embedded, order = random(2, COUNT, 12), torch.randperm(COUNT, generator=torch.Generator().manual_seed(2))
    straight = model.encode_tokens(embedded).tokens
    permuted = model.encode_tokens(embedded[:, order], order.expand(2, -1)).tokens
    close(permuted[:, 1:], straight[:, 1:][:, order].numpy())
    wrong = model.encode_tokens(embedded[:, order]).tokens
    assert float((wrong[:, 0] - straight[:, 0]).abs().max()) > 1e-3


@both
def test_padding_changes_nothing(spec) -> None:
    model, _ = make(spec)
    embedded, ids = random(2, 4, 12), torch.tensor([[5, 0, 7, 7], [2, 9, 1, 3]])
    _, mask = padding_mask(torch.tensor([2, 4], dtype=torch.int32), 4, 1, dtype=torch.float64)
    found = model.encode_tokens(embedded, ids, mask=mask).tokens
    close(found[:1, :3], model.encode_tokens(embedded[:1, :2], ids[:1, :2]).tokens.numpy())
    close(found[1:], model.encode_tokens(embedded[1:], ids[1:]).tokens.numpy())


def test_hidden_patches_become_the_mask_token() -> None:
    model, state = make()
    embedded, hidden = random(2, COUNT, 12), torch.zeros(2, COUNT, dtype=torch.bool)
    hidden[0, 3:7] = hidden[1, 0] = True
    found = model.encode_tokens(embedded, hidden=hidden).tokens
    replaced = np.where(hidden[:, :, None], state["mask_token"], embedded)
    close(found, np.stack([encoded(state, sample, np.arange(COUNT))[-1] for sample in replaced]))


@both
def test_attention_is_looked_at_where_asked(spec) -> None:
    model, state = make(spec)
    found = model.encode_tokens(random(1, 3, 12), torch.tensor(IDS[:1]), attentions=frozenset({1}))
    block, own = model.blocks[1], part(state, "blocks.1.")
    biases = torch.from_numpy(bias(state.get(TABLE, own.get(TABLE)), np.array(IDS[0])))[None]
    close(found.attentions[1], block.attn.weights(block.norm1(found.layers[0]), biases).numpy())


@both
def test_resizing_resamples_the_tables_and_shares_the_rest(spec) -> None:
    model, state = make(spec)
    other = model.resized((16, 15))
    found = other.state_dict()
    for name, value in state.items():
        if name.endswith(TABLE):
            assert torch.equal(found[name], resample_bias(torch.from_numpy(value), GRID, (4, 3)))
        else:
            assert found[name].data_ptr() == model.state_dict()[name].data_ptr(), name
    assert other.encode(random(1, 12, 60)).tokens.shape == (1, 13, 12)
    close(
        model.get_parameter(TABLE if TABLE in state else f"blocks.0.{TABLE}"),
        state.get(TABLE, state.get(f"blocks.0.{TABLE}")),
    )


def test_an_encoder_is_built_around_tensors_without_copying_them() -> None:
    state = {name: torch.from_numpy(value) for name, value in make(OWN)[1].items()}
    model = BEiT.from_state(OWN, dict(state))
    assert all(value.data_ptr() == state[name].data_ptr() for name, value in model.state_dict().items())
    assert model.encode(random(1, COUNT, 60)).tokens.isfinite().all()
