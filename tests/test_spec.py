"""Specs refuse what no encoder can be, in words that say what to do, and derive the grid from sizes."""

from dataclasses import FrozenInstanceError, replace
from typing import Any

import pytest

from mae_export.errors import InputError
from mae_export.spec import EncoderSpec, ImageSpec, StoredTable

NAN, INF = float("nan"), float("inf")
BASE = EncoderSpec(
    family="mae",
    image=ImageSpec(size=(224, 320)),
    patch=(1, 16, 16),
    dim=768,
    depth=12,
    heads=12,
    mlp_hidden=3072,
    eps=1e-6,
    position=StoredTable(grid=(14, 20)),
)
VIDEO = replace(BASE, image=ImageSpec(size=(112, 96), frames=16, channels=3), patch=(2, 8, 16))


def test_the_grid_follows_from_image_and_patch() -> None:
    assert (BASE.grid, BASE.patches, BASE.patch_values, BASE.prefix_tokens) == ((1, 14, 20), 280, 768, 1)
    assert (VIDEO.grid, VIDEO.patches, VIDEO.patch_values) == ((8, 14, 6), 672, 768)
    assert replace(BASE, class_token=False).prefix_tokens == 0


def test_resizing_changes_the_image_size_and_nothing_else() -> None:
    other = BASE.resized((64, 96))
    assert other.grid == (1, 4, 6)
    assert other.position.grid == (14, 20)  # still the table's own grid
    assert replace(other, image=BASE.image) == BASE


def test_images_are_prepared_as_imagenet_unless_said_otherwise() -> None:
    image = ImageSpec(size=(224, 224))
    assert (image.mean, image.std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert (image.resize, image.crop_fraction, image.interpolation, image.frames) == ("cover", 1.0, "bicubic", 1)


def test_specs_cannot_be_changed() -> None:
    with pytest.raises(FrozenInstanceError):
        BASE.heads = 6  # type: ignore[misc]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"size": (0, 224)}, "image size 0x224 is out of range 1..65536"),
        ({"size": (224, 65537)}, "image size 224x65537 is out of range 1..65536"),
        ({"resize": "pad"}, "resize is 'pad'; expected 'cover' or 'stretch'"),
        ({"crop_fraction": 0.0}, "crop_fraction is 0.0; expected 0 < crop_fraction <= 1"),
        ({"crop_fraction": 1.01}, "crop_fraction is 1.01; expected 0 < crop_fraction <= 1"),
        ({"crop_fraction": NAN}, "crop_fraction is nan; expected 0 < crop_fraction <= 1"),
        ({"interpolation": "nearest"}, "interpolation is 'nearest'; expected 'bicubic' or 'bilinear'"),
        ({"channels": 0}, "channels and frames must be at least 1"),
        ({"frames": 0}, "channels and frames must be at least 1"),
        ({"mean": (0.5, 0.5)}, "mean has 2 values for 3 channels; give one per channel"),
        ({"std": (0.5,)}, "std has 1 values for 3 channels; give one per channel"),
        ({"channels": 1}, "mean has 3 values for 1 channels; give one per channel"),
        ({"mean": (0.5, NAN, 0.5)}, "mean holds a value that is not finite: (0.5, nan, 0.5)"),
        ({"std": (0.5, INF, 0.5)}, "std holds a value that is not finite: (0.5, inf, 0.5)"),
        ({"std": (0.5, 0.0, 0.5)}, "std must be positive, found (0.5, 0.0, 0.5)"),
        ({"std": (0.5, -0.1, 0.5)}, "std must be positive, found (0.5, -0.1, 0.5)"),
    ],
)
def test_images_that_cannot_be(change: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as caught:
        replace(ImageSpec(size=(224, 224)), **change)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"heads": 7}, "width 768 is not divisible by 7 heads; pass --set heads=N with the trained number"),
        ({"heads": 0}, "dim, depth, heads, mlp must be >= 1"),
        ({"depth": 0}, "dim, depth, heads, mlp must be >= 1"),
        ({"eps": 0.0}, "eps is 0.0; expected a small positive number such as 1e-6"),
        ({"eps": 0.1}, "eps is 0.1; expected a small positive number such as 1e-6"),
        ({"eps": NAN}, "eps is nan; expected a small positive number such as 1e-6"),
        ({"patch": (1, 16, 0)}, "patch (1, 16, 0) must be at least 1 along each axis"),
        ({"patch": (1, 15, 16)}, "image height 224 is not a multiple of the patch's 15; choose 210 or 225"),
        ({"patch": (1, 16, 512)}, "image width 320 is not a multiple of the patch's 512; choose 512"),
        ({"patch": (2, 16, 16)}, "image frames 1 is not a multiple of the patch's 2; choose 2"),
        ({"norm": "pooled", "pooled": "norm_of_mean"}, "norm_of_mean needs the checkpoint's norm of tokens"),
        ({"norm": "none", "pooled": "norm_of_mean"}, "norm_of_mean needs the checkpoint's norm of tokens"),
        ({"norm": "pooled", "pooled": "fresh_norm_of_mean"}, "a file that norms the pooled vector needs no fresh norm"),
    ],
)
def test_encoders_that_cannot_be(change: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as caught:
        replace(BASE, **change)
    assert str(caught.value) == message


def test_resizing_to_a_size_that_does_not_fit_names_two_that_do() -> None:
    with pytest.raises(InputError, match="image width 100 is not a multiple of the patch's 16; choose 96 or 112"):
        BASE.resized((96, 100))


def test_tables_that_cannot_be() -> None:
    with pytest.raises(InputError, match=r"position grid \(0, 3\) must have at least one row and column"):
        StoredTable(grid=(0, 3))
    with pytest.raises(InputError, match="prefix_rows is -1; expected 0 or more"):
        StoredTable(grid=(3, 3), prefix_rows=-1)
