"""CAE's and CAE v2's regresser against their formulas in float64, with hidden patches gathered as the authors do."""

import pytest
import torch

import mae_export.encoders.regresser as regresser_module
from mae_export.decoder_spec import AlignedRegresserSpec, RegresserSpec
from mae_export.encoders.regresser import AlignedRegresser, CrossAttention, Regresser
from tests.encoders.formulas import COUNT, SPEC, random, randomised
from tests.encoders.predictions import aligned, complement, decoded, linear, mixed, narrowed, regressed

KEEP = torch.tensor([[5, 0, 11, 7], [2, 3, 1, 10]])
LIMIT = 1e-8
# Width and heads: as wide as the encoder, narrower, and one that its heads do not fill.
SHAPES = {"as wide": (12, 3), "narrower": (8, 2), "heads leave a rest": (11, 3)}


def cae(dim: int = 12, heads: int = 3) -> Regresser:
    wanted = RegresserSpec(dim=dim, depth=2, decoder_depth=2, heads=heads, mlp_hidden=14, values=9)
    module = Regresser(SPEC, wanted)
    randomised(module)
    return module


def cae_v2(dim: int = 8, heads: int = 2) -> AlignedRegresser:
    module = AlignedRegresser(SPEC, AlignedRegresserSpec(dim=dim, depth=2, heads=heads, mlp_hidden=14, values=9))
    randomised(module)
    return module


def expected(module, tokens: torch.Tensor, heads: int, lengths=(4, 4)) -> torch.Tensor:
    """The whole output of two samples [1 + K, D] of which the first `lengths` patches are real."""
    state, rows = module.state_dict(), torch.zeros(len(tokens), COUNT, 9, dtype=torch.float64)
    for sample, length in enumerate(lengths):
        keep = KEEP[sample, :length]
        hidden = complement(keep, COUNT)
        visible = narrowed(state, tokens[sample, 1 : 1 + length], SPEC.eps)
        latent = regressed(state, visible, keep, hidden, heads, SPEC.eps)
        if isinstance(module, Regresser):
            rows[sample, hidden] = decoded(state, latent, hidden, COUNT, heads, SPEC.eps)
        else:
            rows[sample, hidden] = aligned(state, latent, SPEC.eps)
            rows[sample, keep] = aligned(state, visible, SPEC.eps)
    return rows


@pytest.mark.parametrize("make", [cae, cae_v2])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_prediction_is_its_formula(make, shape: str) -> None:
    dim, heads = SHAPES[shape]
    module, tokens = make(dim, heads), random(2, 5, 12)
    found = module(tokens, KEEP)
    assert float((found - expected(module, tokens, heads)).abs().max()) < LIMIT
    visible = found.gather(1, KEEP.unsqueeze(-1).expand(-1, -1, 9))
    assert bool(visible.any()) is (make is cae_v2)


@pytest.mark.parametrize("make", [cae, cae_v2])
def test_padding_leaves_no_trace(make) -> None:
    module = make(8, 2)
    tokens, valid = random(2, 5, 12), torch.arange(4) < torch.tensor([3, 1])[:, None]
    right = expected(module, tokens, 2, lengths=(3, 1))
    for noise in (1e-3, 1e6):
        padded = torch.cat([tokens[:, :1], torch.where(valid.unsqueeze(-1), tokens[:, 1:], noise)], dim=1)
        assert float((module(padded, KEEP, valid) - right).abs().max()) < LIMIT
    assert float((module(tokens, KEEP) - right).abs().max()) > 1e-2  # padding taken for patches


@pytest.mark.parametrize("make", [cae, cae_v2])
@pytest.mark.parametrize("ids", [torch.arange(COUNT).expand(2, -1), None])
def test_all_patches_may_be_visible(make, ids) -> None:
    """CAE then predicts nothing, without a NaN from a decoder that has no key; CAE v2 predicts from each token."""
    module, tokens = make(8, 2), random(2, 1 + COUNT, 12)
    found = module(tokens, ids)
    assert found.shape == (2, COUNT, 9)
    if make is cae:
        assert not found.any()
    else:
        visible = narrowed(module.state_dict(), tokens[:, 1:], SPEC.eps)
        assert float((found - aligned(module.state_dict(), visible, SPEC.eps)).abs().max()) < LIMIT


def test_features_of_cae_v2_have_length_one() -> None:
    lengths = cae_v2()(random(2, 5, 12), KEEP).norm(dim=-1)
    assert float((lengths - 1).abs().max()) < 1e-12


def test_the_class_token_takes_no_part() -> None:
    module, tokens = cae(), random(2, 5, 12)
    other = torch.cat([tokens[:, :1] + 3, tokens[:, 1:]], dim=1)
    assert torch.equal(module(tokens, KEEP), module(other, KEEP))
    state, keep, hidden = module.state_dict(), KEEP[0], complement(KEEP[0], COUNT)
    right = regressed(state, tokens[0, 1:], keep, hidden, 3, SPEC.eps)
    # A class token among the keys, as it first seems: twelve patches and its own row of positions.
    table = {**state, "pos_embed": torch.cat([state["pos_embed"], state["pos_embed"][:, :1]], dim=1)[:, 1:]}
    wrong = regressed(table, tokens[0], torch.cat([torch.tensor([12]), keep]), hidden, 3, SPEC.eps)
    assert float((wrong - right).abs().max()) > 1e-3


@pytest.mark.parametrize("fault", ["keys not masked", "heads", "order", "eps", "norm off the residual", "scale"])
def test_each_fault_shows(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module, tokens, ids = cae(), random(2, 5, 12), KEEP
    right = expected(module, tokens, 3)
    if fault == "keys not masked":
        monkeypatch.setattr(regresser_module, "MASKED_LOGIT", 0.0)
    elif fault == "heads":
        module.regressor_blocks[0].cross_attn.heads = 2
    elif fault == "order":
        ids = KEEP.flip(1)
    elif fault == "eps":
        module.regressor_norm.eps *= 10
    elif fault == "norm off the residual":
        monkeypatch.setattr(type(module.regressor_blocks[0]), "forward", pre_norm)
    else:
        module.blocks[0].gamma_2 += 0.1
    assert float((module(tokens, ids) - right).abs().max()) > 1e-3


def pre_norm(self, x, context, positions):
    """The ordinary order of norms and additions."""
    mixed = self.cross_attn(self.norm1_q(x + positions), self.norm1_k(context + positions), self.norm1_v(context))
    x = x + self.gamma_1_cross * mixed
    return x + self.gamma_2_cross * self.mlp_cross(self.norm2_cross(x))


@pytest.mark.parametrize(("dim", "heads", "width"), [(12, 3, 12), (11, 3, 9)])
def test_cross_attention_is_its_formula(dim: int, heads: int, width: int) -> None:
    module = CrossAttention(dim, heads)
    randomised(module)
    state, (query, key, value) = module.state_dict(), (random(2, 4, dim, seed=seed) for seed in range(3))
    assert state["query.weight"].shape == (width, dim)
    assert "key.bias" not in state
    found = module(query, key[:, :3], value[:, :3])
    for sample in range(2):
        parts = [linear(state, name, x[sample]) for name, x in (("query", query), ("key", key), ("value", value))]
        right = linear(state, "proj", mixed(parts[0], parts[1][:3], parts[2][:3], heads))
        assert float((found[sample] - right).abs().max()) < 1e-12
