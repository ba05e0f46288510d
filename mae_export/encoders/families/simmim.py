"""SimMIM (Xie et al., CVPR 2022), the ViT of microsoft/SimMIM: BEiT's encoder, trained to predict pixels.

Pre-training files carry the encoder under `encoder.` and its head, a 1x1 convolution before a pixel shuffle, under
`decoder.0`. Fine-tuned files are named like BEiT's.
"""

from __future__ import annotations

from dataclasses import replace

from mae_export.encoders.beit import TABLE
from mae_export.encoders.families.beit import BASE, INDEX, UNILM, Derived, architecture, derive, outputs, renames
from mae_export.encoders.families.family import Facts, Family, Layout
from mae_export.encoders.families.mfm import order_pixels


def spec(facts: Facts) -> Derived:
    """Derive the spec from shapes and overrides; see `beit.derive`."""
    return derive(facts, "simmim", target="image-normalised")


PRETRAINED = Layout(
    name="microsoft/SimMIM ViT",
    required=(
        r"encoder\.cls_token",
        r"encoder\.patch_embed\.proj\.weight",
        r"encoder\.blocks\.0\.attn\.q_bias",
        rf"encoder\.(?:rel_pos_bias|blocks\.0\.attn)\.{TABLE}",
        r"decoder\.0\.weight",
    ),
    renames=(*renames(r"encoder\."), (r"decoder\.0\.(weight|bias)", r"decoder.pred.\1")),
    ignored=(INDEX,),
    adapt=order_pixels,
)

FAMILY = Family(
    name="simmim",
    title="SimMIM: A Simple Framework for Masked Image Modeling (CVPR 2022), ViT",
    repository="https://github.com/microsoft/SimMIM",
    licence="MIT",
    layouts=(PRETRAINED, replace(UNILM, name="microsoft/SimMIM ViT, fine-tuned", asked=True)),
    spec=spec,
    outputs=outputs,
    encoder=architecture,
    trained="mask-token",
    feature="fresh_norm_of_mean",
    variants=(BASE,),
    checked="tokens, blocks, feature, masked patches and reconstruction against the authors' code on random weights",
)
