"""The matrix product that speeds are measured against: a model written by hand, and the quickest of the libraries."""

import importlib.util
import sys

import numpy as np
import onnx
import pytest

from mae_export.runtime import bench
from mae_export.runtime import gemm as module
from mae_export.runtime.bench import Contender, Laps
from mae_export.runtime.gemm import gemm_on_cpu, matmul_model, quickest

DRAWS = np.random.default_rng(0)
LEFT, RIGHT = (DRAWS.standard_normal(shape, dtype=np.float32) for shape in ((5, 300), (300, 7)))
MAKERS = {"numpy": module._numpy, "onnxruntime": module._onnxruntime, "openvino": module._openvino}


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(bench, "LONGEST_WARM_UP", 1)
    monkeypatch.setattr(bench, "PAUSE", 0.0)


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


def laps_of(monkeypatch, seconds):
    """Races end with these quickest runs, in the order of the contenders."""
    raced = []

    def race(contenders, *, rounds):
        raced.append([contender.what for contender in contenders])
        found = [seconds[contender.what.split()[2]] for contender in contenders]
        return [Laps(seconds=(9.0,), quickest=one, warm_up_runs=1, settled=True) for one in found]

    monkeypatch.setattr(module, "race", race)
    return raced


@pytest.mark.parametrize("winner", ["numpy", "ONNX", "OpenVINO", "PyTorch"])
def test_the_quickest_library_gives_the_peak(monkeypatch, winner):
    pytest.importorskip("openvino")
    seconds = dict.fromkeys(("numpy", "ONNX", "OpenVINO", "PyTorch"), 0.5) | {winner: 0.4}
    raced = laps_of(monkeypatch, seconds)
    torch = Contender(run=lambda: None, flops=2.0 * 64**3, what="float32 with PyTorch 2")
    assert gemm_on_cpu(size=64, others=[torch]).what.startswith(f"float32 with {winner}")
    (took_part,) = raced
    assert sorted(name.split()[2] for name in took_part) == ["ONNX", "OpenVINO", "PyTorch", "numpy"]


def test_products_of_different_size_are_compared_by_their_speed(monkeypatch):
    laps_of(monkeypatch, {"small": 0.1, "large": 0.4})
    small, large = (
        Contender(run=lambda: None, flops=flops, what=f"float32 with {name}")
        for name, flops in (("small", 1.0), ("large", 8.0))
    )
    assert quickest([small, large]) is large


def test_numpy_cannot_be_told_how_many_threads_to_take(monkeypatch):
    raced = laps_of(monkeypatch, {"numpy": 0.1, "ONNX": 0.5, "OpenVINO": 0.4, "other": 0.6})
    other = Contender(run=lambda: None, flops=1.0, what="float32 with other")
    found = gemm_on_cpu(size=64, threads=1, others=[other])
    assert found.what.split()[2] == ("OpenVINO" if importlib.util.find_spec("openvino") else "ONNX")
    assert "numpy" not in str(raced)


def test_without_runtimes_numpy_is_left(monkeypatch):
    for library in ("onnxruntime", "openvino"):
        monkeypatch.setitem(sys.modules, library, None)
    for threads in (0, 1):
        product = gemm_on_cpu(size=64, threads=threads)
        assert product.what == f"float32 with numpy {np.__version__}"
        assert product.run().shape == (64, 64)


def test_the_race_is_a_real_one():
    assert gemm_on_cpu(size=64).run().shape == (64, 64)
