"""CAE's facts: which part of its files is the encoder, and heads that no other family would guess."""

import re

import pytest
import torch

from mae_export.encoders.checkpoint import read_checkpoint
from mae_export.encoders.families import FAMILIES, Facts
from mae_export.encoders.families.cae import FAMILY, LAYOUT, outputs, spec
from mae_export.encoders.layer_scale import LayerScaleViT
from mae_export.encoders.load import load_encoder
from mae_export.encoders.overrides import Overrides
from mae_export.errors import CheckpointError
from mae_export.spec import EncoderSpec, ImageSpec, StoredTable

FOUR = Overrides(heads=4)


def sized(dim: int, depth: int, heads: int, **changes: object) -> EncoderSpec:
    values = {
        "family": "cae",
        "image": ImageSpec(size=(224, 224), crop_fraction=0.875),
        "patch": (1, 16, 16),
        "mlp_hidden": 4 * dim,
        "eps": 1e-6,
        "position": StoredTable(grid=(14, 14)),
    }
    return EncoderSpec(dim=dim, depth=depth, heads=heads, **values | changes)


def named(made: EncoderSpec) -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        return {name: tuple(tensor.shape) for name, tensor in LayerScaleViT(made).state_dict().items()}


@pytest.mark.parametrize("variant", FAMILY.variants, ids=lambda variant: variant.name)
def test_published_sizes(variant) -> None:
    """Tiny and small have twelve heads like base, of 16 and 32 values."""
    made = sized(variant.dim, variant.depth, 16 if variant.dim == 1024 else 12)
    shapes = named(made)
    assert spec(Facts(shapes=shapes, metadata={}, overrides=Overrides()))[0] == made
    assert variant.heads == made.heads
    assert sum(torch.Size(shape).numel() for shape in shapes.values()) == variant.parameters


def test_heads_may_be_stated() -> None:
    shapes = named(sized(384, 2, 12))
    assert spec(Facts(shapes=shapes, metadata={}, overrides=Overrides(heads=6)))[0].heads == 6
    with pytest.raises(CheckpointError, match="heads cannot be told from a width of 48"):
        spec(Facts(shapes=named(sized(48, 2, 12)), metadata={}, overrides=Overrides()))


@pytest.mark.parametrize(("folder", "aside"), [("cae", 80), ("caev2", 33)])
def test_only_the_encoder_is_taken(fixture_dir, folder: str, aside: int) -> None:
    file = fixture_dir / folder / "checkpoint.pth"
    tensors = read_checkpoint(file).tensors
    encoder, report = load_encoder(file, overrides=FOUR)
    assert (report.family, type(encoder)) == ("cae", LayerScaleViT)
    assert all(name.startswith("encoder.") for name in report.used)
    assert len(report.ignored) == aside == len(tensors) - len(report.used)
    for name in ("cls_token", "pos_embed", "blocks.1.gamma_2", "norm.weight"):
        assert torch.equal(encoder.state_dict()[name], tensors[f"encoder.{name}"])
    bias = encoder.state_dict()["blocks.0.attn.qkv.bias"]
    assert torch.equal(bias[:48], tensors["encoder.blocks.0.attn.q_bias"])
    assert not bias[48:96].any()
    reasons = {name.split(".")[0]: reason for name, reason in report.ignored}
    assert reasons["regresser"] == reasons["rd_pos_embed"] == "regressor, used in training only"
    assert reasons["decoder"] == reasons["mask_token"] == "decoder, used in training only"
    if folder == "cae":
        assert reasons["alignment_encoder"] == "copy of the encoder that makes the targets of training"
        assert not torch.equal(tensors["alignment_encoder.cls_token"], encoder.cls_token)


def test_an_encoder_alone_is_recognised(fixture_dir, tmp_path) -> None:
    file = fixture_dir / "cae" / "checkpoint.pth"
    content = {name: value for name, value in read_checkpoint(file).tensors.items() if name.startswith("encoder.")}
    torch.save(content, tmp_path / "c.pth")
    encoder, report = load_encoder(tmp_path / "c.pth", overrides=FOUR)
    assert (report.family, report.ignored) == ("cae", ())
    whole = load_encoder(file, overrides=FOUR)[0].state_dict()
    assert all(torch.equal(value, whole[name]) for name, value in encoder.state_dict().items())


def test_fine_tuned_and_probed_files(fixture_dir, tmp_path) -> None:
    tensors = read_checkpoint(fixture_dir / "cae" / "checkpoint.pth").tensors
    plain = {name.removeprefix("encoder."): value for name, value in tensors.items() if name.startswith("encoder.")}
    probe = plain | {"query_token": torch.zeros(1, 1, 48), "attentive_blocks.0.norm_q.bias": torch.zeros(48)}
    tuned = {name.replace("norm.", "fc_norm.") if name.startswith("norm.") else name: plain[name] for name in plain}
    for content, norm, pooled in ((probe, "tokens", "class_token"), (tuned, "pooled", "mean_patch")):
        torch.save({"model": content | {"head.weight": torch.zeros(3, 48)}}, tmp_path / "c.pth")
        _, report = load_encoder(tmp_path / "c.pth", overrides=FOUR)
        assert (report.family, report.spec.norm, report.spec.pooled) == ("cae", norm, pooled)
        assert len(report.ignored) == (3 if content is probe else 1)


def test_outputs_are_told() -> None:
    assert outputs(sized(192, 2, 12))["pooled"] == (
        "linear-probe feature: class token after the final norm (run_linear.py)"
    )
    tuned = sized(192, 2, 12, norm="pooled", pooled="mean_patch")
    assert outputs(tuned)["pooled"].startswith("fine-tuning feature: fc_norm of the mean")


def test_no_other_family_takes_it(fixture_dir) -> None:
    for folder in ("cae", "caev2"):
        names = frozenset(read_checkpoint(fixture_dir / folder / "checkpoint.pth").tensors)
        fitting = [
            family.name
            for family in FAMILIES.values()
            for layout in family.layouts
            if layout.matched(names, None) == 1.0
        ]
        assert fitting == ["cae"]


def test_a_substring_is_no_prefix() -> None:
    """`alignment_encoder.` ends in the encoder's prefix."""
    name = "alignment_encoder.blocks.0.norm1.weight"
    assert not any(re.fullmatch(pattern, name) for pattern, _ in LAYOUT.renames)
