"""MAE's facts: sizes against the published models, names of each publisher, and files that only look like MAE."""

import dataclasses
import re
from typing import Any

import pytest
import torch

from mae_export.decoder_spec import DecoderSpec
from mae_export.encoders.families import FAMILIES, Facts
from mae_export.encoders.families.mae import FACEBOOK, HUGGING_FACE, RECIPE, Recipe
from mae_export.encoders.overrides import Overrides
from mae_export.encoders.vit import ViT
from mae_export.errors import CheckpointError, InputError
from mae_export.spec import EncoderSpec, ImageSpec, StoredTable

DECODER_512 = DecoderSpec(dim=512, depth=8, heads=16, mlp_hidden=2048)


def named(
    dim: int = 768,
    *,
    depth: int = 12,
    patch: tuple[int, int] = (16, 16),
    grid: tuple[int, int] = (14, 14),
    fine_tuned: bool = False,
    decoder: DecoderSpec | None = None,
) -> dict[str, tuple[int, ...]]:
    """Shapes of such an encoder by our names, which are the authors' but for the decoder's."""
    made = EncoderSpec(
        family="mae",
        image=ImageSpec(size=(grid[0] * patch[0], grid[1] * patch[1])),
        patch=(1, *patch),
        dim=dim,
        depth=depth,
        heads=1,
        mlp_hidden=4 * dim,
        eps=1e-6,
        position=StoredTable(grid=grid),
        norm="pooled" if fine_tuned else "tokens",
        decoder=decoder,
    )
    with torch.device("meta"):
        return {name: tuple(tensor.shape) for name, tensor in ViT(made).state_dict().items()}


def derive(
    shapes: dict[str, tuple[int, ...]], metadata: dict[str, Any] | None = None, overrides: Overrides | None = None
) -> EncoderSpec:
    return RECIPE.spec(Facts(shapes=shapes, metadata=metadata or {}, overrides=overrides or Overrides()))[0]


def refusal(
    shapes: dict[str, tuple[int, ...]], metadata: dict[str, Any] | None = None, overrides: Overrides | None = None
) -> str:
    with pytest.raises(InputError) as caught:
        derive(shapes, metadata, overrides)
    return str(caught.value)


