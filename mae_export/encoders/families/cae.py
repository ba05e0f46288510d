"""CAE and CAE v2 (Chen et al., IJCV 2024; Zhang et al., 2022), as Atten4Vis/CAE publishes them.

Pre-training files hold more than the encoder, whose names start with `encoder.`: a regresser, and a decoder (CAE) or
a head (CAE v2) behind it. Positions are fixed sin-cos in an order of their own (rows first), so the stored tables are
taken as they are. In training the encoder sees the visible patches only, in raster order.
"""

from __future__ import annotations

from dataclasses import replace

from mae_export.decoder_spec import AlignedRegresserSpec, RegresserSpec
from mae_export.encoders.families.describing import described
from mae_export.encoders.families.family import Facts, Family, Layout, Variant
from mae_export.encoders.families.naming import CLASSIFIER
from mae_export.encoders.families.sizing import depth_of, heads_of, vit_spec
from mae_export.encoders.layer_scale import LayerScaleViT
from mae_export.errors import CheckpointError
from mae_export.spec import EncoderSpec

DECODER_HEADS = 12  # modeling_cae.py: decoder_num_heads, which run_pretraining.py leaves as it is for every size
HEADS = {192: 12, 384: 12, 768: 12, 1024: 16}  # modeling_cae.py: tiny and small have twelve narrow heads too


def spec(facts: Facts) -> tuple[EncoderSpec, tuple[str, ...]]:
    """Derive the spec from shapes and overrides.

    Raises:
        CheckpointError: when a fact cannot be told and was not given.
        InputError: when facts contradict each other.
    """
    found, notes = vit_spec(facts, "cae")
    decoder = _regresser(facts)
    if decoder is not None:
        remark = (
            "other image sizes resample the regresser's positions as the encoder's; no code of the authors does that"
        )
        notes = (*notes, remark)
    return replace(found, heads=heads_of(facts, found.dim, known=HEADS), decoder=decoder), notes


def _regresser(facts: Facts) -> RegresserSpec | AlignedRegresserSpec | None:
    if not any(name.startswith("decoder.") for name in facts.shapes):
        return None
    heads = facts.overrides.decoder_heads or DECODER_HEADS
    width, dim = facts.shape("decoder.regressor_blocks.0.cross_attn.query.weight", 2)
    if heads > dim or dim // heads * heads != width:
        raise CheckpointError(
            f"{facts.where}: {heads} heads in a regresser of width {dim} are {dim // heads * heads} wide together, but "
            f"its queries are {width} wide; pass --set decoder_heads=N with the trained number"
        )
    depth = depth_of(facts.shapes, "decoder.regressor_")
    hidden = facts.shape("decoder.regressor_blocks.0.mlp_cross.fc1.weight", 2)[0]
    values = facts.shape("decoder.pred.weight", 2)[0]
    if "decoder.regressor_norm.weight" not in facts.shapes:  # CAE v2 has one and does not use it
        return AlignedRegresserSpec(dim=dim, depth=depth, heads=heads, mlp_hidden=hidden, values=values)
    return RegresserSpec(
        dim=dim,
        depth=depth,
        decoder_depth=depth_of(facts.shapes, "decoder."),
        heads=heads,
        mlp_hidden=hidden,
        values=values,
    )


