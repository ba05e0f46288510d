"""EVA-L of the EVA repository (Fang et al., CVPR 2023): MAE's encoder with CLIP's mean and std, patch 14.

The decoder predicts features of a CLIP encoder. The names are MAE's, so this family must be asked for; EVA-01 g is a
family of its own.
"""

from __future__ import annotations

from dataclasses import replace

from mae_export.encoders.families.family import Family, Variant
from mae_export.encoders.families.mae import FACEBOOK, Recipe
from mae_export.encoders.families.sizing import CLIP_MEAN, CLIP_STD
from mae_export.spec import ImageSpec

RECIPE = Recipe(
    family="eva_l",
    pooled="fresh_norm_of_mean",
    source="fine-tuning of baaivision/EVA",
    predicts="teacher-features",
    mean=CLIP_MEAN,
    std=CLIP_STD,
)

FAMILY = Family(
    name="eva_l",
    title="EVA-L: Exploring the Limits of Masked Visual Representation Learning at Scale (CVPR 2023)",
    repository="https://github.com/baaivision/EVA",
    licence="MIT",
    layouts=(replace(FACEBOOK, name="baaivision/EVA, EVA-L", asked=True),),
    spec=RECIPE.spec,
    outputs=RECIPE.outputs,
    feature=RECIPE.pooled,
    image=ImageSpec(size=(224, 224), crop_fraction=0.875, mean=CLIP_MEAN, std=CLIP_STD),
    variants=(Variant(name="EVA-L/14", dim=1024, depth=24, heads=16, patch=14, parameters=303_178_752),),
    checked="nothing of its own: names, mean and std are as its authors' code states them, the encoder is MAE's",
)