@pytest.mark.parametrize(
    ("dim", "depth", "side", "heads"), [(768, 12, 16, 12), (1024, 24, 16, 16), (1280, 32, 14, 16), (192, 12, 16, 3)]
)
def test_published_sizes(dim: int, depth: int, side: int, heads: int) -> None:
    shapes = named(dim, depth=depth, patch=(side, side), grid=(224 // side, 224 // side))
    assert derive(shapes) == EncoderSpec(
        family="mae",
        image=ImageSpec(size=(224, 224), crop_fraction=0.875, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)),
        patch=(1, side, side),
        dim=dim,
        depth=depth,
        heads=heads,
        mlp_hidden=4 * dim,
        eps=1e-6,
        position=StoredTable(grid=(224 // side, 224 // side), prefix_rows=1, resample="bicubic"),
        norm="tokens",
        pooled="class_token",
    )


@pytest.mark.parametrize("dim", [48, 80, 1000])
def test_heads_that_a_width_does_not_tell_are_asked_for(dim: int) -> None:
    assert refusal(named(dim, depth=2, grid=(2, 2))) == (
        f"the number of attention heads cannot be told from a width of {dim} (published sizes have 64 "
        "values per head); pass --set heads=N with the trained number"
    )
    assert derive(named(dim, depth=2, grid=(2, 2)), overrides=Overrides(heads=4)).heads == 4
    assert derive(named(dim, depth=2, grid=(2, 2)), {"num_attention_heads": 8}).heads == 8


def test_what_is_said_goes_before_what_is_known() -> None:
    shapes = named()
    assert derive(shapes, {"num_attention_heads": 6}).heads == 6
    assert derive(shapes, {"num_attention_heads": 6}, Overrides(heads=24)).heads == 24
    assert refusal(shapes, overrides=Overrides(heads=7)).startswith("width 768 is not divisible by 7 heads")


def test_overrides_reach_the_image() -> None:
    stated = Overrides(mean=(0.5,) * 3, std=(0.2,) * 3, resize="stretch", crop_fraction=0.5)
    image = derive(named(), overrides=stated).image
    assert image == ImageSpec(size=(224, 224), mean=(0.5,) * 3, std=(0.2,) * 3, resize="stretch", crop_fraction=0.5)


def test_large_images_are_not_cropped() -> None:
    """The evaluation resizes to 256 and crops 224 only up to 224 pixels; larger sizes are resized to directly."""
    assert derive(named(patch=(14, 14), grid=(32, 32))).image.crop_fraction == 1.0
    assert derive(named(grid=(8, 8))).image.crop_fraction == 0.875


def test_channels_need_their_own_mean_and_std() -> None:
    shapes = named() | {"patch_embed.proj.weight": (768, 10, 16, 16)}
    assert refusal(shapes) == "mean has 3 values for 10 channels; give one per channel"
    assert derive(shapes, overrides=Overrides(mean=(0.5,) * 10, std=(0.1,) * 10)).image.channels == 10


def test_fine_tuned_files_norm_the_mean_of_the_patches() -> None:
    found = derive(named(fine_tuned=True))
    assert (found.norm, found.pooled) == ("pooled", "mean_patch")


def test_what_each_output_holds_depends_on_the_kind_of_file() -> None:
    pretrained, fine_tuned = (RECIPE.outputs(derive(named(fine_tuned=kind))) for kind in (False, True))
    assert pretrained["pooled"] == "linear-probe feature: class token after the final norm (main_linprobe.py)"
    assert fine_tuned["pooled"] == (
        "fine-tuned feature: fc_norm of the mean of the last block's patch tokens (models_vit.py, global_pool)"
    )
    for name in ("class_token", "mean_patch", "patch_tokens"):
        assert pretrained[name].endswith(", after the final norm")
        assert fine_tuned[name].endswith(", no final norm: a fine-tuned file has none for tokens")


def test_a_family_that_kept_the_encoder_says_what_differs() -> None:
    other = Recipe(
        family="dbot",
        pooled="fresh_norm_of_mean",
        source="their_script.py",
        predicts="teacher-features",
        mean=(0.5,) * 3,
        std=(0.25,) * 3,
    )
    teacher = dataclasses.replace(DECODER_512, target="teacher-features", values=32)
    shapes = named(decoder=teacher)
    found, _ = other.spec(Facts(shapes=shapes, metadata={}, overrides=Overrides()))
    assert (found.family, found.pooled, found.image.mean, found.image.std) == (
        *("dbot", "fresh_norm_of_mean"),
        *((0.5,) * 3, (0.25,) * 3),
    )
    assert found.decoder == teacher
    assert other.outputs(found)["pooled"] == (
        "fine-tuning feature: mean of the last block's patch tokens, then a norm (their_script.py). Fine-tuning trains "
        "that norm and this file does not hold it: a fresh one, weight 1 and bias 0, stands in"
    )
    tuned, _ = other.spec(Facts(shapes=named(fine_tuned=True), metadata={}, overrides=Overrides()))
    assert (tuned.norm, tuned.pooled) == ("pooled", "mean_patch")
    stated, _ = other.spec(Facts(shapes=shapes, metadata={}, overrides=Overrides(mean=(0.1,) * 3)))
    assert stated.image.mean == (0.1,) * 3


@pytest.mark.parametrize(
    ("metadata", "overrides", "eps", "noted"),
    [
        ({}, Overrides(), 1e-6, False),
        ({"layer_norm_eps": 1e-12}, Overrides(), 1e-6, True),
        ({"layer_norm_eps": 1e-6}, Overrides(), 1e-6, False),
        ({"layer_norm_eps": 1e-5}, Overrides(), 1e-5, False),
        ({"layer_norm_eps": 1e-12}, Overrides(eps=1e-12), 1e-12, False),
        ({}, Overrides(eps=1e-5), 1e-5, False),
    ],
)
def test_eps_is_the_one_of_training(metadata: dict[str, Any], overrides: Overrides, eps: float, noted: bool) -> None:
    found, notes = RECIPE.spec(Facts(shapes=named(), metadata=metadata, overrides=overrides))
    assert found.eps == eps
    note = (
        "config.json says layer_norm_eps=1e-12, the library's default; the authors trained with 1e-06, which is used "
        "(--set eps=1e-12 to follow config.json)"
    )
    assert notes == ((note,) if noted else ())


@pytest.mark.parametrize(
    ("metadata", "overrides", "target"),
    [
        ({}, Overrides(), "unknown"),
        ({"args": {}}, Overrides(), "unknown"),
        ({"args": {"norm_pix_loss": True}}, Overrides(), "patch-normalised"),
        ({"args": {"norm_pix_loss": False}}, Overrides(), "image-normalised"),
        ({"args": {"norm_pix_loss": "<unknown>"}}, Overrides(), "unknown"),
        ({"args": ["no table"]}, Overrides(), "unknown"),
        ({"norm_pix_loss": False}, Overrides(), "image-normalised"),
        ({"args": {"norm_pix_loss": True}}, Overrides(norm_pix_loss=False), "image-normalised"),
        ({}, Overrides(norm_pix_loss=True), "patch-normalised"),
    ],
)
def test_what_the_decoder_predicts(metadata: dict[str, Any], overrides: Overrides, target: str) -> None:
    found = derive(named(decoder=DECODER_512), metadata, overrides).decoder
    assert found == DecoderSpec(dim=512, depth=8, heads=16, mlp_hidden=2048, target=target)


def test_heads_of_the_decoder() -> None:
    shapes = named(decoder=DECODER_512)
    assert derive(shapes, {"decoder_num_attention_heads": 8}).decoder.heads == 8
    assert derive(shapes, {"decoder_num_attention_heads": 8}, Overrides(decoder_heads=4)).decoder.heads == 4
    assert refusal(shapes, overrides=Overrides(decoder_heads=7)) == (
        "decoder width 512 is not divisible by 7 heads; pass --set decoder_heads=N"
    )


def test_positions_in_no_square_ask_for_the_size_of_training() -> None:
    shapes = named(grid=(12, 20))
    assert refusal(shapes) == (
        "the position table has 240 patch rows, which is no square; pass --set image_size=HxW with the size the "
        "checkpoint was trained at"
    )
    found = derive(shapes, overrides=Overrides(image_size=(192, 320)))
    assert (found.image.size, found.grid, found.position.grid) == ((192, 320), (1, 12, 20), (12, 20))
    assert derive(shapes, {"image_size": [192, 320]}).image.size == (192, 320)
    assert derive(named(), {"image_size": 224}).image.size == (224, 224)  # the usual config.json


def test_a_size_that_the_positions_contradict() -> None:
    assert refusal(named(), overrides=Overrides(image_size=(448, 448))) == (
        "image_size=448x448 with 16x16 patches needs 784 positions, but the table has 196; image_size is the size of "
        "training, use --image-size for another one"
    )


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"num_attention_heads": "12"}, "num_attention_heads='12'; expected a positive int"),
        ({"num_attention_heads": True}, "num_attention_heads=True; expected a positive int"),
        ({"num_attention_heads": 0}, "num_attention_heads=0; expected a positive int"),
        ({"decoder_num_attention_heads": []}, "decoder_num_attention_heads=[]; expected a positive int"),
        ({"layer_norm_eps": "1e-6"}, "layer_norm_eps='1e-6'; expected a positive float"),
        ({"layer_norm_eps": 0.0}, "layer_norm_eps=0.0; expected a positive float"),
        ({"image_size": [224]}, "image_size=[224]; expected height and width in pixels"),
        ({"image_size": ["a", 224]}, "image_size=['a', 224]; expected height and width in pixels"),
    ],
)
def test_a_config_that_says_nonsense(metadata: dict[str, Any], message: str) -> None:
    assert refusal(named(decoder=DECODER_512), metadata) == f"config.json says {message}; correct it"


