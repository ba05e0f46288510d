"""The OpenVINO session against ONNX Runtime on exported graphs; what Q/DQ nodes mean, against arithmetic by hand."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from mae_export.errors import GraphError, InputError, MachineError, MaskError, UsageError
from mae_export.export.options import ConvertOptions, TraceOptions
from mae_export.export.precision import convert
from mae_export.files import sha256_files
from mae_export.manifest import METADATA_KEY
from mae_export.runtime.compare import compare
from mae_export.runtime.golden import check_golden
from mae_export.runtime.session import open_session
from mae_export.runtime.thresholds import limits_of
from tests.runtime.test_ort import feeds, write_graph

openvino = pytest.importorskip("openvino")
OUTPUTS = ("pooled", "patch_tokens")
MODES = [
    TraceOptions(mask="none", features=OUTPUTS),
    TraceOptions(mask="keep", features=OUTPUTS),
    TraceOptions(mask="patches", ragged=True, features=OUTPUTS),
]


@pytest.fixture
def tiny(tmp_path, make_manifest):
    return write_graph(tmp_path / "tiny.onnx", make_manifest("keep", outputs=("pooled",)))


@pytest.mark.parametrize("options", MODES, ids=lambda options: options.mask + "-ragged" * options.ragged)
def test_it_agrees_with_onnx_runtime_as_two_float32_runtimes_do(exported, options):
    path = exported("mae/checkpoint.pth", options)
    with open_session(path, backend="openvino") as candidate, open_session(path, backend="cpu") as reference:
        report = compare(candidate, reference)
        assert report.passed, report.worst
        check_golden(candidate)
        assert candidate.digest == reference.digest
        assert candidate.manifest == reference.manifest


def test_it_says_what_it_is(tiny):
    with open_session(tiny, backend="openvino", threads=1) as session:
        version = openvino.__version__.partition("-")[0]
        assert session.description == f"OpenVINO {version}, CPU, f32"
        assert session.choice.options == {"INFERENCE_PRECISION_HINT": "f32"}
        assert (session.name, session.digest) == ("tiny.onnx", sha256_files(tiny))


def test_a_bf16_graph_runs_in_bf16_and_within_its_limits(exported, tmp_path):
    source = exported("mae/checkpoint.pth", MODES[1])
    half = tmp_path / "half.onnx"
    convert(source, half, options=ConvertOptions(precision="bf16"))
    can = "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    with open_session(half) as candidate, open_session(source, backend="cpu") as reference:
        assert candidate.choice.backend == "openvino"
        assert candidate.description.endswith("bf16" if can else "f32")
        report = compare(candidate, reference)
        assert report.passed, report.worst
        errors = [found.agreement.max_error for found in report.measured]
    assert max(errors) < limits_of("bf16").error
    assert min(errors) > 1e-4  # it was really rounded


def test_without_bf16_instructions_it_says_so_and_stays_in_float32(tiny, make_manifest, tmp_path, monkeypatch):
    half = write_graph(tmp_path / "half.onnx", replace(make_manifest("keep", outputs=("pooled",)), precision="bf16"))
    monkeypatch.setattr(openvino.Core, "get_property", lambda *arguments: ["FP32", "INT8"])
    with open_session(half, backend="openvino") as session:
        assert session.description.endswith("f32")
        assert session.choice.reason == (
            "it was asked for; in float32, because this processor has no bf16 instructions"
        )


def write_quantized(path, manifest):
    """images -> pooled through one Q/DQ product: mean colour [B, 3] rounded to 8 bits, times 8-bit weights [3, 6]."""
    weight = np.arange(-9, 9, dtype=np.int8).reshape(3, 6)
    constants = {
        "axes": np.array([1, 2]),
        "x_scale": np.float32(0.5),
        "w_scale": np.float32(0.25),
        "zero": np.int8(0),
        "w8": weight,
    }
    nodes = [
        helper.make_node("Cast", ["images"], ["x"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["x", "axes"], ["mean"], keepdims=0),
        helper.make_node("QuantizeLinear", ["mean", "x_scale", "zero"], ["mean8"]),
        helper.make_node("DequantizeLinear", ["mean8", "x_scale", "zero"], ["mean_back"]),
        helper.make_node("DequantizeLinear", ["w8", "w_scale", "zero"], ["w"]),
        helper.make_node("MatMul", ["mean_back", "w"], ["pooled"]),
    ]
    graph = helper.make_graph(
        nodes,
        "quantized",
        [helper.make_tensor_value_info("images", TensorProto.UINT8, ["B", *manifest.image.size, 3])],
        [helper.make_tensor_value_info("pooled", TensorProto.FLOAT, ["B", 6])],
        [onnx.numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    helper.set_model_props(model, {METADATA_KEY: manifest.to_json()})
    onnx.save(model, path)
    return path, weight


def test_quantized_products_round_as_the_graph_says(tmp_path, make_manifest):
    manifest = replace(make_manifest("none", outputs=("pooled",)), precision="int8")
    path, weight = write_quantized(tmp_path / "int8.onnx", manifest)
    images = np.zeros((2, 32, 32, 3), np.uint8)
    images[0], images[1] = (10, 33, 200), (1, 2, 3)
    images[1, :16, :, 0] = 2  # a mean of 1.5
    steps = np.array([[20, 66, 127], [3, 4, 6]])  # 200 / 0.5 is beyond 127
    with open_session(path, backend="openvino") as session:
        found = session.run({"images": images})["pooled"]
    np.testing.assert_allclose(found, steps @ weight.astype(int) * 0.125, rtol=1e-6)


def test_results_belong_to_the_caller(tiny):
    with open_session(tiny, backend="openvino") as session:
        first = session.run(feeds())["pooled"]
        kept = first.copy()
        session.run({**feeds(), "images": np.zeros((2, 32, 32, 3), np.uint8)})
    np.testing.assert_array_equal(first, kept)


def test_outputs_stay_in_the_hosts_memory(tiny):
    with open_session(tiny, backend="openvino") as session:
        array = session.run_on_device(feeds())["pooled"]
        assert array.device == "cpu"
        np.testing.assert_array_equal(np.from_dlpack(array), session.run(feeds())["pooled"])


def test_threads_get_their_own_results(tiny):
    def mean(session, value):
        return session.run({**feeds(1), "images": np.full((1, 32, 32, 3), value, np.uint8)})["pooled"][0, 0]

    with open_session(tiny, backend="openvino", threads=1) as session, ThreadPoolExecutor(6) as pool:
        assert list(pool.map(lambda value: mean(session, value), range(60))) == list(range(60))


def test_wrong_feeds_are_refused_before_openvino_sees_them(tiny):
    with open_session(tiny, backend="openvino") as session:
        with pytest.raises(UsageError, match="there is no output 'dense'"):
            session.run(feeds(), ["dense"])
        with pytest.raises(InputError, match="ids_keep"):
            session.run({"images": feeds()["images"]})
        with pytest.raises(MaskError, match="16"):
            session.run({**feeds(), "ids_keep": np.full((2, 4), 16)})
    session.close()
    with pytest.raises(UsageError, match=r"tiny\.onnx is closed"):
        session.run(feeds())


def test_files_that_are_no_graph(tmp_path, tiny):
    bad = tmp_path / "bad.onnx"
    bad.write_bytes(b"<html>404</html>")
    with pytest.raises(GraphError, match=r"bad\.onnx carries no manifest; expected a graph written by"):
        open_session(bad, backend="openvino")
    model = onnx.load(tiny)
    model.graph.node[2].op_type = "NoSuchProduct"
    onnx.save(model, tiny)
    with pytest.raises(GraphError, match=r"(?s)OpenVINO .* cannot load .*tiny\.onnx.*NoSuchProduct"):
        open_session(tiny, backend="openvino")


def test_missing_openvino_names_the_extra(tiny, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "openvino", None)
    with pytest.raises(MachineError, match=r"OpenVINO is not installed; run: pip install 'mae-export\[openvino\]'"):
        open_session(tiny, backend="openvino")
