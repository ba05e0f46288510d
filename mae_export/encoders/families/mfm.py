"""MFM, masked frequency modelling (Xie et al., ICLR 2023), as Jiahao000/MFM publishes its ViT.

Training hides frequencies of the image rather than patches, so that the encoder always sees all tokens; leaving some
out works because nothing in it depends on their number. The authors' ResNet-50 is another architecture.
"""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from mae_export.decoder_spec import HeadSpec
from mae_export.encoders.families.describing import described, normed_mean
from mae_export.encoders.families.family import Facts, Family, Layout, Variant
from mae_export.encoders.families.naming import CLASSIFIER
from mae_export.encoders.families.sizing import vit_spec
from mae_export.errors import CheckpointError
from mae_export.spec import EncoderSpec


def spec(facts: Facts) -> tuple[EncoderSpec, tuple[str, ...]]:
    """Derive the spec from shapes, metadata and overrides.

    Raises:
        CheckpointError: when a fact cannot be told and was not given.
        InputError: when facts contradict each other.
    """
    base, notes = vit_spec(facts, "mfm")
    pooled = base.pooled if base.norm == "pooled" else "fresh_norm_of_mean"
    head = None
    if "decoder.pred.weight" in facts.shapes:
        head = HeadSpec(target="image-normalised", values=facts.shape("decoder.pred.weight", 2)[0])
    return replace(base, pooled=pooled, decoder=head), notes


def outputs(spec: EncoderSpec) -> dict[str, str]:
    """What each output holds, with its source."""
    return described(
        spec,
        pooled=normed_mean(spec, "USE_MEAN_POOLING of the fine-tuning configuration"),
        predicted="every patch in raster order, values in (y, x, c) order; trained on images with frequencies removed",
    )


def order_pixels(tensors: dict[str, Tensor]) -> None:
    """Turn the decoder's 1x1 convolution, whose outputs a pixel shuffle spreads, into a layer of (y, x, c) order.

    Args:
        tensors: by the encoder's names; changed in place.

    Raises:
        CheckpointError: when the convolution does not predict the pixels of one patch.
    """
    embedding = tensors.get("patch_embed.proj.weight")
    for name in ("decoder.pred.weight", "decoder.pred.bias"):
        if name not in tensors or embedding is None or embedding.ndim != 4:
            continue
        _, channels, height, width = embedding.shape
        values = tensors[name]
        if values.ndim == 0 or values.shape[0] != channels * height * width or values.numel() % values.shape[0]:
            raise CheckpointError(
                f"{name} is {list(values.shape)}; expected {channels * height * width} values for patches of "
                f"{height}x{width} pixels and {channels} channels"
            )
        rows = values.reshape(channels, height, width, -1).permute(1, 2, 0, 3).flatten(0, 2)
        tensors[name] = rows if name.endswith("weight") else rows.flatten()


_ENCODER = r"(?:encoder\.)?"

VIT = Layout(
    name="Jiahao000/MFM, ViT",
    required=(
        _ENCODER + "cls_token",
        _ENCODER + "pos_embed",
        _ENCODER + r"blocks\.0\.attn\.q_bias",
        _ENCODER + r"(?:fc_)?norm\.weight",
    ),
    forbidden=(
        _ENCODER + "mask_token",
        _ENCODER + r"blocks\.0\.(?:gamma_1|mlp\.w3\.weight)",
        r".*relative_position_bias_table",
    ),
    renames=(
        (r"decoder\.0\.(weight|bias)", r"decoder.pred.\1"),
        (_ENCODER + r"(cls_token|pos_embed|(?:patch_embed|blocks|norm|fc_norm)\..*)", r"\1"),
    ),
    ignored=(CLASSIFIER,),
    adapt=order_pixels,
)

FAMILY = Family(
    name="mfm",
    title="Masked Frequency Modeling for Self-Supervised Visual Pre-Training (ICLR 2023)",
    repository="https://github.com/Jiahao000/MFM",
    licence="S-Lab License 1.0 (non-commercial)",
    layouts=(VIT,),
    spec=spec,
    outputs=outputs,
    trained="none",
    feature="fresh_norm_of_mean",
    variants=(Variant(name="ViT-B/16", dim=768, depth=12, heads=12, patch=16, parameters=85_798_656),),
    checked="tokens, blocks, features and reconstruction against the authors' code on random weights",
)
