"""EVA-01's facts: its one size, the names of its files, and what it can be mistaken for."""

import dataclasses

import pytest
import torch

from mae_export.decoder_spec import HeadSpec
from mae_export.encoders.checkpoint import Checkpoint
from mae_export.encoders.families import FAMILIES
from mae_export.encoders.families.eva01 import FAMILY, FINE_TUNED, PRETRAINED, outputs
from mae_export.encoders.load import load_encoder, recognise
from mae_export.encoders.overrides import Overrides
from mae_export.encoders.vit import ViT
from mae_export.errors import LayoutError
from mae_export.spec import EncoderSpec, ImageSpec, StoredTable
from tests.encoders.families.published import derived, parameters_of, renamed, shapes_of

GIANT = EncoderSpec(
    family="eva01",
    image=ImageSpec(
        size=(224, 224),
        crop_fraction=0.875,
        mean=(0.48145466, 0.4578275, 0.40821073),
        std=(0.26862954, 0.26130258, 0.27577711),
    ),
    patch=(1, 14, 14),
    dim=1408,
    depth=40,
    heads=16,
    mlp_hidden=6144,
    eps=1e-6,
    position=StoredTable(grid=(16, 16)),
    pooled="fresh_norm_of_mean",
    decoder=HeadSpec(target="teacher-features", values=768),
    mask_token=True,
)
FINE_TUNED_GIANT = dataclasses.replace(GIANT, norm="pooled", pooled="mean_patch", decoder=None, mask_token=False)
BLOCK = ("norm1.weight", "attn.q_bias", "attn.v_bias", "attn.qkv.weight", "attn.proj.bias", "mlp.fc2.bias")
ENCODER = {"cls_token", "pos_embed", "patch_embed.proj.weight", *(f"blocks.0.{leaf}" for leaf in BLOCK)}
PRETRAINED_FILE = ENCODER | {"mask_token", "norm.weight", "lm_head.weight", "lm_head.bias"}
FINE_TUNED_FILE = ENCODER | {"fc_norm.weight", "head.weight", "head.bias"}


@pytest.mark.parametrize("spec", [GIANT, FINE_TUNED_GIANT], ids=["pre-trained", "fine-tuned"])
def test_the_published_size(spec) -> None:
    assert derived(FAMILY, shapes_of(spec, ViT)) == spec
    assert FAMILY.image == spec.image


def test_the_variant_is_that_size() -> None:
    (variant,) = FAMILY.variants
    assert variant.parameters == parameters_of(GIANT, ViT) == 1_011_203_840
    shape = (GIANT.dim, GIANT.depth, GIANT.heads, GIANT.patch[1], GIANT.mlp_hidden)
    assert (variant.dim, variant.depth, variant.heads, variant.patch, variant.mlp_hidden) == shape


def test_large_images_are_not_cropped() -> None:
    spec = dataclasses.replace(
        FINE_TUNED_GIANT,
        image=dataclasses.replace(GIANT.image, size=(336, 336), crop_fraction=1.0),
        position=StoredTable(grid=(24, 24)),
    )
    assert derived(FAMILY, shapes_of(spec, ViT)) == spec


def test_names_of_the_authors() -> None:
    found = renamed(PRETRAINED_FILE, PRETRAINED)
    assert {name: new for name, new in found.items() if name != new} == {
        "lm_head.weight": "decoder.pred.weight",
        "lm_head.bias": "decoder.pred.bias",
    }
    assert set(found) == PRETRAINED_FILE
    assert set(renamed(FINE_TUNED_FILE, FINE_TUNED)) == FINE_TUNED_FILE - {"head.weight", "head.bias"}


@pytest.mark.parametrize(
    ("names", "pretrained", "fine_tuned"),
    [
        (PRETRAINED_FILE, True, False),
        (PRETRAINED_FILE - {"lm_head.weight", "lm_head.bias"}, True, False),
        (FINE_TUNED_FILE, False, True),
        (PRETRAINED_FILE | {"blocks.0.gamma_1"}, False, False),  # BEiT with absolute positions
        (PRETRAINED_FILE | {"blocks.3.attn.relative_position_bias_table"}, False, False),
        (PRETRAINED_FILE | {"blocks.0.mlp.w3.weight"}, False, False),  # EVA-02
        (PRETRAINED_FILE - {"blocks.0.attn.q_bias"}, False, False),  # MAE
    ],
)
def test_what_is_recognised(names, pretrained, fine_tuned) -> None:
    found = (PRETRAINED.matched(frozenset(names), None), FINE_TUNED.matched(frozenset(names), None))
    assert (found[0] == 1.0, found[1] == 1.0) == (pretrained, fine_tuned)


def file_of(names, path) -> Checkpoint:
    return Checkpoint(
        path=path,
        format="torch",
        sha256="",
        tensors=dict.fromkeys(names, torch.zeros(1)),
        container="model",
        stripped=(),
        metadata={},
        notes=(),
    )


def test_fine_tuned_files_of_eva_and_mfm_are_told_apart_by_the_user(tmp_path) -> None:
    """Their names are the same and their pixels are not: CLIP's mean and std here, ImageNet's there."""
    checkpoint = file_of(FINE_TUNED_FILE, tmp_path)
    with pytest.raises(LayoutError, match=r"fits several layouts: .*eva01.*mfm.*choose one with --family NAME"):
        recognise(checkpoint)
    for name in ("eva01", "mfm"):
        assert recognise(checkpoint, name)[0] is FAMILIES[name]


def test_half_precision_of_the_published_file_becomes_float32(fixture_dir) -> None:
    encoder, report = load_encoder(fixture_dir / "eva01/checkpoint.pth", overrides=Overrides(heads=4))
    assert {tensor.dtype for tensor in encoder.state_dict().values()} == {torch.float32}
    assert "33 float16 tensors cast to float32" in report.notes
    bias = encoder.blocks[0].attn.qkv.bias
    assert not bias[48:96].any()  # the key has none
    assert bias[:48].all()
    assert bias[96:].all()


def test_outputs_say_what_they_hold() -> None:
    named = outputs(GIANT)
    assert "a norm without weights" in named["pooled"]
    assert named["class_token"] == "class token, after the final norm"
    assert named["prediction"].startswith("features of CLIP for every patch in raster order")
    fine_tuned = outputs(FINE_TUNED_GIANT)
    assert "fc_norm, of the mean" in fine_tuned["pooled"]
    assert not {"prediction", "reconstruction"} & set(fine_tuned)
