"""The transformer against its formulas, written out in NumPy and float64."""

import dataclasses
import math

import numpy as np
import pytest
import torch

from mae_export.encoders.positions import resample_table
from mae_export.encoders.vit import MASKED_LOGIT, Attention, Block, Decoder, Mlp, ViT, padding_mask
from mae_export.errors import InputError
from mae_export.spec import DecoderSpec, EncoderSpec, ImageSpec, StoredTable

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


def attention(state: State, x: np.ndarray, heads: int, valid: np.ndarray | None = None) -> np.ndarray:
    """One sample [T, D], head by head; `valid` [T] says which keys exist."""
    dim = x.shape[-1]
    size = dim // heads
    query, key, value = np.split(linear(state, "qkv", x), 3, axis=-1)
    mixed = []
    for head in range(heads):
        columns = slice(head * size, (head + 1) * size)
        scores = np.exp(query[:, columns] @ key[:, columns].T / math.sqrt(size))
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


@pytest.mark.parametrize("heads", [1, 3, 12])
def test_attention_is_its_formula(heads: int) -> None:
    module = Attention(12, heads)
    state, x = randomised(module), random(2, 5, 12)
    expected = np.stack([attention(state, sample, heads) for sample in x.numpy()])
    close(module(x, None), expected)


def test_masked_keys_do_not_exist() -> None:
    module = Attention(12, 3)
    state, x = randomised(module), random(2, 5, 12)
    valid = np.array([[True, True, False, True, False], [True] * 5])
    mask = torch.from_numpy(np.where(valid, 0.0, MASKED_LOGIT))[:, None, None, :]
    expected = [attention(state, sample, 3, row) for sample, row in zip(x.numpy(), valid, strict=True)]
    close(module(x, mask), np.stack(expected))


@pytest.mark.parametrize("masked", [False, True])
def test_attention_weights_are_those_that_mix(masked: bool) -> None:
    module = Attention(12, 3)
    randomised(module)
    x = random(2, 5, 12)
    mask = (
        torch.tensor([0.0, 0, MASKED_LOGIT, 0, MASKED_LOGIT], dtype=torch.float64)[None, None, None] if masked else None
    )
    weights = module.weights(x, mask)
    assert weights.shape == (2, 3, 5, 5)
    close(weights.sum(dim=-1), np.ones((2, 3, 5)))
    assert bool((weights[..., [2, 4]] == 0).all()) is masked
    _, _, value = module.heads_of(x)
    mixed = (weights @ value).transpose(1, 2).flatten(2)
    close(module(x, mask), module.proj(mixed).numpy())


def test_the_mlp_uses_the_exact_gelu() -> None:
    module = Mlp(12, 20)
    state, x = randomised(module), random(3, 4, 12)
    close(module(x), mlp(state, x.numpy()))


def test_a_block_is_its_formula() -> None:
    module = Block(12, 3, 20, 1e-2)
    state, x = randomised(module), random(2, 5, 12)
    close(module(x, None), np.stack([block(state, sample, 3) for sample in x.numpy()]))


def test_patches_are_embedded_as_the_convolution_does() -> None:
    model, _ = make()
    images = random(2, 3, 12, 20)
    expected = torch.nn.functional.conv2d(
        images, model.patch_embed.proj.weight, model.patch_embed.proj.bias, stride=(4, 5)
    )
    cells = images.reshape(2, 3, 3, 4, 4, 5).permute(0, 2, 4, 3, 5, 1).reshape(2, COUNT, 60)  # (y, x, c) inside
    close(model.patch_embed(cells), expected.flatten(2).transpose(1, 2).numpy())


