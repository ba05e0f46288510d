"""What can run on machines made of files, rather than what is installed there."""

import pytest

from mae_export.runtime.abilities import RTX_TARGETS, Ability
from mae_export.runtime.providers import PROVIDERS, REMEDY

CPU, OPENVINO, CUDA, TENSORRT, RTX = (
    "ONNX Runtime, CPU (cpu)",
    "OpenVINO, CPU (openvino)",
    "ONNX Runtime, CUDA (cuda)",
    "ONNX Runtime, TensorRT (tensorrt)",
    "ONNX Runtime, TensorRT-RTX (rtx)",
)
ENGINES, RTX_ENGINES = "TensorRT engines", "TensorRT-RTX engines"
L4 = "echo 'NVIDIA L4, 8.9, 23034 MiB, 580.95'"
H100 = "echo 'NVIDIA H100, 9.0, 81559 MiB, 580.95'"
NO_GPU = "no NVIDIA GPU answers here"


def found(machine) -> dict[str, Ability]:
    return {ability.runtime: ability for ability in machine.diagnose().abilities}


def test_an_empty_machine_can_run_nothing_and_says_how_to_get_each(machine):
    every = found(machine)
    assert list(every) == [CPU, OPENVINO, CUDA, TENSORRT, RTX, ENGINES, RTX_ENGINES]
    assert not any(ability.runs or ability.builds_for for ability in every.values())
    assert every[CPU].fix == REMEDY["cpu"]
    assert every[CPU].why == "ONNX Runtime is not installed"
    assert every[OPENVINO].fix == "run: pip install 'mae-export[openvino]'"
    for name, backend in ((CUDA, "cuda"), (TENSORRT, "tensorrt"), (RTX, "rtx")):
        assert every[name].why == f"{NO_GPU}; ONNX Runtime is not installed"
        assert every[name].fix == f"on a machine with one {REMEDY[backend]}"
    assert every[ENGINES].why == f"{NO_GPU}; TensorRT is not installed"
    assert every[RTX_ENGINES].fix == "on a machine with one run: pip install 'mae-export[rtx]'"


def test_every_backend_is_judged(machine):
    assert set(PROVIDERS) <= {name.partition("(")[2].rstrip(")") for name in found(machine)}


def test_a_runtime_that_cannot_be_loaded_is_not_called_missing(machine):
    machine.package("onnxruntime", "1.31.1")
    machine.monkeypatch.delitem(__import__("sys").modules, "onnxruntime")
    (machine.site / "onnxruntime.py").write_text("raise ImportError('libcudart.so.13')")
    assert found(machine)[CPU].why == "ONNX Runtime cannot be loaded"


def test_cpus(machine):
    machine.package("onnxruntime", "1.31.1")
    machine.onnxruntime("CPUExecutionProvider")
    machine.package("openvino", "2026.4.1")
    every = found(machine)
    assert (every[CPU].runs, every[CPU].fix, every[OPENVINO].runs) == (True, "", True)
    assert every[OPENVINO].why == "fp32 and INT8 graphs, and bf16 ones in float32, for lack of bf16 instructions"
    machine.file("proc/cpuinfo", "processor: 0\nflags: avx2 avx512_bf16\n")
    assert found(machine)[OPENVINO].why.endswith("and bf16 ones in bf16")


def test_a_provider_without_a_gpu_cannot_run(machine):
    machine.package("onnxruntime-gpu", "1.31.1")
    machine.onnxruntime("CUDAExecutionProvider", "CPUExecutionProvider")
    cuda = found(machine)[CUDA]
    assert (cuda.runs, cuda.why, cuda.fix) == (False, NO_GPU, "take the model to a machine with one")
    machine.nvidia_smi("echo 'driver mismatch'; exit 18")
    assert found(machine)[CUDA].why == NO_GPU
    machine.nvidia_smi(L4)
    every = found(machine)
    assert (every[CUDA].runs, every[CUDA].fix) == (True, "")
    assert "whether CUDA and cuDNN load shows when a graph is opened" in every[CUDA].why
    assert (every[TENSORRT].runs, every[TENSORRT].why) == (False, "this ONNX Runtime has no TensorRT provider")
    assert every[TENSORRT].fix == REMEDY["tensorrt"]


def test_a_gpu_without_the_provider_says_what_to_install(machine):
    machine.package("onnxruntime", "1.31.1")
    machine.onnxruntime("CPUExecutionProvider")
    machine.nvidia_smi(L4)
    cuda = found(machine)[CUDA]
    assert (cuda.runs, cuda.why) == (False, "this ONNX Runtime has no CUDA provider")
    assert cuda.fix == REMEDY["cuda"]


