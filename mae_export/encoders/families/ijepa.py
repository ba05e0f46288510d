"""I-JEPA (Assran et al., CVPR 2023), as facebookresearch/ijepa and the Hugging Face port IJepa publish it.

A plain transformer without class token. Training files hold three networks; the target encoder, an average of the
context encoder's weights, is the one that its authors evaluate. The predictor was trained on the context encoder's
tokens, so it belongs to that one alone and is there where that one is chosen.
"""

from __future__ import annotations

from dataclasses import replace

from mae_export.decoder_spec import PredictorSpec
from mae_export.encoders.families.describing import described
from mae_export.encoders.families.family import Facts, Family, Layout, Variant
from mae_export.encoders.families.naming import HUGGING_FACE_BLOCK, hugging_face_block
from mae_export.encoders.families.sizing import EVAL_CROP, depth_of, image_of, vit_spec
from mae_export.spec import EncoderSpec, ImageSpec

IMAGE = ImageSpec(size=(224, 224), crop_fraction=EVAL_CROP, interpolation="bilinear")


def spec(facts: Facts, family: str = "ijepa") -> tuple[EncoderSpec, tuple[str, ...]]:
    """Derive the spec from shapes, metadata and overrides.

    Raises:
        CheckpointError: when a fact cannot be told and was not given.
        InputError: when facts contradict each other.
    """
    base, notes = vit_spec(facts, family, prefix_rows=0)
    image = image_of(facts, base.image.size, interpolation="bilinear")
    remark = "other image sizes resample positions bicubically; the authors' code takes no other size to compare with"
    return replace(base, image=image, decoder=_predictor(facts, base.heads)), (*notes, remark)


def _predictor(facts: Facts, heads: int) -> PredictorSpec | None:
    if not any(name.startswith("decoder.") for name in facts.shapes):
        return None
    return PredictorSpec(
        dim=facts.shape("decoder.embed.weight", 2)[0],
        depth=depth_of(facts.shapes, "decoder."),
        heads=facts.overrides.decoder_heads or heads,  # src/helper.py: num_heads=encoder.num_heads
        mlp_hidden=facts.shape("decoder.blocks.0.mlp.fc1.weight", 2)[0],
        values=facts.shape("decoder.pred.weight", 2)[0],
    )


PREDICTED = (
    "predictor's prediction of the target encoder's tokens, which training norms without weights, in raster order: of "
    "all hidden patches at once, zero where a patch is visible"
)


def outputs(spec: EncoderSpec) -> dict[str, str]:
    """What each output holds, with its source."""
    pooled = "mean of the patch tokens after the final norm (section 4 of the paper)"
    return described(spec, pooled=pooled, predicted=PREDICTED)


FACEBOOK = Layout(
    name="facebookresearch/ijepa",
    required=("pos_embed", r"patch_embed\.proj\.weight", r"blocks\.0\.attn\.qkv\.bias", r"norm\.weight"),
    forbidden=("cls_token", "mask_token", r"blocks\.0\.gamma_1", r".*relative_position_bias_table", r"decoder.*"),
    renames=(
        (r"(pos_embed|(?:patch_embed|blocks|norm)\..*)", r"\1"),
        (r"predictor\.mask_token", "decoder.mask_token"),
        (r"predictor\.predictor_pos_embed", "decoder.pos_embed"),
        (r"predictor\.predictor_((?:embed|blocks|norm)\..*)", r"decoder.\1"),
        (r"predictor\.predictor_proj\.(.*)", r"decoder.pred.\1"),
    ),
)
UNDECODED = (
    "the predictor works on the context encoder's tokens; where a file holds both, --set weights=encoder takes them"
)
_HEAD = r"(?:ijepa\.)?"
HUGGING_FACE = Layout(
    name="Hugging Face IJepa",
    required=(
        _HEAD + r"embeddings\.position_embeddings",
        _HEAD + HUGGING_FACE_BLOCK + r"attention\.(?:attention\.query|q_proj)\.bias",
    ),
    model_type="ijepa",
    renames=(
        (_HEAD + r"embeddings\.position_embeddings", "pos_embed"),
        (_HEAD + r"embeddings\.patch_embeddings\.projection\.(.*)", r"patch_embed.proj.\1"),
        (_HEAD + r"layernorm\.(.*)", r"norm.\1"),
        *hugging_face_block(_HEAD, ""),
    ),
    ignored=(
        (r"classifier\..*", "classifier, not part of the encoder"),
        (_HEAD + r"pooler\..*", "layer of the port that I-JEPA does not have"),
        (_HEAD + r"embeddings\.mask_token", "token of the port that I-JEPA does not have"),
    ),
)

FAMILY = Family(
    name="ijepa",
    title="Self-Supervised Learning from Images with a Joint-Embedding Predictive Architecture (CVPR 2023)",
    repository="https://github.com/facebookresearch/ijepa",
    licence="CC-BY-NC-4.0",
    layouts=(FACEBOOK, HUGGING_FACE),
    spec=spec,
    outputs=outputs,
    trained="keep",
    feature="mean_patch",
    image=IMAGE,
    variants=(
        Variant(name="ViT-H/14", dim=1280, depth=32, heads=16, patch=14, parameters=630_762_240),
        Variant(name="ViT-H/16", dim=1280, depth=32, heads=16, patch=16, parameters=631_668_480, image=448),
        Variant(name="ViT-g/16", dim=1408, depth=40, heads=16, patch=16, parameters=1_011_368_576, mlp_hidden=6144),
    ),
    checked=(
        "tokens, blocks, features and visible subsets of both encoders and prediction against the authors' code on "
        "random weights; the Hugging Face layout against transformers"
    ),
    undecoded=UNDECODED,
)
