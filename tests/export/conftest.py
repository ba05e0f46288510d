"""Small float32 models, written as ONNX helpers write them, for the edits that do not need a whole encoder."""

import numpy as np
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper


@pytest.fixture
def model_of():
    """Build a model from nodes, weights and the shapes of its float inputs; types of all tensors are noted."""

    def build(nodes, *, weights=None, inputs=None, outputs=("y",)):
        from onnx.shape_inference import infer_shapes

        nodes = [helper.make_node(op, i, o, name=name, **attributes) for name, op, i, o, attributes in nodes]
        entries = [
            helper.make_tensor_value_info(name, TensorProto.UINT8 if name == "images" else TensorProto.FLOAT, shape)
            for name, shape in (inputs or {}).items()
        ]
        results = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs]
        arrays = [numpy_helper.from_array(np.asarray(array), name) for name, array in (weights or {}).items()]
        graph = helper.make_graph(nodes, "small", entries, results, arrays)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
        return ir.from_proto(infer_shapes(model))

    return build