@pytest.mark.parametrize(("prefix", "gone", "left"), [("", 5, 11), ("", 0, 11), ("decoder.", 3, 7)])
def test_missing_blocks_are_named(prefix: str, gone: int, left: int) -> None:
    shapes = named(decoder=DECODER_512)
    kept = {name: shape for name, shape in shapes.items() if not name.startswith(f"{prefix}blocks.{gone}.")}
    kept["blocks.0.mlp.fc1.weight"] = (3072, 768)
    if gone == 0:
        kept = {name: shape for name, shape in shapes.items() if not name.startswith("blocks.1.")}
    assert refusal(kept) == (
        f"{prefix}blocks.{gone or 1} is missing among the {left} blocks that the file holds; it is incomplete, "
        "get it again"
    )


def test_a_block_with_an_absurd_number_costs_nothing() -> None:
    message = "blocks.12 is missing among the 13 blocks that the file holds; it is incomplete, get it again"
    assert refusal(named() | {"blocks.999999.norm1.weight": (768,)}) == message
    assert derive(named() | {f"blocks.{'9' * 5000}.norm1.weight": (768,)}).depth == 12  # no number of a block


def renamed(names: list[str], layout: Any) -> dict[str, str]:
    """What each name becomes; the first rename that matches the whole name wins."""
    found = {}
    for name in names:
        for pattern, replacement in layout.renames:
            if match := re.fullmatch(pattern, name):
                found[name] = match.expand(replacement)
                break
    return found


