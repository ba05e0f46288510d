"""What is prepared on which machine, once, and found by `open_session`; the builder of engines is a double."""

import shutil
import sys
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import onnx
import pytest

import mae_export.runtime.ort as ort_module
from mae_export.calibration.lowered import write_lowered
from mae_export.calibration.wanted import QuantizeOptions
from mae_export.errors import GraphError, InputError, MachineError, SecurityError, VerificationError
from mae_export.export import prepare as module
from mae_export.export.options import ConvertOptions, TraceOptions
from mae_export.export.plan import EnginePlan
from mae_export.export.precision import convert
from mae_export.export.prepare import Prepared, PrepareOptions, prepare
from mae_export.files import sha256_files
from mae_export.graph import read_manifest
from mae_export.runtime import prepared, private_folder, providers
from mae_export.runtime.doctor import Cpu, Gpu
from mae_export.runtime.session import open_session
from tests.runtime.cuda_double import CudaDouble
from tests.runtime.onnxruntime_double import CUDA, RuntimeDouble
from tests.runtime.tensorrt_double import install, profile, write_engine

ONCE = PrepareOptions()
WITH_VNNI = Cpu(model="CPU", cores=1, quota=None, flags=("avx2", "avx512_vnni"))


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv("MAE_EXPORT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(autouse=True)
def cpu(monkeypatch):
    """No GPU, and a CPU with the instructions that count."""

    def no_gpu():
        raise MachineError("no GPU")

    monkeypatch.setattr(module, "open_device", no_gpu)
    monkeypatch.setattr(module, "nvidia_gpus", lambda: ())
    monkeypatch.setattr(module, "read_cpu", lambda: WITH_VNNI)


@pytest.fixture
def source(exported, tmp_path):
    return shutil.copy(exported("mae/checkpoint.pth", TraceOptions(mask="keep")), tmp_path / "vit.onnx")


@pytest.fixture
def int8(source, eight_bit, tmp_path):
    return eight_bit(source, tmp_path / "int8.onnx", QuantizeOptions(precision="int8"))


# CPUs


def test_a_float32_graph_is_best_as_it_is(source, cache):
    reason = "no form of this fp32 graph runs faster on this CPU"
    assert prepare(source, options=ONCE, lower=write_lowered) == Prepared(kind="as it is", reason=reason)
    assert not cache.exists()


def test_bf16_runs_in_openvino_as_it_is(source, tmp_path):
    out = tmp_path / "bf16.onnx"
    convert(source, out, options=ConvertOptions(precision="bf16"))
    made = prepare(out, options=ONCE)
    assert (made.kind, made.path) == ("as it is", None)
    assert made.reason.startswith("openvino runs it, because ONNX Runtime has no CUDA provider")


def test_int8_is_lowered_once_and_opened(int8):
    made = prepare(int8, options=ONCE, lower=write_lowered)
    assert (made.kind, made.fresh, made.path.name) == ("lowered", True, "int8.onnx")
    with open_session(int8) as session:
        assert str(session.choice) == "cpu: prepared on this machine from int8.onnx"
        assert session.digest == sha256_files(made.path)
        assert session.manifest.made_from[-1].sha256 == sha256_files(int8)
    again = prepare(int8, options=ONCE, lower=write_lowered)
    assert (again.path, again.fresh) == (made.path, False)
    inner = prepare(made.path, options=ONCE, lower=write_lowered)
    assert inner.reason == "no form of this int8 graph runs faster on this CPU"


def test_writing_the_same_graph_again_proves_the_graph_itself(source, tmp_path, monkeypatch):
    """A prepared form of the same bytes would be judged in its place."""
    out, opened = tmp_path / "fp16.onnx", []
    monkeypatch.setattr(module.prepared, "find", opened.append)
    convert(source, out, options=ConvertOptions(precision="fp16"))
    assert opened == []


def test_two_processes_lower_once_unless_forced(int8):
    calls, both = [], threading.Barrier(2)

    def lower(graph, out):
        calls.append(graph)
        return bool(shutil.copy(graph, out))

    def work():
        both.wait(10)
        return prepare(int8, options=ONCE, lower=lower)

    with ThreadPoolExecutor(2) as pool:
        made = [each.result(20) for each in (pool.submit(work), pool.submit(work))]
    assert (len(calls), sorted(each.fresh for each in made)) == (1, [False, True])
    assert prepare(int8, options=PrepareOptions(force=True), lower=lower).fresh
    assert len(calls) == 2


def test_the_second_waits_for_the_first(int8, monkeypatch):
    waits, calls = threading.Event(), []
    real = private_folder._lock

    def lock(handle, *, wait):
        try:
            return real(handle, wait=False)
        except BlockingIOError:
            waits.set()
        return real(handle, wait=True)

    def lower(graph, out):
        calls.append(graph)
        assert waits.wait(20), "the other one does not wait for this"
        return bool(shutil.copy(graph, out))

    monkeypatch.setattr(private_folder, "_lock", lock)
    with ThreadPoolExecutor(2) as pool:
        made = [each.result(30) for each in [pool.submit(prepare, int8, options=ONCE, lower=lower) for _ in range(2)]]
    assert (len(calls), sorted(each.fresh for each in made)) == (1, [False, True])
    assert made[0].path == made[1].path


def test_different_graphs_are_prepared_at_once(int8, source, eight_bit, tmp_path):
    other = eight_bit(source, tmp_path / "other.onnx", QuantizeOptions(precision="int8", keep=("blocks.0",)))
    both = threading.Barrier(2)

    def lower(graph, out):
        both.wait(20)  # broken unless each of them is being made while the other is
        return bool(shutil.copy(graph, out))

    with ThreadPoolExecutor(2) as pool:
        made = [
            each.result(30)
            for each in [pool.submit(prepare, graph, options=ONCE, lower=lower) for graph in (int8, other)]
        ]
    assert [each.fresh for each in made] == [True, True]
    assert made[0].path.parent != made[1].path.parent


def test_clear_spares_what_is_being_made(int8):
    found = []

    def lower(graph, out):
        found.append(prepared.clear())
        return bool(shutil.copy(graph, out))

    made = prepare(int8, options=ONCE, lower=lower)
    assert found == [prepared.Cleared(busy=1)]
    assert made.fresh
    assert made.path.is_file()
    assert prepared.clear() == prepared.Cleared(removed=1)


@pytest.mark.parametrize(
    ("flags", "lower", "reason"),
    [
        (("avx2",), write_lowered, "on a CPU without VNNI no form of an int8 graph is known to help"),
        (WITH_VNNI.flags, lambda graph, out: False, "only linear int8 graphs whose rest is float32 have a form that"),
        (WITH_VNNI.flags, None, "ONNX Runtime multiplies integers fastest"),
    ],
)
def test_int8_that_stays_as_it_is(int8, cache, monkeypatch, flags, lower, reason):
    monkeypatch.setattr(module, "read_cpu", lambda: Cpu(model="CPU", cores=1, quota=None, flags=flags))
    made = prepare(int8, options=ONCE, lower=lower)
    assert (made.kind, made.path, made.reason[: len(reason)]) == ("as it is", None, reason)
    assert not list(cache.glob("*/entry.json"))


def test_what_disagrees_is_not_kept(int8, cache):
    def lower(graph, out):
        shutil.copy(graph, out)
        raise VerificationError("off by 1")

    with pytest.raises(VerificationError, match=r"int8\.onnx disagrees with it and was not kept, .*\. off by 1"):
        prepare(int8, options=ONCE, lower=lower)
    assert not list(cache.iterdir())


def test_a_cache_of_others_is_refused(int8, cache):
    cache.mkdir()
    cache.chmod(0o777)
    with pytest.raises(SecurityError, match="others may write in"):
        prepare(int8, options=ONCE, lower=write_lowered)


def test_what_is_no_graph(tmp_path):
    (tmp_path / "x.onnx").write_bytes(b"\xff")
    with pytest.raises(GraphError, match="cannot be read as an ONNX model"):
        prepare(tmp_path / "x.onnx", options=ONCE)


def test_a_name_that_is_no_graphs(source, tmp_path):
    with pytest.raises(InputError, match=r"vit\.bin would not be opened as a graph; expected .* ends in \.onnx"):
        prepare(source.rename(tmp_path / "vit.bin"), options=ONCE)


# GPUs with ONNX Runtime alone


@pytest.fixture
def with_cuda(monkeypatch):
    """ONNX Runtime with its CUDA provider, and a GPU; the double computes on the CPU."""
    double = RuntimeDouble(CUDA)
    gpu = Gpu(name="NVIDIA H100", compute_capability="9.0", memory_mib=81559, driver="580")
    monkeypatch.setattr(ort_module, "ort", double)
    monkeypatch.setattr(providers, "available", lambda: (CUDA, "CPUExecutionProvider"))
    monkeypatch.setattr(providers, "nvidia_gpus", lambda: (gpu,))
    return double


def operators(path):
    return Counter(node.op_type for node in onnx.load(path).graph.node)


def test_a_float32_graph_becomes_fp16_with_attention_in_one_operator(source, with_cuda):
    told = []
    made = prepare(source, options=ONCE, progress=lambda *step: bool(told.append(step[0])) or True)
    assert (made.kind, made.fresh, made.path.name) == ("fused", True, "vit.onnx")
    assert made.reason == (
        "ONNX Runtime has its CUDA provider and here is an NVIDIA H100, which runs fp16 with attention in one kernel "
        "fastest"
    )
    assert len(told) > 1
    found = operators(made.path)
    assert (found["MultiHeadAttention"], found["Softmax"]) == (2, 0)
    with open_session(source) as session:
        assert str(session.choice) == "cuda: prepared on this machine from vit.onnx"
        assert session.manifest.precision == "fp16"
    again = prepare(source, options=ONCE)
    assert (again.path, again.fresh) == (made.path, False)
    assert prepare(made.path, options=ONCE).kind == "as it is"


def test_an_fp16_graph_only_gets_other_operators(source, tmp_path, with_cuda):
    half = tmp_path / "half.onnx"
    convert(source, half, options=ConvertOptions(precision="fp16"))
    made = prepare(half, options=ONCE)
    assert (made.kind, read_manifest(made.path).made_from[-1].name) == ("fused", "half.onnx")


def test_where_attention_has_biases_only_the_precision_changes(exported, tmp_path, with_cuda):
    source = shutil.copy(exported("beit2/checkpoint.pth", TraceOptions(mask="keep")), tmp_path / "beit.onnx")
    made = prepare(source, options=ONCE)
    assert (made.kind, read_manifest(made.path).precision) == ("fused", "fp16")
    assert operators(made.path)["MultiHeadAttention"] == 0
    half = tmp_path / "half.onnx"
    convert(source, half, options=ConvertOptions(precision="fp16"))
    assert prepare(half, options=ONCE).kind == "as it is"


def test_8_bits_stay_as_they_are_there(int8, with_cuda):
    assert prepare(int8, options=ONCE, lower=write_lowered).kind == "as it is"


def test_what_was_prepared_for_cuda_is_not_run_without_it(source, with_cuda, monkeypatch):
    prepare(source, options=ONCE)
    monkeypatch.undo()
    monkeypatch.setenv("MAE_EXPORT_CACHE", str(source.parent / "cache"))
    with open_session(source) as session:
        assert (session.choice.backend, session.manifest.precision) == ("cpu", "fp32")
        assert session.choice.reason.endswith("; what was prepared is for ONNX Runtime's CUDA provider")


# GPUs with TensorRT


@pytest.fixture
def built(monkeypatch, tmp_path):
    """The GPU and TensorRT of the double; lists (precision, plan) of every engine that was built."""
    install(monkeypatch)
    monkeypatch.setattr(module, "open_device", module.prepared.open_device)
    calls = []

    def build(graph, out, *, plan, progress):
        copy = shutil.copy(graph, tmp_path / f"built-{len(calls)}.onnx")
        manifest = read_manifest(graph)
        calls.append((manifest.precision, [each.name for each in manifest.made_from], plan))
        write_engine(out, manifest, (profile("1:4:8", "1:49:196"),), graph=copy)
        progress("building", 1, 1)

    monkeypatch.setattr(module, "build", build)
    return calls


def test_a_float32_graph_becomes_an_engine_in_fp16(source, built):
    told = []
    made = prepare(source, options=ONCE, progress=lambda *step: bool(told.append(step[0])) or True)
    assert (made.kind, made.reason) == ("engine", "an engine in fp16 is what the NVIDIA L4 runs fastest")
    assert [(precision, plan) for precision, _, plan in built] == [("fp16", EnginePlan(targets=("this",)))]
    assert built[0][1][-1] == "vit.onnx"
    assert told[-1] == "building"
    assert len(told) > 2
    with open_session(source) as session:
        assert str(session.choice) == "engine: prepared on this machine from vit.onnx"
        assert (session.name, session.manifest.precision) == ("vit.engine", "fp16")
    assert not prepare(source, options=ONCE).fresh


def test_16_and_8_bits_stay_and_the_rest_becomes_fp16(source, int8, tmp_path, built):
    half = tmp_path / "half.onnx"
    convert(int8, half, options=ConvertOptions(precision="fp16"))
    fp16 = tmp_path / "fp16.onnx"
    convert(source, fp16, options=ConvertOptions(precision="fp16"))
    for graph in (int8, half, fp16):
        assert prepare(graph, options=ONCE).kind == "engine"
    assert [precision for precision, _, _ in built] == ["int8", "int8", "fp16"]
    assert [names[-1] for _, names, _ in built] == ["int8.onnx", "int8.onnx", "vit.onnx"]


def test_a_gpu_that_no_library_here_builds_for(source, built, monkeypatch):
    install(monkeypatch, "rtx", gpu=CudaDouble(name="NVIDIA H100", capability=(9, 0)))
    monkeypatch.delitem(sys.modules, "tensorrt")
    monkeypatch.setattr(module, "choose_backend", lambda plan: "rtx")
    monkeypatch.setattr(
        module, "nvidia_gpus", lambda: (Gpu(name="H100", compute_capability="9.0", memory_mib=1, driver="1"),)
    )
    made = prepare(source, options=ONCE)
    assert (made.kind, built) == ("as it is", [])
    assert "no engine for the GPU can be built: TensorRT-RTX cannot build for sm90" in made.reason


def test_a_gpu_without_tensorrt_is_named(source, monkeypatch):
    gpu = Gpu(name="NVIDIA L4", compute_capability="8.9", memory_mib=23034, driver="580")
    monkeypatch.setattr(module, "nvidia_gpus", lambda: (gpu,))
    assert prepare(source, options=ONCE).reason.endswith("and no engine for the GPU can be built: no GPU")
