"""Specs of what predicts: what they refuse, and how they are told apart."""

import pytest

from mae_export.decoder_spec import (
    AlignedRegresserSpec,
    ConvDecoderSpec,
    DecoderSpec,
    HeadSpec,
    PredictorSpec,
    RegresserSpec,
)
from mae_export.errors import InputError


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        (DecoderSpec, {"depth": 0}, "decoder dim, depth, heads and mlp_hidden must be at least 1"),
        (DecoderSpec, {"heads": 5}, "decoder width 12 is not divisible by 5 heads; pass --set decoder_heads=N"),
        (DecoderSpec, {"values": 0}, "a decoder must predict at least one value per patch"),
        (PredictorSpec, {"depth": 0}, "predictor dim, depth, heads, mlp_hidden and values must be at least 1"),
        (PredictorSpec, {"heads": 5}, "predictor width 12 is not divisible by 5 heads; pass --set decoder_heads=N"),
        (RegresserSpec, {"decoder_depth": 0}, "regresser dim, depths, heads, mlp_hidden and values must be at least 1"),
        (RegresserSpec, {"heads": 13}, "a regresser of width 12 cannot have 13 heads; pass --set decoder_heads=N"),
        (AlignedRegresserSpec, {"values": 0}, "regresser dim, depths, heads, mlp_hidden and values must be at least 1"),
        (ConvDecoderSpec, {"kernel": 0}, "decoder dim, depth, kernel, groups and values must be at least 1"),
        (ConvDecoderSpec, {"groups": 5}, "12 channels cannot be split into 5 groups"),
    ],
)
def test_decoders_that_cannot_be(kind: type, change: dict[str, int], message: str) -> None:
    sizes = {"dim": 12, "depth": 1, "values": 4}
    sizes |= {"kernel": 3, "groups": 2} if kind is ConvDecoderSpec else {"heads": 3, "mlp_hidden": 8}
    sizes |= {"decoder_depth": 1} if kind is RegresserSpec else {}
    kind(**sizes)
    with pytest.raises(InputError) as caught:
        kind(**sizes | change)
    assert str(caught.value) == message


def test_heads_of_a_regresser_may_leave_a_rest() -> None:
    assert RegresserSpec(dim=1024, depth=4, decoder_depth=4, heads=12, mlp_hidden=4096, values=8192).heads == 12


def test_a_head_predicts_something() -> None:
    with pytest.raises(InputError, match="a head must predict at least one value per patch"):
        HeadSpec(target="unknown", values=0)


def test_hidden_patches_may_must_or_cannot_be() -> None:
    """What a graph's mask modes depend on; it is no field, so no file can say otherwise."""
    kinds = (DecoderSpec, HeadSpec, PredictorSpec, RegresserSpec, AlignedRegresserSpec, ConvDecoderSpec)
    assert [kind.hiding for kind in kinds] == [
        "allowed",
        "impossible",
        "required",
        "required",
        "allowed",
        "allowed",
    ]
