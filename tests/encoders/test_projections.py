"""Query, key and value in one projection, from every way of storing them."""

from __future__ import annotations

import pytest
import torch

from mae_export.encoders.projections import join_projections
from mae_export.errors import CheckpointError

Q, K, V = (torch.full((2, 3), float(value)) for value in (1, 2, 3))
Tensors = dict[str, torch.Tensor]


def separate(prefix: str = "blocks.0.", leaf: str = "weight") -> Tensors:
    return {f"{prefix}attn.{part}.{leaf}": value for part, value in zip("qkv", (Q, K, V), strict=True)}


def refusal(tensors: Tensors) -> str:
    with pytest.raises(CheckpointError) as caught:
        join_projections(tensors)
    return str(caught.value)


@pytest.mark.parametrize("prefix", ["blocks.0.", "decoder.blocks.11.", ""])
@pytest.mark.parametrize("leaf", ["weight", "bias"])
def test_rows_are_query_then_key_then_value(prefix: str, leaf: str) -> None:
    prefix = prefix or "x."
    tensors = separate(prefix, leaf)
    assert join_projections(tensors) is tensors
    assert list(tensors) == [f"{prefix}attn.qkv.{leaf}"]
    assert tensors[f"{prefix}attn.qkv.{leaf}"].tolist() == [[1.0] * 3] * 2 + [[2.0] * 3] * 2 + [[3.0] * 3] * 2


def test_a_key_without_bias_gets_zeros() -> None:
    tensors = {
        "blocks.3.attn.v_bias": torch.tensor([5.0, 6.0], dtype=torch.float16),
        "blocks.3.attn.q_bias": torch.tensor([1.0, 2.0], dtype=torch.float16),
        "blocks.3.attn.qkv.weight": torch.ones(6, 2, dtype=torch.float16),
    }
    join_projections(tensors)
    assert tensors.keys() == {"blocks.3.attn.qkv.weight", "blocks.3.attn.qkv.bias"}
    bias = tensors["blocks.3.attn.qkv.bias"]
    assert (bias.dtype, bias.tolist()) == (torch.float16, [1.0, 2.0, 0.0, 0.0, 5.0, 6.0])


def test_separate_weights_and_biases_of_query_and_value_come_together() -> None:
    tensors = separate() | {"blocks.0.attn.q_bias": torch.ones(2), "blocks.0.attn.v_bias": torch.ones(2)}
    assert join_projections(tensors).keys() == {"blocks.0.attn.qkv.weight", "blocks.0.attn.qkv.bias"}


def test_what_is_joined_already_stays() -> None:
    tensors = {"blocks.0.attn.qkv.weight": torch.ones(6, 3), "norm.bias": torch.ones(2), "q.weight": torch.ones(1)}
    before = dict(tensors)
    assert join_projections(tensors) == before


@pytest.mark.parametrize("gone", ["blocks.0.attn.k.weight", "blocks.0.attn.v.weight"])
def test_an_incomplete_projection_is_left_for_the_report_of_missing_names(gone: str) -> None:
    tensors = separate()
    del tensors[gone]
    assert join_projections(dict(tensors)).keys() == tensors.keys()


def test_a_doubled_projection_is_left_for_the_report_of_names() -> None:
    tensors = separate() | {"blocks.0.attn.qkv.weight": torch.ones(6, 3)}
    assert join_projections(dict(tensors)).keys() == tensors.keys()
    biases = {name: torch.ones(2) for name in ("a.attn.q_bias", "a.attn.v_bias", "a.attn.qkv.bias")}
    assert join_projections(dict(biases)).keys() == biases.keys()
    lone = {"a.attn.q_bias": torch.ones(2)}
    assert join_projections(dict(lone)).keys() == lone.keys()


@pytest.mark.parametrize(
    ("key", "shown"),
    [
        (torch.ones(3, 3), "[2, 3] float32, [3, 3] float32, [2, 3] float32"),
        (K.half(), "[2, 3] float32, [2, 3] float16, [2, 3] float32"),
    ],
)
def test_parts_that_differ_are_refused(key: torch.Tensor, shown: str) -> None:
    found = refusal(separate() | {"blocks.0.attn.k.weight": key})
    assert found == f"query, key and value of blocks.0.attn.qkv.weight are {shown}; expected three alike"


def test_parts_without_rows_are_refused() -> None:
    scalars = {name: torch.ones(()) for name in separate()}
    assert refusal(scalars).startswith("query, key and value of blocks.0.attn.qkv.weight are [] float32, []")


@pytest.mark.parametrize("value", [torch.ones(3), torch.ones(2, 1), torch.ones(2).half()])
def test_biases_that_differ_are_refused(value: torch.Tensor) -> None:
    found = refusal({"a.attn.q_bias": torch.ones(2), "a.attn.v_bias": value})
    assert found == f"a.attn.q_bias is [2] and a.attn.v_bias is {list(value.shape)}; expected two vectors alike"