FACEBOOK_BLOCK = {
    f"{part}.{leaf}"
    for part in ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")
    for leaf in ("weight", "bias")
}
FACEBOOK_ENCODER = {
    "cls_token",
    "pos_embed",
    "patch_embed.proj.weight",
    "patch_embed.proj.bias",
    "norm.weight",
    "norm.bias",
    *(f"blocks.{index}.{leaf}" for index in range(12) for leaf in FACEBOOK_BLOCK),
}
FACEBOOK_DECODER = {
    "mask_token",
    "decoder_pos_embed",
    *(f"decoder_{part}.{leaf}" for part in ("embed", "norm", "pred") for leaf in ("weight", "bias")),
    *(f"decoder_blocks.{index}.{leaf}" for index in range(8) for leaf in FACEBOOK_BLOCK),
}


def test_names_of_the_authors() -> None:
    """150 tensors of the encoder keep their names; those of the decoder move under `decoder.`."""
    assert len(FACEBOOK_ENCODER) == 150
    assert len(FACEBOOK_ENCODER | FACEBOOK_DECODER) == 254
    found = renamed([*FACEBOOK_ENCODER, *FACEBOOK_DECODER], FACEBOOK)
    assert all(found[name] == name for name in FACEBOOK_ENCODER)
    assert found["mask_token"] == "decoder.mask_token"
    assert found["decoder_blocks.7.attn.qkv.bias"] == "decoder.blocks.7.attn.qkv.bias"
    assert found["decoder_pred.weight"] == "decoder.pred.weight"
    assert set(found.values()) == set(named(decoder=DECODER_512))


@pytest.mark.parametrize(
    "names",
    [
        FACEBOOK_ENCODER,
        FACEBOOK_ENCODER | FACEBOOK_DECODER,
        FACEBOOK_ENCODER - {"norm.weight", "norm.bias"}
        | {"fc_norm.weight", "fc_norm.bias", "head.weight", "head.bias"},
        FACEBOOK_ENCODER | {"head.0.running_mean", "head.0.num_batches_tracked", "head.1.weight", "head.1.bias"},
    ],
    ids=["encoder", "with decoder", "fine-tuned", "linear probe"],
)
def test_the_four_kinds_of_files_are_recognised(names: set[str]) -> None:
    assert FACEBOOK.matched(frozenset(names), None) == 1.0
    assert HUGGING_FACE.matched(frozenset(names), None) < 1.0
    others = set(names) - set(renamed([*names], FACEBOOK))
    assert all(name.startswith("head.") for name in others)
    assert all(any(re.fullmatch(pattern, name) for pattern, _ in FACEBOOK.ignored) for name in others)


HF_LEAVES = {  # ours: (transformers v4, transformers v5)
    "attn.q": ("attention.attention.query", "attention.q_proj"),
    "attn.k": ("attention.attention.key", "attention.k_proj"),
    "attn.v": ("attention.attention.value", "attention.v_proj"),
    "attn.proj": ("attention.output.dense", "attention.o_proj"),
    "norm1": ("layernorm_before", "layernorm_before"),
    "norm2": ("layernorm_after", "layernorm_after"),
    "mlp.fc1": ("intermediate.dense", "mlp.fc1"),
    "mlp.fc2": ("output.dense", "mlp.fc2"),
}
HF_REST = {
    "embeddings.cls_token": "cls_token",
    "embeddings.position_embeddings": "pos_embed",
    "embeddings.patch_embeddings.projection.weight": "patch_embed.proj.weight",
    "embeddings.patch_embeddings.projection.bias": "patch_embed.proj.bias",
    "layernorm.weight": "norm.weight",
    "layernorm.bias": "norm.bias",
}
HF_DECODER = {
    "decoder.mask_token": "decoder.mask_token",
    "decoder.decoder_pos_embed": "decoder.pos_embed",
    **{
        f"decoder.decoder_{part}.{leaf}": f"decoder.{part}.{leaf}"
        for part in ("embed", "norm", "pred")
        for leaf in ("weight", "bias")
    },
}


