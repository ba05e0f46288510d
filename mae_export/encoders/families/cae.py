"""CAE and CAE v2 (Chen et al., IJCV 2024; Zhang et al., 2022), as Atten4Vis/CAE publishes them.

Pre-training files hold more than the encoder; only names that start with `encoder.` belong to it. Positions are fixed
sin-cos in an order of their own (rows first), so the stored table is taken as it is. In training the encoder sees the
visible patches only, in raster order.
"""

from __future__ import annotations

from dataclasses import replace

from mae_export.encoders.families.describing import described
from mae_export.encoders.families.family import Facts, Family, Layout, Variant
from mae_export.encoders.families.naming import CLASSIFIER
from mae_export.encoders.families.sizing import heads_of, vit_spec
from mae_export.encoders.layer_scale import LayerScaleViT
from mae_export.spec import EncoderSpec

HEADS = {192: 12, 384: 12, 768: 12, 1024: 16}  # modeling_cae.py: tiny and small have twelve narrow heads too


def spec(facts: Facts) -> tuple[EncoderSpec, tuple[str, ...]]:
    """Derive the spec from shapes and overrides.

    Raises:
        CheckpointError: when a fact cannot be told and was not given.
        InputError: when facts contradict each other.
    """
    found, notes = vit_spec(facts, "cae")
    return replace(found, heads=heads_of(facts, found.dim, known=HEADS)), notes


_PREFIX = r"(?:encoder\.)?"
LAYOUT = Layout(
    name="Atten4Vis/CAE",
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
    forbidden=(r".*relative_position_bias_table",),
    renames=((_PREFIX + r"(cls_token|pos_embed|(?:patch_embed|blocks|norm|fc_norm)\..*)", r"\1"),),
    ignored=(
        (r"alignment_encoder\..*", "copy of the encoder that makes the targets of training"),
        (r"(?:regresser|encoder_to_regresser(?:_norm)?)\..*|rd_pos_embed", "regressor, used in training only"),
        (r"decoder\..*|mask_token", "decoder, used in training only"),
        (r"query_token|attentive_blocks\..*", "attentive probe, not part of the encoder"),
        CLASSIFIER,
    ),
    encoder=LayerScaleViT,
)


def outputs(spec: EncoderSpec) -> dict[str, str]:
    """What each output holds, with its source."""
    if spec.norm == "pooled":
        pooled = "fine-tuning feature: fc_norm of the mean of the last block's patch tokens (modeling_finetune.py)"
    else:
        pooled = "linear-probe feature: class token after the final norm (run_linear.py)"
    return described(spec, pooled=pooled)


FAMILY = Family(
    name="cae",
    title="Context Autoencoder for Self-Supervised Representation Learning (IJCV 2024), and CAE v2",
    repository="https://github.com/Atten4Vis/CAE",
    licence="none stated: ask its authors before use",
    layouts=(LAYOUT,),
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
    checked="tokens, blocks, features and visible subsets of v1 and v2 against the authors' code on random weights",
)
