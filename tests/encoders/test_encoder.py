"""What every encoder shares: embedding, hiding, pooling, padding, resizing, and loading without copies."""

import dataclasses

import numpy as np
import pytest
import torch

from mae_export.encoders.block import MASKED_LOGIT
from mae_export.encoders.encoder import Encoder, padding_mask
from mae_export.encoders.positions import resample_table
from mae_export.encoders.vit import ViT
from mae_export.errors import InputError
from mae_export.spec import StoredTable
from tests.encoders.formulas import COUNT, SPEC, close, layer_norm, make, random


def test_patches_are_embedded_as_the_convolution_does() -> None:
    model, _ = make()
    images = random(2, 3, 12, 20)
    expected = torch.nn.functional.conv2d(
        images, model.patch_embed.proj.weight, model.patch_embed.proj.bias, stride=(4, 5)
    )
    cells = images.reshape(2, 3, 3, 4, 4, 5).permute(0, 2, 4, 3, 5, 1).reshape(2, COUNT, 60)  # (y, x, c) inside
    close(model.patch_embed(cells), expected.flatten(2).transpose(1, 2).numpy())


def test_attention_is_looked_at_where_asked() -> None:
    model, _ = make()
    patches = random(1, COUNT, 60)
    found = model.encode(patches, attentions=frozenset({1}))
    assert list(found.attentions) == [1]
    second = model.blocks[1]
    close(found.attentions[1], second.attn.weights(second.norm1(found.layers[0]), None).numpy())
    assert torch.equal(found.tokens, model.encode(patches).tokens)


def patch_mean(tokens: torch.Tensor) -> torch.Tensor:
    return tokens[:, 1:].mean(dim=1)


@pytest.mark.parametrize(
    ("pooled", "norm"),
    [
        *((pooled, norm) for pooled in ("class_token", "mean_patch") for norm in ("tokens", "pooled", "none")),
        ("norm_of_mean", "tokens"),
        ("fresh_norm_of_mean", "tokens"),
        ("fresh_norm_of_mean", "none"),
    ],
)
def test_pooling_follows_the_spec(pooled: str, norm: str) -> None:
    model, state = make(dataclasses.replace(SPEC, norm=norm, pooled=pooled))
    tokens = random(2, 5, 12)
    finished = layer_norm(state, "norm", tokens.numpy()) if norm == "tokens" else tokens.numpy()
    close(model.finish(tokens), finished)
    raw_mean = tokens.numpy()[:, 1:].mean(axis=1)
    fresh = {"fresh.weight": np.ones(12), "fresh.bias": np.zeros(12)}
    features = {
        "class_token": lambda: finished[:, 0],
        "mean_patch": lambda: finished[:, 1:].mean(axis=1),
        "norm_of_mean": lambda: layer_norm(state, "norm", raw_mean),
        "fresh_norm_of_mean": lambda: layer_norm(fresh, "fresh", raw_mean),
    }
    feature = features[pooled]()
    feature = layer_norm(state, "fc_norm", feature) if norm == "pooled" else feature
    close(model.pool(tokens, model.finish(tokens), patch_mean), feature)
    kept = {"tokens": {"norm.weight"}, "pooled": {"fc_norm.weight"}, "none": set()}[norm]
    assert {"norm.weight", "fc_norm.weight"} & set(state) == kept


@pytest.mark.parametrize(("class_token", "mask_token"), [(True, True), (True, False), (False, True), (False, False)])
def test_learned_tokens_exist_where_the_spec_says(class_token: bool, mask_token: bool) -> None:
    names = set(ViT(dataclasses.replace(SPEC, class_token=class_token, mask_token=mask_token)).state_dict())
    assert ("cls_token" in names, "mask_token" in names) == (class_token, mask_token)


def test_tables_are_resampled_in_the_mode_of_the_spec() -> None:
    position = StoredTable(grid=(3, 4), resample="bilinear")
    model, state = make(dataclasses.replace(SPEC, position=position))
    table = torch.from_numpy(state["pos_embed"])
    found = model.resized((16, 15)).state_dict()["pos_embed"]
    assert torch.equal(found, resample_table(table, (3, 4), (4, 3), mode="bilinear"))
    assert not torch.equal(found, resample_table(table, (3, 4), (4, 3)))


def test_an_architecture_says_nothing_about_places_unless_it_knows_some() -> None:
    model, _ = make()
    assert isinstance(model, Encoder)
    assert list(model.guides(None)) == [None] * SPEC.depth


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_the_padding_mask_in_numbers(dtype: torch.dtype) -> None:
    valid, logits = padding_mask(torch.tensor([3, 1, 0], dtype=torch.int32), 3, 2, dtype=dtype)
    assert valid.tolist() == [[True, True, True], [True, False, False], [False, False, False]]
    off = MASKED_LOGIT
    rows = [[0, 0, 0, 0, 0], [0, 0, 0, off, off], [0, 0, off, off, off]]
    assert (logits.shape, logits.dtype) == ((3, 1, 1, 5), dtype)
    assert torch.equal(logits[:, 0, 0], torch.tensor(rows, dtype=dtype))
    assert float(torch.tensor([0.0, off], dtype=dtype).softmax(0)[1]) == 0.0


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
