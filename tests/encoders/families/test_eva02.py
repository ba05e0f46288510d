"""EVA-02's facts: four sizes, two ways to store them, and the grid that rotary coordinates count in."""

import dataclasses

import pytest
import torch

from mae_export.decoder_spec import HeadSpec
from mae_export.encoders.eva02 import EVA02, NormedEVA02
from mae_export.encoders.families import Facts
from mae_export.encoders.families.eva02 import FAMILY, LARGE, SMALL, join_gates
from mae_export.encoders.load import load_encoder
from mae_export.encoders.overrides import Overrides
from mae_export.errors import CheckpointError
from mae_export.spec import EncoderSpec, ImageSpec, Rotary, StoredTable
from tests.encoders.families.published import derived, parameters_of, reasons, renamed, shapes_of

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
COMMON = {"cls_token", "pos_embed", "patch_embed.proj.weight", "blocks.0.attn.q_bias", "norm.weight", "mask_token"}
SMALL_FILE = COMMON | {"blocks.0.attn.qkv.weight", "blocks.0.mlp.w12.weight", "blocks.0.mlp.w3.weight"}
LARGE_FILE = COMMON | {
    *(f"blocks.0.attn.{part}_proj.weight" for part in "qkv"),
    *(f"blocks.0.mlp.{part}.bias" for part in ("w1", "w2", "w3", "ffn_ln")),
    "blocks.0.mlp.ffn_ln.weight",
    "blocks.0.mlp.w3.weight",
    "lm_head.weight",
}
ROTATIONS = {f"{where}rope.freqs_{part}" for where in ("", "blocks.7.attn.") for part in ("cos", "sin")}


def spec_of(variant, grid=(16, 16), trained=(16, 16), **changes) -> EncoderSpec:
    size = (grid[0] * variant.patch, grid[1] * variant.patch)
    spec = EncoderSpec(
        family="eva02",
        image=ImageSpec(size=size, crop_fraction=0.875 if max(size) <= 224 else 1.0, mean=MEAN, std=STD),
        patch=(1, variant.patch, variant.patch),
        dim=variant.dim,
        depth=variant.depth,
        heads=variant.heads,
        mlp_hidden=variant.mlp_hidden,
        eps=1e-6,
        position=Rotary(table=StoredTable(grid=grid), trained_grid=trained),
        pooled="fresh_norm_of_mean",
        decoder=HeadSpec(target="teacher-features", values=1024),
        mask_token=True,
    )
    return dataclasses.replace(spec, **changes)


def fine_tuned(variant, grid, trained) -> EncoderSpec:
    return spec_of(variant, grid, trained, norm="pooled", pooled="mean_patch", decoder=None, mask_token=False)


@pytest.mark.parametrize("variant", FAMILY.variants, ids=lambda variant: variant.name)
def test_published_sizes(variant) -> None:
    encoder = NormedEVA02 if variant.name[0] in "BL" else EVA02
    spec = spec_of(variant)
    assert derived(FAMILY, shapes_of(spec, encoder)) == spec
    assert parameters_of(spec, encoder) == variant.parameters
    assert (FAMILY.image, FAMILY.feature) == (spec.image, spec.pooled)
    assert variant.mlp_hidden == variant.dim * 8 // 3


@pytest.mark.parametrize(
    ("grid", "trained", "tuned", "noted"),
    [
        ((16, 16), (16, 16), False, False),
        ((4, 4), (4, 4), False, False),  # someone's own pre-training on small images
        ((24, 24), (24, 24), False, False),
        ((32, 32), (16, 16), True, True),  # fine-tuned on 448 pixels
        ((16, 16), (16, 16), True, False),
        ((4, 4), (4, 4), True, False),
        ((14, 14), (16, 16), False, True),  # converted to patches of 16
        ((14, 14), (16, 16), True, True),
    ],
)
def test_rotary_coordinates_count_patches_of_pre_training(grid, trained, tuned, noted) -> None:
    spec = fine_tuned(FAMILY.variants[0], grid, trained) if tuned else spec_of(FAMILY.variants[0], grid, trained)
    facts = Facts(shapes=shapes_of(spec, EVA02), metadata={}, overrides=Overrides())
    found, notes = FAMILY.spec(facts)
    assert found == spec
    note = (
        f"rotary coordinates of the {grid[0]}x{grid[1]} grid are scaled to the 16x16 grid of the published pre-training"
    )
    assert notes == ((note,) if noted else ())


