import dataclasses
import sys
from types import SimpleNamespace

import onnxruntime
import pytest

from mae_export.errors import MachineError, UsageError
from mae_export.files import sha256_files
from mae_export.runtime import providers
from mae_export.runtime.providers import Choice, choose, open_on_gpu
from tests.runtime.onnxruntime_double import CUDA, RTX, TENSORRT, RuntimeDouble
from tests.runtime.test_ort import write_graph


@pytest.fixture
def graph(tmp_path, make_manifest):
    return write_graph(tmp_path / "tiny.onnx", make_manifest("keep", outputs=("pooled",)))


@pytest.fixture
def machine(monkeypatch):
    """What is installed: ONNX Runtime's providers, GPUs, and other packages."""

    def set_up(found=("CPUExecutionProvider",), *, gpus=(), packages=("onnxruntime",)):
        monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: list(found))
        monkeypatch.setattr(providers, "nvidia_gpus", lambda: tuple(SimpleNamespace(name=name) for name in gpus))
        monkeypatch.setattr(providers, "_is_installed", lambda name: name in packages)

    return set_up


def opened(double, path, backend):
    return open_on_gpu(double, path, double.SessionOptions(), choose(path, backend))


def test_left_to_itself_it_takes_the_gpu_where_one_can_be_used(machine, graph):
    machine([CUDA, "CPUExecutionProvider"], gpus=["H100"])
    choice = choose(graph)
    assert str(choice) == "cuda: ONNX Runtime has its CUDA provider and here is an H100"
    assert choice.options == {"device_id": "0", "use_tf32": "0", "enable_cuda_graph": "1"}


def test_otherwise_the_cpu_and_it_says_why(machine, graph):
    machine([CUDA, "CPUExecutionProvider"])
    assert str(choose(graph)) == "cpu: ONNX Runtime has its CUDA provider, but nvidia-smi lists no GPU"
    machine()
    assert choose(graph) == Choice(backend="cpu", reason="ONNX Runtime has no CUDA provider here")


def test_bf16_graphs_go_to_openvino_which_alone_computes_them_on_cpus(machine, tmp_path, make_manifest):
    half = write_graph(tmp_path / "half.onnx", dataclasses.replace(make_manifest("keep"), precision="bf16"))
    machine(packages=("onnxruntime", "openvino"))
    assert choose(half).backend == "openvino"
    machine()
    assert choose(half).backend == "cpu"


def test_lowered_graphs_run_on_the_cpu_whatever_else_is_here(machine, tmp_path, make_manifest):
    manifest = dataclasses.replace(make_manifest("keep"), precision="int8", tools={"lowered": "ONNX Runtime, CPU"})
    lowered = write_graph(tmp_path / "lowered.onnx", manifest)
    machine([CUDA, "CPUExecutionProvider"], gpus=["H100"])
    assert str(choose(lowered)) == "cpu: the graph is lowered for its kernels"
    machine((), packages=("openvino",))
    assert choose(lowered).backend == "cpu"
    assert choose(lowered, "cuda").backend == "cuda"  # asked for, and then refused by ONNX Runtime in its own words


def test_without_onnx_runtime_openvino_is_taken(machine, graph):
    machine(packages=("openvino",))
    assert str(choose(graph)) == "openvino: ONNX Runtime is not installed"
    machine(packages=())
    assert choose(graph).backend == "cpu"


def test_what_is_asked_for_is_taken(machine, graph):
    machine()
    assert choose(graph, "openvino").reason == "it was asked for"
    with pytest.raises(UsageError, match="there is no backend 'gpu'; expected one of auto, cpu, cuda, tensorrt, rtx"):
        choose(graph, "gpu")


def test_tensorrt_prepares_for_the_shapes_of_the_manifest_and_keeps_engines_by_digest(graph):
    options = choose(graph, "tensorrt").options
    assert options["trt_profile_min_shapes"] == "images:1x32x32x3,ids_keep:1x1"
    assert options["trt_profile_opt_shapes"] == "images:8x32x32x3,ids_keep:8x4"
    assert options["trt_profile_max_shapes"] == "images:64x32x32x3,ids_keep:64x16"
    assert options["trt_engine_cache_prefix"] == sha256_files(graph)[:16]
    assert options["trt_engine_cache_path"] == f"{graph}.trt"


