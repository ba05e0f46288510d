"""data2vec 2.0's facts: three sizes, names of fairseq, and blocks that files keep in two places."""

import dataclasses

import pytest
import torch

from mae_export.decoder_spec import ConvDecoderSpec
from mae_export.encoders.data2vec2 import Data2Vec2
from mae_export.encoders.families.data2vec2 import FAIRSEQ, FAMILY, number_blocks, outputs
from mae_export.encoders.load import load_encoder
from mae_export.encoders.overrides import Overrides
from mae_export.errors import CheckpointError
from mae_export.spec import EncoderSpec, ImageSpec, StoredTable
from tests.encoders.families.published import derived, parameters_of, reasons, renamed, shapes_of

IMAGE = "modality_encoders.IMAGE."
BLOCK = {f"{part}.weight" for part in ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")}
BASE_FILE = {
    IMAGE + "extra_tokens",
    IMAGE + "local_encoder.proj.weight",
    IMAGE + "fixed_positional_encoder.positions",
    IMAGE + "context_encoder.norm.weight",
    IMAGE + "decoder.blocks.0.0.weight",
    IMAGE + "decoder.proj.bias",
    "blocks.0.attn.qkv.bias",
    *(f"{IMAGE}context_encoder.blocks.{i}.{leaf}" for i in range(2) for leaf in BLOCK),
    *(f"blocks.{i}.{leaf}" for i in range(10) for leaf in BLOCK),
}
LARGE_FILE = {name for name in BASE_FILE if "context_encoder.blocks" not in name}


def spec_of(variant) -> EncoderSpec:
    return EncoderSpec(
        family="data2vec2",
        image=ImageSpec(size=(224, 224), crop_fraction=0.875),
        patch=(1, variant.patch, variant.patch),
        dim=variant.dim,
        depth=variant.depth,
        heads=variant.heads,
        mlp_hidden=4 * variant.dim,
        eps=1e-6,
        position=StoredTable(grid=(224 // variant.patch,) * 2, prefix_rows=0),
        norm="none",
        pooled="mean_patch",
    )


@pytest.mark.parametrize("variant", FAMILY.variants, ids=lambda variant: variant.name)
def test_published_sizes(variant) -> None:
    spec = spec_of(variant)
    assert derived(FAMILY, shapes_of(spec, Data2Vec2)) == spec
    assert parameters_of(spec, Data2Vec2) == variant.parameters
    assert (FAMILY.image, FAMILY.feature) == (spec.image, spec.pooled)


def test_fine_tuned_files_norm_the_mean() -> None:
    spec = dataclasses.replace(spec_of(FAMILY.variants[0]), norm="pooled")
    assert derived(FAMILY, shapes_of(spec, Data2Vec2)) == spec
    assert outputs(spec)["pooled"].startswith("fine-tuned feature: fc_norm of the mean of the last block's patch")
    assert outputs(spec_of(FAMILY.variants[0]))["pooled"].startswith("mean of the last block's patch tokens")


@pytest.mark.parametrize(("folder", "depth", "kernel"), [("data2vec2", 2, 3), ("data2vec2_huge14", 1, 5)])
def test_the_decoder_is_sized_by_its_tensors(fixture_dir, folder, depth, kernel) -> None:
    spec = load_encoder(fixture_dir / folder / "checkpoint.pth", overrides=Overrides(heads=4))[1].spec
    assert spec.decoder == ConvDecoderSpec(dim=16, depth=depth, kernel=kernel, groups=4, values=48)
    assert "starts from zero, the mean of the noise that training puts there" in outputs(spec)["prediction"]


def test_published_decoders_have_as_many_channels_as_the_encoder() -> None:
    """base: six convolutions of 768 channels in 16 groups (base_images_only_task.yaml)."""
    decoder = ConvDecoderSpec(dim=768, depth=6, kernel=3, groups=16, values=768)
    spec = dataclasses.replace(spec_of(FAMILY.variants[0]), decoder=decoder)
    shapes = shapes_of(spec, Data2Vec2)
    assert shapes["decoder.blocks.5.weight"] == (768, 48, 3, 3)
    assert derived(FAMILY, shapes) == spec


def test_groups_that_do_not_divide_the_width_are_refused() -> None:
    decoder = ConvDecoderSpec(dim=768, depth=1, kernel=3, groups=16, values=768)
    spec = dataclasses.replace(spec_of(FAMILY.variants[0]), decoder=decoder)
    shapes = shapes_of(spec, Data2Vec2) | {"decoder.blocks.0.weight": (768, 50, 3, 3)}
    with pytest.raises(
        CheckpointError, match=r"blocks\.0\.weight takes 50 channels per group; expected a divisor of 768"
    ):
        derived(FAMILY, shapes)


def test_names_of_fairseq() -> None:
    found = renamed(BASE_FILE, FAIRSEQ)
    assert {name.removeprefix(IMAGE): new for name, new in found.items() if not name.startswith("blocks.")} == {
        "extra_tokens": "cls_token",
        "local_encoder.proj.weight": "patch_embed.proj.weight",
        "fixed_positional_encoder.positions": "pos_embed",
        "context_encoder.norm.weight": "context_norm.weight",
        **{f"context_encoder.blocks.{i}.{leaf}": f"prenet.{i}.{leaf}" for i in range(2) for leaf in BLOCK},
        "decoder.blocks.0.0.weight": "decoder.blocks.0.weight",
        "decoder.proj.bias": "decoder.pred.bias",
    }
    assert reasons(BASE_FILE, FAIRSEQ) == {}
    assert renamed({IMAGE + "positional_encoder.pos_embed"}, FAIRSEQ).popitem()[1] == "pos_embed"  # an older name


@pytest.mark.parametrize("inner", ["", "model."])
def test_fine_tuned_files_may_prefix_their_encoder(inner) -> None:
    names = {inner + name for name in LARGE_FILE if ".decoder." not in name}
    names |= {"fc_norm.weight", "fc_norm.bias", "head.weight", "head.bias"}
    assert FAIRSEQ.matched(frozenset(names), None) == 1.0
    assert set(reasons(names, FAIRSEQ)) == {"head.weight", "head.bias"}
    assert renamed(names, FAIRSEQ)[f"{inner}blocks.9.mlp.fc1.weight"] == "blocks.9.mlp.fc1.weight"


def test_other_modalities_are_not_recognised() -> None:
    audio = {name.replace("IMAGE", "AUDIO") for name in LARGE_FILE}
    assert FAIRSEQ.matched(frozenset(audio), None) < 1.0


def test_blocks_of_the_context_encoder_come_first() -> None:
    tensors = {renamed({name}, FAIRSEQ)[name]: name for name in BASE_FILE if ".decoder." not in name}
    number_blocks(tensors)
    for leaf in BLOCK:
        assert tensors[f"blocks.1.{leaf}"] == f"{IMAGE}context_encoder.blocks.1.{leaf}"
        assert tensors[f"blocks.2.{leaf}"] == f"blocks.0.{leaf}"
        assert tensors[f"blocks.11.{leaf}"] == f"blocks.9.{leaf}"
    assert {name.split(".")[0] for name in tensors} == {
        "cls_token",
        "patch_embed",
        "pos_embed",
        "context_norm",
        "blocks",
    }
    assert len({name.split(".")[1] for name in tensors if name.startswith("blocks.")}) == 12


def test_without_such_blocks_the_numbers_stay() -> None:
    tensors = {f"blocks.{i}.norm1.weight": i for i in range(3)}
    number_blocks(tensors)
    assert tensors == {f"blocks.{i}.norm1.weight": i for i in range(3)}


def test_a_missing_block_of_the_context_encoder_is_noticed() -> None:
    """A gap shifts the blocks behind it by the numbers that are there, so that the gap stays and is named."""
    tensors = {f"prenet.{i}.norm1.weight": torch.zeros(48) for i in (0, 2)} | {"blocks.0.norm1.weight": torch.zeros(48)}
    number_blocks(tensors)
    shapes = dict(shapes_of(spec_of(FAMILY.variants[0]), Data2Vec2))
    shapes = {name: shape for name, shape in shapes.items() if not name.startswith("blocks.")}
    shapes |= {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    with pytest.raises(CheckpointError, match=r"blocks\.1 is missing among the 3 blocks"):
        derived(FAMILY, shapes)


def test_the_average_beside_the_weights_is_left_unless_asked_for(fixture_dir) -> None:
    path = fixture_dir / "data2vec2/checkpoint.pth"
    student, report = load_encoder(path, overrides=Overrides(heads=4))
    assert (report.family, report.spec.depth) == ("data2vec2", 3)
    teacher, _ = load_encoder(path, overrides=Overrides(heads=4, weights="model/_ema"))
    assert set(teacher.state_dict()) == {name for name in student.state_dict() if not name.startswith("decoder.")}
    assert teacher.decoder is None  # the average is of the encoder alone
    assert not torch.equal(teacher.blocks[0].attn.qkv.weight, student.blocks[0].attn.qkv.weight)
