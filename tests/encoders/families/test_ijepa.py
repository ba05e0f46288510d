"""I-JEPA's facts: three sizes, no class token, and names of two publishers."""

import dataclasses

import pytest

from mae_export.decoder_spec import PredictorSpec
from mae_export.encoders.families import Facts
from mae_export.encoders.families.ijepa import FACEBOOK, FAMILY, HUGGING_FACE, outputs
from mae_export.encoders.load import load_encoder
from mae_export.encoders.overrides import Overrides
from mae_export.encoders.predictor import Predictor
from mae_export.encoders.vit import ViT
from mae_export.errors import InputError
from mae_export.spec import EncoderSpec, ImageSpec, StoredTable
from tests.encoders.families.published import derived, parameters_of, reasons, renamed, shapes_of

ENCODER = {"pos_embed", "patch_embed.proj.weight", "blocks.0.attn.qkv.bias", "norm.weight"}
PORT = {
    "embeddings.position_embeddings",
    "embeddings.patch_embeddings.projection.weight",
    "encoder.layer.0.attention.attention.query.bias",
    "layernorm.weight",
}


def spec_of(variant) -> EncoderSpec:
    size = (variant.image, variant.image)
    return EncoderSpec(
        family="ijepa",
        image=ImageSpec(size=size, crop_fraction=0.875 if variant.image == 224 else 1.0, interpolation="bilinear"),
        patch=(1, variant.patch, variant.patch),
        dim=variant.dim,
        depth=variant.depth,
        heads=variant.heads,
        mlp_hidden=variant.mlp_hidden or 4 * variant.dim,
        eps=1e-6,
        position=StoredTable(grid=(variant.image // variant.patch,) * 2, prefix_rows=0),
        class_token=False,
        pooled="mean_patch",
    )


@pytest.mark.parametrize("variant", FAMILY.variants, ids=lambda variant: variant.name)
def test_published_sizes(variant) -> None:
    spec = spec_of(variant)
    assert derived(FAMILY, shapes_of(spec, ViT)) == spec
    assert parameters_of(spec, ViT) == variant.parameters
    assert (FAMILY.image.interpolation, FAMILY.feature) == (spec.image.interpolation, spec.pooled)
    assert spec.prefix_tokens == 0


def test_other_sizes_are_said_to_have_no_reference() -> None:
    facts = Facts(shapes=shapes_of(spec_of(FAMILY.variants[0]), ViT), metadata={}, overrides=Overrides())
    assert FAMILY.spec(facts)[1] == (
        "other image sizes resample positions bicubically; the authors' code takes no other size to compare with",
    )


@pytest.mark.parametrize(
    ("names", "recognised"),
    [
        (ENCODER, True),
        (ENCODER | {"cls_token"}, False),  # MAE
        (ENCODER | {"mask_token", "decoder_embed.weight"}, False),
        (ENCODER | {"blocks.0.gamma_1"}, False),
        (ENCODER - {"pos_embed"}, False),
        (ENCODER - {"norm.weight"} | {"fc_norm.weight"}, False),
    ],
)
def test_what_is_recognised(names, recognised) -> None:
    assert (FACEBOOK.matched(frozenset(names), None) == 1.0) is recognised
    assert renamed(ENCODER, FACEBOOK) == {name: name for name in ENCODER}


@pytest.mark.parametrize("head", ["", "ijepa."])
def test_the_port_is_recognised_by_its_config(head) -> None:
    names = {head + name for name in PORT}
    assert HUGGING_FACE.matched(frozenset(names), "ijepa") == 1.0
    assert HUGGING_FACE.matched(frozenset(names), "vit") < 1.0
    assert set(renamed(names, HUGGING_FACE).values()) == {
        "pos_embed",
        "patch_embed.proj.weight",
        "blocks.0.attn.q.bias",
        "norm.weight",
    }


def test_what_the_port_adds_is_left_out() -> None:
    names = {"classifier.weight", "ijepa.pooler.dense.weight", "pooler.dense.bias", "ijepa.embeddings.mask_token"}
    assert set(reasons(names, HUGGING_FACE)) == names


@pytest.mark.parametrize(("weights", "container"), [(None, "target_encoder"), ("encoder", "encoder")])
def test_the_target_encoder_is_taken_unless_asked_otherwise(fixture_dir, weights, container) -> None:
    chosen = Overrides(heads=4, weights=weights)
    encoder, report = load_encoder(fixture_dir / "ijepa/checkpoint.pth", overrides=chosen)
    other, _ = load_encoder(fixture_dir / "ijepa/checkpoint.pth", overrides=Overrides(heads=4, weights=container))
    assert bool((encoder.norm.weight == other.norm.weight).all())
    assert any("'target_encoder', which its authors use" in note for note in report.notes) is (weights is None)


def test_the_feature_is_the_mean_of_finished_tokens() -> None:
    named = outputs(spec_of(FAMILY.variants[0]))
    assert named["pooled"] == "mean of the patch tokens after the final norm (section 4 of the paper)"
    assert "class_token" not in named
    assert "prediction" not in named


def test_the_predictor_comes_with_the_context_encoder_alone(fixture_dir) -> None:
    path = fixture_dir / "ijepa/checkpoint.pth"
    encoder, report = load_encoder(path, overrides=Overrides(heads=4, weights="encoder"))
    assert report.spec.decoder == PredictorSpec(dim=24, depth=1, heads=4, mlp_hidden=96, values=40)
    assert type(encoder.decoder) is Predictor
    assert report.ignored == ()
    assert outputs(report.spec)["prediction"].endswith("of all hidden patches at once, zero where a patch is visible")
    target, other = load_encoder(path, overrides=Overrides(heads=4))
    assert target.decoder is other.spec.decoder is None
    assert "--set weights=encoder" in FAMILY.undecoded


def test_the_predictor_has_as_many_heads_as_the_encoder_unless_said_otherwise(fixture_dir) -> None:
    """src/helper.py hands it the encoder's number."""
    path = fixture_dir / "ijepa/checkpoint.pth"
    for heads, stated, found in ((4, None, 4), (2, None, 2), (4, 3, 3)):
        overrides = Overrides(heads=heads, decoder_heads=stated, weights="encoder")
        assert load_encoder(path, overrides=overrides)[1].spec.decoder.heads == found
    with pytest.raises(InputError, match="predictor width 24 is not divisible by 5 heads; pass --set decoder_heads=N"):
        load_encoder(path, overrides=Overrides(heads=5, weights="encoder"))
    huge = spec_of(FAMILY.variants[0])
    decoder = PredictorSpec(dim=384, depth=12, heads=16, mlp_hidden=1536, values=1280)
    spec = dataclasses.replace(huge, decoder=decoder)
    assert derived(FAMILY, shapes_of(spec, ViT)) == spec


def test_the_predictor_may_be_left_out(fixture_dir) -> None:
    overrides = Overrides(heads=4, weights="encoder", ignore=("predictor.",))
    encoder, report = load_encoder(fixture_dir / "ijepa/checkpoint.pth", overrides=overrides)
    assert encoder.decoder is None
    assert len(report.ignored) == 20
