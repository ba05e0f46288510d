"""Which module a spec asks for."""

import dataclasses

import pytest

from mae_export.decoder_spec import (
    AlignedRegresserSpec,
    ConvDecoderSpec,
    DecoderSpec,
    HeadSpec,
    PredictorSpec,
    RegresserSpec,
)
from mae_export.encoders.convolutions import ConvDecoder
from mae_export.encoders.decoder import Decoder, Head
from mae_export.encoders.predicting import decoder_of
from mae_export.encoders.predictor import Predictor
from mae_export.encoders.regresser import AlignedRegresser, Regresser
from mae_export.encoders.vit import ViT
from tests.encoders.formulas import COUNT, SPEC, random, randomised

SIZES = {"dim": 8, "depth": 1, "heads": 2, "mlp_hidden": 14}
KINDS = [
    (DecoderSpec(**SIZES, values=7), Decoder),
    (HeadSpec(target="unknown", values=7), Head),
    (PredictorSpec(**SIZES, values=7), Predictor),
    (RegresserSpec(**SIZES, decoder_depth=1, values=7), Regresser),
    (AlignedRegresserSpec(**SIZES, values=7), AlignedRegresser),
    (ConvDecoderSpec(dim=8, depth=1, kernel=3, groups=2, values=7), ConvDecoder),
]


@pytest.mark.parametrize(("decoder", "module"), KINDS, ids=lambda kind: getattr(kind, "kind", ""))
def test_the_spec_says_what_predicts_and_all_are_called_alike(decoder, module) -> None:
    without_prefix = dataclasses.replace(SPEC, class_token=not isinstance(decoder, PredictorSpec), decoder=decoder)
    made = decoder_of(without_prefix, decoder)
    assert type(made) is module
    assert type(ViT(without_prefix).decoder) is module
    randomised(made)
    assert made(random(2, without_prefix.prefix_tokens + COUNT, 12), None).shape == (2, COUNT, 7)


def test_an_encoder_may_predict_nothing() -> None:
    assert ViT(dataclasses.replace(SPEC, decoder=None)).decoder is None


def test_kinds_are_told_apart_as_plain_data() -> None:
    assert len({dataclasses.asdict(decoder)["kind"] for decoder, _ in KINDS}) == len(KINDS)
