"""How a layout recognises a file by its names, and what every entry of FAMILIES must say."""

import re

import pytest

from mae_export.encoders.families import FAMILIES
from mae_export.encoders.families.family import Layout

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
    assert all((family.title, family.licence))
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
