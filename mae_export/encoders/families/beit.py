"""BEiT v1 and v2 (Bao et al., ICLR 2022; Peng et al., 2022), as microsoft/unilm and Hugging Face publish them.

Others built on BEiT's code and kept its names: SimMIM, data2vec 1.0, dBOT. They take their layouts and specs from here
and differ in what tensors do not say, above all in the mean and std of pixels: v1 was trained with 0.5 and all the
others with ImageNet's. Fine-tuned files of v1 and v2 cannot be told apart, nor v2 files without its second head.
"""

from __future__ import annotations

import math
import re
from dataclasses import replace

import torch
from torch import Tensor

from mae_export.decoder_spec import HeadSpec, Target
from mae_export.encoders.beit import TABLE, BEiT
from mae_export.encoders.encoder import Encoder
from mae_export.encoders.families.describing import described
from mae_export.encoders.families.family import Facts, Family, Layout, Variant
from mae_export.encoders.families.naming import CLASSIFIER, hugging_face_block
from mae_export.encoders.families.sizing import EVAL_CROP, image_of, stated_size, vit_spec
from mae_export.encoders.layer_scale import LayerScaleViT
from mae_export.encoders.relative import CLASS_ROWS, table_rows
from mae_export.encoders.vit import ViT
from mae_export.errors import CheckpointError
from mae_export.spec import IMAGENET_MEAN, IMAGENET_STD, EncoderSpec, ImageSpec, Pooled, RelativeBias, predicts_pixels

HALF = (0.5, 0.5, 0.5)  # mean and std of timm's "inception" preprocessing
INDEX = (r".*relative_position_index", "which row of a table a pair of tokens takes; computed again")
Derived = tuple[EncoderSpec, tuple[str, ...]]


def derive(
    facts: Facts,
    family: str,
    *,
    target: Target,
    mean: tuple[float, ...] = IMAGENET_MEAN,
    std: tuple[float, ...] = IMAGENET_STD,
) -> Derived:
    """What a file of BEiT's kind says by its shapes, and notes.

    Args:
        facts: by the encoder's names.
        family: whose file it is.
        target: what its head predicts, when it has one.
        mean: per channel, of training.
        std: per channel, of training.

    Raises:
        CheckpointError: when a fact cannot be told and was not given.
        InputError: when facts contradict each other.
    """
    head = None
    if "decoder.pred.weight" in facts.shapes:
        values = facts.shape("decoder.pred.weight", 2)[0]
        head = HeadSpec(target=target, values=values, bias="decoder.pred.bias" in facts.shapes)
    spec, notes = vit_spec(facts, family) if "pos_embed" in facts.shapes else _relative(facts, family)
    return replace(
        spec, image=image_of(facts, spec.image.size, mean=mean, std=std), pooled=_pooled(spec), decoder=head
    ), notes


def _relative(facts: Facts, family: str) -> Derived:
    """As `vit_spec` sizes an encoder with a stored table for the grid that the table of biases is for."""
    shared = TABLE in facts.shapes
    rows, heads = facts.shape(TABLE if shared else f"blocks.0.{TABLE}", 2)
    grid = _trained_grid(facts, rows)
    stored = {"pos_embed": (1, 1 + grid[0] * grid[1], facts.shape("patch_embed.proj.weight", 4)[0])}
    stated = replace(facts.overrides, heads=facts.overrides.heads or heads)
    spec, notes = vit_spec(replace(facts, shapes={**facts.shapes, **stored}, overrides=stated), family)
    return replace(spec, position=RelativeBias(grid=grid, shared=shared)), notes


def _trained_grid(facts: Facts, rows: int) -> tuple[int, int]:
    """Rows and columns of patches that a table of so many rows belongs to."""
    height, width = facts.shape("patch_embed.proj.weight", 4)[2:]
    size = stated_size(facts)
    if size is None:
        side = (math.isqrt(max(rows - CLASS_ROWS, 0)) + 1) // 2
        if side and table_rows((side, side)) == rows:
            return side, side
        raise CheckpointError(
            f"the table of relative positions has {rows} rows, which fits no square grid; "
            "pass --set image_size=HxW with the size the checkpoint was trained at"
        )
    grid = size[0] // height, size[1] // width
    if table_rows(grid) != rows:
        raise CheckpointError(
            f"image_size={size[0]}x{size[1]} with {height}x{width} patches needs {table_rows(grid)} relative "
            f"positions, but the table has {rows}; image_size is the size of training, use --image-size for another one"
        )
    return grid


