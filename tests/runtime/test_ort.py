"""The ONNX Runtime session on tiny graphs built here, node by node, so that no exporter is needed."""

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

import mae_export.runtime.ort as ort_module
from mae_export.calibration.wanted import QuantizeOptions
from mae_export.errors import GraphError, InputError, MachineError, MaskError, ResourceError, UsageError
from mae_export.export.options import TraceOptions
from mae_export.files import sha256_files
from mae_export.manifest import METADATA_KEY
from mae_export.runtime.compare import compare
from mae_export.runtime.doctor import Cpu
from mae_export.runtime.ort import OrtSession
from mae_export.runtime.probes import golden_feeds
from mae_export.runtime.session import open_session
from tests.runtime import onnxruntime_double
from tests.runtime.onnxruntime_double import CUDA, RuntimeDouble


def write_graph(path, manifest, *, external=False):
    """images -> pooled: the mean of each channel, doubled to six values; images and ids_keep as in mode keep."""
    weight = np.tile(np.eye(3, dtype=np.float32), (1, 2))
    return write_product(
        path, manifest, [helper.make_node("MatMul", ["mean", "w"], ["pooled"])], {"w": weight}, external
    )


def write_int8_graph(path, manifest):
    """images -> pooled: the sum of the channels' means, from the largest integers that a byte holds."""
    nodes = [
        helper.make_node("QuantizeLinear", ["mean", "one", "zero"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "one", "zero"], ["means"]),
        helper.make_node("DequantizeLinear", ["integers", "scales", "zeros"], ["w"], axis=1),
        helper.make_node("MatMul", ["means", "w"], ["pooled"]),
    ]
    constants = {
        "one": np.float32(1),
        "zero": np.uint8(0),
        "integers": np.full((3, 6), 127, np.int8),
        "scales": np.full(6, 1 / 127, np.float32),
        "zeros": np.zeros(6, np.int8),
    }
    return write_product(path, manifest, nodes, constants)


def write_product(path, manifest, nodes, constants, external=False):
    """images -> mean of each channel -> what the nodes make of it."""
    size = manifest.image.size
    means = [
        helper.make_node("Cast", ["images"], ["x"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["x", "axes"], ["mean"], keepdims=0),
    ]
    graph = helper.make_graph(
        [*means, *nodes],
        "tiny",
        [
            helper.make_tensor_value_info("images", TensorProto.UINT8, ["B", *size, 3]),
            helper.make_tensor_value_info("ids_keep", TensorProto.INT64, ["B", "K"]),
        ],
        [helper.make_tensor_value_info("pooled", TensorProto.FLOAT, ["B", 6])],
        [
            onnx.numpy_helper.from_array(np.asarray(array), name)
            for name, array in {"axes": np.array([1, 2]), **constants}.items()
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    helper.set_model_props(model, {METADATA_KEY: manifest.to_json()})
    if external:
        onnx.save(model, path, save_as_external_data=True, location=path.name + ".data", size_threshold=100)
    else:
        onnx.save(model, path)
    return path


@pytest.fixture
def manifest(make_manifest):
    return make_manifest("keep", outputs=("pooled",))


def feeds(batch=2):
    images = np.arange(batch * 32 * 32 * 3, dtype=np.int64).reshape(batch, 32, 32, 3) % 251
    return {"images": images.astype(np.uint8), "ids_keep": np.tile(np.arange(4), (batch, 1))}


def test_runs_and_describes_itself(tmp_path, manifest):
    path = write_graph(tmp_path / "tiny.onnx", manifest)
    with open_session(path, threads=1) as session:
        found = session.run(feeds())
        expected = np.tile(feeds()["images"].mean(axis=(1, 2)), (1, 2))
        np.testing.assert_allclose(found["pooled"], expected, rtol=1e-6)
        assert found["pooled"].dtype == np.float32
        assert session.manifest == manifest
        assert session.name == "tiny.onnx"
        assert session.digest == sha256_files(path)
        assert session.description == f"ONNX Runtime {onnxruntime.__version__}, CPUExecutionProvider"


def test_results_belong_to_the_caller(tmp_path, manifest):
    with open_session(write_graph(tmp_path / "tiny.onnx", manifest)) as session:
        first = session.run(feeds())["pooled"]
        kept = first.copy()
        session.run({**feeds(), "images": np.zeros((2, 32, 32, 3), np.uint8)})
    np.testing.assert_array_equal(first, kept)


def test_digest_covers_the_data_file(tmp_path, manifest):
    path = write_graph(tmp_path / "tiny.onnx", manifest, external=True)
    with open_session(path) as session:
        assert session.digest == sha256_files(path, tmp_path / "tiny.onnx.data")


def test_wrong_feeds_and_outputs_are_refused(tmp_path, manifest):
    with open_session(write_graph(tmp_path / "tiny.onnx", manifest)) as session:
        with pytest.raises(UsageError, match="there is no output 'dense'; this file has: pooled"):
            session.run(feeds(), ["dense"])
        with pytest.raises(InputError, match="ids_keep"):
            session.run({"images": feeds()["images"]})
        with pytest.raises(MaskError, match="16"):
            session.run({**feeds(), "ids_keep": np.full((2, 4), 16)})


def test_closed_session_refuses_to_run(tmp_path, manifest):
    session = open_session(write_graph(tmp_path / "tiny.onnx", manifest))
    session.close()
    session.close()
    with pytest.raises(UsageError, match=r"tiny\.onnx is closed"):
        session.run(feeds())


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"", "is no graph that ONNX Runtime can load"),
        (b"<html>404</html>", "is no graph that ONNX Runtime can load"),
        (bytes(range(256)) * 4, "is no graph that ONNX Runtime can load"),
    ],
    ids=["empty", "html", "noise"],
)
def test_files_that_are_no_graph(tmp_path, content, text):
    path = tmp_path / "bad.onnx"
    path.write_bytes(content)
    with pytest.raises(GraphError, match=text):
        open_session(path)