def test_the_tensorrt_provider_needs_its_library(machine):
    machine.package("onnxruntime-gpu", "1.31.1")
    machine.onnxruntime("TensorrtExecutionProvider", "CPUExecutionProvider")
    machine.nvidia_smi(L4)
    path = machine.site / "onnxruntime/capi/libonnxruntime_providers_tensorrt.so"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"\x7fELF\0libnvinfer.so.10\0")
    assert found(machine)[TENSORRT].why == "its provider needs libnvinfer.so.10, which the loader does not find"
    machine.file("usr/lib/libnvinfer.so.10", "")
    assert found(machine)[TENSORRT].runs


@pytest.mark.parametrize(
    ("version", "plugin", "smi", "runs", "why"),
    [
        ("1.31.1", True, L4, True, "its plugin and a GPU are here"),
        ("1.31.1", False, L4, False, "its plugin is not installed"),
        ("1.23.2", True, L4, False, "ONNX Runtime 1.23.2 takes no plugins; 1.24 is the first that does"),
        ("1.31.1", True, H100, False, "TensorRT-RTX has no kernels for sm90, only for " + ", ".join(RTX_TARGETS)),
    ],
)
def test_the_rtx_provider_needs_its_plugin_a_new_runtime_and_a_gpu_it_knows(machine, version, plugin, smi, runs, why):
    machine.package("onnxruntime", version)
    machine.onnxruntime("CPUExecutionProvider")
    if plugin:
        machine.package("onnxruntime_ep_nv_tensorrt_rtx", "0.1")
    machine.nvidia_smi(smi)
    rtx = found(machine)[RTX]
    assert (rtx.runs, rtx.why) == (runs, why)
    assert bool(rtx.fix) is not runs


def test_rtx_engines_are_built_without_a_gpu_and_run_with_one(machine):
    machine.package("tensorrt-rtx-cu13-bindings", "1.7.1", module="tensorrt_rtx_bindings")
    built = found(machine)[RTX_ENGINES]
    assert (built.runs, built.builds_for) == (False, RTX_TARGETS)
    assert built.lines == (
        f"no   TensorRT-RTX engines: {NO_GPU}; cuda-python is not installed",
        "     it builds engines here for sm75, sm80, sm86, sm89, sm120, sm121",
        "     on a machine with one run: pip install 'cuda-python>=12.6', for memory and streams of the GPU, which "
        "engines need",
    )
    machine.package("cuda-bindings", "13.0")
    assert found(machine)[RTX_ENGINES].fix == "take the model to a machine with one"
    machine.nvidia_smi(L4)
    here = found(machine)[RTX_ENGINES]
    assert here.runs
    assert here.lines == (
        "yes  TensorRT-RTX engines: engines of this very version",
        "     it builds engines here for sm75, sm80, sm86, sm89, sm120, sm121",
    )
    machine.nvidia_smi(H100)
    hopper = found(machine)[RTX_ENGINES]
    assert (hopper.runs, hopper.builds_for) == (False, RTX_TARGETS)
    assert hopper.why.startswith("TensorRT-RTX has no kernels for sm90")


def test_tensorrt_engines_belong_to_this_gpu(machine):
    machine.package("tensorrt", "10.13.3", module="tensorrt")
    assert found(machine)[ENGINES].builds_for == ()
    machine.nvidia_smi(H100)
    bare = found(machine)[ENGINES]
    assert (bare.runs, bare.builds_for, bare.why) == (False, ("sm90",), "cuda-python is not installed")
    machine.package("cuda-bindings", "13.0")
    assert (found(machine)[ENGINES].runs, found(machine)[ENGINES].fix) == (True, "")


def test_a_refused_version_runs_nothing(machine):
    machine.package("tensorrt", "10.4.0", module="tensorrt")
    machine.package("cuda-bindings", "12.9")
    machine.nvidia_smi(L4)
    refused = found(machine)[ENGINES]
    assert (refused.runs, refused.builds_for) == (False, ())
    assert refused.why.endswith("install another version")


def test_boards(machine):
    machine.file("etc/nv_tegra_release", "# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic\n")
    machine.file("proc/device-tree/model", "NVIDIA Jetson Orin Nano\0")
    every = found(machine)
    assert every[ENGINES].fix == "use JetPack's: python3 -m venv --system-site-packages"
    assert every[RTX_ENGINES].why == "TensorRT-RTX has no kernels for Jetson"
    machine.package("tensorrt", "10.3.0", module="tensorrt")
    assert "cuda-python>=12.6,<13" in found(machine)[ENGINES].fix
    machine.package("cuda-bindings", "12.6")
    assert found(machine)[ENGINES].runs
