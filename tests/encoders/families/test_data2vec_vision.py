"""data2vec 1.0's facts: mean, std and feature of each kind of file, and its two publishers."""

import dataclasses

import pytest

from mae_export.decoder_spec import HeadSpec
from mae_export.encoders.families import Facts
from mae_export.encoders.families.data2vec_vision import FAMILY, spec
from mae_export.encoders.overrides import Overrides
from mae_export.spec import EncoderSpec
from tests.encoders.families.test_beit import HALF, IMAGENET, SIZED, TUNED, named, unilm

PRETRAINED = "mean and std of pixels are ImageNet's, with which they pre-trained; preprocessor_config.json is not read"
FINE_TUNED = "mean and std of pixels are 0.5, with which the authors fine-tuned; preprocessor_config.json is not read"


def derive(made: EncoderSpec, overrides: Overrides | None = None) -> tuple[EncoderSpec, tuple[str, ...]]:
    return spec(Facts(shapes=named(made), metadata={}, overrides=overrides or Overrides()))


@pytest.mark.parametrize(
    ("made", "mean", "pooled", "note"),
    [
        (SIZED, IMAGENET, "fresh_norm_of_mean", PRETRAINED),
        (dataclasses.replace(SIZED, mask_token=False, decoder=None), IMAGENET, "fresh_norm_of_mean", PRETRAINED),
        (TUNED, HALF, "mean_patch", FINE_TUNED),
    ],
    ids=["pre-trained", "pre-trained, without mask token", "fine-tuned"],
)
def test_each_kind_of_file(made: EncoderSpec, mean: tuple[float, ...], pooled: str, note: str) -> None:
    found, notes = derive(made)
    assert (found.family, found.image.mean, found.pooled, notes) == ("data2vec_vision", mean, pooled, (note,))
    stated = Overrides(mean=(0.1,) * 3, std=(0.2,) * 3)
    found, notes = derive(made, stated)
    assert (found.image.mean, found.image.std, notes) == ((0.1,) * 3, (0.2,) * 3, ())


def test_the_head_predicts_a_teacher() -> None:
    head = HeadSpec(target="teacher-features", values=768)
    assert derive(dataclasses.replace(SIZED, decoder=head))[0].decoder == head


def test_files_of_both_publishers_are_its_own() -> None:
    hugging_face, authors = FAMILY.layouts
    names = frozenset(unilm("shared", "mask_token", "norm.weight"))
    assert authors.asked
    assert authors.matched(names, None) == 1.0
    ported = {"embeddings.cls_token", "embeddings.patch_embeddings.projection.weight"}
    for block in ("encoder.layer.0.attention.attention.query.weight", "layers.0.attention.q_proj.weight"):
        for prefix in ("", "data2vec_vision."):
            found = frozenset(prefix + name for name in {*ported, block})
            assert hugging_face.matched(found, "data2vec-vision") == 1.0
            assert hugging_face.matched(found, "beit") < 1.0
    assert hugging_face.matched(frozenset(f"beit.{name}" for name in {*ported, block}), "data2vec-vision") < 1.0