def test_truncated_graph(tmp_path, manifest):
    path = write_graph(tmp_path / "tiny.onnx", manifest)
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(GraphError):
        open_session(path)


def test_graph_without_manifest(tmp_path, manifest):
    path = write_graph(tmp_path / "tiny.onnx", manifest)
    model = onnx.load(path)
    del model.metadata_props[:]
    onnx.save(model, path)
    with pytest.raises(GraphError, match="carries no manifest; expected a graph written by `mae-export export`"):
        OrtSession(path)


def test_damaged_manifest(tmp_path, manifest):
    path = write_graph(tmp_path / "tiny.onnx", manifest)
    model = onnx.load(path)
    model.metadata_props[0].value = model.metadata_props[0].value.replace('"mask_mode": "keep"', '"mask_mode": "half"')
    onnx.save(model, path)
    with pytest.raises(InputError, match="mask_mode is 'half'; expected one of 'none', 'keep', 'patches'"):
        open_session(path)


def test_missing_data_file(tmp_path, manifest):
    path = write_graph(tmp_path / "tiny.onnx", manifest, external=True)
    (tmp_path / "tiny.onnx.data").unlink()
    with pytest.raises(GraphError, match=r"tiny\.onnx is no graph that ONNX Runtime can load; expected one written by"):
        open_session(path)


