"""The manifest survives the way through JSON in every field, and a reader refuses everything that is not one."""

import dataclasses
import json
from collections.abc import Iterator
from typing import Any

import pytest

from mae_export.errors import InputError, UsageError
from mae_export.manifest import (
    SCHEMA,
    Ancestor,
    Golden,
    Manifest,
    Patches,
    Range,
    TensorSpec,
    Verification,
    read_json,
)
from mae_export.spec import ImageSpec

FULL = Manifest(
    family="mae",
    encoder={"heads": 12, "decoder": None, "position": {"grid": [14, 20]}, "title": "Übung", "eps": 1e-6},
    image=ImageSpec(
        size=(224, 320),
        resize="stretch",
        crop_fraction=0.875,
        interpolation="bilinear",
        mean=(0.5, 0.25, 1 / 3, 0.1),
        std=(0.1, 0.2, 0.3, 0.4),
        channels=4,
        frames=8,
    ),
    patches=Patches(patch=(2, 16, 16), grid=(4, 14, 20), prefix_tokens=1),
    mask_mode="patches",
    ragged=True,
    inputs=(
        TensorSpec(name="patches", dtype="uint8", shape=("batch", "kept", 2048), note="RGB"),
        TensorSpec(name="ids_keep", dtype="int64", shape=("batch", "kept"), note="raster"),
    ),
    outputs=(TensorSpec(name="pooled", dtype="float32", shape=("batch", 768), note="class token"),),
    precision="fp16",
    made_from=(Ancestor(kind="checkpoint", name="a.pth", sha256="0" * 64), Ancestor(kind="graph", name="g", sha256="")),
    tools={"torch": "2.10", "python": "3.11"},
    verification=Verification(reference="PyTorch", worst_output="pooled", error=3e-7, limit=1e-4, checks=12),
    golden=Golden(recipe="photo", values={"pooled": (0.1, -2.0, 1e-30), "none": ()}),
    target={"gpu": "Orin", "profiles": [{"min": 1}]},
    licence="CC-BY-NC-4.0",
    fp32_nodes={"norm/LayerNormalization_3": "x reaches 1e+05"},
)
TEXT = FULL.to_json()


def changed(path: str, value: Any) -> str:
    """The manifest's JSON with the entry at `path`, such as `image.size`, replaced."""
    root = json.loads(TEXT)
    *parents, last = [int(part) if part.isdigit() else part for part in path.split(".")]
    place = root
    for part in parents:
        place = place[part]
    place[last] = value
    return json.dumps(root)


def refusal(text: str) -> str:
    with pytest.raises(InputError) as caught:
        Manifest.from_json(text)
    return str(caught.value)


def test_no_field_of_the_example_is_left_at_its_default() -> None:
    """Otherwise the round trip below could lose one."""
    for value in (FULL, FULL.image, FULL.inputs[0], FULL.verification, FULL.golden, FULL.patches):
        for field in dataclasses.fields(value):
            if field.name != "schema":
                assert getattr(value, field.name) not in (field.default, {}, ()), field.name


def test_every_field_survives_the_way_through_json() -> None:
    assert Manifest.from_json(TEXT) == FULL
    assert Manifest.from_json(TEXT.replace("\n", "\r\n")) == FULL


def test_a_manifest_without_optional_parts_survives_too() -> None:
    bare = dataclasses.replace(
        FULL, verification=None, golden=None, target=None, tools={}, made_from=(), inputs=(), fp32_nodes={}
    )
    assert Manifest.from_json(bare.to_json()) == bare
    optional = ("tools", "verification", "golden", "target", "fp32_nodes")
    required = {name: value for name, value in json.loads(bare.to_json()).items() if name not in optional}
    assert Manifest.from_json(json.dumps(required)) == bare


