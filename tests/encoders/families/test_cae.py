"""CAE's facts: which part of its files is the encoder, and heads that no other family would guess."""

import re

import pytest
import torch

from mae_export.decoder_spec import AlignedRegresserSpec, RegresserSpec
from mae_export.encoders.checkpoint import read_checkpoint
from mae_export.encoders.families import FAMILIES, Facts
from mae_export.encoders.families.cae import FAMILY, LAYOUT, PRETRAINED, PRETRAINED_V2, outputs, spec
from mae_export.encoders.layer_scale import LayerScaleViT
from mae_export.encoders.load import load_encoder
from mae_export.encoders.overrides import Overrides
from mae_export.errors import CheckpointError
from mae_export.spec import EncoderSpec, ImageSpec, StoredTable

FOUR = Overrides(heads=4)
BOTH = Overrides(heads=4, decoder_heads=4)


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


@pytest.mark.parametrize(
    ("folder", "layout", "ignored"),
    [
        ("cae", PRETRAINED, {"alignment_encoder.": "copy of the encoder that makes the targets of training"}),
        ("caev2", PRETRAINED_V2, {"regresser.norm.": "norm that CAE v2 creates and does not use"}),
    ],
)
def test_encoder_and_regresser_are_taken(fixture_dir, folder: str, layout, ignored: dict[str, str]) -> None:
    file = fixture_dir / folder / "checkpoint.pth"
    tensors = read_checkpoint(file).tensors
    encoder, report = load_encoder(file, overrides=BOTH)
    assert (report.family, report.layout, type(encoder)) == ("cae", layout.name, LayerScaleViT)
    ((prefix, reason),) = ignored.items()
    assert dict(report.ignored) == {name: reason for name in tensors if name.startswith(prefix)}
    assert len(report.used) == len(tensors) - len(report.ignored)
    for name in ("cls_token", "pos_embed", "blocks.1.gamma_2", "norm.weight"):
        assert torch.equal(encoder.state_dict()[name], tensors[f"encoder.{name}"])
    bias = encoder.state_dict()["blocks.0.attn.qkv.bias"]
    assert torch.equal(bias[:48], tensors["encoder.blocks.0.attn.q_bias"])
    assert not bias[48:96].any()
    assert torch.equal(encoder.decoder.pos_embed, tensors["rd_pos_embed"])
    attention = encoder.decoder.regressor_blocks[0].cross_attn
    for name, theirs in (("query.weight", "q.weight"), ("query.bias", "q_bias"), ("key.weight", "k.weight")):
        tensor = tensors[f"regresser.regressor_blocks.0.cross_attn.{theirs}"]
        assert torch.equal(attention.state_dict()[name], tensor)
    if folder == "cae":
        assert not torch.equal(tensors["alignment_encoder.cls_token"], encoder.cls_token)
    assert any(note.startswith("other image sizes resample the regresser's positions") for note in report.notes)


@pytest.mark.parametrize(("folder", "sizes"), [("cae", (48, 1, 192, 32)), ("caev2", (32, 1, 128, 24))])
def test_the_regresser_is_sized_by_its_tensors(fixture_dir, folder: str, sizes) -> None:
    decoder = load_encoder(fixture_dir / folder / "checkpoint.pth", overrides=BOTH)[1].spec.decoder
    assert (decoder.dim, decoder.depth, decoder.mlp_hidden, decoder.values) == sizes
    if folder == "cae":
        assert (type(decoder), decoder.decoder_depth, decoder.target) == (RegresserSpec, 1, "token-logits")
    else:
        assert (type(decoder), decoder.target) == (AlignedRegresserSpec, "teacher-features")


def test_the_regresser_has_twelve_heads_unless_said_otherwise(fixture_dir, tmp_path) -> None:
    """Whatever the width: those of a published width of 1024 are 85 wide, 1020 together."""
    file = fixture_dir / "caev2" / "checkpoint.pth"
    with pytest.raises(CheckpointError, match=r"12 heads in a regresser of width 32 are 24 wide together, but its que"):
        load_encoder(file, overrides=FOUR)
    assert load_encoder(file, overrides=BOTH)[1].spec.decoder.heads == 4
    assert load_encoder(fixture_dir / "cae" / "checkpoint.pth", overrides=FOUR)[1].spec.decoder.heads == 12
    with pytest.raises(CheckpointError, match=r"pass --set decoder_heads=N with the trained number"):
        load_encoder(file, overrides=Overrides(heads=4, decoder_heads=33))
    large = RegresserSpec(dim=1024, depth=4, decoder_depth=4, heads=12, mlp_hidden=4096, values=8192)
    made = sized(1024, 24, 16, decoder=large)
    assert named(made)["decoder.regressor_blocks.3.cross_attn.proj.weight"] == (1024, 1020)
    assert spec(Facts(shapes=named(made), metadata={}, overrides=Overrides()))[0] == made


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
    assert "prediction" not in outputs(tuned)
    sizes = {"dim": 192, "depth": 1, "heads": 12, "mlp_hidden": 768, "values": 8}
    v1, v2 = RegresserSpec(**sizes, decoder_depth=1), AlignedRegresserSpec(**sizes)
    told = [outputs(sized(192, 2, 12, decoder=decoder))["prediction"] for decoder in (v1, v2)]
    assert told[0].endswith("of all hidden patches at once, zero where a patch is visible")
    assert told[1].startswith("head's prediction of every patch in raster order, of length one")


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
    for layout in (LAYOUT, PRETRAINED, PRETRAINED_V2):
        assert not any(re.fullmatch(pattern, name) for pattern, _ in layout.renames)
