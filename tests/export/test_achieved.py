"""What graphs ask of a builder, and how a plan that does otherwise is reported."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from mae_export.errors import GraphError
from mae_export.export.achieved import Asked, judge, read_asked
from mae_export.export.build_log import BuildLog, PlannedLayer, PlannedTensor
from mae_export.export.options import TraceOptions
from mae_export.runtime.engine_file import EngineLayer


def planned(name, dtype, *nodes, weight=None):
    tensor = PlannedTensor(dtype=dtype, shape=(-1, 8))
    return PlannedLayer(
        name=name,
        kind="gemm",
        inputs=(tensor,),
        constants=() if weight is None else (PlannedTensor(dtype=weight, shape=(8, 8)),),
        outputs=(tensor,),
        nodes=nodes,
    )


def log_of(*layers):
    return BuildLog(layers=layers, activation_bytes=(5,), weights_bytes=3)


ASKED = Asked(
    operators={"fc/MatMul_1": "MatMul", "attn/Softmax_2": "Softmax"},
    attention=("attn/Softmax_2",),
    products={"fc/MatMul_1": "Half"},
)
MHA = planned("_gemm_mha_v2", "Half", "attn/Softmax_2")


def test_what_an_exported_graph_asks(exported):
    asked = read_asked(exported("mae/checkpoint.pth", TraceOptions(features=("pooled", "attention_0"))))
    # the softmax that is only given out is no attention to fuse
    assert [name.split("/")[0] for name in asked.attention] == ["blocks.0.attn", "blocks.1.attn"]
    assert {name.split("/")[0] for name in asked.products if "blocks.0" in name} == {
        "blocks.0.attn.proj",
        "blocks.0.attn.qkv",
        "blocks.0.mlp.fc1",
        "blocks.0.mlp.fc2",
    }
    assert set(asked.products.values()) == {"Float"}
    assert asked.operators[asked.attention[0]] == "Softmax"


def quantized_graph(path, *, activations):
    """x @ dequantize(w), with x quantized too or not."""
    nodes = [helper.make_node("DequantizeLinear", ["w", "s", "z"], ["wd"], name="dq_w")]
    if activations:
        nodes.append(helper.make_node("QuantizeLinear", ["x", "s", "z"], ["xq"], name="q_x"))
        nodes.append(helper.make_node("DequantizeLinear", ["xq", "s", "z"], ["xd"], name="dq_x"))
    else:
        nodes.append(helper.make_node("Relu", ["x"], ["xd"], name="relu"))
    nodes.append(helper.make_node("MatMul", ["xd", "wd"], ["y"], name="fc/MatMul_1"))
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT16, ["batch", 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT16, ["batch", 8])],
        [
            numpy_helper.from_array(np.zeros((8, 8), np.int8), "w"),
            numpy_helper.from_array(np.array(0.1, np.float16), "s"),
            numpy_helper.from_array(np.array(0, np.int8), "z"),
        ],
    )
    onnx.save(helper.make_model(graph), path)
    return path


def test_int8_is_asked_where_both_sides_are_quantized(tmp_path):
    assert read_asked(quantized_graph(tmp_path / "a.onnx", activations=True)).products == {"fc/MatMul_1": "Int8"}
    assert read_asked(quantized_graph(tmp_path / "w.onnx", activations=False)).products == {}


def test_nodes_need_names(tmp_path):
    model = onnx.load(quantized_graph(tmp_path / "g.onnx", activations=True))
    for node in model.graph.node:
        node.name = ""
    onnx.save(model, tmp_path / "g.onnx")
    with pytest.raises(GraphError, match=r"nodes of .*g\.onnx have no names of their own"):
        read_asked(tmp_path / "g.onnx")


def test_a_plan_that_does_as_asked():
    found = judge(ASKED, log_of(planned("g", "Half", "fc/MatMul_1", weight="Half"), MHA), profiles=1)
    assert (found.attention, found.fused, found.gemms, found.fallbacks) == (1, 1, {"Half": 1}, ())
    assert (found.activation_bytes, found.weights_bytes) == ((5,), 3)
    assert found.layers[0] == EngineLayer(name="g", kind="gemm", inputs=("Half",), outputs=("Half",))


def test_attention_of_every_profile_counts():
    found = judge(ASKED, log_of(planned("g", "Half", "fc/MatMul_1", weight="Half"), MHA), profiles=2)
    assert (found.attention, found.fused) == (2, 1)
    assert found.fallbacks == ("1 of 2 attention blocks are not fused into one kernel",)


@pytest.mark.parametrize(
    ("asked", "activation", "weight", "sentence"),
    [
        ("Int8", "Int8", "Half", "1 matrix products run in Half; the graph asks for Int8"),
        ("Int8", "Half", "Int8", "1 matrix products run in Half; the graph asks for Int8"),
        ("Half", "Float", "Float", "1 matrix products run in Float; the graph asks for Half"),
        ("BFloat16", "Half", "Half", "1 matrix products run in Half; the graph asks for BFloat16"),
    ],
)
def test_products_in_another_type_are_reported(asked, activation, weight, sentence):
    wanted = Asked(operators={}, attention=(), products={"fc/MatMul_1": asked})
    found = judge(wanted, log_of(planned("g", activation, "fc/MatMul_1", weight=weight)), profiles=1)
    assert found.fallbacks == (sentence,)


def test_an_empty_list_of_layers_is_no_proof():
    found = judge(ASKED, log_of(), profiles=1)
    assert found.fallbacks == ("the builder listed no layers, so what it planned is not known",)
