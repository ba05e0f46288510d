"""dBOT (Liu et al., ICLR 2024): MAE's encoder and decoder, trained to predict a teacher's features.

The decoder ends in `decoder_predp`, which gives the teacher's width for every token, the class token's among them; our
`prediction` leaves that row out. The teacher is saved in a file of its own, which cannot be told from MAE's by its
names. Files with a CLIP teacher are another encoder, see `dbot_clip`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from mae_export.encoders.families import beit, dbot_clip
from mae_export.encoders.families.family import Facts, Family
from mae_export.encoders.families.mae import FACEBOOK, SIZES, Recipe
from mae_export.spec import EncoderSpec, RelativeBias

RECIPE = Recipe(
    family="dbot",
    pooled="fresh_norm_of_mean",
    source="main_finetune.py, global_pool",
    predicts="teacher-features",
)

STUDENT = replace(
    FACEBOOK,
    name="liuxingbin/dbot",
    required=(*FACEBOOK.required, r"decoder_predp\.weight"),
    forbidden=tuple(pattern for pattern in FACEBOOK.forbidden if not pattern.startswith("decoder_predp")),
    renames=((r"decoder_predp\.(.*)", r"decoder.pred.\1"), *FACEBOOK.renames),
)
TEACHER = replace(
    FACEBOOK, name="encoder of liuxingbin/dbot", forbidden=(*FACEBOOK.forbidden, r"decoder_.*"), asked=True
)


def spec(facts: Facts) -> tuple[EncoderSpec, tuple[str, ...]]:
    """Derive the spec by the kind of file; see `Recipe.spec` and `dbot_clip.spec`."""
    return dbot_clip.spec(facts) if dbot_clip.recognised(facts) else RECIPE.spec(facts)


def outputs(spec: EncoderSpec) -> Mapping[str, str]:
    """What each output holds, with its source."""
    return beit.outputs(spec) if isinstance(spec.position, RelativeBias) else RECIPE.outputs(spec)


FAMILY = Family(
    name="dbot",
    title="dBOT: Exploring Target Representations for Masked Autoencoders (ICLR 2024)",
    repository="https://github.com/liuxingbin/dbot",
    licence="not stated (code: Apache-2.0)",
    layouts=(STUDENT, TEACHER, dbot_clip.LAYOUT),
    spec=spec,
    outputs=outputs,
    feature=RECIPE.pooled,
    variants=SIZES,
    checked=(
        "tokens, blocks, features, visible subsets and prediction of student and teacher against the authors' code on "
        "random weights"
    ),
)