_PREFIX = r"(?:encoder\.)?"
_ENCODER = (_PREFIX + r"(cls_token|pos_embed|(?:patch_embed|blocks|norm|fc_norm)\..*)", r"\1")
_REGRESSER = r"regresser\.regressor_blocks\.(\d+)\."
_PREDICTING = (
    (r"mask_token", "decoder.mask_token"),
    (r"rd_pos_embed", "decoder.pos_embed"),
    (r"encoder_to_regresser\.(.*)", r"decoder.embed.\1"),
    (r"encoder_to_regresser_norm\.(.*)", r"decoder.embed_norm.\1"),
    (_REGRESSER + r"cross_attn\.q_bias", r"decoder.regressor_blocks.\1.cross_attn.query.bias"),
    (_REGRESSER + r"cross_attn\.v_bias", r"decoder.regressor_blocks.\1.cross_attn.value.bias"),
    (_REGRESSER + r"cross_attn\.q\.weight", r"decoder.regressor_blocks.\1.cross_attn.query.weight"),
    (_REGRESSER + r"cross_attn\.k\.weight", r"decoder.regressor_blocks.\1.cross_attn.key.weight"),
    (_REGRESSER + r"cross_attn\.v\.weight", r"decoder.regressor_blocks.\1.cross_attn.value.weight"),
    (_REGRESSER + r"(.*)", r"decoder.regressor_blocks.\1.\2"),
    (r"decoder\.norm\.(.*)", r"decoder.norm.\1"),
    (r"decoder\.head\.(.*)", r"decoder.pred.\1"),
)
_COPY = (r"alignment_encoder\..*", "copy of the encoder that makes the targets of training")
LAYOUT = Layout(
    name="encoder of Atten4Vis/CAE",
    required=tuple(
        _PREFIX + name
        for name in (
            "cls_token",
            "pos_embed",
            r"patch_embed\.proj\.weight",
            r"blocks\.0\.gamma_1",
            r"blocks\.0\.attn\.q_bias",
        )
    ),
    forbidden=(r".*relative_position_bias_table", r"regresser\..*"),
    renames=(_ENCODER,),
    ignored=(
        _COPY,
        (
            r"(?:decoder|encoder_to_regresser(?:_norm)?)\..*|mask_token|rd_pos_embed",
            "predicts nothing without regresser",
        ),
        (r"query_token|attentive_blocks\..*", "attentive probe, not part of the encoder"),
        CLASSIFIER,
    ),
    encoder=LayerScaleViT,
)
PRETRAINED = replace(
    LAYOUT,
    name="Atten4Vis/CAE",
    required=(*LAYOUT.required, r"regresser\.norm\.weight", r"decoder\.decoder_blocks\.\d+\..*"),
    forbidden=LAYOUT.forbidden[:1],
    renames=(
        _ENCODER,
        *_PREDICTING,
        (r"regresser\.norm\.(.*)", r"decoder.regressor_norm.\1"),
        (r"decoder\.decoder_blocks\.(.*)", r"decoder.blocks.\1"),
    ),
    ignored=(_COPY, CLASSIFIER),
)
PRETRAINED_V2 = replace(
    LAYOUT,
    name="Atten4Vis/CAE, v2",
    required=(*LAYOUT.required, r"regresser\..*"),
    forbidden=(*LAYOUT.forbidden[:1], r"decoder\.decoder_blocks\..*", r"alignment_encoder\..*"),
    renames=(_ENCODER, *_PREDICTING),
    ignored=((r"regresser\.norm\..*", "norm that CAE v2 creates and does not use"), CLASSIFIER),
)


def outputs(spec: EncoderSpec) -> dict[str, str]:
    """What each output holds, with its source."""
    if spec.norm == "pooled":
        pooled = "fine-tuning feature: fc_norm of the mean of the last block's patch tokens (modeling_finetune.py)"
    else:
        pooled = "linear-probe feature: class token after the final norm (run_linear.py)"
    if isinstance(spec.decoder, AlignedRegresserSpec):
        predicted = (
            "head's prediction of every patch in raster order, of length one: of hidden patches by regression, of "
            "visible ones from their own tokens"
        )
    else:
        predicted = (
            "decoder's logits of visual tokens in raster order: of all hidden patches at once, zero where a patch is "
            "visible"
        )
    return described(spec, pooled=pooled, predicted=predicted)


FAMILY = Family(
    name="cae",
    title="Context Autoencoder for Self-Supervised Representation Learning (IJCV 2024), and CAE v2",
    repository="https://github.com/Atten4Vis/CAE",
    licence="none stated: ask its authors before use",
    layouts=(PRETRAINED, PRETRAINED_V2, LAYOUT),
    spec=spec,
    outputs=outputs,
    encoder=lambda _: LayerScaleViT,
    trained="keep",
    variants=(
        Variant(name="ViT-Ti/16", dim=192, depth=12, heads=12, patch=16, parameters=5_529_024),
        Variant(name="ViT-S/16", dim=384, depth=12, heads=12, patch=16, parameters=21_674_880),
        Variant(name="ViT-B/16", dim=768, depth=12, heads=12, patch=16, parameters=85_817_088),
        Variant(name="ViT-L/16", dim=1024, depth=24, heads=16, patch=16, parameters=303_350_784),
    ),
    checked=(
        "tokens, blocks, features, visible subsets and prediction of v1 and v2 against the authors' code on random "
        "weights"
    ),
)
