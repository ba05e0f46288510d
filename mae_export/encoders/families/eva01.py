"""EVA-01 (Fang et al., CVPR 2023), the ViT-g/14 of baaivision/EVA that predicts features of CLIP.

A plain transformer with biases for query and value only. Shapes give everything but the heads, eps and the
preprocessing, which is CLIP's. EVA-L, from the same authors, is laid out as MAE and belongs there.
"""

from __future__ import annotations

from dataclasses import replace

from mae_export.decoder_spec import HeadSpec
from mae_export.encoders.families.describing import described, normed_mean
from mae_export.encoders.families.family import Facts, Family, Layout, Variant
from mae_export.encoders.families.naming import CLASSIFIER
from mae_export.encoders.families.sizing import CLIP_MEAN, CLIP_STD, EVAL_CROP, image_of, vit_spec
from mae_export.spec import EncoderSpec, ImageSpec

IMAGE = ImageSpec(size=(224, 224), crop_fraction=EVAL_CROP, mean=CLIP_MEAN, std=CLIP_STD)


def clip_student_spec(facts: Facts, family: str) -> tuple[EncoderSpec, tuple[str, ...]]:
    """The spec of an encoder that was trained to predict features of CLIP: EVA-01 and EVA-02.

    Raises:
        CheckpointError: when a fact cannot be told and was not given.
        InputError: when facts contradict each other.
    """
    base, notes = vit_spec(facts, family)
    head = None
    if "decoder.pred.weight" in facts.shapes:
        head = HeadSpec(target="teacher-features", values=facts.shape("decoder.pred.weight", 2)[0])
    return replace(
        base,
        image=image_of(facts, base.image.size, mean=CLIP_MEAN, std=CLIP_STD),
        pooled="mean_patch" if base.norm == "pooled" else "fresh_norm_of_mean",
        decoder=head,
    ), notes


def spec(facts: Facts) -> tuple[EncoderSpec, tuple[str, ...]]:
    """Derive the spec from shapes, metadata and overrides; see `clip_student_spec`."""
    return clip_student_spec(facts, "eva01")


def outputs(spec: EncoderSpec) -> dict[str, str]:
    """What each output holds, with its source."""
    return described(
        spec,
        pooled=normed_mean(spec, "modeling_finetune.py"),
        predicted="features of CLIP for every patch in raster order (lm_head); trained where the mask was True",
    )


_SAME = (r"((?:cls_token|mask_token|pos_embed)|(?:patch_embed|blocks|norm|fc_norm)\..*)", r"\1")
COMMON = ("cls_token", "pos_embed", r"patch_embed\.proj\.weight", r"blocks\.0\.attn\.q_bias")
_FOREIGN = (r"blocks\.0\.gamma_1", r".*relative_position_bias_table", r"blocks\.0\.mlp\.w3\.weight")

PRETRAINED = Layout(
    name="baaivision/EVA, EVA-01",
    required=(*COMMON, "mask_token", r"norm\.weight"),
    forbidden=_FOREIGN,
    renames=((r"lm_head\.(.*)", r"decoder.pred.\1"), _SAME),
)
FINE_TUNED = Layout(
    name="baaivision/EVA, EVA-01 fine-tuned",
    required=(*COMMON, r"fc_norm\.weight"),
    forbidden=(*_FOREIGN, "mask_token"),
    renames=(_SAME,),
    ignored=(CLASSIFIER,),
)

FAMILY = Family(
    name="eva01",
    title="EVA: Exploring the Limits of Masked Visual Representation Learning at Scale (CVPR 2023)",
    repository="https://github.com/baaivision/EVA",
    licence="MIT",
    layouts=(PRETRAINED, FINE_TUNED),
    spec=spec,
    outputs=outputs,
    trained="mask-token",
    feature="fresh_norm_of_mean",
    image=IMAGE,
    variants=(
        Variant(name="EVA-g/14", dim=1408, depth=40, heads=16, patch=14, parameters=1_011_203_840, mlp_hidden=6144),
    ),
    checked="tokens, blocks, features, masked patches and prediction against the authors' code on random weights",
)