def test_the_text_is_stable_ascii_and_sorted() -> None:
    backwards = dataclasses.replace(FULL, encoder=dict(reversed(FULL.encoder.items())))
    assert backwards.to_json() == TEXT
    assert TEXT.isascii()
    assert TEXT.startswith('{\n "encoder": {\n  "decoder": null,')
    assert f'"schema": {SCHEMA},' in TEXT
    with pytest.raises(ValueError, match="not JSON compliant"):
        dataclasses.replace(FULL, encoder={"eps": float("nan")}).to_json()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "Expecting value: line 1 column 1"),
        ("no JSON", "Expecting value: line 1 column 1"),
        (TEXT[:200], "column"),
        (TEXT + "{}", "Extra data"),
        (TEXT.replace('"ragged": true', '"ragged": true,,'), "Expecting property name"),
        ("\ufeff" + TEXT, "Unexpected UTF-8 BOM"),
        (TEXT.replace('"ragged": true', '"ragged": true, "ragged": true'), "key 'ragged' appears twice"),
        (TEXT.replace('"heads": 12', '"heads": 12, "heads": 6'), "key 'heads' appears twice"),
        (TEXT.replace('"heads": 12', '"heads": NaN'), "NaN is no finite number"),
        (TEXT.replace('"error": 3e-07', '"error": NaN'), "NaN is no finite number"),
        (TEXT.replace('"error": 3e-07', '"error": -Infinity'), "-Infinity is no finite number"),
        (TEXT.replace('"error": 3e-07', '"error": 1e999'), "1e999 is no finite number"),
        (TEXT.replace('"checks": 12', f'"checks": {"9" * 5000}'), "Exceeds the limit"),
        ("[" * 100_000, "while decoding a JSON array"),
        (TEXT.replace('"heads": 12', '"heads": ' + "[" * 100_000 + "]" * 100_000), "while decoding a JSON array"),
    ],
    ids=lambda value: value[:20],
)
def test_what_is_not_json(text: str, message: str) -> None:
    found = refusal(text)
    assert found.startswith("the manifest is not valid JSON (")
    assert found.endswith("); the file is damaged or not ours")
    assert message in found


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("null", "manifest is NoneType; expected an object"),
        ("[]", "manifest is list; expected an object"),
        ("{}", "manifest lacks the key 'family'; the file is damaged or from another version"),
        (changed("schema", 2), "the manifest has schema 2, this version reads 1; install a matching mae-export"),
        (changed("schema", "1"), "the manifest has schema '1', this version reads 1; install a matching mae-export"),
        (changed("schema", True), "manifest.schema is True; expected int"),
        (changed("output", []), "manifest has an unknown key 'output'; did you mean 'outputs'?"),
        (changed("xyz", 1), "manifest has an unknown key 'xyz'"),
        (changed("image.crop", 1), "manifest.image has an unknown key 'crop'"),
        (changed("inputs.1.dtpe", ""), "manifest.inputs[1] has an unknown key 'dtpe'; did you mean 'dtype'?"),
        (changed("family", 3), "manifest.family is 3; expected str"),
        (changed("ragged", 1), "manifest.ragged is 1; expected bool"),
        (changed("ragged", None), "manifest.ragged is None; expected bool"),
        (
            changed("mask_mode", "drop"),
            "manifest.mask_mode is 'drop'; expected one of 'none', 'keep', 'patches', 'mask-token'",
        ),
        (changed("mask_mode", {}), "manifest.mask_mode is {}; expected one of 'none', 'keep', 'patches', 'mask-token'"),
        (changed("encoder", []), "manifest.encoder is list; expected an object"),
        (changed("tools", {"torch": 2}), "manifest.tools.torch is 2; expected str"),
        (changed("target", "Orin"), "manifest.target is str; expected an object"),
        (changed("patches", [1]), "manifest.patches is list; expected an object"),
        (changed("patches.prefix_tokens", True), "manifest.patches.prefix_tokens is True; expected int"),
        (changed("patches.prefix_tokens", "1"), "manifest.patches.prefix_tokens is '1'; expected int"),
        (changed("patches.prefix_tokens", 1.0), "manifest.patches.prefix_tokens is 1.0; expected int"),
        (changed("patches.grid", [14, 20]), "manifest.patches.grid has 2 items; expected 3"),
        (changed("patches.grid", "4x4"), "manifest.patches.grid is str; expected a list"),
        (changed("patches.grid", [1, 2, None]), "manifest.patches.grid[2] is None; expected int"),
        (changed("image.size", [224, 224, 3]), "manifest.image.size has 3 items; expected 2"),
        (changed("image.crop_fraction", "1"), "manifest.image.crop_fraction is '1'; expected float"),
        (changed("image.crop_fraction", True), "manifest.image.crop_fraction is True; expected float"),
        (changed("image.mean", [0.5]), "mean has 1 values for 4 channels; give one per channel"),
        (changed("image.std", [0, 1, 1, 1]), "std must be positive, found (0.0, 1.0, 1.0, 1.0)"),
        (changed("inputs", {}), "manifest.inputs is dict; expected a list"),
        (changed("inputs.0.shape", [1.5]), "manifest.inputs[0].shape[0] is 1.5; expected int"),
        (changed("outputs.0.shape.1", False), "manifest.outputs[0].shape[1] is False; expected int"),
        (changed("verification", 1), "manifest.verification is int; expected an object"),
        (changed("verification.checks", 1.5), "manifest.verification.checks is 1.5; expected int"),
        (changed("golden.values", {"a": [1, "x"]}), "manifest.golden.values.a[1] is 'x'; expected float"),
        (changed("golden.values", {"a": [10**400]}), f"manifest.golden.values.a[0] is {10**400}; expected float"),
    ],
    ids=lambda value: value[:60] if value.startswith(("the m", "man", "mean", "std")) else "",
)
def test_json_that_is_no_manifest(text: str, message: str) -> None:
    assert refusal(text) == message


