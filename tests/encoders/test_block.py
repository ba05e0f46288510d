"""The pre-norm block against its formulas, written out in NumPy and float64."""

import numpy as np
import pytest
import torch

from mae_export.encoders.block import MASKED_LOGIT, Attention, Block, Mlp
from mae_export.encoders.encoder import padding_mask
from tests.encoders.formulas import attention, block, close, layer_norm, mlp, part, random, randomised


@pytest.mark.parametrize("heads", [1, 3, 12])
def test_attention_is_its_formula(heads: int) -> None:
    module = Attention(12, heads)
    state, x = randomised(module), random(2, 5, 12)
    expected = np.stack([attention(state, sample, heads) for sample in x.numpy()])
    close(module(x, None), expected)


def test_heads_that_leave_a_rest_are_narrower_together() -> None:
    module = Attention(11, 3)
    state, x = randomised(module), random(2, 5, 11)
    assert (state["qkv.weight"].shape, state["proj.weight"].shape) == ((27, 11), (11, 9))
    close(module(x, None), np.stack([attention(state, sample, 3) for sample in x.numpy()]))


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


def test_a_row_without_any_valid_key_stays_finite() -> None:
    module = Attention(12, 3)
    randomised(module)
    _, mask = padding_mask(torch.tensor([0]), 4, 0, dtype=torch.float64)
    assert module(random(1, 4, 12), mask).isfinite().all()


def test_attention_of_a_block_is_that_of_its_normed_input() -> None:
    module = Block(12, 3, 20, 1e-2)
    state, x = randomised(module), random(2, 5, 12)
    normed = torch.from_numpy(layer_norm(state, "norm1", x.numpy()))
    close(module.attention(x, None), module.attn.weights(normed, None).numpy())
    assert float((module.attention(x, None) - module.attn.weights(x, None)).abs().max()) > 1e-2
    assert part(state, "attn.").keys() == {"qkv.weight", "qkv.bias", "proj.weight", "proj.bias"}
