"""data2vec 1.0 for images (Baevski et al., ICML 2022): BEiT's encoder, trained to predict a teacher's features.

Hugging Face calls it Data2VecVision. It has nothing in common with data2vec 2.0 but the name. Pre-training used
ImageNet's mean and std and fine-tuning 0.5, by the commands that the authors publish; preprocessor_config.json of the
Hugging Face folders says 0.5 for all of them.
"""

from __future__ import annotations

from dataclasses import replace

from mae_export.encoders.families.beit import (
    BASE,
    HALF,
    LARGE,
    UNILM,
    Derived,
    architecture,
    derive,
    hugging_face,
    outputs,
)
from mae_export.encoders.families.family import Facts, Family
from mae_export.encoders.families.sizing import image_of


def spec(facts: Facts) -> Derived:
    """Derive the spec from shapes, config.json and overrides; see `beit.derive`."""
    found, notes = derive(facts, "data2vec_vision", target="teacher-features")
    fine_tuned = found.norm == "pooled"
    if fine_tuned:
        found = replace(found, image=image_of(facts, found.image.size, mean=HALF, std=HALF))
    else:
        found = replace(found, pooled="fresh_norm_of_mean")
    if facts.overrides.mean is None:
        said = "0.5, with which the authors fine-tuned" if fine_tuned else "ImageNet's, with which they pre-trained"
        notes += (f"mean and std of pixels are {said}; preprocessor_config.json is not read",)
    return found, notes


FAMILY = Family(
    name="data2vec_vision",
    title="data2vec: A General Framework for Self-supervised Learning in Speech, Vision and Language (ICML 2022)",
    repository="https://github.com/facebookresearch/data2vec_vision",
    licence="CC-BY-NC-4.0",
    layouts=(
        hugging_face("Hugging Face Data2VecVision", "data2vec_vision", "data2vec-vision"),
        replace(UNILM, asked=True),
    ),
    spec=spec,
    outputs=outputs,
    encoder=architecture,
    trained="mask-token",
    feature="fresh_norm_of_mean",
    variants=(BASE, LARGE),
    checked="tokens and masked patches against transformers' Data2VecVision on random weights",
)
