"""The matrix product that speeds are measured against: a model written by hand, and each library that is here."""

import sys
from types import SimpleNamespace

import numpy as np
import onnx
import pytest

from mae_export.runtime import gemm as module
from mae_export.runtime.gemm import gemms_on_cpu, matmul_model

DRAWS = np.random.default_rng(0)
LEFT, RIGHT = (DRAWS.standard_normal(shape, dtype=np.float32) for shape in ((5, 300), (300, 7)))
MAKERS = {"numpy": module._numpy, "onnxruntime": module._onnxruntime, "openvino": module._openvino}


@pytest.mark.parametrize("shape", [(300, 7), (1, 1), (127, 128), (2**14, 3)])
def test_onnx_reads_the_model_as_what_it_shall_be(shape):
    right = DRAWS.standard_normal(shape, dtype=np.float32)
    data = matmul_model(right)
    model = onnx.ModelProto.FromString(data)
    onnx.checker.check_model(model, full_check=True)
    (stored,) = model.graph.initializer
    np.testing.assert_array_equal(onnx.numpy_helper.to_array(stored), right)
    expected = onnx.helper.make_model(
        onnx.helper.make_graph(
            [onnx.helper.make_node("MatMul", ["a", "b"], ["y"])],
            "gemm",
            [onnx.helper.make_tensor_value_info("a", onnx.TensorProto.FLOAT, ["m", shape[0]])],
            [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["m", shape[1]])],
            initializer=[onnx.numpy_helper.from_array(right, "b")],
        ),
        opset_imports=[onnx.OperatorSetIdProto(version=module.OPSET)],
        ir_version=module.IR_VERSION,
    )
    assert model.SerializeToString(deterministic=True) == expected.SerializeToString(deterministic=True)
    assert len(data) - right.nbytes < 120


def test_the_reference_runs_it():
    from onnx.reference import ReferenceEvaluator

    (found,) = ReferenceEvaluator(onnx.ModelProto.FromString(matmul_model(RIGHT))).run(None, {"a": LEFT})
    np.testing.assert_allclose(found, LEFT @ RIGHT, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("threads", [0, 1])
@pytest.mark.parametrize("library", MAKERS)
def test_each_library_computes_the_product_in_float32(library, threads):
    pytest.importorskip(library)
    product = MAKERS[library](LEFT, RIGHT, threads)
    assert product.flops == 2 * 5 * 300 * 7
    assert product.what.startswith("float32 with ")
    exact = LEFT.astype(np.float64) @ RIGHT.astype(np.float64)
    for _ in range(2):
        np.testing.assert_allclose(product.run(), exact, rtol=0, atol=1e-4)  # bf16 would be off by 0.1


def libraries(products):
    return [product.what.removeprefix("float32 with ").rpartition(" ")[0] for product in products]


def test_every_library_that_is_here_takes_part():
    pytest.importorskip("openvino")
    assert libraries(gemms_on_cpu(size=64)) == ["ONNX Runtime", "OpenVINO", "numpy"]


def test_numpy_cannot_be_told_how_many_threads_to_take():
    assert "numpy" not in libraries(gemms_on_cpu(size=64, threads=1))


def test_without_runtimes_numpy_is_left(monkeypatch):
    for library in ("onnxruntime", "openvino"):
        monkeypatch.setitem(sys.modules, library, None)
    for threads in (0, 1):
        (product,) = gemms_on_cpu(size=64, threads=threads)
        assert product.what == f"float32 with numpy {np.__version__}"
        assert product.run().shape == (64, 64)


def test_a_library_that_does_not_load_is_left_out(monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", SimpleNamespace())
    assert libraries(gemms_on_cpu(size=64)) == ["ONNX Runtime", "numpy"]
