"""ColorMAE (Hinojosa et al., ECCV 2024): MAE in the names of mmpretrain, on which its authors build.

Colour noise decides what is masked in training and leaves no parameter. The last norm of a pre-trained file is
`backbone.ln1`; fine-tuned files have `backbone.ln2` instead, which applies to the mean of the patch tokens.
"""

from __future__ import annotations

import re
from dataclasses import replace

from mae_export.encoders.families.family import Facts, Family, Layout
from mae_export.encoders.families.mae import SIZES, Recipe
from mae_export.spec import EncoderSpec

RECIPE = Recipe(family="colormae", pooled="fresh_norm_of_mean", source="mmpretrain's VisionTransformer, avg_featmap")
_SHARED = "the names are mmpretrain's: a plain MAE that was trained with mmpretrain cannot be told from ColorMAE"


def spec(facts: Facts) -> tuple[EncoderSpec, tuple[str, ...]]:
    """Derive the spec; what the decoder predicts is read from the training configuration when the file holds it.

    Raises:
        CheckpointError: when a fact cannot be told and was not given.
        InputError: when facts contradict each other.
    """
    meta = facts.metadata.get("meta")
    config = meta.get("cfg") if isinstance(meta, dict) else None
    stated = re.search(r"\bnorm_pix=(True|False)\b", config) if isinstance(config, str) else None
    if stated:
        facts = replace(facts, metadata={**facts.metadata, "norm_pix_loss": stated.group(1) == "True"})
    found, notes = RECIPE.spec(facts)
    return found, (*notes, _SHARED)


def _block(head: str, target: str) -> tuple[tuple[str, str], ...]:
    """Renames of one transformer block of mmpretrain."""
    return (
        (head + r"\.(\d+)\.ln([12])\.(.*)", target + r"blocks.\1.norm\2.\3"),
        (head + r"\.(\d+)\.ffn\.layers\.0\.0\.(.*)", target + r"blocks.\1.mlp.fc1.\2"),
        (head + r"\.(\d+)\.ffn\.layers\.1\.(.*)", target + r"blocks.\1.mlp.fc2.\2"),
        (head + r"\.(\d+)\.(attn\.(?:qkv|proj)\..*)", target + r"blocks.\1.\2"),
    )


_BACKBONE = r"(?:backbone\.)?"  # gone when a file holds nothing else
MMPRETRAIN = Layout(
    name="mmpretrain",
    required=(
        _BACKBONE + "cls_token",
        _BACKBONE + "pos_embed",
        _BACKBONE + r"patch_embed\.projection\.weight",
        _BACKBONE + r"layers\.0\.ln1\.weight",
        _BACKBONE + r"layers\.0\.attn\.qkv\.bias",
        _BACKBONE + r"layers\.0\.ffn\.layers\.0\.0\.weight",
    ),
    forbidden=(r".*\.gamma\d?(?:\..*)?", r".*relative_position_bias_table", r".*\.(?:ls|gamma_)[12]\b.*"),
    renames=(
        *_block(_BACKBONE + "layers", ""),
        *_block(r"neck\.decoder_blocks", "decoder."),
        (_BACKBONE + r"(cls_token|pos_embed)", r"\1"),
        (_BACKBONE + r"patch_embed\.projection\.(.*)", r"patch_embed.proj.\1"),
        (_BACKBONE + r"ln1\.(.*)", r"norm.\1"),
        (_BACKBONE + r"ln2\.(.*)", r"fc_norm.\1"),
        (r"neck\.mask_token", "decoder.mask_token"),
        (r"neck\.decoder_(embed|pred)\.(.*)", r"decoder.\1.\2"),
        (r"neck\.decoder_pos_embed", "decoder.pos_embed"),
        (r"neck\.ln1\.(.*)", r"decoder.norm.\1"),
    ),
    ignored=(
        (r"head\..*", "classifier, not part of the encoder"),
        (r"data_preprocessor\..*", "mean and std of training, which the family states"),
    ),
)

FAMILY = Family(
    name="colormae",
    title="ColorMAE: Exploring Data-Independent Masking Strategies in Masked AutoEncoders (ECCV 2024)",
    repository="https://github.com/carlosh93/ColorMAE",
    licence="not stated (code: Apache-2.0)",
    layouts=(MMPRETRAIN,),
    spec=spec,
    outputs=RECIPE.outputs,
    feature=RECIPE.pooled,
    variants=SIZES[:1],
    checked=(
        "tokens, blocks, features, visible subsets and reconstruction against the authors' code on random weights"
    ),
)
