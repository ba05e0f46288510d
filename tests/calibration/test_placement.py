"""Which products run in 8 bits, by counts and reasons."""

import numpy as np
import onnx_ir as ir
import pytest

from mae_export.calibration.placement import place
from mae_export.calibration.sites import sites_of
from mae_export.calibration.wanted import QuantizeOptions
from mae_export.errors import GraphError, UsageError
from mae_export.export.options import TraceOptions

INT8, FP8 = QuantizeOptions(precision="int8"), QuantizeOptions(precision="fp8")
FULL8, FULL = QuantizeOptions(precision="int8", preset="full"), QuantizeOptions(precision="fp8", preset="full")


def placed(model, options):
    return place(model, sites_of(model), options)


def kinds(placement):
    return [site.kind for site in placement.sites]


@pytest.fixture
def attention(written):
    """q, k and v of one head from x, mixed, and projected behind one more node."""

    def build(*, tokens="T", width=16, between="Identity"):
        text = f"""g (float[B, {tokens}, {width}] x) => (float[B, {tokens}, {width}] y) {{
          ["a.q/MatMul"] qx = MatMul(x, q)
          ["a.k/MatMul"] kx = MatMul(x, k)
          ["a.v/MatMul"] vx = MatMul(x, v)
          ["a/Transpose"] kt = Transpose<perm = [0, 2, 1]>(kx)
          ["a/scores"] s = MatMul(qx, kt)
          ["a/Softmax"] p = Softmax<axis = -1>(s)
          ["a/mix"] m = MatMul(p, vx)
          ["a/between"] n = {between}(m)
          ["a.o/MatMul"] y = MatMul(n, o)
        }}"""
        return written(text, dict.fromkeys("qkvo", np.ones((width, width), np.float32)))

    return build


def test_linear_takes_every_weighted_product_but_the_embedding(graph_of):
    model = ir.load(graph_of(TraceOptions(features=("pooled", "reconstruction", "attention_0"))))
    found = placed(model, INT8)
    # two blocks of the encoder and one of the decoder, its embedding and its prediction; and qkv of `attention_0` again
    assert len(found.sites) == 4 * 3 + 2 + 1
    assert {site.kind for site in found.sites} == {"qkv", "proj", "fc1", "fc2", "other"}
    assert list(found.left_out.values()) == ["embeds raw pixels"]


def test_modules_are_kept_by_name_and_by_block(graph):
    found = placed(ir.load(graph), QuantizeOptions(precision="int8", keep=("blocks.0", "blocks.1.mlp.fc2")))
    assert [site.name for site in found.sites] == ["blocks.1.attn.qkv", "blocks.1.attn.proj", "blocks.1.mlp.fc1"]
    assert list(found.left_out.values()).count("kept on request") == 5
    with pytest.raises(UsageError, match=r"no module 'blocks\.7' to keep in float32; this graph has: view, blocks\.0"):
        placed(ir.load(graph), QuantizeOptions(precision="int8", keep=("blocks.7",)))
    with pytest.raises(GraphError, match="nothing is left to quantize"):
        placed(ir.load(graph), QuantizeOptions(precision="int8", keep=("blocks",)))


def test_full_adds_both_attention_products(graph):
    found = placed(ir.load(graph), FULL)
    assert [site.kind for site in found.sites] == ["qkv", "scores", "mix", "proj", "fc1", "fc2"] * 2


@pytest.mark.parametrize(
    ("model", "options", "reason"),
    [
        ({"width": 12}, FULL8, r"heads of width 16, 32, 64, and this one of 12"),
        ({"tokens": 513}, FULL8, "513 tokens exceed the 512 of INT8 attention"),
        ({"between": "Relu"}, FULL, "the attention's output is not quantized"),
    ],
)
def test_attention_is_quantized_whole_or_refused(attention, model, options, reason):
    with pytest.raises(GraphError, match=rf"can be quantized as a whole \(.*{reason}.*\); .*--preset linear"):
        placed(attention(**model), options)


@pytest.mark.parametrize("kept", ["a.o", "a.q"])
def test_a_kept_projection_keeps_its_attention_or_not(attention, kept):
    options = QuantizeOptions(precision="int8", preset="full", keep=(kept,))
    if kept == "a.q":  # the query is quantized on its way into the scores, whoever computed it
        assert kinds(placed(attention(), options)).count("scores") == 1
    else:
        with pytest.raises(GraphError, match="the attention's output is not quantized"):
            placed(attention(), options)


@pytest.mark.parametrize(("tokens", "width"), [(512, 16), ("T", 64)])
def test_attention_within_the_limits_is_taken(attention, tokens, width):
    found = kinds(placed(attention(tokens=tokens, width=width), FULL8))
    assert found == ["qkv", "qkv", "qkv", "scores", "mix", "proj"]


def test_fp8_takes_heads_of_any_width(attention):
    assert "mix" in kinds(placed(attention(width=12, tokens=600), FULL))
