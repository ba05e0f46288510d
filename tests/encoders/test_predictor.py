"""I-JEPA's predictor against its formula in float64, with the hidden patches gathered as the authors gather them."""

import dataclasses

import pytest
import torch

from mae_export.decoder_spec import PredictorSpec
from mae_export.encoders.predictor import Predictor
from tests.encoders import formulas
from tests.encoders.formulas import COUNT, random, randomised
from tests.encoders.predictions import complement, predicted

SPEC = dataclasses.replace(formulas.SPEC, class_token=False)
KEEP = torch.tensor([[5, 0, 11, 7], [2, 3, 1, 10]])
LIMIT = 1e-8


def make(heads: int = 2) -> Predictor:
    module = Predictor(SPEC, PredictorSpec(dim=8, depth=3, heads=heads, mlp_hidden=14, values=9))
    randomised(module)
    return module


def expected(module: Predictor, tokens: torch.Tensor, lengths=(4, 4)) -> torch.Tensor:
    """The whole output of two samples of which the first `lengths` patches are real."""
    rows = torch.zeros(2, COUNT, 9, dtype=torch.float64)
    for sample, length in enumerate(lengths):
        keep = KEEP[sample, :length]
        hidden = complement(keep, COUNT)
        rows[sample, hidden] = predicted(module.state_dict(), tokens[sample, :length], keep, hidden, 2, SPEC.eps)
    return rows


def test_all_hidden_patches_are_predicted_and_visible_ones_are_zero() -> None:
    module, tokens = make(), random(2, 4, 12)
    found = module(tokens, KEEP)
    assert float((found - expected(module, tokens)).abs().max()) < LIMIT
    for sample in range(2):
        assert not found[sample, KEEP[sample]].any()


def test_padding_leaves_no_trace() -> None:
    module, tokens = make(), random(2, 4, 12)
    valid = torch.arange(4) < torch.tensor([3, 1])[:, None]
    right = expected(module, tokens, lengths=(3, 1))
    for noise in (0.0, 1e6):
        padded = torch.where(valid.unsqueeze(-1), tokens, noise)
        assert float((module(padded, KEEP, valid) - right).abs().max()) < LIMIT
    assert float((module(tokens, KEEP) - right).abs().max()) > 1e-2  # padding taken for patches


def test_where_nothing_is_hidden_nothing_is_predicted() -> None:
    module, tokens = make(), random(2, COUNT, 12)
    for ids in (torch.arange(COUNT).expand(2, -1), None):
        found = module(tokens, ids)
        assert found.shape == (2, COUNT, 9)
        assert not found.any()


def test_the_order_of_visible_patches_does_not_matter_as_long_as_ids_say_it() -> None:
    module, tokens = make(), random(2, 4, 12)
    right = expected(module, tokens)
    assert float((module(tokens.flip(1), KEEP.flip(1)) - right).abs().max()) < LIMIT
    assert float((module(tokens.flip(1), KEEP) - right).abs().max()) > 1e-2


@pytest.mark.parametrize("fault", ["heads", "eps", "position of queries", "fewer asked"])
def test_each_fault_shows(fault: str) -> None:
    module, tokens = make(), random(2, 4, 12)
    right = expected(module, tokens)
    if fault == "heads":
        wrong = make(heads=4)(tokens, KEEP)
    elif fault == "eps":
        module.norm.eps *= 10
        wrong = module(tokens, KEEP)
    elif fault == "position of queries":
        module.pos_embed[0, 4, 0] += 1  # all channels alike would be taken away by the norms
        wrong = module(tokens, KEEP)
    else:  # queries see each other: what is asked for beside a patch matters
        hidden = complement(KEEP[0], COUNT)
        wrong = right.clone()
        wrong[0, hidden[:3]] = predicted(module.state_dict(), tokens[0], KEEP[0], hidden[:3], 2, SPEC.eps)
    assert float((wrong - right).abs().max()) > 1e-3
