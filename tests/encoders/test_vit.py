"""The plain vision transformer against its formula, written out in NumPy and float64."""

import dataclasses

import numpy as np
import pytest
import torch

from mae_export.encoders.encoder import padding_mask
from mae_export.encoders.vit import ViT
from tests.encoders.formulas import COUNT, SPEC, block, close, encoded, layer_norm, make, part, random, randomised


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


def test_without_class_token_patches_are_all() -> None:
    model = ViT(dataclasses.replace(SPEC, class_token=False))
    state, patches, ids = randomised(model), random(1, 3, 60), np.array([5, 0, 11])
    assert "cls_token" not in state
    assert state["pos_embed"].shape == (1, COUNT, 12)
    weight = state["patch_embed.proj.weight"].transpose(2, 3, 1, 0).reshape(-1, 12)
    x = patches[0].numpy() @ weight + state["patch_embed.proj.bias"] + state["pos_embed"][0, ids]
    for index in range(SPEC.depth):
        x = block(part(state, f"blocks.{index}."), x, SPEC.heads)
    close(model.encode(patches, torch.from_numpy(ids)[None]).tokens, x[None])


def test_the_mask_token_replaces_embeddings_before_positions_are_added() -> None:
    model = ViT(dataclasses.replace(SPEC, mask_token=True))
    state, patches = randomised(model), random(2, COUNT, 60)
    hidden = torch.arange(COUNT).expand(2, -1) % 3 == 0
    embedded = model.patch_embed(patches)
    by_hand = torch.where(hidden[..., None], torch.from_numpy(state["mask_token"]), embedded)
    found = model.encode(patches, hidden=hidden).tokens
    close(found, model.encode_tokens(by_hand).tokens.numpy(), limit=1e-15)
    other = patches + hidden[..., None] * 9.0  # what is hidden has no influence
    close(model.encode(other, hidden=hidden).tokens, found.numpy(), limit=1e-15)
    assert float((model.encode(other).tokens - model.encode(patches).tokens).abs().max()) > 1e-2
