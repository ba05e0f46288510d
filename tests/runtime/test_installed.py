"""Runtimes as their files show them: a fake site-packages, a fake loader path and a fake ONNX Runtime."""

import sys
import types

import pytest

from mae_export.runtime.installed import RUNTIME_DISTRIBUTIONS, judge_tensorrt, look_around
from mae_export.runtime.jetson import Jetson


def test_runtime_with_providers_is_fine(machine) -> None:
    machine.package("onnxruntime", "1.31.1")
    machine.onnxruntime("CPUExecutionProvider")
    diagnosis = machine.diagnose()
    assert diagnosis.runs_graphs
    assert diagnosis.providers == ("CPUExecutionProvider",)
    assert diagnosis.problems == ()
    assert machine.finding("ONNX Runtime").found == "onnxruntime 1.31.1, CPUExecutionProvider"


def test_two_runtimes_in_one_environment_are_a_problem_that_does_not_stop_graphs(machine) -> None:
    machine.package("onnxruntime", "1.31.1")
    machine.package("onnxruntime-gpu", "1.30.0")
    machine.onnxruntime("CUDAExecutionProvider", "CPUExecutionProvider")
    diagnosis = machine.diagnose()
    (problem,) = diagnosis.problems
    assert "onnxruntime and onnxruntime-gpu overwrite each other's files" in problem.fix
    assert "pip uninstall -y onnxruntime onnxruntime-gpu" in problem.fix
    assert diagnosis.runs_graphs


def test_missing_runtime_names_the_extras(machine) -> None:
    finding = machine.finding("ONNX Runtime")
    assert (finding.found, finding.level) == ("not installed", "problem")
    assert "pip install 'mae-export[cpu]', or 'mae-export[gpu]'" in finding.fix


def test_runtime_that_cannot_be_loaded_says_why(machine) -> None:
    machine.package("onnxruntime-gpu", "1.30.0")
    machine.monkeypatch.delitem(sys.modules, "onnxruntime")
    (machine.site / "onnxruntime.py").write_text("raise ImportError('libcudart.so.13: cannot open\\nmore')")
    finding = machine.finding("ONNX Runtime")
    assert finding.level == "problem"
    assert "cannot be loaded (libcudart.so.13: cannot open)" in finding.fix
    assert "--force-reinstall onnxruntime-gpu" in finding.fix


def test_half_overwritten_runtime_is_no_crash(machine) -> None:
    machine.package("onnxruntime", "1.31.1")
    machine.monkeypatch.setitem(sys.modules, "onnxruntime", types.SimpleNamespace())
    assert "get_available_providers" in machine.finding("ONNX Runtime").fix


def test_tensorrt_modules_are_found_but_not_imported(machine) -> None:
    machine.package("tensorrt-cu12", "10.14.1", module="tensorrt")
    machine.package("tensorrt_rtx_cu13_bindings", "1.7.0", module="tensorrt_rtx_bindings")
    machine.package("tensorrt-rtx-cu13-libs", "1.7.0")
    assert machine.diagnose().tensorrt == {"tensorrt": "10.14.1", "tensorrt_rtx_bindings": "1.7.0"}
    assert machine.finding("TensorRT").found == "tensorrt 10.14.1, tensorrt_rtx_bindings 1.7.0"


def test_tensorrt_without_metadata_is_listed(machine) -> None:
    (machine.site / "tensorrt.py").touch()
    assert machine.diagnose().tensorrt == {"tensorrt": "unknown version"}


def test_openvino_runs_graphs_alone(machine) -> None:
    machine.package("openvino", "2026.4.1")
    diagnosis = machine.diagnose()
    assert diagnosis.runs_graphs
    assert machine.finding("OpenVINO").found == "2026.4.1"
    row = machine.finding("ONNX Runtime")
    assert (row.found, row.level) == ("not installed", "note")
    assert row.fix.startswith("graphs run on OpenVINO")


ORIN = Jetson(model="Orin", l4t="36.4.3")
PROVIDER = "TensorrtExecutionProvider"


def linked_provider(machine, library: bytes) -> None:
    """ONNX Runtime with a TensorRT provider that was linked with `library`."""
    machine.package("onnxruntime-gpu", "1.31.1")
    machine.onnxruntime(PROVIDER, "CUDAExecutionProvider", "CPUExecutionProvider")
    path = machine.site / "onnxruntime/capi/libonnxruntime_providers_tensorrt.so"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"\x7fELF\0libcudart.so.13\0" + library + b"\0libc.so.6\0")


