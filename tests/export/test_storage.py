import numpy as np
import onnx
import onnx_ir as ir

from mae_export.export.storage import save


def test_weights_move_out_above_the_limit(tmp_path):
    weights = np.arange(300, dtype=np.float32)
    table = ir.Value(
        name="w", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape([300]), const_value=ir.tensor(weights)
    )
    node = ir.node("Identity", [table])
    node.outputs[0].name, node.outputs[0].dtype, node.outputs[0].shape = "y", ir.DataType.FLOAT, ir.Shape([300])
    graph = ir.Graph([], node.outputs, nodes=[node], initializers=[table], opset_imports={"": 20}, name="g")
    model = ir.Model(graph, ir_version=10)
    for name, limit, files in (("in.onnx", 1200, {"in.onnx"}), ("out.onnx", 1199, {"out.onnx", "out.onnx.data"})):
        save(model, tmp_path / name, embedded=limit)
        assert {path.name for path in tmp_path.glob(name + "*")} == files
        loaded = onnx.load(tmp_path / name)
        np.testing.assert_array_equal(onnx.numpy_helper.to_array(loaded.graph.initializer[0]), weights)
