import math

import pytest
import torch
from torch import nn

from mae_export.encoders.positions import sincos_table
from mae_export.errors import InputError
from mae_export.spec import EncoderSpec
from mae_export.training.initialise import initialise


def test_every_weight_has_its_distribution(spec: EncoderSpec) -> None:
    model = initialise(spec, seed=0)
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            bound = math.sqrt(6 / sum(module.weight.shape))  # Glorot and Bengio 2010
            assert 0.98 * bound < module.weight.abs().max() <= bound, name
            assert module.weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.05), name
            assert not module.bias.any(), name
        elif isinstance(module, nn.LayerNorm):
            assert (module.weight == 1).all(), name
            assert not module.bias.any(), name
    bound = math.sqrt(6 / (spec.dim + spec.patch_values))
    assert 0.98 * bound < model.patch_embed.proj.weight.abs().max() <= bound
    assert model.cls_token.std().item() == pytest.approx(0.02, rel=0.3)
    assert model.decoder is not None
    assert model.decoder.mask_token.std().item() == pytest.approx(0.02, rel=0.4)


def test_positions_are_fixed_sin_cos(spec: EncoderSpec) -> None:
    model = initialise(spec, seed=0)
    assert model.decoder is not None
    for table, width in ((model.pos_embed, 64), (model.decoder.pos_embed, 32)):
        assert not table.requires_grad
        torch.testing.assert_close(table.detach(), sincos_table(width, (4, 4), prefix_rows=1))
    fixed = [name for name, parameter in model.named_parameters() if not parameter.requires_grad]
    assert fixed == ["pos_embed", "decoder.pos_embed"]


def test_seeds(spec: EncoderSpec) -> None:
    before = torch.get_rng_state()
    first, second, other = (initialise(spec, seed=seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["blocks.0.attn.qkv.weight"], other["blocks.0.attn.qkv.weight"])
    assert torch.equal(torch.get_rng_state(), before)


def test_a_width_without_sin_cos_table(spec: EncoderSpec) -> None:
    with pytest.raises(InputError, match="divisible by 4, found 66"):
        initialise(type(spec)(**{**vars(spec), "dim": 66}), seed=0)
