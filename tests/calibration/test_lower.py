"""The form for CPUs gives the same numbers as the Q/DQ graph, from operators of ONNX Runtime alone."""

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest

from mae_export.calibration.insert import stored
from mae_export.calibration.lower import lower
from mae_export.calibration.quantize import quantize_model
from mae_export.calibration.sites import sites_of
from mae_export.calibration.table import TensorRange
from mae_export.calibration.wanted import QuantizeOptions
from mae_export.export.options import TraceOptions
from mae_export.graph import read_manifest
from mae_export.runtime.compare import feeds_of, scenes

DRAWS = np.random.default_rng(0)
FOUND = TensorRange(low=-4.0, high=4.0, minimum=-4.0, maximum=4.0)
WEIGHTS = {
    "w": DRAWS.standard_normal((16, 5)).astype(np.float32),
    "t": DRAWS.standard_normal((5, 16)).astype(np.float32),
    "b": DRAWS.standard_normal(5).astype(np.float32),
    "s": np.ones(16, np.float32),
}
NODES = {
    "bias": ('["fc/MatMul"] m = MatMul(h, w)  ["fc/Add"] y = Add(m, b)', True),
    "no bias": ('["fc/MatMul"] m = MatMul(h, w)  ["fc/Relu"] y = Relu(m)', True),
    "an output": ('["fc/MatMul"] y = MatMul(h, w)', True),
    "Gemm": ('["fc/Gemm"] y = Gemm<transB = 1>(h, t, b)', True),
    "scaled Gemm": ('["fc/Gemm"] y = Gemm<alpha = 0.5>(h, w, b)', False),
}


def run(model, feeds, names=None):
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(ir.to_proto(model).SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(names, feeds)


@pytest.mark.parametrize("kind", NODES)
def test_each_form_of_a_product(written, kind):
    nodes, lowered = NODES[kind]
    norm = '["n/LayerNormalization"] h = LayerNormalization<axis = -1>(x, s)'
    model = written(f"g (float[7, 16] x) => (float[7, 5] y) {{ {norm} {nodes} }}", WEIGHTS)
    quantize_model(model, {"h": FOUND}, QuantizeOptions(precision="int8"))
    x = DRAWS.standard_normal((7, 16)).astype(np.float32)
    before = run(model, {"x": x})[0]
    assert lower(model) == lowered
    kinds = [node.op_type for node in model.graph]
    assert ("MatMulIntegerToFloat" in kinds, "DequantizeLinear" in kinds) == (lowered, not lowered)
    np.testing.assert_allclose(run(model, {"x": x})[0], before, rtol=1e-5, atol=1e-5)
    assert [value.name for value in model.graph.outputs] == ["y"]


def test_a_whole_encoder(graph_of, tmp_path):
    source = graph_of(TraceOptions(mask="keep", features=("pooled", "patch_tokens")))
    manifest, model = read_manifest(source), ir.load(source)
    ranges = {name: FOUND for site in sites_of(model) for name in site.inputs}
    quantize_model(model, ranges, QuantizeOptions(precision="int8"))
    feeds = feeds_of(list(scenes(manifest))[1], manifest)
    before = run(model, feeds)
    names = {node.name for node in model.graph if node.op_type == "MatMul"}
    assert lower(model) == 8
    found = {node.name: node for node in model.graph if node.op_type == "MatMulIntegerToFloat"}
    assert set(found) < names, "products keep their names"
    for node in found.values():
        assert node.inputs[0].dtype == ir.DataType.UINT8
        assert stored(node, 1).dtype == np.int8
        assert node.inputs[3].shape == [node.inputs[1].shape[1]], "a scale for each output channel"
        assert node.inputs[6] is not None, "the bias is part of it"
    assert not any(node.op_type == "DequantizeLinear" for node in model.graph)
    for a, b in zip(run(model, feeds), before, strict=True):
        # the sums are the same integers; what is added to them in another order may move a later integer by one
        assert np.abs(a - b).max() < 0.05
        assert np.median(np.abs(a - b)) < 1e-4


def test_a_float32_graph_is_left_alone(graph):
    model = ir.load(graph)
    count = len(model.graph)
    assert lower(model) == 0
    assert len(model.graph) == count
    assert "com.microsoft" not in model.opset_imports
