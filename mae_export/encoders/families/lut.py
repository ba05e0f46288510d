"""LUT (Kim et al., ECCV 2024): MAE's encoder and decoder, beside two projectors that compare two views.

`head` and `predictor` are these projectors, used in training only; `head` is no classifier here. Training files hold
an average under `model_ema`, which the authors' fine-tuning does not read unless asked.
"""

from __future__ import annotations

from dataclasses import replace

from mae_export.encoders.families.family import Family, Variant
from mae_export.encoders.families.mae import FACEBOOK, SIZES, Recipe

RECIPE = Recipe(family="lut", pooled="fresh_norm_of_mean", source="main_finetune.py, global_pool")
PRETRAINED = replace(
    FACEBOOK,
    name="naver-ai/lut",
    required=(*FACEBOOK.required, r"predictor\.0\.weight"),
    forbidden=tuple(pattern for pattern in FACEBOOK.forbidden if not pattern.startswith("predictor")),
    ignored=(
        (
            r"(?:head|predictor)\.\d+\.(?:weight|bias|running_mean|running_var|num_batches_tracked)",
            "projector that compares two views in training",
        ),
    ),
)

FAMILY = Family(
    name="lut",
    title="LUT: Learning with Unmasked Tokens Drives Stronger Vision Learners (ECCV 2024)",
    repository="https://github.com/naver-ai/lut",
    licence="none published (code: CC-BY-NC-4.0)",
    layouts=(PRETRAINED, replace(FACEBOOK, name="encoder of naver-ai/lut", asked=True)),
    spec=RECIPE.spec,
    outputs=RECIPE.outputs,
    feature=RECIPE.pooled,
    variants=(
        Variant(name="ViT-S/16", dim=384, depth=12, heads=6, patch=16, parameters=21_665_664),
        Variant(name="ViT-M/16", dim=512, depth=12, heads=8, patch=16, parameters=38_324_736),
        *SIZES[:2],
    ),
    checked=(
        "tokens, blocks, features, visible subsets and reconstruction against the authors' code on random weights"
    ),
)
