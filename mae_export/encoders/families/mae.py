"""MAE (He et al., CVPR 2022), as facebookresearch/mae and the Hugging Face port ViTMAE publish it.

Shapes give everything but the heads, eps and the preprocessing. Files come in four kinds: encoder only, with the
pre-training decoder, fine-tuned (`fc_norm` and `head`, no `norm`), and linear-probe (`norm`, `head.1`).
"""

from __future__ import annotations

import math
import re
from typing import Any

from mae_export.encoders.families.family import Facts, Family, Layout, Shapes
from mae_export.encoders.overrides import Overrides
from mae_export.errors import CheckpointError
from mae_export.spec import IMAGENET_MEAN, IMAGENET_STD, DecoderSpec, EncoderSpec, ImageSpec, StoredTable, Target

EPS = 1e-6  # models_mae.py: norm_layer=partial(nn.LayerNorm, eps=1e-6)
CONFIG_DEFAULT_EPS = 1e-12  # ViTMAEConfig's default, which published configs repeat although training used EPS
HUGE_HEADS = 16  # ViT-H is 1280 wide with 80 values per head; every other published width has 64
DECODER_HEADS = 16  # models_mae.py: decoder_num_heads=16 for every published size
EVAL_CROP = 224 / 256  # main_finetune.py: resize the short side to 256, crop 224


def _stated(facts: Facts, key: str, kind: type[int] | type[float]) -> Any:
    """A number of config.json; None when it does not say."""
    value = facts.metadata.get(key)
    if value is not None and (type(value) is not kind or value <= 0):
        raise CheckpointError(f"config.json says {key}={value!r}; expected a positive {kind.__name__}; correct it")
    return value


def _heads(dim: int, depth: int, given: int | None) -> int:
    if given is not None:
        return given
    if dim == 1280:
        return HUGE_HEADS
    if dim % 64:
        raise CheckpointError(
            f"the number of attention heads cannot be told from a width of {dim} and {depth} blocks "
            "(published sizes have 64 values per head); pass --set heads=N with the trained number"
        )
    return dim // 64


def _depth(shapes: Shapes, prefix: str) -> int:
    pattern = re.compile(re.escape(prefix) + r"blocks\.(\d{1,6})\.")
    found = {int(match.group(1)) for name in shapes if (match := pattern.match(name))}
    depth = max(found, default=-1) + 1
    if not found or depth > len(found):
        first = next(index for index in range(depth + 1) if index not in found)
        raise CheckpointError(
            f"{prefix}blocks.{first} is missing among the {len(found)} blocks that the file holds; it is incomplete, "
            "get it again"
        )
    return depth


def _trained_size(shapes: Shapes, overrides: Overrides, config: Any) -> tuple[int, int]:
    """Height and width in pixels that the stored position table belongs to."""
    height, width = shapes["patch_embed.proj.weight"][2:]
    count = shapes["pos_embed"][1] - 1
    size = overrides.image_size
    if size is None and isinstance(config, list):
        if len(config) != 2 or any(type(extent) is not int or extent <= 0 for extent in config):
            raise CheckpointError(
                f"config.json says image_size={config!r}; expected height and width in pixels; correct it"
            )
        size = (config[0], config[1])
    if size is None:
        side = math.isqrt(count)
        if side * side != count:
            raise CheckpointError(
                f"the position table has {count} patch rows, which is no square; "
                "pass --set image_size=HxW with the size the checkpoint was trained at"
            )
        return side * height, side * width
    wanted = (size[0] // height) * (size[1] // width)
    if wanted != count:
        raise CheckpointError(
            f"image_size={size[0]}x{size[1]} with {height}x{width} patches needs {wanted} positions, but the table has "
            f"{count}; image_size is the size of training, use --image-size for another one"
        )
    return size


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
    shapes, overrides = facts.shapes, facts.overrides
    if "decoder.embed.weight" not in shapes:
        return None
    dim = shapes["decoder.embed.weight"][0]
    heads = overrides.decoder_heads or _stated(facts, "decoder_num_attention_heads", int) or DECODER_HEADS
    return DecoderSpec(
        dim=dim,
        depth=_depth(shapes, "decoder."),
        heads=heads,
        mlp_hidden=shapes["decoder.blocks.0.mlp.fc1.weight"][0],
        target=_target(facts),
    )


def _eps(facts: Facts) -> tuple[float, tuple[str, ...]]:
    if facts.overrides.eps is not None:
        return facts.overrides.eps, ()
    stated = _stated(facts, "layer_norm_eps", float) or EPS
    if stated == CONFIG_DEFAULT_EPS:
        return EPS, (
            f"config.json says layer_norm_eps={stated}, the library's default; MAE was trained with {EPS}, which is "
            "used (--set eps=1e-12 to follow config.json)",
        )
    return stated, ()


def spec(facts: Facts) -> tuple[EncoderSpec, tuple[str, ...]]:
    """Derive the spec from shapes, metadata and overrides.

    Raises:
        CheckpointError: when a fact cannot be told and was not given.
        InputError: when facts contradict each other.
    """
    shapes, overrides, metadata = facts.shapes, facts.overrides, facts.metadata
    dim, channels, height, width = shapes["patch_embed.proj.weight"]
    depth = _depth(shapes, "")
    eps, notes = _eps(facts)
    size = _trained_size(shapes, overrides, metadata.get("image_size"))
    fine_tuned = "fc_norm.weight" in shapes
    return EncoderSpec(
        family="mae",
        image=ImageSpec(
            size=size,
            resize=overrides.resize or "cover",
            crop_fraction=overrides.crop_fraction or (EVAL_CROP if max(size) <= 224 else 1.0),
            mean=overrides.mean or IMAGENET_MEAN,
            std=overrides.std or IMAGENET_STD,
            channels=channels,
        ),
        patch=(1, height, width),
        dim=dim,
        depth=depth,
        heads=_heads(dim, depth, overrides.heads or _stated(facts, "num_attention_heads", int)),
        mlp_hidden=shapes["blocks.0.mlp.fc1.weight"][0],
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
