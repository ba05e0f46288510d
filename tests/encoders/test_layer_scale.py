"""Blocks with LayerScale against their formula, and against plain blocks whose weights carry the scales."""

import numpy as np
import pytest
import torch

from mae_export.encoders.block import LayerScaleBlock
from mae_export.encoders.layer_scale import LayerScaleViT
from mae_export.encoders.vit import ViT
from tests.encoders.formulas import COUNT, SPEC, attention, close, layer_norm, mlp, part, random, randomised


@pytest.mark.parametrize(("masked", "guided"), [(False, False), (True, False), (False, True), (True, True)])
def test_a_block_is_its_formula(masked: bool, guided: bool) -> None:
    module = LayerScaleBlock(12, 3, 20, SPEC.eps)
    state, x = randomised(module), random(2, 5, 12)
    mask = random(2, 1, 1, 5, seed=2) if masked else None
    guide = random(2, 3, 5, 5, seed=3) if guided else None
    biases = np.zeros((2, 3, 5, 5)) + (mask.numpy() if masked else 0) + (guide.numpy() if guided else 0)
    expected = []
    for sample, bias in zip(x.numpy(), biases, strict=True):
        mixed = attention(part(state, "attn."), layer_norm(state, "norm1", sample), 3, bias=bias)
        middle = sample + state["gamma_1"] * mixed
        expected.append(middle + state["gamma_2"] * mlp(part(state, "mlp."), layer_norm(state, "norm2", middle)))
    close(module(x, mask, guide), np.stack(expected))


def test_attention_of_a_block_is_what_mixes() -> None:
    module = LayerScaleBlock(12, 3, 20, SPEC.eps)
    randomised(module)
    x, guide = random(2, 5, 12), random(1, 3, 5, 5, seed=3)
    weights = module.attention(x, None, guide)
    close(weights, module.attn.weights(module.norm1(x), guide.expand(2, -1, -1, -1)).numpy())
    assert float((weights - module.attention(x, None)).abs().max()) > 1e-2


def test_scales_may_stand_in_the_weights_that_precede_them() -> None:
    scaled = LayerScaleViT(SPEC)
    randomised(scaled)
    state = scaled.state_dict()
    for index in range(SPEC.depth):
        for scale, layer in (("gamma_1", "attn.proj"), ("gamma_2", "mlp.fc2")):
            gamma = state.pop(f"blocks.{index}.{scale}")
            state[f"blocks.{index}.{layer}.weight"] = gamma[:, None] * state[f"blocks.{index}.{layer}.weight"]
            state[f"blocks.{index}.{layer}.bias"] = gamma * state[f"blocks.{index}.{layer}.bias"]
    plain = ViT.from_state(SPEC, state)
    patches, ids = random(2, 3, 60), torch.tensor([[5, 0, 11], [2, 3, 1]])
    close(scaled.encode(patches, ids).tokens, plain.encode(patches, ids).tokens.numpy())


def test_fresh_scales_change_nothing() -> None:
    scaled = LayerScaleViT(SPEC)
    plain = ViT(SPEC)
    plain.load_state_dict({name: value for name, value in scaled.state_dict().items() if "gamma" not in name})
    patches = random(1, COUNT, 60).float()
    torch.testing.assert_close(scaled.encode(patches).tokens, plain.encode(patches).tokens, rtol=0, atol=0)