@pytest.mark.parametrize("ids", [None, [[5, 0, 11], [2, 3, 1]]])
def test_encoding_is_its_formula(ids: list[list[int]] | None) -> None:
    model, state = make()
    kept = np.tile(np.arange(COUNT), (2, 1)) if ids is None else np.array(ids)
    patches = random(2, kept.shape[1], 60)
    found = model.encode(patches, None if ids is None else torch.tensor(ids))
    expected = [encoded(state, sample, row) for sample, row in zip(patches.numpy(), kept, strict=True)]
    for index in range(SPEC.depth):
        close(found.layers[index], np.stack([layers[index] for layers in expected]))
    assert torch.equal(found.tokens, found.layers[SPEC.depth - 1])
    close(model.finish(found.tokens), np.stack([layer_norm(state, "norm", layers[-1]) for layers in expected]))


def test_the_order_of_patches_is_the_order_of_tokens() -> None:
    """Attention knows no order: permuted patches with their indices give the same tokens, permuted."""
    model, _ = make()
    patches, order = random(2, COUNT, 60), torch.randperm(COUNT, generator=torch.Generator().manual_seed(2))
    straight = model.encode(patches).tokens
    permuted = model.encode(patches[:, order], order.expand(2, -1)).tokens
    close(permuted[:, 0], straight[:, 0].numpy())
    close(permuted[:, 1:], straight[:, 1:][:, order].numpy())
    wrong = model.encode(patches[:, order]).tokens  # without indices the positions are wrong
    assert float((wrong[:, 0] - straight[:, 0]).abs().max()) > 1e-3


def test_padding_changes_nothing() -> None:
    model, _ = make()
    patches, ids = random(2, 4, 60), torch.tensor([[5, 0, 7, 7], [2, 9, 1, 3]])
    _, mask = padding_mask(torch.tensor([2, 4], dtype=torch.int32), 4, 1, dtype=torch.float64)
    found = model.encode(patches, ids, mask=mask).tokens
    close(found[:1, :3], model.encode(patches[:1, :2], ids[:1, :2]).tokens.numpy())
    close(found[1:], model.encode(patches[1:], ids[1:]).tokens.numpy())


def test_attention_is_looked_at_where_asked() -> None:
    model, _ = make()
    patches = random(1, COUNT, 60)
    found = model.encode(patches, attentions=frozenset({1}))
    assert list(found.attentions) == [1]
    second = model.blocks[1]
    close(found.attentions[1], second.attn.weights(second.norm1(found.layers[0]), None).numpy())
    assert torch.equal(found.tokens, model.encode(patches).tokens)


@pytest.mark.parametrize("pooled", ["class_token", "mean_patch"])
@pytest.mark.parametrize("norm", ["tokens", "pooled"])
def test_pooling_follows_the_spec(pooled: str, norm: str) -> None:
    model, state = make(dataclasses.replace(SPEC, norm=norm, pooled=pooled))
    tokens, mean = random(2, 5, 12), random(2, 12, seed=3)
    finished = model.finish(tokens)
    close(finished, layer_norm(state, "norm", tokens.numpy()) if norm == "tokens" else tokens.numpy())
    feature = (finished[:, 0] if pooled == "class_token" else mean).numpy()
    close(model.pool(finished, mean), feature if norm == "tokens" else layer_norm(state, "fc_norm", feature))
    assert {"norm.weight", "fc_norm.weight"} & set(state) == {"norm.weight" if norm == "tokens" else "fc_norm.weight"}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_the_padding_mask_in_numbers(dtype: torch.dtype) -> None:
    valid, logits = padding_mask(torch.tensor([3, 1, 0], dtype=torch.int32), 3, 2, dtype=dtype)
    assert valid.tolist() == [[True, True, True], [True, False, False], [False, False, False]]
    off = MASKED_LOGIT
    rows = [[0, 0, 0, 0, 0], [0, 0, 0, off, off], [0, 0, off, off, off]]
    assert (logits.shape, logits.dtype) == ((3, 1, 1, 5), dtype)
    assert torch.equal(logits[:, 0, 0], torch.tensor(rows, dtype=dtype))
    assert float(torch.tensor([0.0, off], dtype=dtype).softmax(0)[1]) == 0.0


