"""HPM (Wang et al., CVPR 2023): MAE's encoder and decoder, beside a second decoder that predicts the loss.

Training files hold the student under `state_dict` and its average under `ema_state_dict`; `model` is only the name of
the architecture. The second decoder proposes what to mask in training and has no part in features.
"""

from __future__ import annotations

from dataclasses import replace

from mae_export.encoders.families.family import Family
from mae_export.encoders.families.mae import FACEBOOK, SIZES, Recipe

RECIPE = Recipe(family="hpm", pooled="fresh_norm_of_mean", source="main_finetune.py, global_pool")
PRETRAINED = replace(
    FACEBOOK,
    name="Haochen-Wang409/HPM",
    required=(*FACEBOOK.required, r"decoder_pred_losspred\.weight"),
    forbidden=tuple(pattern for pattern in FACEBOOK.forbidden if "losspred" not in pattern),
    ignored=(
        (r"decoder_(?:blocks|norm|pred)_losspred\..*", "predicts the loss of each patch, to choose what to mask"),
        *FACEBOOK.ignored,
    ),
)

FAMILY = Family(
    name="hpm",
    title="HPM: Hard Patches Mining for Masked Image Modeling (CVPR 2023)",
    repository="https://github.com/Haochen-Wang409/HPM",
    licence="not stated (code: Apache-2.0)",
    layouts=(PRETRAINED, replace(FACEBOOK, name="encoder of Haochen-Wang409/HPM", asked=True)),
    spec=RECIPE.spec,
    outputs=RECIPE.outputs,
    feature=RECIPE.pooled,
    variants=SIZES[:2],
    checked=(
        "tokens, blocks, features, visible subsets and reconstruction against the authors' code on random weights"
    ),
)