def _pooled(spec: EncoderSpec) -> Pooled:
    """The feature of fine-tuning: the mean through `fc_norm`, which starts afresh, or with --use_cls the class token.

    Pre-training files have a mask token. Those without it but with a norm of tokens were fine-tuned with --use_cls.
    """
    if spec.norm == "pooled":
        return "mean_patch"
    return "class_token" if spec.norm == "tokens" and not spec.mask_token else "fresh_norm_of_mean"


def _imagenet(facts: Facts) -> bool | None:
    """What the training script's arguments say of mean and std, when the file holds them."""
    arguments = facts.metadata.get("args")
    said = arguments.get("imagenet_default_mean_and_std") if isinstance(arguments, dict) else None
    return said if isinstance(said, bool) else None


def spec(facts: Facts) -> Derived:
    """Derive the spec of a BEiT v1 file; see `derive`.

    Raises:
        CheckpointError: when the head is that of data2vec 1.0, besides `derive`'s reasons.
    """
    imagenet = _imagenet(facts) is True
    mean, std = (IMAGENET_MEAN, IMAGENET_STD) if imagenet else (HALF, HALF)
    found, notes = derive(facts, "beit", target="token-logits", mean=mean, std=std)
    if found.decoder is not None and found.decoder.values == found.dim:
        raise CheckpointError(
            f"{facts.where}: lm_head predicts {found.dim} values, as many as a token has, where BEiT predicts one of "
            "8192 visual tokens; a file of data2vec 1.0 is loaded with --family data2vec_vision"
        )
    if facts.overrides.mean is None and facts.metadata.get("model_type") is None:
        said = "ImageNet's, as the file's args say" if imagenet else "0.5, as BEiT v1 was trained: tensors do not say"
        notes += (f"mean and std of pixels are {said}",)
    return found, notes


def spec_v2(facts: Facts) -> Derived:
    """Derive the spec of a BEiT v2 file; see `derive`."""
    found, notes = derive(facts, "beitv2", target="token-logits")
    if facts.overrides.mean is None and _imagenet(facts) is False:
        notes += (
            "the file's args say imagenet_default_mean_and_std=False, but every published command of BEiT v2 sets it, "
            "and ImageNet's mean and std are used; --set mean=0.5,0.5,0.5 --set std=0.5,0.5,0.5 to follow the args",
        )
    return found, notes


def architecture(spec: EncoderSpec) -> type[Encoder]:
    """The encoder of a spec of BEiT's kind: with relative positions, or with absolute ones."""
    return BEiT if isinstance(spec.position, RelativeBias) else LayerScaleViT


def add_unit_scales(tensors: dict[str, Tensor]) -> None:
    """Give a file without any LayerScale scales of one, which change nothing."""
    if any(re.search(r"\.gamma_[12]$", name) for name in tensors):
        return
    for name in [name for name in tensors if re.fullmatch(r"blocks\.\d+\.norm1\.weight", name)]:
        for scale in ("gamma_1", "gamma_2"):
            tensors[name.replace("norm1.weight", scale)] = torch.ones_like(tensors[name], dtype=torch.float32)


def renames(prefix: str = "") -> tuple[tuple[str, str], ...]:
    """Renames from the names of microsoft/unilm, with a regular expression of what precedes those of the encoder."""
    return (
        (prefix + rf"rel_pos_bias\.{TABLE}", TABLE),
        (prefix + rf"blocks\.(\d+)\.attn\.{TABLE}", rf"blocks.\1.{TABLE}"),
        (prefix + r"(cls_token|mask_token|pos_embed|(?:patch_embed|norm|fc_norm)\..*)", r"\1"),
        (prefix + r"(blocks\.(?!.*relative_position_index).*)", r"\1"),
    )


SECOND_HEAD = r"cls_pt_(?:layers|norm|lm_head)\..*"
UNILM = Layout(
    name="microsoft/unilm beit",
    required=(
        "cls_token",
        r"patch_embed\.proj\.weight",
        r"blocks\.0\.attn\.q_bias",
        rf"(?:rel_pos_bias|blocks\.0\.attn)\.{TABLE}",
    ),
    forbidden=(SECOND_HEAD, "pos_embed"),
    renames=(*renames(), (r"lm_head\.(.*)", r"decoder.pred.\1")),
    ignored=(INDEX, CLASSIFIER),
    adapt=add_unit_scales,
    encoder=BEiT,
)
UNILM_V2 = replace(
    UNILM,
    name="microsoft/unilm beit2, two heads",
    required=(*UNILM.required, r"cls_pt_layers\.0\..*"),
    forbidden=("pos_embed",),
    ignored=(*UNILM.ignored, (SECOND_HEAD, "BEiT v2's second head, which only trains the class token")),
)
# beit_base_patch16_224_pt1k_800ep; EVA-01 names its tensors in the same way.
ABSOLUTE = replace(
    UNILM,
    name="microsoft/unilm beit, absolute positions",
    required=(*UNILM.required[:3], "pos_embed"),
    forbidden=(SECOND_HEAD, rf".*{TABLE}", r"blocks\.0\.gamma_1"),
    adapt=None,
    encoder=ViT,
    asked=True,
)


