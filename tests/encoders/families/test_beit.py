"""BEiT's facts: sizes against the published models, names of each publisher, and what tensors do not say."""

import dataclasses
import re
from typing import Any

import pytest
import torch

from mae_export.decoder_spec import HeadSpec
from mae_export.encoders.beit import BEiT
from mae_export.encoders.families import FAMILIES, Facts
from mae_export.encoders.families.beit import (
    ABSOLUTE,
    FAMILY,
    FAMILY_V2,
    HUGGING_FACE,
    UNILM,
    UNILM_V2,
    add_unit_scales,
    architecture,
    outputs,
    spec,
    spec_v2,
)
from mae_export.encoders.layer_scale import LayerScaleViT
from mae_export.encoders.load import load_encoder
from mae_export.encoders.overrides import Overrides
from mae_export.encoders.vit import ViT
from mae_export.errors import CheckpointError, InputError, LayoutError
from mae_export.spec import EncoderSpec, ImageSpec, RelativeBias, StoredTable

TABLE = "relative_position_bias_table"
HALF = (0.5, 0.5, 0.5)
IMAGENET = (0.485, 0.456, 0.406)
SIZED = EncoderSpec(
    family="beit",
    image=ImageSpec(size=(224, 224), crop_fraction=0.875, mean=HALF, std=HALF),
    patch=(1, 16, 16),
    dim=768,
    depth=12,
    heads=12,
    mlp_hidden=3072,
    eps=1e-6,
    position=RelativeBias(grid=(14, 14)),
    norm="tokens",
    pooled="fresh_norm_of_mean",
    decoder=HeadSpec(target="token-logits", values=8192),
    mask_token=True,
)
TUNED = dataclasses.replace(
    SIZED,
    position=RelativeBias(grid=(14, 14), shared=False),
    norm="pooled",
    pooled="mean_patch",
    decoder=None,
    mask_token=False,
)


def named(made: EncoderSpec = SIZED, architecture: type = BEiT) -> dict[str, tuple[int, ...]]:
    """Shapes of such an encoder by our names."""
    with torch.device("meta"):
        return {name: tuple(tensor.shape) for name, tensor in architecture(made).state_dict().items()}


def facts(
    shapes: dict[str, tuple[int, ...]], metadata: dict[str, Any] | None = None, overrides: Overrides | None = None
) -> Facts:
    return Facts(shapes=shapes, metadata=metadata or {}, overrides=overrides or Overrides())


def refusal(shapes: dict[str, tuple[int, ...]], overrides: Overrides | None = None) -> str:
    with pytest.raises(InputError) as caught:
        spec(facts(shapes, overrides=overrides))
    return str(caught.value)


LARGE = {"dim": 1024, "depth": 24, "heads": 16, "mlp_hidden": 4096}


@pytest.mark.parametrize("made", [SIZED, TUNED, dataclasses.replace(SIZED, **LARGE)])
def test_shapes_of_published_models_give_their_spec(made: EncoderSpec) -> None:
    assert spec(facts(named(made)))[0] == made


