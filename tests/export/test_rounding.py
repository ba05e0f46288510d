"""The twin rounds for real: expected values are those of IEEE half precision and bfloat16, worked out by hand."""

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest

from mae_export.export.ranges import measure
from mae_export.export.retype import retype
from mae_export.export.rounding import make_twin


@pytest.mark.parametrize(
    ("half", "given", "expected"),
    [
        ("fp16", [2049.0, 1 + 2**-10, 2**-25, 40000.0, 70000.0], [4096.0, 2 + 2**-9, 0.0, np.inf, np.inf]),
        ("fp16", [2051.0, -70000.0, 3 * 2**-25, 65519.0, 0.5], [4104.0, -np.inf, 2**-22, np.inf, 1.0]),
        ("bf16", [257.0, 1 + 2**-8, 1 + 3 * 2**-8, 70000.0, 1e38], [512.0, 2.0, 2 + 2**-5, 140288.0, 1.994e38]),
    ],
)
def test_sums_are_those_of_the_type(model_of, tmp_path, half, given, expected):
    model = model_of(
        [("pixels", "Cast", ["images"], ["f"], {"to": 1}), ("table", "Gather", ["t", "zero"], ["g"], {}),
         ("zeros", "Mul", ["f", "n"], ["z"], {}), ("take", "Add", ["z", "g"], ["v"], {}),
         ("sum", "Add", ["v", "v"], ["y"], {})],
        weights={"t": np.array([given], np.float32), "zero": np.array(0), "n": np.array(0, np.float32)},
        inputs={"images": [1, 5]},
    )  # fmt: skip
    retype(model, half, ())
    ranges, outputs = measure(make_twin(model), tmp_path / "t.onnx", [{"images": np.ones((1, 5), np.uint8)}])
    np.testing.assert_allclose(outputs[0]["y"][0], expected, rtol=1e-3 if half == "bf16" else 0)
    assert (ranges.first_infinite() is None) == bool(np.isfinite(expected).all())


def test_the_runtime_hides_what_the_twin_shows(model_of, tmp_path):
    """200 * 1000 / 1024 overflows half precision on the way; the CPU provider computes the whole in float32."""
    nodes = [
        ("pixels", "Cast", ["images"], ["f"], {"to": 1}),
        ("large", "Mul", ["f", "w"], ["l"], {}),
        ("small", "Mul", ["l", "v"], ["y"], {}),
    ]
    weights = {"w": np.array(1000, np.float32), "v": np.array(2**-10, np.float32)}
    images = {"images": np.full((1, 2), 200, np.uint8)}
    model = model_of(nodes, weights=weights, inputs={"images": [1, 2]})
    retype(model, "fp16", ())
    ir.save(model, tmp_path / "half.onnx")
    session = ort.InferenceSession(tmp_path / "half.onnx", providers=["CPUExecutionProvider"])
    np.testing.assert_allclose(session.run(None, images)[0], 200 * 1000 / 1024, rtol=1e-3)
    ranges, outputs = measure(make_twin(model), tmp_path / "t.onnx", [images])
    assert np.isinf(outputs[0]["y"]).all()
    assert ranges.first_infinite() == "l"
    assert next(node.name for node in model.graph if node.outputs[0].name == "l") == "large"
