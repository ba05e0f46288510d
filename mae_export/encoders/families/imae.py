"""i-MAE (Zhang et al., 2022): MAE's encoder and decoder, trained on two blended images.

Its files name their tensors as MAE's do, so this family must be asked for. The authors publish no code that computes
features; MAE's linear probe stands in.
"""

from __future__ import annotations

from dataclasses import replace

from mae_export.encoders.families.family import Family
from mae_export.encoders.families.mae import FACEBOOK, SIZES, Recipe

RECIPE = Recipe(family="imae", pooled="class_token", source="MAE's convention; i-MAE publishes no code for features")

FAMILY = Family(
    name="imae",
    title="i-MAE: Are Latent Representations in Masked Autoencoders Linearly Separable? (2022)",
    repository="https://github.com/vision-learning-acceleration-lab/i-mae",
    licence="CC-BY-NC-4.0",
    layouts=(replace(FACEBOOK, name="vision-learning-acceleration-lab/i-mae", asked=True),),
    spec=RECIPE.spec,
    outputs=RECIPE.outputs,
    variants=SIZES[:1],
    checked=(
        "tokens, blocks, class token, visible subsets and reconstruction against the authors' code on random weights"
    ),
)
