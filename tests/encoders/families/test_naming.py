"""Names that publishers share: leaves of a transformer block in two generations of transformers, and classifiers."""

import re

import pytest

from mae_export.encoders.families.naming import CLASSIFIER, hugging_face_block

LEAVES = {  # ours: (transformers v4, transformers v5)
    "attn.q.weight": ("attention.attention.query.weight", "attention.q_proj.weight"),
    "attn.k.bias": ("attention.attention.key.bias", "attention.k_proj.bias"),
    "attn.v.weight": ("attention.attention.value.weight", "attention.v_proj.weight"),
    "attn.proj.weight": ("attention.output.dense.weight", "attention.o_proj.weight"),
    "norm1.weight": ("layernorm_before.weight", "layernorm_before.weight"),
    "norm2.bias": ("layernorm_after.bias", "layernorm_after.bias"),
    "mlp.fc1.weight": ("intermediate.dense.weight", "mlp.fc1.weight"),
    "mlp.fc2.bias": ("output.dense.bias", "mlp.fc2.bias"),
}


@pytest.mark.parametrize("ours", LEAVES)
@pytest.mark.parametrize("head", ["", "vit."])
def test_each_leaf_has_one_name_of_each_generation(ours, head) -> None:
    renames = hugging_face_block(r"(?:vit\.)?", "decoder.")
    for block, theirs in zip(("encoder.layer.11.", "layers.11."), LEAVES[ours], strict=True):
        name = head + block + theirs
        found = [match.expand(new) for old, new in renames if (match := re.fullmatch(old, name))]
        assert found == [f"decoder.blocks.11.{ours}"], name


def test_nothing_else_of_a_block_is_taken() -> None:
    names = ("layers.0.lambda_1", "layers.x.norm1.weight", "pooler.dense.weight", "my.layers.0.mlp.fc1.weight")
    assert not [name for name in names for old, _ in hugging_face_block("", "") if re.fullmatch(old, name)]


@pytest.mark.parametrize("name", ["head.weight", "head.bias", "head.0.running_mean", "head.1.weight"])
def test_classifiers_are_recognised(name) -> None:
    assert re.fullmatch(CLASSIFIER[0], name)


@pytest.mark.parametrize("name", ["lm_head.weight", "head.other", "heads.weight", "head.a.weight"])
def test_other_heads_are_not_classifiers(name) -> None:
    assert not re.fullmatch(CLASSIFIER[0], name)
