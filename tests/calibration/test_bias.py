"""The correction of biases, against the mean error that it is to remove."""

import numpy as np
import onnx_ir as ir
import pytest

from mae_export.calibration.bias import bias_place, correct_bias
from mae_export.calibration.insert import stored
from mae_export.calibration.quantize import quantize_model
from mae_export.calibration.table import TensorRange
from mae_export.calibration.wanted import QuantizeOptions

DRAWS = np.random.default_rng(0)
WEIGHT, BIAS = DRAWS.standard_normal((16, 5)).astype(np.float32), np.arange(5, dtype=np.float32)
ADDED = '["fc/MatMul"] h = MatMul(x, w)  ["fc/Add"] y = Add(h, b)'
SWAPPED = '["fc/MatMul"] h = MatMul(x, w)  ["fc/Add"] y = Add(b, h)'
GEMM = '["fc/Gemm"] y = Gemm(x, w, b)'
BARE = '["fc/MatMul"] h = MatMul(x, w)  ["fc/Relu"] y = Relu(h)'
TWICE = '["fc/MatMul"] h = MatMul(x, w)  ["fc/Add"] z = Add(h, b)  ["fc/Sub"] y = Sub(z, h)'


@pytest.fixture
def model(written):
    def build(nodes):
        return written(f"g (float[3, 16] x) => (float[3, 5] y) {{ {nodes} }}", {"w": WEIGHT, "b": BIAS})

    return build


@pytest.mark.parametrize(("nodes", "place"), [(ADDED, ("Add", 1)), (SWAPPED, ("Add", 0)), (GEMM, ("Gemm", 2))])
def test_the_shift_is_added_to_the_bias(model, nodes, place):
    made = model(nodes)
    correct_bias(made, made.graph[0], np.full(5, 0.25))
    node = next(node for node in made.graph if node.op_type == place[0])
    np.testing.assert_array_equal(stored(node, place[1]), BIAS + 0.25)


@pytest.mark.parametrize("nodes", [BARE, TWICE])
def test_without_a_bias_of_its_own_nothing_changes(model, nodes):
    made = model(nodes)
    before = ir.to_proto(made).SerializeToString()
    assert bias_place(made.graph[0]) is None
    correct_bias(made, made.graph[0], np.ones(5))
    assert ir.to_proto(made).SerializeToString() == before


@pytest.mark.parametrize("corrected", [True, False])
def test_the_mean_of_the_output_is_kept(written, corrected):
    means = DRAWS.uniform(1, 2, 16)
    found = TensorRange(low=-4.0, high=4.0, minimum=-4.0, maximum=4.0, channels=(4.0,) * 16, means=tuple(means))
    norm = '["n/LayerNormalization"] n = LayerNormalization<axis = -1>(x, s)'
    text = f"g (float[3, 16] x) => (float[3, 5] y) {{ {norm} {ADDED.replace('(x', '(n')} }}"
    made = written(text, {"w": WEIGHT, "b": BIAS, "s": np.ones(16, np.float32)})
    quantize_model(made, {"n": found}, QuantizeOptions(precision="int8", smooth=False, correct_bias=corrected))
    product = next(node for node in made.graph if node.op_type == "MatMul")
    back = product.inputs[1].producer()
    rounded = stored(back, 0).astype(np.float32) * stored(back, 1)
    bias = stored(next(node for node in made.graph if node.op_type == "Add"), 1)
    off = means @ rounded + bias - (means @ WEIGHT + BIAS)
    assert np.allclose(off, 0, atol=1e-5) == corrected
