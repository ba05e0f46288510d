"""Which module predicts what a spec says."""

from __future__ import annotations

from mae_export.decoder_spec import (
    AlignedRegresserSpec,
    DecoderSpec,
    HeadSpec,
    PredictorSpec,
    RegresserSpec,
    TargetSpec,
)
from mae_export.encoders.convolutions import ConvDecoder
from mae_export.encoders.decoder import Decoder, Head, TargetDecoder
from mae_export.encoders.predictor import Predictor
from mae_export.encoders.regresser import AlignedRegresser, Regresser
from mae_export.spec import EncoderSpec


def decoder_of(spec: EncoderSpec, decoder: TargetSpec) -> TargetDecoder:
    """A module without trained weights, on the tokens of such an encoder."""
    if isinstance(decoder, DecoderSpec):
        return Decoder(spec, decoder)
    if isinstance(decoder, HeadSpec):
        return Head(spec, decoder)
    if isinstance(decoder, PredictorSpec):
        return Predictor(spec, decoder)
    if isinstance(decoder, RegresserSpec):
        return Regresser(spec, decoder)
    if isinstance(decoder, AlignedRegresserSpec):
        return AlignedRegresser(spec, decoder)
    return ConvDecoder(spec, decoder)
