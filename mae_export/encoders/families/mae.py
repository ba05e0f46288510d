"""MAE (He et al., CVPR 2022), as facebookresearch/mae and the Hugging Face port ViTMAE publish it.

Shapes give everything but the heads, eps and the preprocessing. Files come in four kinds: encoder only, with the
pre-training decoder, fine-tuned (`fc_norm` and `head`, no `norm`), and linear-probe (`norm`, `head.1`).
"""

from __future__ import annotations

from mae_export.encoders.families.family import Facts, Family, Layout
from mae_export.encoders.families.sizing import depth_of, eps_of, heads_of, image_of, trained_size
from mae_export.spec import DecoderSpec, EncoderSpec, StoredTable, Target

EPS = 1e-6  # models_mae.py: norm_layer=partial(nn.LayerNorm, eps=1e-6)
DECODER_HEADS = 16  # models_mae.py: decoder_num_heads=16 for every published size


def _target(facts: Facts) -> Target:
    args = facts.metadata.get("args")
    arguments = args if isinstance(args, dict) else {}
    known = facts.overrides.norm_pix_loss
    if known is None:
        known = facts.metadata.get("norm_pix_loss", arguments.get("norm_pix_loss"))
    if not isinstance(known, bool):
        return "unknown"
    return "patch-normalised" if known else "image-normalised"


def _decoder(facts: Facts) -> DecoderSpec | None:
    if "decoder.embed.weight" not in facts.shapes:
        return None
    heads = facts.overrides.decoder_heads or facts.stated("decoder_num_attention_heads", int) or DECODER_HEADS
    return DecoderSpec(
        dim=facts.shape("decoder.embed.weight", 2)[0],
        depth=depth_of(facts.shapes, "decoder."),
        heads=heads,
        mlp_hidden=facts.shape("decoder.blocks.0.mlp.fc1.weight", 2)[0],
        target=_target(facts),
    )


def spec(facts: Facts) -> tuple[EncoderSpec, tuple[str, ...]]:
    """Derive the spec from shapes, metadata and overrides.

    Raises:
        CheckpointError: when a fact cannot be told and was not given.
        InputError: when facts contradict each other.
    """
    dim, _, height, width = facts.shape("patch_embed.proj.weight", 4)
    eps, notes = eps_of(facts, EPS)
    size = trained_size(facts, facts.shape("pos_embed", 3)[1] - 1)
    fine_tuned = "fc_norm.weight" in facts.shapes
    return EncoderSpec(
        family="mae",
        image=image_of(facts, size),
        patch=(1, height, width),
        dim=dim,
        depth=depth_of(facts.shapes),
        heads=heads_of(facts, dim),
        mlp_hidden=facts.shape("blocks.0.mlp.fc1.weight", 2)[0],
        eps=eps,
        position=StoredTable(grid=(size[0] // height, size[1] // width)),
        norm="pooled" if fine_tuned else "tokens",
        pooled="mean_patch" if fine_tuned else "class_token",
        decoder=_decoder(facts),
    ), notes


_HEAD = (
    r"head\.(?:\d+\.)?(?:weight|bias|running_mean|running_var|num_batches_tracked)",
    "classifier, not part of the encoder",
)

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
    ignored=(_HEAD,),
)

_HF_BLOCK = r"(?:encoder\.layer|layers|decoder_layers|decoder_encoder\.layer)\.(\d+)\."


def _hf_block(head: str, target: str) -> tuple[tuple[str, str], ...]:
    """Renames of one transformer block from ViTMAE's names of transformers v4 and v5."""
    block = head + _HF_BLOCK
    return (
        (block + r"attention\.(?:attention\.)?(?:query|q_proj)\.(.*)", target + r"blocks.\1.attn.q.\2"),
        (block + r"attention\.(?:attention\.)?(?:key|k_proj)\.(.*)", target + r"blocks.\1.attn.k.\2"),
        (block + r"attention\.(?:attention\.)?(?:value|v_proj)\.(.*)", target + r"blocks.\1.attn.v.\2"),
        (block + r"attention\.(?:output\.dense|o_proj)\.(.*)", target + r"blocks.\1.attn.proj.\2"),
        (block + r"layernorm_before\.(.*)", target + r"blocks.\1.norm1.\2"),
        (block + r"layernorm_after\.(.*)", target + r"blocks.\1.norm2.\2"),
        (block + r"(?:intermediate\.dense|mlp\.fc1)\.(.*)", target + r"blocks.\1.mlp.fc1.\2"),
        (block + r"(?:output\.dense|mlp\.fc2)\.(.*)", target + r"blocks.\1.mlp.fc2.\2"),
    )


HUGGING_FACE = Layout(
    name="Hugging Face ViTMAE",
    required=(
        r"(?:vit\.)?embeddings\.cls_token",
        r"(?:vit\.)?embeddings\.position_embeddings",
        r"(?:vit\.)?" + _HF_BLOCK + r"attention\.(?:attention\.query|q_proj)\.bias",
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
        *_hf_block(r"(?:vit\.)?", ""),
        *_hf_block(r"decoder\.", "decoder."),
    ),
)


def outputs(spec: EncoderSpec) -> dict[str, str]:
    """What each output holds, with its source."""
    if spec.norm == "pooled":
        norm = "no final norm: a fine-tuned file has none for tokens"
        pooled = "fine-tuned feature: fc_norm of the mean of the last block's patch tokens (models_vit.py, global_pool)"
    else:
        norm = "after the final norm"
        pooled = "linear-probe feature: class token after the final norm (main_linprobe.py)"
    return {
        "class_token": f"class token, {norm}",
        "mean_patch": f"mean of the patch tokens, {norm}",
        "patch_tokens": f"patch tokens, {norm}",
        "pooled": pooled,
        "reconstruction": "decoder's prediction of every patch in raster order, values in (y, x, c) order",
    }


FAMILY = Family(
    name="mae",
    title="MAE: Masked Autoencoders Are Scalable Vision Learners (CVPR 2022)",
    repository="https://github.com/facebookresearch/mae",
    licence="CC-BY-NC-4.0",
    layouts=(FACEBOOK, HUGGING_FACE),
    spec=spec,
    outputs=outputs,
)
