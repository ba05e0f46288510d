"""data2vec 2.0's decoder against its formula in float64, summed over the kernel place by place."""

import pytest
import torch

import mae_export.encoders.convolutions as convolutions_module
from mae_export.decoder_spec import ConvDecoderSpec
from mae_export.encoders.convolutions import NORM_EPS, ConvDecoder
from tests.encoders.formulas import COUNT, SPEC, random, randomised
from tests.encoders.predictions import convolved

KEEP = torch.tensor([[5, 0, 11, 7], [2, 3, 1, 10]])
LIMIT = 1e-8
# Channels, convolutions, kernel, groups: narrower than the encoder (no first addition), as wide, an even kernel.
SHAPES = {"narrower": (8, 3, 3, 4), "as wide": (12, 2, 5, 3), "even kernel": (12, 2, 4, 2), "one of each": (4, 1, 1, 1)}


def make(shape: str = "narrower") -> ConvDecoder:
    dim, depth, kernel, groups = SHAPES[shape]
    module = ConvDecoder(SPEC, ConvDecoderSpec(dim=dim, depth=depth, kernel=kernel, groups=groups, values=9))
    randomised(module)
    return module


def expected(module: ConvDecoder, tokens: torch.Tensor, lengths=(4, 4), fill=None) -> torch.Tensor:
    maps = torch.zeros(2, COUNT, 12, dtype=torch.float64) if fill is None else fill.clone()
    for sample, length in enumerate(lengths):
        maps[sample, KEEP[sample, :length]] = tokens[sample, 1 : 1 + length]
    groups = module.blocks[0].groups
    return torch.stack([convolved(module.state_dict(), x.T.reshape(12, 3, 4), groups) for x in maps])


@pytest.mark.parametrize("filled", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_prediction_is_its_formula(shape: str, filled: bool) -> None:
    module, tokens = make(shape), random(2, 5, 12)
    fill = random(2, COUNT, 12, seed=3) if filled else None
    found = module(tokens, KEEP, fill=fill)
    assert found.shape == (2, COUNT, 9)
    assert float((found - expected(module, tokens, fill=fill)).abs().max()) < LIMIT


def test_padding_leaves_no_trace() -> None:
    module, tokens = make(), random(2, 5, 12)
    valid = torch.arange(4) < torch.tensor([3, 1])[:, None]
    right = expected(module, tokens, lengths=(3, 1))
    padded = torch.cat([tokens[:, :1], torch.where(valid.unsqueeze(-1), tokens[:, 1:], 1e6)], dim=1)
    assert float((module(padded, KEEP, valid) - right).abs().max()) < LIMIT
    assert float((module(tokens, KEEP) - right).abs().max()) > 1e-2


def test_a_full_image_needs_no_indices() -> None:
    module, tokens = make(), random(2, 1 + COUNT, 12)
    order = torch.randperm(COUNT, generator=torch.Generator().manual_seed(0)).expand(2, -1)
    shuffled = torch.cat([tokens[:, :1], tokens[:, 1:][:, order[0]]], dim=1)
    assert torch.equal(module(tokens, None), module(shuffled, order))


@pytest.mark.parametrize("fault", ["class token kept", "columns first", "order", "groups", "addition"])
def test_each_fault_shows(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module, tokens, ids = make("as wide"), random(2, 5, 12), KEEP
    right = expected(module, tokens)
    if fault == "class token kept":
        tokens, module.prefix = tokens[:, :4], 0
    elif fault == "columns first":
        module.grid = module.grid[::-1]
    elif fault == "order":
        ids = KEEP.flip(1)
    elif fault == "groups":
        module.blocks[0].weight[:4] = module.blocks[0].weight[:4].flip(1)
    else:
        module.blocks[1].weight += 0.01
    assert float((module(tokens, ids) - right).abs().max()) > 1e-3


def test_the_norms_between_have_an_eps_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    assert SPEC.eps != NORM_EPS == 1e-5
    module, tokens = make(), random(2, 5, 12)
    monkeypatch.setattr(convolutions_module, "NORM_EPS", 1e-6)
    assert float((module(tokens, KEEP) - expected(module, tokens)).abs().max()) > 100 * LIMIT
