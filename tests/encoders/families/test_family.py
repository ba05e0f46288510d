"""How a layout recognises a file by its names, and what every entry of FAMILIES must say."""

import dataclasses
import re
from pathlib import Path

import pytest

from mae_export.encoders.checkpoint import read_checkpoint
from mae_export.encoders.families import FAMILIES
from mae_export.encoders.families.family import Layout, Variant
from mae_export.encoders.load import load_encoder, recognise
from mae_export.encoders.overrides import Overrides
from mae_export.errors import LayoutError
from mae_export.spec import EncoderSpec, RelativeBias, Rotary, StoredTable
from tests.encoders.families.published import parameters_of
from tests.parity.cases import CASES

LAYOUT = Layout(
    name="example",
    required=("cls_token", r"blocks\.0\.attn\.qkv\.bias", r"norm\.weight|fc_norm\.weight"),
    forbidden=(r"blocks\.0\.gamma_1", r".*bias_table"),
    renames=(),
)
FITTING = frozenset({"cls_token", "blocks.0.attn.qkv.bias", "norm.weight", "head.weight"})


@pytest.mark.parametrize(
    ("names", "model_type", "share"),
    [
        (FITTING, None, 6 / 6),
        (FITTING - {"norm.weight"} | {"fc_norm.weight"}, None, 6 / 6),
        (FITTING - {"cls_token"}, None, 5 / 6),
        (FITTING | {"blocks.0.gamma_1"}, None, 5 / 6),
        (FITTING | {"blocks.0.gamma_1", "blocks.7.attn.relative_position_bias_table"}, None, 4 / 6),
        (FITTING, "vit_mae", 5 / 6),
        (frozenset(), None, 3 / 6),
        (frozenset({"gone"}), "vit_mae", 2 / 6),
        # A pattern must match a whole name, from its first character to its last, with every alternative.
        (FITTING - {"cls_token"} | {"my_cls_token", "cls_token.x"}, None, 5 / 6),
        (FITTING - {"norm.weight"} | {"norm.weight_v", "x.fc_norm.weight"}, None, 5 / 6),
        (FITTING - {"blocks.0.attn.qkv.bias"} | {"blocksx0.attn.qkv.bias"}, None, 5 / 6),
        (FITTING | {"blocks.0.gamma_10", "bias_table.x"}, None, 6 / 6),
    ],
)
def test_the_share_of_conditions_that_a_file_meets(names: frozenset[str], model_type: str | None, share: float) -> None:
    assert LAYOUT.matched(names, model_type) == pytest.approx(share)


def test_a_layout_with_a_model_type_asks_for_it() -> None:
    layout = Layout(name="folder", required=("cls_token",), renames=(), model_type="vit_mae")
    assert layout.matched(FITTING, "vit_mae") == 1.0
    assert layout.matched(FITTING, None) == 0.5
    assert layout.matched(FITTING, "vit") == 0.5


@pytest.mark.parametrize("key", FAMILIES)
def test_every_family_says_what_it_is(key: str) -> None:
    family = FAMILIES[key]
    assert family.name == key
    assert family.repository.startswith("https://")
    assert all((family.title, family.licence, family.checked))
    assert len({layout.name for layout in family.layouts}) == len(family.layouts) > 0


@pytest.mark.parametrize("key", FAMILIES)
def test_every_pattern_is_a_regular_expression_and_every_replacement_fits_it(key: str) -> None:
    for layout in FAMILIES[key].layouts:
        for pattern in (*layout.required, *layout.forbidden, *(pattern for pattern, _ in layout.ignored)):
            re.compile(pattern)
        for pattern, replacement in layout.renames:
            used = {int(number) for number in re.findall(r"\\(\d)", replacement)}
            assert used <= set(range(1, re.compile(pattern).groups + 1)), pattern
        assert all(reason for _, reason in layout.ignored)


DATA = Path(__file__).parents[2] / "data"
FILES = sorted(path.relative_to(DATA).as_posix() for path in DATA.glob("*/checkpoint*.pth"))
# A file of every family that no file is recognised as, but whose tensors are named in the same way.
STAND_INS = {"eva_l": "mae/checkpoint_release.pth", "beit": "beit2_plain/checkpoint.pth"}
FROM_HUGGING_FACE_ONLY = {"data2vec_vision"}


@pytest.mark.parametrize("file", FILES)
def test_every_small_checkpoint_is_of_one_family_or_of_those_that_say_they_share(file: str) -> None:
    checkpoint = read_checkpoint(DATA / file)
    names = frozenset(checkpoint.tensors)
    fitting = [
        (f.name, layout) for f in FAMILIES.values() for layout in f.layouts if layout.matched(names, None) == 1.0
    ]
    recognised = [name for name, layout in fitting if not layout.asked]
    assert [recognise(checkpoint)[0].name] == recognised
    (case,) = [case for case in CASES if file in [f"{case.folder}/{name}" for name in case.files]]
    assert case.family in ([name for name, layout in fitting if layout.asked] if case.asked else recognised)
    for name in FAMILIES:
        if name in dict(fitting):
            assert recognise(checkpoint, name)[0].name == name
        else:
            with pytest.raises(LayoutError, match=f"^{name} does not recognise "):
                recognise(checkpoint, name)


def test_every_family_has_a_small_checkpoint() -> None:
    assert {case.family for case in CASES} | set(STAND_INS) | FROM_HUGGING_FACE_ONLY == set(FAMILIES)


def published(spec: EncoderSpec, variant: Variant) -> EncoderSpec:
    """The spec of a published size, with everything else as a small checkpoint of the family has it."""
    side = variant.image // variant.patch
    position = spec.position
    if isinstance(position, Rotary):
        position = dataclasses.replace(position, table=dataclasses.replace(position.table, grid=(side, side)))
    elif isinstance(position, StoredTable | RelativeBias):
        position = dataclasses.replace(position, grid=(side, side))
    return dataclasses.replace(
        spec,
        image=dataclasses.replace(spec.image, size=(variant.image, variant.image)),
        patch=(1, variant.patch, variant.patch),
        dim=variant.dim,
        depth=variant.depth,
        heads=variant.heads,
        mlp_hidden=variant.mlp_hidden or 4 * variant.dim,
        position=position,
        decoder=None,
    )


@pytest.mark.parametrize("key", sorted(set(FAMILIES) - FROM_HUGGING_FACE_ONLY))
def test_what_a_family_says_of_itself_is_what_its_files_give(key: str) -> None:
    family = FAMILIES[key]
    files = {f"{case.folder}/{case.files[0]}": case.overrides for case in CASES if case.family == key}
    files = files or {STAND_INS[key]: Overrides(heads=4)}
    loaded = [load_encoder(DATA / file, family=key, overrides=overrides)[0] for file, overrides in files.items()]
    pretrained = [encoder for encoder in loaded if encoder.spec.norm != "pooled"]
    assert {encoder.spec.pooled for encoder in pretrained} == {family.feature}
    for encoder in loaded:
        assert encoder.spec.image == dataclasses.replace(family.image, size=encoder.spec.image.size)
        assert encoder.spec.mask_token <= (family.trained == "mask-token")
    for variant in family.variants:
        counts = {parameters_of(published(encoder.spec, variant), type(encoder)) for encoder in pretrained}
        assert variant.parameters in counts, variant.name
