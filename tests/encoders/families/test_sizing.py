"""What shapes say and do not say, on bare tables of shapes."""

from __future__ import annotations

from typing import Any

import pytest

from mae_export.encoders.families import Facts
from mae_export.encoders.families.sizing import (
    depth_of,
    eps_of,
    heads_of,
    image_of,
    stated_size,
    trained_size,
    vit_spec,
)
from mae_export.encoders.overrides import Overrides
from mae_export.errors import CheckpointError
from mae_export.spec import StoredTable

PROJ = {"patch_embed.proj.weight": (64, 3, 8, 16)}
VIT = {
    **PROJ,
    "cls_token": (1, 1, 64),
    "pos_embed": (1, 17, 64),
    "norm.weight": (64,),
    **{f"blocks.{index}.mlp.fc1.weight": (96, 64) for index in range(3)},
}


def facts(shapes: dict[str, tuple[int, ...]], overrides: Overrides | None = None, **metadata: Any) -> Facts:
    return Facts(shapes=shapes, metadata=metadata, overrides=overrides or Overrides(), where="x.pth")


@pytest.mark.parametrize(("dim", "heads"), [(64, 1), (192, 3), (768, 12), (1024, 16), (1280, 16), (1408, 16)])
def test_heads_of_published_widths(dim: int, heads: int) -> None:
    assert heads_of(facts({}), dim) == heads
    assert heads_of(facts({}), dim, known={dim: 7}) == 7


def test_what_is_stated_goes_before_the_table() -> None:
    assert heads_of(facts({}, num_attention_heads=6), 768) == 6
    assert heads_of(facts({}, Overrides(heads=24), num_attention_heads=6), 768) == 24
    assert heads_of(facts({}, Overrides(heads=5)), 100) == 5
    with pytest.raises(CheckpointError, match=r"cannot be told from a width of 100 \(published sizes have 64 values"):
        heads_of(facts({}), 100)


@pytest.mark.parametrize(
    ("names", "depth"),
    [(["blocks.0.a"], 1), (["blocks.1.a", "blocks.0.a", "blocks.0.b"], 2), (["blocks.0.a", "x.blocks.5.a"], 1)],
)
def test_depth_is_the_number_of_blocks(names: list[str], depth: int) -> None:
    assert depth_of(dict.fromkeys(names, (1,))) == depth
    assert depth_of({f"decoder.{name}": (1,) for name in names if not name.startswith("x")}, "decoder.") == depth


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], r"blocks\.0 is missing among the 0 blocks"),
        (["blocks.1.a"], r"blocks\.0 is missing among the 1 blocks"),
        (["blocks.0.a", "blocks.3.a"], r"blocks\.1 is missing among the 2 blocks"),
    ],
)
def test_gaps_between_blocks_are_named(names: list[str], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        depth_of(dict.fromkeys(names, (1,)))


def test_the_size_of_training_is_square_unless_stated() -> None:
    assert trained_size(facts(PROJ), 16) == (32, 64)  # four rows and columns of 8 x 16 patches
    assert trained_size(facts(PROJ, Overrides(image_size=(16, 128))), 16) == (16, 128)
    assert trained_size(facts(PROJ, image_size=[16, 128]), 16) == (16, 128)
    with pytest.raises(CheckpointError, match="15 patch rows, which is no square"):
        trained_size(facts(PROJ), 15)
    with pytest.raises(
        CheckpointError, match="image_size=32x32 with 8x16 patches needs 8 positions, but the table has"
    ):
        trained_size(facts(PROJ, Overrides(image_size=(32, 32))), 16)


@pytest.mark.parametrize("stated", [[224], [0, 224], ["a", 3], [True, 3]])
def test_a_list_that_is_no_size_is_refused(stated: list[Any]) -> None:
    with pytest.raises(CheckpointError, match="expected height and width in pixels; correct it"):
        stated_size(facts(PROJ, image_size=stated))
    assert stated_size(facts(PROJ, image_size=224)) is None
    assert stated_size(facts(PROJ, Overrides(image_size=(8, 8)), image_size=stated)) == (8, 8)


@pytest.mark.parametrize(
    ("metadata", "overrides", "eps", "notes"),
    [
        ({}, Overrides(), 1e-6, 0),
        ({"layer_norm_eps": 1e-5}, Overrides(), 1e-5, 0),
        ({"layer_norm_eps": 1e-12}, Overrides(), 1e-6, 1),
        ({"layer_norm_eps": 1e-5}, Overrides(eps=1e-3), 1e-3, 0),
    ],
)
def test_eps_of_a_config(metadata: dict[str, float], overrides: Overrides, eps: float, notes: int) -> None:
    found, said = eps_of(facts({}, overrides, **metadata), 1e-6)
    assert (found, len(said)) == (eps, notes)


@pytest.mark.parametrize(
    ("size", "crop"), [((32, 64), 0.875), ((224, 224), 0.875), ((224, 256), 1.0), ((448, 448), 1.0)]
)
def test_small_images_are_cropped_as_in_the_evaluation(size: tuple[int, int], crop: float) -> None:
    image = image_of(facts(PROJ), size, mean=(0.1,) * 3, std=(0.2,) * 3, interpolation="bilinear")
    assert (image.size, image.crop_fraction, image.channels, image.interpolation) == (size, crop, 3, "bilinear")
    assert (image.mean, image.std, image.resize) == ((0.1,) * 3, (0.2,) * 3, "cover")
    told = image_of(facts(PROJ, Overrides(crop_fraction=0.5, mean=(0.3,) * 3, resize="stretch")), size)
    assert (told.crop_fraction, told.mean, told.resize) == (0.5, (0.3,) * 3, "stretch")


def test_a_transformer_by_its_shapes() -> None:
    spec, notes = vit_spec(facts(VIT), "mae")
    assert (spec.family, spec.dim, spec.depth, spec.heads, spec.mlp_hidden) == ("mae", 64, 3, 1, 96)
    assert (spec.image.size, spec.patch, spec.eps, notes) == ((32, 64), (1, 8, 16), 1e-6, ())
    assert spec.position == StoredTable(grid=(4, 4), prefix_rows=1)
    assert (spec.class_token, spec.mask_token, spec.norm, spec.pooled) == (True, False, "tokens", "class_token")


@pytest.mark.parametrize(
    ("change", "drop", "field", "value"),
    [
        ({"mask_token": (1, 1, 64)}, (), "mask_token", True),
        ({"fc_norm.weight": (64,)}, ("norm.weight",), "norm", "pooled"),
        ({"fc_norm.weight": (64,)}, ("norm.weight",), "pooled", "mean_patch"),
        ({}, ("norm.weight",), "norm", "none"),
        ({"pos_embed": (1, 16, 64)}, ("cls_token",), "pooled", "mean_patch"),
    ],
)
def test_tensors_that_are_there_or_not(
    change: dict[str, tuple[int, ...]], drop: tuple[str, ...], field: str, value: Any
) -> None:
    shapes = {name: shape for name, shape in (VIT | change).items() if name not in drop}
    rows = 1 if "cls_token" in shapes else 0
    assert getattr(vit_spec(facts(shapes), "mae", prefix_rows=rows)[0], field) == value
