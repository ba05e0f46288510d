"""Where quantize and dequantize nodes stand, what they are called, and that they compute what the type says."""

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest

from mae_export import graph as graphs
from mae_export.calibration.insert import insert, output_axis, stored
from mae_export.calibration.quantize import quantize_model
from mae_export.calibration.scales import GRIDS, weight_scales
from mae_export.calibration.sites import sites_of
from mae_export.calibration.table import TensorRange
from mae_export.calibration.wanted import QuantizeOptions
from mae_export.errors import GraphError
from mae_export.export.options import TraceOptions

WEIGHT = np.random.default_rng(0).standard_normal((4, 6)).astype(np.float32)
KINDS = {
    "MatMul": ('["fc/node"] y = MatMul(x, w)', WEIGHT, 1),
    "Gemm": ('["fc/node"] y = Gemm(x, w)', WEIGHT, 1),
    "Gemm transposed": ('["fc/node"] y = Gemm<transB = 1>(x, w)', WEIGHT.T, 0),
}


def run(model, feeds):
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.add_session_config_entry("session.disable_quant_qdq", "1")  # what the graph says, not how it is fused
    session = ort.InferenceSession(ir.to_proto(model).SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, feeds)[0]


@pytest.mark.parametrize("precision", ["int8", "fp8"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_product_computes_what_its_8_bits_say(written, kind, precision):
    node, weight, axis = KINDS[kind]
    model = written(f"g (float[3, 4] x) => (float[3, 6] y) {{ {node} }}", {"w": weight})
    sites, grid = sites_of(model), GRIDS[precision]
    assert output_axis(model.graph[0]) == axis
    step, steps = np.float32(0.03125), weight_scales(weight, axis, grid)
    insert(model, sites, grid, activations={"x": step}, weights={"fc/node": steps})
    x = np.random.default_rng(1).standard_normal((3, 4)).astype(np.float32)
    rounded = grid.rounded(weight, steps if axis == 1 else steps[:, None])
    expected = grid.rounded(x, step) @ (rounded if axis == 1 else rounded.T)
    np.testing.assert_allclose(run(model, {"x": x}), expected, rtol=1e-5, atol=1e-6)
    assert "w" not in model.graph.initializers, "weights are stored once, in 8 bits"


def test_a_convolution_is_scaled_along_its_outputs(written):
    weight = np.random.default_rng(0).standard_normal((5, 3, 2, 2)).astype(np.float32)
    text = 'g (float[1, 3, 4, 4] x) => (float[1, 5, 2, 2] y) { ["c/node"] y = Conv<strides = [2, 2]>(x, w) }'
    model = written(text, {"w": weight})
    steps = weight_scales(weight, 0, GRIDS["int8"])
    assert steps.shape == (5,)
    plain = run(model, {"x": np.ones((1, 3, 4, 4), np.float32)})
    site = sites_of(model)
    insert(model, site, GRIDS["int8"], activations={"x": np.float32(2**-6)}, weights={"c/node": steps})
    back = next(node for node in model.graph if node.name == "c/DequantizeLinear_weight")
    assert back.attributes["axis"].as_int() == 0
    np.testing.assert_allclose(run(model, {"x": np.ones((1, 3, 4, 4), np.float32)}), plain, atol=0.05)


def test_a_shared_activation_is_quantized_once(written):
    text = """g (float[B, 4] x) => (float[B, 6] y) {
      ["q/MatMul"] a = MatMul(x, w)
      ["k/MatMul"] b = MatMul(x, w)
      ["k/Add"] y = Add(a, b)
    }"""
    model = written(text, {"w": WEIGHT})
    scales = weight_scales(WEIGHT, 1, GRIDS["int8"])
    sites = sites_of(model)
    insert(
        model, sites, GRIDS["int8"], activations={"x": np.float32(0.1)},
        weights={site.node: scales for site in sites},
    )  # fmt: skip
    names = [node.name for node in model.graph if node.op_type == "QuantizeLinear"]
    assert names == ["q/QuantizeLinear_in"]


def ranges_of(model):
    return {
        name: TensorRange(low=-4.0, high=4.0, minimum=-4.0, maximum=4.0)
        for site in sites_of(model)
        for name in site.inputs
    }


@pytest.mark.parametrize("precision", ["int8", "fp8"])
def test_counts_names_and_types_of_a_whole_graph(graph_of, tmp_path, precision):
    source = graph_of(TraceOptions(mask="patches", ragged=True, features=("pooled", "patch_tokens")))
    model = ir.load(source)
    before = {node.name: node.op_type for node in model.graph}
    options = QuantizeOptions(precision=precision, preset="full" if precision == "fp8" else "linear")
    quantize_model(model, ranges_of(model), options)
    added = {node.name: node.op_type for node in model.graph if node.name not in before}
    # two blocks of 4 weighted products; full adds query, key, softmax and value
    inputs = 2 * (8 if precision == "fp8" else 4)
    assert list(added.values()).count("QuantizeLinear") == inputs
    assert list(added.values()).count("DequantizeLinear") == inputs + 2 * 4
    assert {"blocks.0.mlp.fc1/QuantizeLinear_in", "blocks.1.attn.qkv/DequantizeLinear_weight"} <= set(added)
    assert ("blocks.0.attn/QuantizeLinear_softmax" in added) == (precision == "fp8")
    assert {name for name, op in before.items() if name not in {node.name for node in model.graph}} == set()
    graphs.save(model, tmp_path / "q.onnx")
    graphs.check(tmp_path / "q.onnx")
    proto = onnx.load(tmp_path / "q.onnx")
    kinds = {onnx.TensorProto.INT8: "int8", onnx.TensorProto.FLOAT8E4M3FN: "fp8"}
    matrices = [kinds.get(tensor.data_type) for tensor in proto.graph.initializer if tensor.name.endswith("/weight")]
    assert matrices == [precision] * 8
    assert all(
        not np.asarray(value.const_value.numpy(), np.float32).any()
        for name, value in model.graph.initializers.items()
        if name.endswith("_zero")
    ), "builders take no zero point but 0"


def test_the_residual_stream_and_norm_inputs_stay_whole(graph):
    model = ir.load(graph)
    quantize_model(model, ranges_of(model), QuantizeOptions(precision="int8"))
    for node in model.graph:
        if node.op_type in ("LayerNormalization", "Add", "Softmax", "Gelu"):
            makers = [value.producer() for value in node.inputs if value is not None]
            assert all(maker is None or maker.op_type != "DequantizeLinear" for maker in makers), node.name


def test_only_stored_weights_can_be_read(written):
    model = written('g (float[3, 4] x) => (float[3, 4] y) { ["a/Relu"] y = Relu(x) }', {})
    with pytest.raises(GraphError, match=r"input 0 of a/Relu is computed; expected a stored tensor"):
        stored(model.graph[0], 0)