def test_a_provider_without_its_library_is_noted(machine, monkeypatch, tmp_path) -> None:
    linked_provider(machine, b"libnvinfer.so.10")
    machine.file("usr/lib/aarch64-linux-gnu/libnvinfer.so.11", "")
    machine.file("usr/lib/aarch64-linux-gnu/libnvinfer_plugin.so.11", "")
    row = machine.finding("TensorRT provider")
    assert row.found == f"{PROVIDER} needs libnvinfer.so.10; found: libnvinfer.so.11"
    assert "pip install 'tensorrt-cu13<11'" in row.fix
    (tmp_path / "libs").mkdir()
    (tmp_path / "libs/libnvinfer.so.10").touch()
    monkeypatch.setenv("LD_LIBRARY_PATH", f":{tmp_path / 'libs'}")
    assert "TensorRT provider" not in {row.what for row in machine.diagnose().findings}
    assert look_around(machine.root).libraries == ("libnvinfer.so.10", "libnvinfer.so.11")


def test_a_provider_whose_library_is_unreadable_is_let_be(machine) -> None:
    linked_provider(machine, b"nothing of that name")
    assert look_around(machine.root).wanted_library == ""
    assert "TensorRT provider" not in {row.what for row in machine.diagnose().findings}


def test_all_flavours_are_told_apart(machine) -> None:
    for flavour in ("tensorrt_lean", "tensorrt_dispatch"):
        machine.package(f"{flavour}-cu13".replace("_", "-"), "10.13.3", module=flavour)
    machine.file("usr/lib/x86_64-linux-gnu/libnvinfer_lean.so.10", "")
    row = machine.finding("TensorRT")
    assert row.found == "tensorrt_lean 10.13.3, tensorrt_dispatch 10.13.3, libnvinfer_lean.so.10"
    assert "lean and dispatch run only version-compatible engines" in row.fix
    machine.package("tensorrt", "10.13.3", module="tensorrt")
    assert "cuda-python>=12.6'" in machine.finding("TensorRT").fix
    machine.package("cuda-bindings", "13.0")
    assert machine.finding("TensorRT").level == "ok"


def judged(machine, jetson: Jetson | None = None, targets: tuple[str, ...] = ()) -> dict[str, tuple[str, str]]:
    return {row.what: (row.level, row.fix) for row in judge_tensorrt(look_around(machine.root), jetson, targets)}


def test_rtx_does_not_run_on_a_jetson(machine) -> None:
    machine.package("tensorrt-rtx-cu13-bindings", "1.7.1", module="tensorrt_rtx_bindings")
    machine.package("cuda-bindings", "12.9")
    assert judged(machine)["TensorRT"] == ("ok", "")
    level, fix = judged(machine, ORIN)["TensorRT"]
    assert (level, fix.startswith("TensorRT-RTX has no kernels for Jetson")) == ("note", True)


@pytest.mark.parametrize(
    ("l4t", "version", "level", "said"),
    [
        ("36.4.3", "11.1.0", "problem", "pip uninstall -y tensorrt"),
        ("38.4.0", "11.4.1", "problem", "TensorRT 11 does not support this JetPack"),
        ("39.2.2", "11.4.1", "note", "pip install 'cuda-python>=12.6'"),
        ("36.4.3", "10.3.0", "note", "pip install 'cuda-python>=12.6,<13'"),
        ("", "11.4.1", "note", "cuda-python"),
    ],
)
def test_tensorrt_11_belongs_to_newer_boards(machine, l4t: str, version: str, level: str, said: str) -> None:
    machine.package("tensorrt", version, module="tensorrt")
    found, fix = judged(machine, Jetson(model="Jetson", l4t=l4t))["TensorRT"]
    assert (found, said in fix) == (level, True), fix


@pytest.mark.parametrize(
    ("version", "targets", "level", "said"),
    [
        ("10.3.0", (), "note", "wrong FP16 features of some vision transformers"),
        ("10.4.0", (), "problem", "install another version"),
        ("10.13.3", ("sm120",), "note", "wrong results of fused attention on this GPU"),
        ("10.13.3", ("sm89",), "", ""),
        ("unknown version", (), "", ""),
    ],
)
def test_known_faults_of_a_version(machine, version: str, targets: tuple[str, ...], level: str, said: str) -> None:
    machine.package("tensorrt", version, module="tensorrt")
    found, fix = judged(machine, targets=targets).get("TensorRT version", ("", ""))
    assert (found, said in fix) == (level, True), fix


def test_each_fault_is_said_once(machine) -> None:
    machine.package("tensorrt", "10.13.3", module="tensorrt")
    assert judged(machine, targets=("sm120",))["TensorRT version"][1].count("fused attention") == 1


def test_every_distribution_of_onnx_runtime_conflicts(machine) -> None:
    for name in RUNTIME_DISTRIBUTIONS:
        machine.package(name, "1.0")
    assert machine.finding("ONNX Runtime").fix.count(" and ") == len(RUNTIME_DISTRIBUTIONS) - 1
