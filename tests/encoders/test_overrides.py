"""`--set KEY=VALUE`: every key takes what it must and refuses the rest, in words that help."""

import dataclasses
from typing import Any

import pytest

from mae_export.encoders.overrides import Overrides, parse_image_size, parse_overrides
from mae_export.errors import UsageError

EVERY = {
    "heads": ("12", 12),
    "decoder_heads": ("16", 16),
    "eps": ("1e-5", 1e-5),
    "mean": ("0.5,0.4,0.3", (0.5, 0.4, 0.3)),
    "std": ("1", (1.0,)),
    "image_size": ("192x320", (192, 320)),
    "resize": ("stretch", "stretch"),
    "crop_fraction": ("0.875", 0.875),
    "norm_pix_loss": ("true", True),
    "weights": ("model_ema", "model_ema"),
    "ignore": ("head.,lm_head", ("head.", "lm_head")),
}


def refusal(*settings: str) -> str:
    with pytest.raises(UsageError) as caught:
        parse_overrides(settings)
    return str(caught.value)


def test_the_table_above_has_every_key() -> None:
    assert list(EVERY) == [field.name for field in dataclasses.fields(Overrides)]


@pytest.mark.parametrize("key", EVERY)
def test_one_setting_changes_one_field(key: str) -> None:
    text, value = EVERY[key]
    assert parse_overrides([f"{key}={text}"]) == dataclasses.replace(Overrides(), **{key: value})


def test_all_settings_together() -> None:
    found = parse_overrides([f"{key}={text}" for key, (text, _) in EVERY.items()])
    assert dataclasses.asdict(found) == {key: value for key, (_, value) in EVERY.items()}


def test_without_settings_everything_is_left_to_the_checkpoint() -> None:
    assert parse_overrides([]) == Overrides()
    assert set(dataclasses.asdict(Overrides()).values()) == {None, ()}


@pytest.mark.parametrize(
    ("setting", "key", "value"),
    [
        ("norm_pix_loss=false", "norm_pix_loss", False),
        ("resize=cover", "resize", "cover"),
        ("image_size=224", "image_size", (224, 224)),
        ("image_size=192X320", "image_size", (192, 320)),
        ("ignore=head., lm_head", "ignore", ("head.", "lm_head")),
        ("weights=a=b", "weights", "a=b"),  # only the first equals sign separates
    ],
)
def test_other_spellings(setting: str, key: str, value: Any) -> None:
    assert getattr(parse_overrides([setting]), key) == value


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("heads", "--set 'heads' is not KEY=VALUE; write for example --set heads=12"),
        ("", "--set '' is not KEY=VALUE; write for example --set heads=12"),
        ("head=12", "--set 'head' is not known; did you mean 'heads'?"),
        ("image-size=1", "--set 'image-size' is not known; did you mean 'image_size'?"),
        ("zzz=1", f"--set 'zzz' is not known; known: {', '.join(EVERY)}"),
        ("=1", f"--set '' is not known; known: {', '.join(EVERY)}"),
        ("heads=many", "--set heads='many' cannot be read: invalid literal for int() with base 10: 'many'"),
        ("heads=", "--set heads='' cannot be read: invalid literal for int() with base 10: ''"),
        ("decoder_heads=1.5", "--set decoder_heads='1.5' cannot be read: invalid literal for int()"),
        ("eps=small", "--set eps='small' cannot be read: could not convert string to float: 'small'"),
        ("mean=0.5,,0.5", "--set mean='0.5,,0.5' cannot be read: could not convert string to float: ''"),
        ("std=a", "--set std='a' cannot be read: could not convert string to float: 'a'"),
        ("resize=crop", "--set resize='crop' cannot be read: expected one of cover, stretch"),
        ("crop_fraction=x", "--set crop_fraction='x' cannot be read: could not convert string to float: 'x'"),
        ("norm_pix_loss=1", "--set norm_pix_loss='1' cannot be read: expected true or false"),
        ("norm_pix_loss=True", "--set norm_pix_loss='True' cannot be read: expected true or false"),
        ("ignore=", "--set ignore='' cannot be read: expected prefixes separated by commas"),
        ("ignore=head.,", "--set ignore='head.,' cannot be read: expected prefixes separated by commas"),
        ("image_size=0", "image size '0' is neither N nor HxW; write for example 224 or 192x320"),
        (f"heads={'9' * 5000}", "cannot be read: Exceeds the limit"),
        ("heads=0", "heads is 0; expected a positive number"),
        ("decoder_heads=-1", "decoder_heads is -1; expected a positive number"),
        ("crop_fraction=0", "crop_fraction is 0.0; expected a positive number"),
        ("eps=nan", "eps is nan; expected a positive number"),
    ],
    ids=lambda value: value[:25],
)
def test_settings_that_mean_nothing(setting: str, message: str) -> None:
    assert message in refusal(setting)


def test_a_key_is_given_once() -> None:
    assert refusal("heads=4", "eps=1e-6", "heads=4") == "--set heads is given twice; give it once"


@pytest.mark.parametrize(("text", "size"), [("224", (224, 224)), ("192x320", (192, 320)), ("8X16", (8, 16))])
def test_sizes_are_height_and_width(text: str, size: tuple[int, int]) -> None:
    assert parse_image_size(text) == size


@pytest.mark.parametrize("text", ["", "x", "224x", "x224", "1x2x3", "-1", "0", "0x4", "1.5", "4 x 4", "²", "9" * 5000])
def test_texts_that_are_no_size(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_image_size(text)
    assert str(caught.value) == f"image size {text!r} is neither N nor HxW; write for example 224 or 192x320"
