"""MAE (He et al., CVPR 2022), as facebookresearch/mae and the Hugging Face port ViTMAE publish it.

Shapes give everything but the heads, eps and the preprocessing. Files come in four kinds: encoder only, with the
pre-training decoder, fine-tuned (`fc_norm` and `head`, no `norm`), and linear-probe (`norm`, `head.1`). Families that
kept MAE's encoder take its layouts and its `Recipe`, and say only what differs.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from mae_export.decoder_spec import DecoderSpec, Target
from mae_export.encoders.families.family import Facts, Family, Layout, Variant
from mae_export.encoders.families.naming import CLASSIFIER, HUGGING_FACE_BLOCK, hugging_face_block
from mae_export.encoders.families.sizing import depth_of, image_of, vit_spec
from mae_export.spec import IMAGENET_MEAN, IMAGENET_STD, EncoderSpec, Pooled

DECODER_HEADS = 16  # models_mae.py: decoder_num_heads=16 for every published size


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What a family that kept MAE's encoder does in its own way.

    Attributes:
        family: its name.
        pooled: the authors' feature of a pre-trained file; that of fine-tuned files is MAE's everywhere.
        source: where the authors compute that feature.
        predicts: what the decoder predicts when it is not pixels; None for pixels.
        mean: per channel, of pixels in [0, 1].
        std: per channel, of pixels in [0, 1].
    """

    family: str
    pooled: Pooled
    source: str
    predicts: Target | None = None
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD

    def spec(self, facts: Facts) -> tuple[EncoderSpec, tuple[str, ...]]:
        """Derive the spec from shapes, metadata and overrides.

        Raises:
            CheckpointError: when a fact cannot be told and was not given.
            InputError: when facts contradict each other.
        """
        base, notes = vit_spec(facts, self.family)
        return replace(
            base,
            image=image_of(facts, base.image.size, mean=self.mean, std=self.std),
            pooled=base.pooled if base.norm == "pooled" else self.pooled,
            decoder=self._decoder(facts),
        ), notes

    def _decoder(self, facts: Facts) -> DecoderSpec | None:
        if "decoder.embed.weight" not in facts.shapes:
            return None
        heads = facts.overrides.decoder_heads or facts.stated("decoder_num_attention_heads", int) or DECODER_HEADS
        return DecoderSpec(
            dim=facts.shape("decoder.embed.weight", 2)[0],
            depth=depth_of(facts.shapes, "decoder."),
            heads=heads,
            mlp_hidden=facts.shape("decoder.blocks.0.mlp.fc1.weight", 2)[0],
            target=self.predicts or _pixels(facts),
            values=None if self.predicts is None else facts.shape("decoder.pred.weight", 2)[0],
        )

    def outputs(self, spec: EncoderSpec) -> dict[str, str]:
        """What each output holds, with its source."""
        norm = "after the final norm"
        if spec.norm == "pooled":
            norm = "no final norm: a fine-tuned file has none for tokens"
            pooled = (
                "fine-tuned feature: fc_norm of the mean of the last block's patch tokens (models_vit.py, global_pool)"
            )
        elif spec.pooled == "fresh_norm_of_mean":
            pooled = (
                f"fine-tuning feature: mean of the last block's patch tokens, then a norm ({self.source}). Fine-tuning "
                "trains that norm and this file does not hold it: a fresh one, weight 1 and bias 0, stands in"
            )
        else:
            pooled = f"linear-probe feature: class token after the final norm ({self.source})"
        predicted = "decoder's prediction of every patch in raster order"
        return {
            "class_token": f"class token, {norm}",
            "mean_patch": f"mean of the patch tokens, {norm}",
            "patch_tokens": f"patch tokens, {norm}",
            "pooled": pooled,
            "reconstruction": f"{predicted}, values in (y, x, c) order",
            "prediction": predicted,
        }


def _pixels(facts: Facts) -> Target:
    """Whether the decoder's pixels are normalised per patch, as far as the file or the user says."""
    args = facts.metadata.get("args")
    arguments = args if isinstance(args, dict) else {}
    known = facts.overrides.norm_pix_loss
    if known is None:
        known = facts.metadata.get("norm_pix_loss", arguments.get("norm_pix_loss"))
    if not isinstance(known, bool):
        return "unknown"
    return "patch-normalised" if known else "image-normalised"


FACEBOOK = Layout(
    name="facebookresearch/mae",
    required=(
        "cls_token",
        "pos_embed",
        r"patch_embed\.proj\.weight",
        r"blocks\.0\.attn\.qkv\.bias",
        r"(?:fc_)?norm\.weight",
    ),
    forbidden=(
        r"blocks\.0\.gamma_1",
        r".*relative_position_bias_table",
        r"decoder_predp\..*",
        r".*_losspred\..*",
        r"predictor\..*",
        r"patch_embed\d\..*",
    ),
    renames=(
        (r"mask_token", "decoder.mask_token"),
        (r"decoder_(embed|norm|pred)\.(.*)", r"decoder.\1.\2"),
        (r"decoder_pos_embed", "decoder.pos_embed"),
        (r"decoder_blocks\.(.*)", r"decoder.blocks.\1"),
        (r"(cls_token|pos_embed|(?:patch_embed|blocks|norm|fc_norm)\..*)", r"\1"),
    ),
    ignored=(CLASSIFIER,),
)

HUGGING_FACE = Layout(
    name="Hugging Face ViTMAE",
    required=(
        r"(?:vit\.)?embeddings\.cls_token",
        r"(?:vit\.)?embeddings\.position_embeddings",
        r"(?:vit\.)?" + HUGGING_FACE_BLOCK + r"attention\.(?:attention\.query|q_proj)\.bias",
    ),
    model_type="vit_mae",
    renames=(
        (r"(?:vit\.)?embeddings\.cls_token", "cls_token"),
        (r"(?:vit\.)?embeddings\.position_embeddings", "pos_embed"),
        (r"(?:vit\.)?embeddings\.patch_embeddings\.projection\.(.*)", r"patch_embed.proj.\1"),
        (r"(?:vit\.)?layernorm\.(.*)", r"norm.\1"),
        (r"decoder\.mask_token", "decoder.mask_token"),
        (r"decoder\.decoder_(embed|norm|pred)\.(.*)", r"decoder.\1.\2"),
        (r"decoder\.decoder_pos_embed", "decoder.pos_embed"),
        *hugging_face_block(r"(?:vit\.)?", ""),
        *hugging_face_block(r"decoder\.", "decoder."),
    ),
)


RECIPE = Recipe(family="mae", pooled="class_token", source="main_linprobe.py")
SIZES = (
    Variant(name="ViT-B/16", dim=768, depth=12, heads=12, patch=16, parameters=85_798_656),
    Variant(name="ViT-L/16", dim=1024, depth=24, heads=16, patch=16, parameters=303_301_632),
    Variant(name="ViT-H/14", dim=1280, depth=32, heads=16, patch=14, parameters=630_764_800),
)
FAMILY = Family(
    name="mae",
    title="MAE: Masked Autoencoders Are Scalable Vision Learners (CVPR 2022)",
    repository="https://github.com/facebookresearch/mae",
    licence="CC-BY-NC-4.0",
    layouts=(FACEBOOK, HUGGING_FACE),
    spec=RECIPE.spec,
    outputs=RECIPE.outputs,
    variants=SIZES,
    checked=(
        "tokens, blocks, features, visible subsets, reconstruction and another image size against the authors' code on "
        "random weights; the Hugging Face layout against transformers"
    ),
)