def test_a_row_without_any_valid_key_stays_finite() -> None:
    module = Attention(12, 3)
    randomised(module)
    _, mask = padding_mask(torch.tensor([0]), 4, 0, dtype=torch.float64)
    assert module(random(1, 4, 12), mask).isfinite().all()


@pytest.mark.parametrize("padded", [False, True])
def test_tokens_are_restored_as_a_scatter_would(padded: bool) -> None:
    model, state = make()
    decoder = model.decoder
    assert decoder is not None
    patches, ids = random(2, 4, 8), np.array([[5, 0, 11, 5], [2, 3, 1, 0]])
    kept = [3, 2] if padded else [4, 4]
    ids[0, 3] = 5 if padded else 6  # padding may repeat a patch that is there
    expected = np.tile(state["decoder.mask_token"][0], (2, COUNT, 1))
    for sample in range(2):
        expected[sample, ids[sample, : kept[sample]]] = patches[sample, : kept[sample]]
    valid = torch.arange(4) < torch.tensor(kept)[:, None] if padded else None
    close(decoder.restore(patches, torch.from_numpy(ids), valid), expected, limit=1e-15)


@pytest.mark.parametrize("ids", [[[5, 0, 11], [2, 3, 1]], None])
def test_decoding_is_its_formula(ids: list[list[int]] | None) -> None:
    model, state = make()
    assert model.decoder is not None
    kept = np.tile(np.arange(COUNT), (2, 1)) if ids is None else np.array(ids)
    tokens = random(2, 1 + kept.shape[1], 12)
    expected = [decoded(part(state, "decoder."), sample, row) for sample, row in zip(tokens.numpy(), kept, strict=True)]
    found = model.decoder(tokens, None if ids is None else torch.tensor(ids))
    close(found, np.stack(expected))
    assert found.shape == (2, COUNT, 60)


def test_an_encoder_without_decoder_has_none() -> None:
    spec = dataclasses.replace(SPEC, decoder=None)
    assert ViT(spec).decoder is None
    with pytest.raises(InputError, match=r"^this encoder has no decoder: its checkpoint holds none$"):
        Decoder(spec)


def test_resizing_resamples_the_tables_and_shares_the_rest() -> None:
    model, state = make()
    other = model.resized((16, 15))
    assert other.spec == SPEC.resized((16, 15))
    found = other.state_dict()
    for name, value in state.items():
        if name.endswith("pos_embed"):
            assert torch.equal(found[name], resample_table(torch.from_numpy(value), (3, 4), (4, 3)))
        else:
            assert found[name].data_ptr() == model.state_dict()[name].data_ptr(), name
    assert other.encode(random(1, 12, 60)).tokens.shape == (1, 13, 12)
    assert torch.equal(model.pos_embed, torch.from_numpy(state["pos_embed"]))  # the first encoder is as it was


def test_resizing_to_the_same_size_is_the_same_encoder() -> None:
    model, _ = make()
    assert model.resized((12, 20)) is model
    with pytest.raises(InputError, match="image height 13 is not a multiple of the patch's 4; choose 12 or 16"):
        model.resized((13, 20))


def test_an_encoder_is_built_around_tensors_without_copying_them() -> None:
    state = {name: torch.from_numpy(value) for name, value in make()[1].items()}
    model = ViT.from_state(SPEC, dict(state))
    assert not model.training
    for name, value in model.state_dict().items():
        assert value.data_ptr() == state[name].data_ptr(), name
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_other_names_or_shapes_are_refused() -> None:
    state = {name: torch.from_numpy(value) for name, value in make()[1].items()}
    with pytest.raises(RuntimeError, match=r"Missing key.*cls_token"):
        ViT.from_state(SPEC, {name: value for name, value in state.items() if name != "cls_token"})
    with pytest.raises(RuntimeError, match="size mismatch for cls_token"):
        ViT.from_state(SPEC, state | {"cls_token": torch.zeros(1, 1, 13)})