def test_the_cuda_provider_runs_and_is_proven_to(graph):
    double = RuntimeDouble(CUDA)
    session, choice = opened(double, graph, "cuda")
    made = double.made[0]
    assert made.session is session
    assert made.provider == (CUDA, {"device_id": "0", "use_tf32": "0", "enable_cuda_graph": "1"})
    assert double.preloaded
    assert "session.disable_cpu_ep_fallback" not in made.settings.entries
    assert choice.reason == "it was asked for"


def test_a_provider_that_is_silently_dropped_is_an_error(graph):
    double = RuntimeDouble(CUDA)
    double.drops = True
    with pytest.raises(MachineError, match="dropped CUDAExecutionProvider and would run on CPUExecutionProvider"):
        opened(double, graph, "cuda")


def test_products_that_are_left_to_the_cpu_are_an_error(graph):
    double = RuntimeDouble(CUDA)
    double.left_to_the_cpu |= {"MatMul", "ReduceMean", "Cast"}
    with pytest.raises(MachineError, match="CUDAExecutionProvider does not run MatMul, ReduceMean of this graph"):
        opened(double, graph, "cuda")


def test_an_older_runtime_without_a_record_is_believed(graph, monkeypatch):
    from tests.runtime.onnxruntime_double import Session

    monkeypatch.delattr(Session, "get_provider_graph_assignment_info")
    assert opened(RuntimeDouble(CUDA), graph, "cuda")


def test_a_provider_that_is_not_built_in_names_the_package(graph):
    with pytest.raises(MachineError, match=r"has no CUDAExecutionProvider, only CPU.*'mae-export\[gpu\]'"):
        opened(RuntimeDouble(), graph, "cuda")
    with pytest.raises(MachineError, match=r"has no TensorrtExecutionProvider.*mae-export build"):
        opened(RuntimeDouble(CUDA), graph, "tensorrt")


def test_a_graph_that_cannot_be_captured_runs_without_and_the_choice_says_so(graph):
    double = RuntimeDouble(CUDA)
    double.captures = False
    _, choice = opened(double, graph, "cuda")
    assert choice.options["enable_cuda_graph"] == "0"
    assert choice.reason.endswith("; without CUDA graphs, which this graph prevents")


def test_tensorrt_takes_all_of_a_graph_or_none(graph):
    double = RuntimeDouble(TENSORRT, CUDA)
    opened(double, graph, "tensorrt")
    assert double.made[0].provider[0] == TENSORRT
    assert double.made[0].settings.entries["session.disable_cpu_ep_fallback"] == "1"


@pytest.fixture
def plugin(monkeypatch):
    stub = SimpleNamespace(get_ep_name=lambda: RTX, get_library_path=lambda: "rtx.so")
    monkeypatch.setitem(sys.modules, providers.RTX_PLUGIN, stub)
    return stub


def test_the_rtx_plugin_is_registered_once_from_its_wheel(graph, plugin):
    double = RuntimeDouble()
    double.devices = [RTX]
    for _ in range(2):
        session, _ = opened(double, graph, "rtx")
    assert session.get_providers()[0] == RTX
    assert double.registered == [(RTX, "rtx.so")]
    options = double.made[0].provider[1]
    assert options["nv_profile_max_shapes"] == "images:64x32x32x3;ids_keep:64x16"


def test_the_rtx_plugin_that_cannot_be_used_is_an_error(graph, plugin, monkeypatch):
    with pytest.raises(MachineError, match="finds no GPU; it runs on GeForce and RTX boards"):
        opened(RuntimeDouble(), graph, "rtx")
    plugin.get_library_path = lambda: "broken.so"
    with pytest.raises(MachineError, match=r"cannot be loaded \(libcuda\.so\.1: cannot open"):
        opened(RuntimeDouble(), graph, "rtx")
    monkeypatch.setitem(sys.modules, providers.RTX_PLUGIN, None)
    with pytest.raises(MachineError, match=r"is not installed; run: pip install .* onnxruntime-ep-nv-tensorrt-rtx"):
        opened(RuntimeDouble(), graph, "rtx")