def hugging_face(name: str, head: str, model_type: str) -> Layout:
    """Layout of a Hugging Face port, with transformers v4 or v5 names; `head` is its prefix, which may be missing."""
    prefix = rf"(?:{head}\.)?"
    block = prefix + r"(?:encoder\.layer|layers)\.(\d+)\."
    attention = block + r"attention\.(?:attention\.)?"
    return Layout(
        name=name,
        required=(
            prefix + r"embeddings\.cls_token",
            prefix + r"embeddings\.patch_embeddings\.projection\.weight",
            attention + r"(?:query|q_proj)\.weight",
        ),
        model_type=model_type,
        renames=(
            (prefix + r"embeddings\.(cls_token|mask_token)", r"\1"),
            (prefix + r"embeddings\.position_embeddings", "pos_embed"),
            (prefix + r"embeddings\.patch_embeddings\.projection\.(.*)", r"patch_embed.proj.\1"),
            (prefix + rf"(?:encoder\.relative_position_bias|shared_position_bias)\.{TABLE}", TABLE),
            (block + rf"(?:attention\.)*relative_position_bias\.{TABLE}", rf"blocks.\1.{TABLE}"),
            (attention + r"(?:query|q_proj)\.bias", r"blocks.\1.attn.q_bias"),
            (attention + r"(?:value|v_proj)\.bias", r"blocks.\1.attn.v_bias"),
            (block + r"lambda_([12])", r"blocks.\1.gamma_\2"),
            (prefix + r"pooler\.layernorm\.(.*)", r"fc_norm.\1"),
            (prefix + r"layernorm\.(.*)", r"norm.\1"),
            (r"lm_head\.(.*)", r"decoder.pred.\1"),
            *hugging_face_block(prefix, ""),
        ),
        ignored=(
            INDEX,
            (r"classifier\..*", CLASSIFIER[1]),
            (r"(?:decode_head|auxiliary_head|fpn\d?)\..*", "segmentation head, not part of the encoder"),
        ),
        adapt=add_unit_scales,
    )


HUGGING_FACE = hugging_face("Hugging Face Beit", "beit", "beit")


def outputs(spec: EncoderSpec) -> dict[str, str]:
    """What each output holds, with its source."""
    features = {
        "mean_patch": "fine-tuning feature: fc_norm of the mean of the last block's patch tokens",
        "class_token": "feature of fine-tuning with --use_cls: class token after the final norm",
        "fresh_norm_of_mean": "fine-tuning feature: mean of the last block's patch tokens, then a norm. Fine-tuning "
        "drops this file's norm and trains another: a fresh one, weight 1 and bias 0, stands in",
    }
    pooled = f"{features[spec.pooled]} (modeling_finetune.py)"
    if spec.decoder is None:
        return described(spec, pooled=pooled)
    order = ", values in (y, x, c) order" if predicts_pixels(spec) else ""
    return described(spec, pooled=pooled, predicted=f"the head's prediction of every patch in raster order{order}")


BASE = Variant(name="ViT-B/16", dim=768, depth=12, heads=12, patch=16, parameters=85_675_344)
LARGE = Variant(name="ViT-L/16", dim=1024, depth=24, heads=16, patch=16, parameters=303_161_792)
FAMILY = Family(
    name="beit",
    title="BEiT: BERT Pre-Training of Image Transformers (ICLR 2022)",
    repository="https://github.com/microsoft/unilm/tree/master/beit",
    licence="MIT",
    layouts=(UNILM, ABSOLUTE, HUGGING_FACE),
    spec=spec,
    outputs=outputs,
    encoder=architecture,
    trained="mask-token",
    feature="fresh_norm_of_mean",
    image=ImageSpec(size=(224, 224), crop_fraction=EVAL_CROP, mean=HALF, std=HALF),
    variants=(BASE, LARGE),
    checked="tokens and masked patches against transformers' Beit on random weights, table resizing against SciPy's",
)
FAMILY_V2 = replace(
    FAMILY,
    name="beitv2",
    title="BEiT v2: Masked Image Modeling with Vector-Quantized Visual Tokenizers (2022)",
    repository="https://github.com/microsoft/unilm/tree/master/beit2",
    layouts=(UNILM_V2, replace(UNILM, asked=True)),
    spec=spec_v2,
    image=ImageSpec(size=(224, 224), crop_fraction=EVAL_CROP),
    checked="tokens, blocks, features, masked patches and prediction against the authors' code on random weights",
)