def test_data_file_outside_the_folder(tmp_path, manifest):
    (tmp_path / "model").mkdir()
    path = write_graph(tmp_path / "model" / "tiny.onnx", manifest, external=True)
    (tmp_path / "model" / "tiny.onnx.data").rename(tmp_path / "elsewhere.data")
    model = onnx.load(path, load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = "../elsewhere.data"
    onnx.save(model, path)
    with pytest.raises(GraphError, match="escapes model directory"):
        open_session(path)


@pytest.fixture
def on_gpu(monkeypatch):
    """ONNX Runtime with its CUDA provider."""
    double = RuntimeDouble(CUDA)
    monkeypatch.setattr(ort_module, "ort", double)
    return double


def test_a_session_on_a_gpu_computes_the_same(tmp_path, manifest, on_gpu):
    path = write_graph(tmp_path / "tiny.onnx", manifest)
    with open_session(path, backend="cuda") as session:
        assert session.description.endswith("CUDAExecutionProvider, CPUExecutionProvider")
        assert str(session.choice) == "cuda: it was asked for"
        for _ in range(3):
            found = session.run(feeds())["pooled"]
            np.testing.assert_allclose(found, np.tile(feeds()["images"].mean(axis=(1, 2)), (1, 2)), rtol=1e-6)
        with pytest.raises(MaskError, match="16"):
            session.run({**feeds(), "ids_keep": np.full((2, 4), 16)})
    assert on_gpu.made[0].session.runs == [-1, 1, 1]
    with pytest.raises(UsageError, match=r"tiny\.onnx is closed"):
        session.run(feeds())


def test_two_gpus_share_a_batch(tmp_path, manifest, on_gpu, monkeypatch):
    used = set()
    monkeypatch.setattr(onnxruntime_double, "_require_device", lambda device, number: used.add((device, number)))
    with open_session(write_graph(tmp_path / "tiny.onnx", manifest), backend="cuda", devices=[1, 2]) as session:
        found = session.run(feeds(5))["pooled"]
    np.testing.assert_allclose(found, np.tile(feeds(5)["images"].mean(axis=(1, 2)), (1, 2)), rtol=1e-6)
    assert [made.provider[1]["device_id"] for made in on_gpu.made] == ["1", "2"]
    assert used == {("cuda", 1), ("cuda", 2)}


def test_a_full_gpu_says_what_to_do(tmp_path, manifest, on_gpu):
    on_gpu.runs_out_of_memory = True
    session = open_session(write_graph(tmp_path / "tiny.onnx", manifest), backend="cuda")
    with session, pytest.raises(ResourceError, match="ran out of memory; use a smaller batch"):
        session.run(feeds())


def test_a_provider_that_refuses_the_graph_is_not_replaced_by_the_cpu(tmp_path, manifest, on_gpu):
    on_gpu.InferenceSession = refuse
    with pytest.raises(MachineError, match=r"cannot run .*tiny\.onnx with the backend 'cuda' \(no kernel for Gelu\)"):
        open_session(write_graph(tmp_path / "tiny.onnx", manifest), backend="cuda")


def refuse(path, settings, providers, enable_fallback):
    raise onnxruntime.capi.onnxruntime_pybind11_state.NotImplemented("no kernel for Gelu")


def test_a_damaged_file_is_not_the_machines_fault(tmp_path, on_gpu):
    path = tmp_path / "bad.onnx"
    path.write_bytes(b"<html>404</html>")
    with pytest.raises(GraphError, match="is no graph that ONNX Runtime can load"):
        open_session(path, backend="cuda")


def test_outputs_stay_on_the_gpu(tmp_path, manifest, on_gpu, behaviour):
    on_gpu.gpu = behaviour.gpu
    wanted = np.tile(feeds()["images"].mean(axis=(1, 2)), (1, 2))
    session = open_session(write_graph(tmp_path / "tiny.onnx", manifest), backend="cuda")
    arrays = [session.run_on_device(feeds())["pooled"] for _ in range(3)]  # once, captured, replayed
    assert on_gpu.made[0].session.runs == [-1, 1, 1]
    assert on_gpu.synchronized == 3
    assert len({array._memory.address for array in arrays}) == 3
    session.run({**feeds(), "images": np.zeros((2, 32, 32, 3), np.uint8)})
    del arrays[0]
    session.close()
    for array in arrays:
        assert (array.shape, array.dtype, array.device) == ((2, 6), "float32", "cuda:0")
        np.testing.assert_allclose(array.numpy(), wanted, rtol=1e-6)
    with pytest.raises(UsageError, match=r"tiny\.onnx is closed"):
        session.run_on_device(feeds())
    capsule = arrays.pop().__dlpack__(stream=1)
    del array
    arrays.clear()
    assert len(behaviour.gpu.blocks) == 1
    del capsule


def test_outputs_of_the_cpu_stay_there(tmp_path, manifest):
    with open_session(write_graph(tmp_path / "tiny.onnx", manifest), backend="cpu") as session:
        array = session.run_on_device(feeds())["pooled"]
        assert array.device == "cpu"
        np.testing.assert_array_equal(np.from_dlpack(array), session.run(feeds())["pooled"])


def test_errors_are_the_same_where_outputs_stay(tmp_path, manifest, on_gpu, behaviour):
    on_gpu.gpu = behaviour.gpu
    with open_session(write_graph(tmp_path / "tiny.onnx", manifest), backend="cuda") as session:
        with pytest.raises(MaskError, match="16"):
            session.run_on_device({**feeds(), "ids_keep": np.full((2, 4), 16)})
        on_gpu.runs_out_of_memory = True
        with pytest.raises(ResourceError, match="ran out of memory; use a smaller batch"):
            session.run_on_device(feeds())


@pytest.mark.gpu
@pytest.mark.skipif(CUDA not in onnxruntime.get_available_providers(), reason="ONNX Runtime has no CUDA provider")
def test_pytorch_takes_outputs_on_the_gpu(exported):
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("PyTorch was not built for CUDA")
    path = exported("mae/checkpoint.pth", TraceOptions(mask="keep", features=("pooled", "patch_tokens")))
    with open_session(path, backend="cuda") as session:
        fed = golden_feeds(session.manifest)
        expected = session.run(fed)
        taken = [session.run_on_device(fed) for _ in range(3)]
    for found in taken:
        for name, array in found.items():
            tensor = torch.from_dlpack(array)
            assert tensor.device == torch.device("cuda", 0)
            assert tensor.data_ptr() == torch.from_dlpack(array).data_ptr()
            np.testing.assert_array_equal(tensor.cpu().numpy(), expected[name])
            np.testing.assert_array_equal(array.numpy(), expected[name])


@pytest.mark.gpu
@pytest.mark.skipif(CUDA not in onnxruntime.get_available_providers(), reason="ONNX Runtime has no CUDA provider")
def test_cuda_agrees_with_the_cpu(exported):
    path = exported("mae/checkpoint.pth", TraceOptions(mask="keep", features=("pooled", "patch_tokens")))
    with open_session(path, backend="cuda") as candidate, open_session(path, backend="cpu") as reference:
        assert compare(candidate, reference).passed
        repeated = [candidate.run(golden_feeds(candidate.manifest)) for _ in range(3)]  # once, captured, replayed
        assert all(np.array_equal(found["pooled"], repeated[0]["pooled"]) for found in repeated)


def test_fp8_runs_as_the_graph_says(exported, eight_bit, tmp_path):
    """ONNX Runtime would fuse it into INT8 kernels and then refuse them."""
    source = exported("mae/checkpoint.pth", TraceOptions())
    path = eight_bit(source, tmp_path / "fp8.onnx", QuantizeOptions(precision="fp8"))
    with open_session(path, backend="cpu") as session, open_session(source, backend="cpu") as exact:
        feeds = golden_feeds(session.manifest)
        difference = np.abs(session.run(feeds)["pooled"] - exact.run(feeds)["pooled"]).max()
    assert 1e-4 < difference < 0.3


def test_sums_of_8_bit_products_do_not_overflow(tmp_path, manifest):
    """255 x 127 twice is more than 16 bits hold, in which CPUs without VNNI would add them."""
    white = {**feeds(), "images": np.full_like(feeds()["images"], 255)}
    with open_session(write_int8_graph(tmp_path / "tiny.onnx", manifest)) as session:
        np.testing.assert_allclose(session.run(white)["pooled"], np.full((2, 6), 3 * 255.0), rtol=1e-6)


@pytest.mark.parametrize(("flags", "guarded"), [(("avx2", "avx512f"), True), (("avx2", "avx_vnni"), False), ((), True)])
def test_only_cpus_without_vnni_pay_for_that(tmp_path, manifest, monkeypatch, flags, guarded):
    seen = []

    class Spied(onnxruntime.InferenceSession):
        def __init__(self, path, options, *, providers):
            seen.append(options)
            super().__init__(path, options, providers=providers)

    monkeypatch.setattr(ort_module, "read_cpu", lambda: Cpu(model="CPU", cores=1, quota=None, flags=flags))
    monkeypatch.setattr(ort_module.ort, "InferenceSession", Spied)
    with open_session(write_int8_graph(tmp_path / "tiny.onnx", manifest), backend="cpu"):
        (options,) = seen
    if guarded:
        assert options.get_session_config_entry("session.x64quantprecision") == "1"
    else:
        with pytest.raises(RuntimeError, match="x64quantprecision"):
            options.get_session_config_entry("session.x64quantprecision")