@pytest.mark.parametrize(("size", "rows"), [(224, 732), (384, 2212), (512, 3972)])
def test_tables_of_published_sizes(size: int, rows: int) -> None:
    """Fine-tuned files of 384 and 512 pixels, whose images are not cropped."""
    grid = (size // 16, size // 16)
    image = dataclasses.replace(SIZED.image, size=(size, size), crop_fraction=0.875 if size == 224 else 1.0)
    made = dataclasses.replace(TUNED, image=image, position=RelativeBias(grid=grid, shared=False))
    shapes = named(made)
    assert shapes[f"blocks.11.{TABLE}"] == (rows, 12)
    assert spec(facts(shapes))[0] == made


@pytest.mark.parametrize("family", [FAMILY, FAMILY_V2], ids=lambda family: family.name)
def test_published_sizes_have_so_many_parameters(family) -> None:
    for variant in family.variants:
        sizes = {"dim": variant.dim, "depth": variant.depth, "heads": variant.heads, "mlp_hidden": 4 * variant.dim}
        shapes = named(dataclasses.replace(SIZED, decoder=None, **sizes))
        assert sum(torch.Size(shape).numel() for shape in shapes.values()) == variant.parameters


def test_heads_are_the_tables() -> None:
    made = dataclasses.replace(SIZED, dim=96, heads=8, depth=2, mlp_hidden=10)
    assert spec(facts(named(made)))[0].heads == 8
    assert spec(facts(named(made), {"num_attention_heads": 3}))[0].heads == 8
    assert spec(facts(named(made), overrides=Overrides(heads=3)))[0].heads == 3  # the loader finds that it does not fit


@pytest.mark.parametrize(
    ("dropped", "norm", "pooled"),
    [
        ((), "tokens", "fresh_norm_of_mean"),
        (("mask_token",), "tokens", "class_token"),
        (("norm.weight", "norm.bias"), "none", "fresh_norm_of_mean"),
    ],
    ids=["pre-trained", "fine-tuned with --use_cls", "no norm"],
)
def test_the_feature_of_each_kind_of_file(dropped: tuple[str, ...], norm: str, pooled: str) -> None:
    shapes = {name: shape for name, shape in named().items() if name not in dropped}
    found = spec(facts(shapes))[0]
    assert (found.norm, found.pooled) == (norm, pooled)
    said = {
        "fresh_norm_of_mean": "fine-tuning feature: mean of the last block's patch tokens, then a norm.",
        "class_token": "feature of fine-tuning with --use_cls: class token after the final norm",
    }
    assert outputs(found)["pooled"].startswith(said[pooled])
    assert outputs(TUNED)["pooled"].startswith("fine-tuning feature: fc_norm of the mean")


@pytest.mark.parametrize("target", ["token-logits", "image-normalised"])
def test_what_the_head_predicts_is_told(target: str) -> None:
    told = outputs(dataclasses.replace(SIZED, decoder=HeadSpec(target=target, values=8)))
    pixels = target == "image-normalised"
    name = "reconstruction" if pixels else "prediction"
    assert told[name] == "the head's prediction of every patch in raster order" + (
        ", values in (y, x, c) order" if pixels else ""
    )
    assert {"prediction", "reconstruction"} & set(told) == {name}
    assert not {"prediction", "reconstruction"} & set(outputs(TUNED))


ARGS = {"args": {"imagenet_default_mean_and_std": True}}
NO_ARGS = {"args": {"imagenet_default_mean_and_std": False}}


@pytest.mark.parametrize(
    ("derive", "metadata", "mean", "note"),
    [
        (spec, {}, HALF, "mean and std of pixels are 0.5, as BEiT v1 was trained: tensors do not say"),
        (spec, NO_ARGS, HALF, "mean and std of pixels are 0.5, as BEiT v1 was trained: tensors do not say"),
        (spec, ARGS, IMAGENET, "mean and std of pixels are ImageNet's, as the file's args say"),
        (spec, {"args": "gone"}, HALF, "mean and std of pixels are 0.5, as BEiT v1 was trained: tensors do not say"),
        (spec, {"model_type": "beit"}, HALF, None),
        (spec_v2, {}, IMAGENET, None),
        (spec_v2, ARGS, IMAGENET, None),
        (spec_v2, NO_ARGS, IMAGENET, "the file's args say imagenet_default_mean_and_std=False, but every published"),
    ],
)
def test_mean_and_std_are_those_of_training(derive, metadata, mean, note: str | None) -> None:
    found, notes = derive(facts(named(), metadata))
    assert found.image.mean == mean
    assert [text.startswith(str(note)) for text in notes] == ([] if note is None else [True])
    stated = Overrides(mean=(0.1,) * 3, std=(0.2,) * 3)
    found, notes = derive(facts(named(), metadata, stated))
    assert (found.image.mean, found.image.std, notes) == ((0.1,) * 3, (0.2,) * 3, ())


def test_a_grid_that_is_no_square_asks_for_the_size_of_training() -> None:
    image = dataclasses.replace(SIZED.image, size=(192, 320), crop_fraction=1.0)
    made = dataclasses.replace(SIZED, image=image, position=RelativeBias(grid=(12, 20)))
    assert refusal(named(made)) == (
        "the table of relative positions has 900 rows, which fits no square grid; pass --set image_size=HxW with the "
        "size the checkpoint was trained at"
    )
    assert spec(facts(named(made), overrides=Overrides(image_size=(192, 320))))[0] == made
    assert spec(facts(named(made), {"image_size": [192, 320]}))[0] == made
    assert refusal(named(made), Overrides(image_size=(320, 160))) == (
        "image_size=320x160 with 16x16 patches needs 744 relative positions, but the table has 900; image_size is the "
        "size of training, use --image-size for another one"
    )


@pytest.mark.parametrize("rows", [1, 3, 5, 11])
def test_a_table_of_no_grid_is_refused(rows: int) -> None:
    assert f"has {rows} rows, which fits no square grid" in refusal(named() | {TABLE: (rows, 12)})


def test_a_file_without_positions_is_refused() -> None:
    shapes = {name: shape for name, shape in named().items() if name != TABLE}
    assert refusal(shapes) == f"the checkpoint lacks blocks.0.{TABLE}; the encoder cannot be sized without it"


def test_the_head_of_data2vec_is_not_taken_for_tokens() -> None:
    shapes = named(dataclasses.replace(SIZED, decoder=HeadSpec(target="token-logits", values=768)))
    assert refusal(shapes) == (
        "the checkpoint: lm_head predicts 768 values, as many as a token has, where BEiT predicts one of 8192 visual "
        "tokens; a file of data2vec 1.0 is loaded with --family data2vec_vision"
    )


def test_absolute_positions_are_another_architecture() -> None:
    made = dataclasses.replace(SIZED, position=StoredTable(grid=(14, 14)))
    assert spec(facts(named(made, ViT)))[0] == made
    assert architecture(made) is LayerScaleViT
    assert architecture(SIZED) is BEiT
    assert (ABSOLUTE.encoder, ABSOLUTE.adapt, ABSOLUTE.asked) == (ViT, None, True)


def test_absent_scales_are_ones() -> None:
    tensors = {"blocks.0.norm1.weight": torch.zeros(3).half(), "blocks.12.norm1.weight": torch.zeros(2)}
    add_unit_scales(tensors)
    assert torch.equal(tensors["blocks.0.gamma_2"], torch.ones(3))
    assert torch.equal(tensors["blocks.12.gamma_1"], torch.ones(2))
    damaged = {"blocks.0.norm1.weight": torch.zeros(3), "blocks.0.gamma_1": torch.zeros(3)}
    add_unit_scales(damaged)
    assert set(damaged) == {"blocks.0.norm1.weight", "blocks.0.gamma_1"}  # reported as missing, not made up


def unilm(tables: str, *extra: str) -> dict[str, str]:
    """Names of microsoft/unilm, two blocks, and ours."""
    found = {name: name for name in ("cls_token", "patch_embed.proj.weight", "patch_embed.proj.bias", *extra)}
    for index in range(2):
        block = f"blocks.{index}"
        leaves = ("gamma_1", "gamma_2", "attn.q_bias", "attn.v_bias", "attn.qkv.weight")
        found |= {f"{block}.{leaf}": f"{block}.{leaf}" for leaf in leaves}
        for part in ("norm1", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2"):
            found |= {f"{block}.{part}.{leaf}": f"{block}.{part}.{leaf}" for leaf in ("weight", "bias")}
        if tables == "own":
            found[f"{block}.attn.{TABLE}"] = f"{block}.{TABLE}"
    return found | ({f"rel_pos_bias.{TABLE}": TABLE} if tables == "shared" else {})


NORM, FC_NORM = ("norm.weight", "norm.bias"), ("fc_norm.weight", "fc_norm.bias")
LM_HEAD = {"lm_head.weight": "decoder.pred.weight", "lm_head.bias": "decoder.pred.bias"}
SECOND = {"cls_pt_layers.0.gamma_1", "cls_pt_layers.1.attn.qkv.weight", "cls_pt_norm.weight", "cls_pt_lm_head.bias"}
INDEX = "relative_position_index"
FILES = {  # names and ours, names that are left aside, layout, family that recognises it
    "pre-trained": (unilm("shared", "mask_token", *NORM) | LM_HEAD, {f"rel_pos_bias.{INDEX}"}, UNILM, "beit"),
    "v2": (unilm("shared", "mask_token", *NORM) | LM_HEAD, {f"rel_pos_bias.{INDEX}", *SECOND}, UNILM_V2, "beitv2"),
    "fine-tuned": (unilm("own", *FC_NORM), {f"blocks.1.attn.{INDEX}", "head.weight"}, UNILM, "beit"),
    "--use_cls": (unilm("own", *NORM), {"head.bias"}, UNILM, "beit"),
    "absolute": (
        {name: ours for name, ours in unilm("", "mask_token", "pos_embed", *NORM).items() if "gamma" not in name},
        set(),
        ABSOLUTE,
        None,
    ),
}


def translated(names: set[str] | dict[str, str], layout: Any) -> dict[str, str]:
    """What each name becomes; the first rename that matches the whole name wins."""
    found = {}
    for name in names:
        matches = (re.fullmatch(pattern, name) for pattern, _ in layout.renames)
        pairs = zip(matches, layout.renames, strict=True)
        target = next((match.expand(replacement) for match, (_, replacement) in pairs if match), None)
        if target is not None:
            found[name] = target
    return found


@pytest.mark.parametrize("kind", FILES)
def test_names_of_the_authors(kind: str) -> None:
    expected, aside, layout, family = FILES[kind]
    assert translated({*expected, *aside}, layout) == expected
    assert all(any(re.fullmatch(pattern, name) for pattern, _ in layout.ignored) for name in aside)
    names = frozenset({*expected, *aside})
    recognised = [
        (candidate.name, found.name)
        for candidate in FAMILIES.values()
        for found in candidate.layouts
        if not found.asked and found.matched(names, None) == 1.0
    ]
    if family is not None:
        assert recognised == [(family, layout.name)]
    assert layout.matched(names, None) == 1.0


HF_LEAVES = {  # ours: (transformers v4, transformers v5)
    f"blocks.1.{TABLE}": (
        f"encoder.layer.1.attention.attention.relative_position_bias.{TABLE}",
        f"layers.1.relative_position_bias.{TABLE}",
    ),
    TABLE: (f"encoder.relative_position_bias.{TABLE}", f"shared_position_bias.{TABLE}"),
    "blocks.1.attn.q_bias": ("encoder.layer.1.attention.attention.query.bias", "layers.1.attention.q_proj.bias"),
    "blocks.1.attn.v_bias": ("encoder.layer.1.attention.attention.value.bias", "layers.1.attention.v_proj.bias"),
    "blocks.1.attn.q.weight": ("encoder.layer.1.attention.attention.query.weight", "layers.1.attention.q_proj.weight"),
    "blocks.1.attn.k.weight": ("encoder.layer.1.attention.attention.key.weight", "layers.1.attention.k_proj.weight"),
    "blocks.1.attn.proj.bias": ("encoder.layer.1.attention.output.dense.bias", "layers.1.attention.o_proj.bias"),
    "blocks.1.gamma_2": ("encoder.layer.1.lambda_2", "layers.1.lambda_2"),
    "blocks.1.mlp.fc2.weight": ("encoder.layer.1.output.dense.weight", "layers.1.mlp.fc2.weight"),
    "blocks.1.norm2.bias": ("encoder.layer.1.layernorm_after.bias", "layers.1.layernorm_after.bias"),
    "pos_embed": ("embeddings.position_embeddings",) * 2,
    "mask_token": ("embeddings.mask_token",) * 2,
    "patch_embed.proj.bias": ("embeddings.patch_embeddings.projection.bias",) * 2,
    "fc_norm.weight": ("pooler.layernorm.weight",) * 2,
    "norm.weight": ("layernorm.weight",) * 2,
}


@pytest.mark.parametrize("version", [0, 1], ids=["v4", "v5"])
@pytest.mark.parametrize("prefix", ["", "beit."])
def test_names_of_hugging_face(version: int, prefix: str) -> None:
    expected = {prefix + names[version]: ours for ours, names in HF_LEAVES.items()}
    expected |= {"lm_head.weight": "decoder.pred.weight"}
    assert translated(expected, HUGGING_FACE) == expected
    aside = (
        f"beit.encoder.relative_position_bias.{INDEX}",
        "classifier.bias",
        "decode_head.conv.weight",
        "fpn1.0.bias",
    )
    assert translated({*aside}, HUGGING_FACE) == {}
    assert all(any(re.fullmatch(pattern, name) for pattern, _ in HUGGING_FACE.ignored) for name in aside)
    names = frozenset(
        {*expected, f"{prefix}embeddings.cls_token", f"{prefix}embeddings.patch_embeddings.projection.weight"}
    )
    assert HUGGING_FACE.matched(names, "beit") == 1.0
    assert HUGGING_FACE.matched(names, "data2vec-vision") < 1.0
    assert UNILM.matched(names, None) < 1.0


def test_one_norm_of_tokens_under_two_names_is_refused(tmp_path) -> None:
    """Two norms in a row, as transformers computes for use_mean_pooling=False with an lm_head, are no BEiT."""
    import transformers

    sizes = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
    config = transformers.BeitConfig(
        **sizes, image_size=24, patch_size=8, use_mean_pooling=False, use_shared_relative_position_bias=True
    )
    transformers.BeitForMaskedImageModeling(config).save_pretrained(tmp_path)
    with pytest.raises(LayoutError, match="are both the encoder's norm"):
        load_encoder(tmp_path)


def test_fine_tuned_files_of_other_families_must_be_asked_for(fixture_dir) -> None:
    file = fixture_dir / "beit2_finetune" / "checkpoint_release.pth"
    _, report = load_encoder(file)
    assert (report.family, report.spec.image.mean) == ("beit", HALF)
    (sharing,) = [note for note in report.notes if "name their tensors in the same way" in note]
    for name in ("beitv2", "simmim", "data2vec_vision", "dbot"):
        assert name in sharing
        _, asked = load_encoder(file, family=name)
        assert (asked.family, asked.spec.family) == (name, name)
        assert asked.spec.image.mean == (HALF if name == "data2vec_vision" else IMAGENET)


def test_a_second_table_is_refused(fixture_dir, tmp_path) -> None:
    content = torch.load(fixture_dir / "beit2_plain" / "checkpoint_release.pth", weights_only=True)
    content["model"][f"blocks.0.attn.{TABLE}"] = torch.zeros(228, 4)
    torch.save(content, tmp_path / "c.pth")
    with pytest.raises(LayoutError, match=rf"holds 1 tensors that no part of the encoder takes: blocks\.0\.{TABLE}$"):
        load_encoder(tmp_path / "c.pth")


def test_heads_that_the_table_does_not_have_are_refused(fixture_dir) -> None:
    with pytest.raises(CheckpointError, match=rf"{TABLE} is \[228, 4\], expected \[228, 6\]"):
        load_encoder(fixture_dir / "beit2_plain" / "checkpoint_release.pth", overrides=Overrides(heads=6))