def test_names_of_the_authors() -> None:
    found = renamed(LARGE_FILE | ROTATIONS, LARGE)
    assert {name: new for name, new in found.items() if name != new} == {
        "blocks.0.attn.q_proj.weight": "blocks.0.attn.q.weight",
        "blocks.0.attn.k_proj.weight": "blocks.0.attn.k.weight",
        "blocks.0.attn.v_proj.weight": "blocks.0.attn.v.weight",
        "lm_head.weight": "decoder.pred.weight",
    }
    assert set(found) == LARGE_FILE
    assert set(reasons(ROTATIONS, LARGE)) == ROTATIONS
    assert renamed(SMALL_FILE, SMALL) == {name: name for name in SMALL_FILE}


@pytest.mark.parametrize(
    ("names", "small", "large"),
    [
        (SMALL_FILE, True, False),
        (LARGE_FILE, False, True),
        (SMALL_FILE - {"blocks.0.mlp.w12.weight"} | {"blocks.0.mlp.w1.weight"}, True, False),
        (SMALL_FILE - {"norm.weight"} | {"fc_norm.weight", "head.weight"}, True, False),
        (LARGE_FILE | {"blocks.0.attn.inner_attn_ln.weight"}, False, False),  # EVA-CLIP
        (SMALL_FILE - {"blocks.0.mlp.w3.weight"}, False, False),  # EVA-01
    ],
)
def test_what_is_recognised(names, small, large) -> None:
    found = (SMALL.matched(frozenset(names), None), LARGE.matched(frozenset(names), None))
    assert (found[0] == 1.0, found[1] == 1.0) == (small, large)


def test_both_layouts_become_one_form(fixture_dir) -> None:
    names = {}
    for folder, kind in (("eva02_ts", EVA02), ("eva02_bl", NormedEVA02)):
        encoder, _ = load_encoder(fixture_dir / folder / "checkpoint.pth", overrides=Overrides(heads=4))
        assert type(encoder) is kind
        names[kind] = set(encoder.state_dict())
    assert {name for name in names[NormedEVA02] - names[EVA02] if "ffn_ln" not in name} == set()
    assert names[EVA02] < names[NormedEVA02]


def test_gates_come_first_when_joined() -> None:
    gate, value = torch.randn(6, 4), torch.randn(6, 4)
    tensors = {"blocks.0.mlp.w1.weight": gate, "blocks.0.mlp.w2.weight": value, "blocks.0.mlp.w3.weight": gate}
    join_gates(tensors)
    assert set(tensors) == {"blocks.0.mlp.w12.weight", "blocks.0.mlp.w3.weight"}
    assert torch.equal(tensors["blocks.0.mlp.w12.weight"], torch.cat([gate, value]))


@pytest.mark.parametrize("present", [("w1",), ("w2",), ("w1", "w2", "w12")])
def test_incomplete_gates_are_left_to_the_report(present) -> None:
    tensors = {f"blocks.0.mlp.{part}.weight": torch.zeros(2, 2) for part in present}
    join_gates(tensors)
    assert set(tensors) == {f"blocks.0.mlp.{part}.weight" for part in present}


@pytest.mark.parametrize("value", [torch.zeros(5, 4), torch.zeros(6, 4, dtype=torch.float16), torch.zeros(6)])
def test_gates_that_differ_are_refused(value) -> None:
    tensors = {"blocks.0.mlp.w1.weight": torch.zeros(6, 4), "blocks.0.mlp.w2.weight": value}
    with pytest.raises(
        CheckpointError, match=r"w1\.weight is \[6, 4\] float32 and .*w2\.weight is .*two tensors alike"
    ):
        join_gates(tensors)