def required_keys(value: Any, kind: Any, path: str) -> Iterator[tuple[str, str]]:
    """(path of an object, name of one of its required keys) throughout `value`."""
    for field in dataclasses.fields(kind):
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            yield path, field.name
        inner = getattr(value, field.name)
        if dataclasses.is_dataclass(inner):
            yield from required_keys(inner, type(inner), f"{path}.{field.name}")


@pytest.mark.parametrize(("path", "key"), list(required_keys(FULL, Manifest, "manifest")))
def test_a_missing_key_is_named(path: str, key: str) -> None:
    root = json.loads(TEXT)
    place = root
    for part in path.split(".")[1:]:
        place = place[part]
    del place[key]
    expected = f"{path} lacks the key {key!r}; the file is damaged or from another version"
    assert refusal(json.dumps(root)) == expected


def test_whole_numbers_are_read_as_floats_where_a_float_belongs() -> None:
    found = Manifest.from_json(changed("verification.limit", 1)).verification
    assert found is not None
    assert (found.limit, type(found.limit)) == (1.0, float)


def test_other_kinds_are_read_by_the_same_rules() -> None:
    text = '{"minimum": 1, "typical": 8, "maximum": 64}'
    assert read_json(text, Range, "the profile") == Range(minimum=1, typical=8, maximum=64)
    with pytest.raises(InputError, match=r"^the profile lacks the key 'typical'"):
        read_json('{"minimum": 1}', Range, "the profile")
    with pytest.raises(InputError, match="range 8:1:64 must satisfy"):
        read_json('{"minimum": 8, "typical": 1, "maximum": 64}', Range, "the profile")


def test_outputs_are_found_by_name() -> None:
    assert FULL.output("pooled").shape == ("batch", 768)
    with pytest.raises(UsageError) as caught:
        FULL.output("dense")
    assert str(caught.value) == (
        "there is no output 'dense'; this file has: pooled. Others need another export --features"
    )
    assert FULL.patches.count == 1120


@pytest.mark.parametrize(
    ("text", "numbers"),
    [("1:8:64", (1, 8, 64)), ("4", (4, 4, 4)), ("0:0:0", (0, 0, 0)), (" 1: 2 :3", (1, 2, 3)), ("007", (7, 7, 7))],
)
def test_ranges_are_parsed(text: str, numbers: tuple[int, int, int]) -> None:
    found = Range.parse(text)
    assert (found.minimum, found.typical, found.maximum) == numbers
    assert Range.parse(str(found)) == found


@pytest.mark.parametrize("text", ["", "1:8", "1:2:3:4", "a", "1:b:3", "-1:2:3", "1.5", "1e3", "²", "9" * 5000, "1::3"])
def test_texts_that_are_no_range(text: str) -> None:
    with pytest.raises(InputError) as caught:
        Range.parse(text)
    assert str(caught.value) == f"range {text!r} is not min:typical:max; write for example 1:8:64"


@pytest.mark.parametrize("text", ["8:1:64", "1:64:8", "64:64:8"])
def test_ranges_out_of_order(text: str) -> None:
    with pytest.raises(InputError) as caught:
        Range.parse(text)
    assert str(caught.value) == f"range {text} must satisfy 0 <= min <= typical <= max, for example 1:8:64"


def test_a_range_may_not_be_negative() -> None:
    with pytest.raises(InputError, match="range -1:0:1 must satisfy"):
        Range(minimum=-1, typical=0, maximum=1)