def hugging_face(version: int, encoder: str, decoder: str, prefix: str = "vit.") -> dict[str, str]:
    """Names of ViTMAEForPreTraining, 12 blocks and 8 of the decoder, and ours."""
    found = {prefix + theirs: ours for theirs, ours in HF_REST.items()} | (HF_DECODER if decoder else {})
    for blocks, count, target in ((prefix + encoder, 12, ""), (decoder, 8 if decoder else 0, "decoder.")):
        for index in range(count):
            for ours, theirs in HF_LEAVES.items():
                for leaf in ("weight", "bias"):
                    found[f"{blocks}.{index}.{theirs[version]}.{leaf}"] = f"{target}blocks.{index}.{ours}.{leaf}"
    return found


HF_FILES = {
    "v4": hugging_face(0, "encoder.layer", "decoder.decoder_layers"),
    "v4 names written by v5": hugging_face(0, "encoder.layer", "decoder.decoder_encoder.layer"),
    "v5": hugging_face(1, "layers", "decoder.decoder_layers"),
    "v4 encoder": hugging_face(0, "encoder.layer", "", prefix=""),
    "v5 encoder": hugging_face(1, "layers", "", prefix=""),
}


@pytest.mark.parametrize("file", HF_FILES)
def test_names_of_hugging_face(file: str) -> None:
    expected = HF_FILES[file]
    assert renamed([*expected], HUGGING_FACE) == expected
    ours = {name for name in named(decoder=DECODER_512) if "encoder" not in file or not name.startswith("decoder.")}
    joined = {re.sub(r"attn\.[qkv]\.", "attn.qkv.", name) for name in expected.values()}
    assert joined == ours
    assert HUGGING_FACE.matched(frozenset(expected), "vit_mae") == 1.0
    assert HUGGING_FACE.matched(frozenset(expected), "vit") < 1.0
    assert FACEBOOK.matched(frozenset(expected), None) < 1.0


BEIT = FACEBOOK_ENCODER - {f"blocks.{index}.attn.qkv.bias" for index in range(12)} | {
    f"blocks.{index}.attn.{part}_bias" for index in range(12) for part in "qv"
}
OTHERS = {
    "EVA-01, CAE (q_bias and v_bias)": BEIT,
    "BEiT, LayerScale": FACEBOOK_ENCODER | {"blocks.0.gamma_1", "blocks.0.gamma_2"},
    "BEiT, shared relative positions": FACEBOOK_ENCODER | {"rel_pos_bias.relative_position_bias_table"},
    "BEiT, relative positions per block": FACEBOOK_ENCODER | {"blocks.0.attn.relative_position_bias_table"},
    "dBOT": FACEBOOK_ENCODER | FACEBOOK_DECODER - {"decoder_pred.weight"} | {"decoder_predp.weight"},
    "HPM": FACEBOOK_ENCODER
    | FACEBOOK_DECODER
    | {"decoder_blocks_losspred.0.norm1.weight", "decoder_norm_losspred.bias"},
    "I-JEPA encoder (no class token)": FACEBOOK_ENCODER - {"cls_token"},
    "I-JEPA with predictor": FACEBOOK_ENCODER | {"predictor.predictor_embed.weight"},
    "ConvMAE": FACEBOOK_ENCODER | {"patch_embed1.proj.weight"},
    "SimMIM (no position table)": FACEBOOK_ENCODER - {"pos_embed"},
    "Point-MAE (no patch embedding)": FACEBOOK_ENCODER - {"patch_embed.proj.weight"},
    "MultiMAE (no norm)": FACEBOOK_ENCODER - {"norm.weight"},
}


@pytest.mark.parametrize("name", OTHERS)
def test_files_of_other_families_are_not_taken(name: str) -> None:
    scores = [layout.matched(frozenset(OTHERS[name]), None) for layout in FAMILIES["mae"].layouts]
    assert max(scores) < 1.0


def test_missing_facts_are_errors_of_the_checkpoint() -> None:
    with pytest.raises(CheckpointError):
        derive(named(grid=(12, 20)))
