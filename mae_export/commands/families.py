"""The command that lists which published checkpoints are known: `families`."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from mae_export.commands.arguments import Json

if TYPE_CHECKING:
    from mae_export.encoders.families import Family, Layout, Variant

FEATURES = {
    "class_token": "class token after the final norm",
    "mean_patch": "mean of the patch tokens after the last norm, the encoder's or the last block's",
    "norm_of_mean": "final norm of the mean of the last block's patch tokens",
    "fresh_norm_of_mean": "norm of the mean of the last block's patch tokens; fine-tuning trains that norm, here it is "
    "a fresh one",
}
TRAINED = {
    "keep": "trained by dropping masked patches",
    "mask-token": "trained by replacing masked patches with a learned token",
    "none": "trained on all patches",
}


def families_command(as_json: Json = False) -> None:
    """List the families of checkpoints that are recognised, with sizes, features, licences and what was checked."""
    from mae_export.encoders.families.installed import families  # brings torch
    from mae_export.report import console, summaries

    if as_json:
        console.show_json([_plain(family) for family in families().values()])
    else:
        summaries.show_tree({f"{family.name}, {family.title}": _words(family) for family in families().values()})


def _modes(family: Family) -> list[str]:
    return ["none", "keep", "patches", *(["mask-token"] if family.trained == "mask-token" else [])]


def _plain(family: Family) -> dict[str, Any]:
    return {
        "name": family.name,
        "title": family.title,
        "repository": family.repository,
        "licence_of_published_weights": family.licence,
        "layouts": [
            {"name": layout.name, "model_type": layout.model_type, "only_if_asked": layout.asked}
            for layout in family.layouts
        ],
        "mask_modes": _modes(family),
        "trained": family.trained,
        "feature": family.feature,
        "image": asdict(family.image),
        "variants": [asdict(variant) for variant in family.variants],
        "checked": family.checked,
    }


def _words(family: Family) -> dict[str, str]:
    image = family.image
    mean, std = (", ".join(f"{value:.4g}" for value in values) for values in (image.mean, image.std))
    return {
        "published at": family.repository,
        "licence of published weights": family.licence,
        "recognises": "; ".join(map(_layout, family.layouts)),
        "mask modes": f"{', '.join(_modes(family))}; {TRAINED[family.trained]}",
        "feature": FEATURES[family.feature],
        "images": f"{image.interpolation}, mean {mean}, std {std}",
        "sizes": "; ".join(map(_variant, family.variants)) or "-",
        "checked": family.checked or "-",
    }


def _layout(layout: Layout) -> str:
    return layout.name + (" (only with --family: others' files look the same)" if layout.asked else "")


def _variant(variant: Variant) -> str:
    return (
        f"{variant.name} ({variant.parameters / 1e6:,.1f} M parameters, width {variant.dim}, {variant.depth} blocks, "
        f"{variant.heads} heads, {variant.image}x{variant.image})"
    )
