import math

import pytest
import torch

from mae_export.decoder_spec import DecoderSpec
from mae_export.spec import EncoderSpec, ImageSpec, StoredTable
from mae_export.training.initialise import initialise
from mae_export.training.optimise import learning_rate, parameter_groups, scaled_rate


@pytest.mark.parametrize(
    ("progress", "expected"),
    [(0.0, 0.0), (0.05, 0.5), (0.1, 1.0), (0.4, 0.75), (0.55, 0.5), (0.7, 0.25), (1.0, 0.0)],
)
def test_linear_then_half_a_cosine(progress: float, expected: float) -> None:
    assert math.isclose(learning_rate(progress, peak=1.0, warmup=0.1), expected, abs_tol=1e-12)


def test_without_warm_up_it_starts_at_the_peak() -> None:
    assert learning_rate(0.0, peak=3e-4, warmup=0.0) == 3e-4


def test_linear_scaling_rule() -> None:
    assert scaled_rate(1.5e-4, 4096) == pytest.approx(2.4e-3)  # MAE's published pre-training


def test_what_decays() -> None:
    spec = EncoderSpec(
        family="mae",
        image=ImageSpec(size=(8, 8)),
        patch=(1, 4, 4),
        dim=64,
        depth=1,
        heads=1,
        mlp_hidden=64,
        eps=1e-6,
        position=StoredTable(grid=(2, 2)),
        decoder=DecoderSpec(dim=16, depth=1, heads=16, mlp_hidden=16),
    )
    model = initialise(spec, seed=0)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    decaying, free = (
        {names[id(parameter)] for parameter in group["params"]} for group in parameter_groups(model, 0.05)
    )
    positions = {"pos_embed", "decoder.pos_embed"}
    expected_free = {name for name in names.values() if name.endswith("bias") or "norm" in name}
    assert free == expected_free
    assert decaying == set(names.values()) - expected_free - positions
    assert {"cls_token", "decoder.mask_token", "patch_embed.proj.weight", "blocks.0.mlp.fc1.weight"} < decaying


def test_group_options() -> None:
    decaying, free = parameter_groups(torch.nn.Linear(2, 3), 0.05)
    assert (decaying["weight_decay"], free["weight_decay"]) == (0.05, 0.0)
