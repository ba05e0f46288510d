"""What families derive from shapes in the same way: depth, heads, the trained image size, eps, the preprocessing."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Literal

from mae_export.encoders.families.family import Facts, Shapes
from mae_export.errors import CheckpointError
from mae_export.spec import IMAGENET_MEAN, IMAGENET_STD, EncoderSpec, ImageSpec, StoredTable

HEAD_WIDTH = 64  # of every published width but those below
HEADS_OF_WIDTH = {1280: 16, 1408: 16}  # ViT-H has 80 values per head, ViT-g 88
CONFIG_DEFAULT_EPS = 1e-12  # default of several transformers configs, which published ones repeat
EVAL_CROP = 224 / 256  # resize the short side to 256, crop 224
EPS = 1e-6  # of every LayerNorm in nearly all published encoders, and stored in none
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


def heads_of(facts: Facts, dim: int, *, known: Mapping[int, int] = HEADS_OF_WIDTH) -> int:
    """Attention heads: what the user or config.json says, else the published number for the width.

    Raises:
        CheckpointError: when the width is none that was published.
    """
    given = facts.overrides.heads or facts.stated("num_attention_heads", int)
    if given is not None:
        return int(given)
    if dim in known:
        return known[dim]
    if dim % HEAD_WIDTH:
        raise CheckpointError(
            f"the number of attention heads cannot be told from a width of {dim} (published sizes have {HEAD_WIDTH} "
            "values per head); pass --set heads=N with the trained number"
        )
    return dim // HEAD_WIDTH


def depth_of(shapes: Shapes, prefix: str = "") -> int:
    """Number of blocks under `prefix`.

    Raises:
        CheckpointError: when a block is missing in between.
    """
    pattern = re.compile(re.escape(prefix) + r"blocks\.(\d{1,6})\.")
    found = {int(match.group(1)) for name in shapes if (match := pattern.match(name))}
    depth = max(found, default=-1) + 1
    if not found or depth > len(found):
        first = next(index for index in range(depth + 1) if index not in found)
        raise CheckpointError(
            f"{prefix}blocks.{first} is missing among the {len(found)} blocks that the file holds; it is incomplete, "
            "get it again"
        )
    return depth


def stated_size(facts: Facts) -> tuple[int, int] | None:
    """Height and width in pixels of training as the user or a list in config.json says; None when neither does.

    Raises:
        CheckpointError: when config.json lists something else than two numbers of pixels.
    """
    size, config = facts.overrides.image_size, facts.metadata.get("image_size")
    if size is None and isinstance(config, list):
        if len(config) != 2 or any(type(extent) is not int or extent <= 0 for extent in config):
            raise CheckpointError(
                f"config.json says image_size={config!r}; expected height and width in pixels; correct it"
            )
        size = (config[0], config[1])
    return size


def trained_size(facts: Facts, count: int) -> tuple[int, int]:
    """Height and width in pixels that a table of `count` patch positions belongs to.

    Raises:
        CheckpointError: when the table is not square and nothing says its shape, or what is said does not fit.
    """
    height, width = facts.shape("patch_embed.proj.weight", 4)[2:]
    size = stated_size(facts)
    if size is None:
        side = math.isqrt(count)
        if side * side != count:
            raise CheckpointError(
                f"the position table has {count} patch rows, which is no square; "
                "pass --set image_size=HxW with the size the checkpoint was trained at"
            )
        return side * height, side * width
    wanted = (size[0] // height) * (size[1] // width)
    if wanted != count:
        raise CheckpointError(
            f"image_size={size[0]}x{size[1]} with {height}x{width} patches needs {wanted} positions, but the table has "
            f"{count}; image_size is the size of training, use --image-size for another one"
        )
    return size


def eps_of(facts: Facts, published: float) -> tuple[float, tuple[str, ...]]:
    """Eps of every LayerNorm, and a note when config.json states its library's default rather than the trained one."""
    if facts.overrides.eps is not None:
        return facts.overrides.eps, ()
    stated = facts.stated("layer_norm_eps", float) or published
    if stated == CONFIG_DEFAULT_EPS:
        return published, (
            f"config.json says layer_norm_eps={stated}, the library's default; the authors trained with {published}, "
            f"which is used (--set eps={CONFIG_DEFAULT_EPS:g} to follow config.json)",
        )
    return stated, ()


def image_of(
    facts: Facts,
    size: tuple[int, int],
    *,
    mean: tuple[float, ...] = IMAGENET_MEAN,
    std: tuple[float, ...] = IMAGENET_STD,
    interpolation: Literal["bicubic", "bilinear"] = "bicubic",
) -> ImageSpec:
    """The authors' evaluation of a given size, unless the user says otherwise."""
    overrides = facts.overrides
    return ImageSpec(
        size=size,
        resize=overrides.resize or "cover",
        crop_fraction=overrides.crop_fraction or (EVAL_CROP if max(size) <= 224 else 1.0),
        interpolation=interpolation,
        mean=overrides.mean or mean,
        std=overrides.std or std,
        channels=facts.shape("patch_embed.proj.weight", 4)[1],
    )


def vit_spec(facts: Facts, family: str, *, prefix_rows: int = 1) -> tuple[EncoderSpec, tuple[str, ...]]:
    """What a transformer with a stored position table says by its shapes, and notes; families replace the rest.

    `prefix_rows` counts rows of the table in front of the patches'. A norm after pooling marks a fine-tuned file, whose
    feature is the mean of the patch tokens.

    Raises:
        CheckpointError: when a fact cannot be told and was not given.
        InputError: when facts contradict each other.
    """
    dim, _, height, width = facts.shape("patch_embed.proj.weight", 4)
    eps, notes = eps_of(facts, EPS)
    size = trained_size(facts, facts.shape("pos_embed", 3)[1] - prefix_rows)
    fine_tuned, class_token = "fc_norm.weight" in facts.shapes, "cls_token" in facts.shapes
    gated = "blocks.0.mlp.w3.weight" in facts.shapes
    return EncoderSpec(
        family=family,
        image=image_of(facts, size),
        patch=(1, height, width),
        dim=dim,
        depth=depth_of(facts.shapes),
        heads=heads_of(facts, dim),
        mlp_hidden=facts.shape("blocks.0.mlp.w3.weight", 2)[1]
        if gated
        else facts.shape("blocks.0.mlp.fc1.weight", 2)[0],
        eps=eps,
        position=StoredTable(grid=(size[0] // height, size[1] // width), prefix_rows=prefix_rows),
        class_token=class_token,
        norm="pooled" if fine_tuned else "tokens" if "norm.weight" in facts.shapes else "none",
        pooled="mean_patch" if fine_tuned or not class_token else "class_token",
        mask_token="mask_token" in facts.shapes,
    ), notes
