"""Attention as one operator computes what the graph does, for every architecture and mask; what does not fit stays."""

import numpy as np
import onnx_ir as ir
import pytest

from mae_export import graph
from mae_export.export.fused_attention import DOMAIN, OPERATOR, fuse_attention
from mae_export.export.options import ConvertOptions, TraceOptions
from mae_export.export.precision import convert
from mae_export.runtime.bench import bench_feeds
from mae_export.runtime.session import open_as_is

CLOSE = 1e-5


def fused(source, out, *, biased=False, edit=None):
    """Write the fused form; returns the operators in it, and how many were made."""
    model = ir.load(source)
    count = fuse_attention(model, biased=biased)
    operators = [node for node in model.graph if node.op_type == OPERATOR]
    assert all(node.domain == DOMAIN for node in operators)
    assert len(operators) == count
    if edit is not None:
        edit(operators)
    graph.save(model, out)
    graph.write_manifest(out, graph.read_manifest(source))
    graph.check(out)
    return operators, sum(node.op_type == "Softmax" for node in model.graph)


def shown(manifest, seed=0):
    """A batch in which, where rows may differ, one row sees one patch and another sees all."""
    kept = max(1, manifest.patches.count * 2 // 3)
    feeds = bench_feeds(manifest, 3, kept)
    if manifest.ragged:
        feeds["num_keep"] = np.array([1, kept, 2], np.int32)
    return feeds


def difference(one, other):
    """Largest difference of all outputs."""
    with open_as_is(one, backend="cpu") as first, open_as_is(other, backend="cpu") as second:
        feeds = shown(first.manifest)
        expected, found = first.run(feeds), second.run(feeds)
    return max(float(np.abs(expected[name] - found[name]).max()) for name in expected)


PLAIN = [("mae", 2), ("cae", 2), ("ijepa", 2), ("eva01", 2), ("eva02_bl", 2), ("eva02_ts", 2), ("dbot", 2)]


@pytest.mark.parametrize(("name", "blocks"), PLAIN, ids=[name for name, _ in PLAIN])
def test_attention_without_bias(exported, tmp_path, name, blocks):
    """One projection cut in three, separate ones, and rotations of query and key."""
    source = exported(f"{name}/checkpoint.pth", TraceOptions(mask="keep"))
    operators, left = fused(source, tmp_path / "fused.onnx")
    assert (len(operators), left) == (blocks, 0)
    assert difference(source, tmp_path / "fused.onnx") < CLOSE


BIASED = [
    ("mae", TraceOptions(mask="keep", ragged=True)),
    ("mae", TraceOptions(mask="patches", ragged=True, features=("pooled", "patch_tokens"))),
    ("beit2", TraceOptions(mask="keep")),
    ("beit2", TraceOptions(mask="none")),
    ("beit2", TraceOptions(mask="mask-token")),
    ("beit2", TraceOptions(mask="keep", ragged=True)),
    ("eva02_bl", TraceOptions(mask="keep", ragged=True)),
    ("data2vec2", TraceOptions(mask="keep", ragged=True)),
]


@pytest.mark.parametrize(("name", "options"), BIASED)
def test_padding_and_biases_by_position_are_added_when_asked_for(exported, tmp_path, name, options):
    source = exported(f"{name}/checkpoint.pth", options)
    operators, left = fused(source, tmp_path / "plain.onnx")
    assert (len(operators), left > 1) == (0, True)
    operators, left = fused(source, tmp_path / "fused.onnx", biased=True)
    assert (len(operators) > 1, left) == (True, 0)
    assert all(len(node.inputs) == 6 for node in operators)
    assert difference(source, tmp_path / "fused.onnx") < CLOSE


def test_every_output_stays_right(exported, tmp_path):
    """The weights of a block that are an output themselves keep their softmax."""
    features = ("pooled", "attention_1", "layer_0", "reconstruction")
    source = exported("mae/checkpoint.pth", TraceOptions(mask="keep", features=features))
    operators, left = fused(source, tmp_path / "fused.onnx")
    assert (len(operators), left) == (3, 1)  # two blocks and the decoder's
    assert difference(source, tmp_path / "fused.onnx") < CLOSE


def without_scale(operators):
    for node in operators:
        node.attributes["scale"] = ir.AttrFloat32("scale", 1.0)


def without_bias(operators):
    for node in operators:
        node.replace_input_with(5, None)


def key_as_query(operators):
    for node in operators:
        node.replace_input_with(0, node.inputs[1])


@pytest.mark.parametrize("fault", [without_scale, without_bias, key_as_query])
def test_the_comparison_notices_faults(exported, tmp_path, fault):
    source = exported("mae/checkpoint.pth", TraceOptions(mask="keep", ragged=True))
    fused(source, tmp_path / "fused.onnx", biased=True, edit=fault)
    assert difference(source, tmp_path / "fused.onnx") > 100 * CLOSE


def test_the_operator_takes_the_projection_and_the_scale(exported, tmp_path):
    source = exported("mae/checkpoint.pth", TraceOptions(mask="keep"))
    operators, _ = fused(source, tmp_path / "fused.onnx")
    for node in operators:
        query, key, value = node.inputs
        assert query.producer() is key.producer() is value.producer()
        assert query.producer().op_type == "Split"
        assert [query.index(), key.index(), value.index()] == [0, 1, 2]
        assert node.attributes["num_heads"].as_int() == 4
        assert node.attributes["scale"].as_float() == pytest.approx(12**-0.5)


def test_float16(exported, tmp_path):
    half = tmp_path / "half.onnx"
    convert(exported("mae/checkpoint.pth", TraceOptions(mask="keep")), half, options=ConvertOptions(precision="fp16"))
    operators, left = fused(half, tmp_path / "fused.onnx")
    assert (len(operators), left) == (2, 0)
    assert all(value.producer().inputs[0].dtype == ir.DataType.FLOAT16 for value in operators[0].inputs)
    assert difference(half, tmp_path / "fused.onnx") < 1e-2


# What does not fit


def edited(source, edit):
    model = ir.load(source)
    edit(model)
    return fuse_attention(model, biased=True)


def each(model, op_type):
    return [node for node in model.graph if node.op_type == op_type]


def test_logits_in_another_type_stay(exported):
    """As where a block is kept in float32 within a float16 graph."""

    def cast(model):
        for softmax in each(model, "Softmax"):
            turned = ir.node("Cast", [softmax.inputs[0]], {"to": ir.DataType.DOUBLE.value})
            model.graph.insert_before(softmax, turned)
            softmax.replace_input_with(0, turned.outputs[0])

    assert edited(exported("mae/checkpoint.pth", TraceOptions(mask="keep")), cast) == 0


def test_other_axes_and_scales_stay(exported):
    source = exported("mae/checkpoint.pth", TraceOptions(mask="keep"))

    def sum_over_queries(model):
        for softmax in each(model, "Softmax"):
            softmax.attributes["axis"] = ir.AttrInt64("axis", 2)

    def scale_each_channel(model):
        for softmax in each(model, "Softmax"):
            query = softmax.inputs[0].producer().inputs[0].producer()
            tensor = ir.tensor(np.linspace(0.1, 1, 12, dtype=np.float32), name=f"{softmax.name}_scales")
            value = ir.Value(name=tensor.name, const_value=tensor, shape=tensor.shape, type=ir.TensorType(tensor.dtype))
            model.graph.register_initializer(value)
            query.replace_input_with(1, value)

    def also_elsewhere(model):
        for softmax in each(model, "Softmax"):
            model.graph.outputs.append(softmax.outputs[0])

    assert edited(source, sum_over_queries) == 0
    assert edited(source, also_elsewhere) == 0
    assert edited(source, scale_each_channel) == 2  # it stays before the operator, as part of the query
