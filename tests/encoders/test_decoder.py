"""What predicts the training target: MAE's decoder and the linear head, against NumPy."""

import dataclasses

import numpy as np
import pytest
import torch

from mae_export.decoder_spec import DecoderSpec, HeadSpec
from mae_export.encoders.decoder import Decoder, Head
from tests.encoders.formulas import COUNT, SPEC, close, decoded, linear, make, part, random, randomised


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


def test_what_is_predicted_may_be_as_wide_as_a_teacher() -> None:
    features = DecoderSpec(dim=8, depth=2, heads=2, mlp_hidden=14, target="teacher-features", values=7)
    module = Decoder(dataclasses.replace(SPEC, decoder=features), features)
    randomised(module)
    assert module(random(2, 1 + COUNT, 12), None).shape == (2, COUNT, 7)


def test_a_decoder_without_class_token_has_no_row_for_it() -> None:
    decoder = SPEC.decoder
    assert isinstance(decoder, DecoderSpec)
    module = Decoder(dataclasses.replace(SPEC, class_token=False), decoder)
    state, tokens = randomised(module), random(2, COUNT, 12)
    assert state["pos_embed"].shape == (1, COUNT, 8)
    order = torch.arange(COUNT).expand(2, -1)
    close(module(tokens, order), module(tokens, None).numpy())
    assert module(tokens, None).shape == (2, COUNT, 60)


@pytest.mark.parametrize("bias", [True, False])
def test_a_head_is_one_linear_layer(bias: bool) -> None:
    module = Head(SPEC, HeadSpec(target="token-logits", values=9, bias=bias))
    state, tokens = randomised(module), random(2, 5, 12)
    if not bias:
        state |= {"pred.bias": np.zeros(9)}
    close(module(tokens, None), linear(state, "pred", tokens[:, 1:].numpy()))
