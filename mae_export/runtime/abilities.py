"""What can run here: for each runtime whether it can, why, and what to do to get it.

A runtime that is installed may still have nothing to run on, and a builder of engines may build what it cannot run. So
this asks for everything that running takes: the library, what it needs beside it, and a device. Nothing is loaded.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace

from mae_export.errors import MachineError
from mae_export.runtime.installed import TENSORRT_PROVIDER, Installed, missing_bindings
from mae_export.runtime.jetson import Jetson
from mae_export.runtime.known_bad import judge_version

RTX_TARGETS = ("sm75", "sm80", "sm86", "sm89", "sm120", "sm121")  # no Hopper, no Jetson
RTX_MODULES = ("tensorrt_rtx", "tensorrt_rtx_bindings")
RTX_PLUGIN = "onnxruntime_ep_nv_tensorrt_rtx"
FIRST_WITH_PLUGINS = (1, 24)  # of ONNX Runtime
NO_BINDINGS = "cuda-python is not installed"
ANOTHER_GPU = "use TensorRT, or a GPU that it has kernels for"
BF16_FLAGS = {"avx512_bf16", "amx_bf16", "bf16"}
REMEDY = {
    "cpu": "run: pip install 'mae-export[cpu]'",
    "openvino": "run: pip install 'mae-export[openvino]'",
    "cuda": "run: pip uninstall -y onnxruntime, then: pip install 'mae-export[gpu]' 'onnxruntime-gpu[cuda,cudnn]'",
    "tensorrt": "run: pip uninstall -y onnxruntime, then: pip install 'mae-export[gpu]' tensorrt-cu13; or build an "
    "engine with `mae-export build`, which needs no ONNX Runtime",
    "rtx": "run: pip install 'mae-export[cpu]' onnxruntime-ep-nv-tensorrt-rtx",
    "tensorrt engine": "run: pip install 'mae-export[tensorrt]'",
    "rtx engine": "run: pip install 'mae-export[rtx]'",
}


@dataclass(frozen=True, kw_only=True)
class Place:
    """What there is to run on.

    Attributes:
        flags: instruction sets of the processor.
        targets: compute capabilities of the NVIDIA GPUs whose driver answers, such as `sm89`.
        jetson: the board, which has a GPU even where nothing lists it; None elsewhere.
    """

    flags: tuple[str, ...]
    targets: tuple[str, ...]
    jetson: Jetson | None

    @property
    def without_gpu(self) -> str:
        """Why no runtime for NVIDIA GPUs runs here; "" where there is one."""
        return "" if self.targets or self.jetson else "no NVIDIA GPU answers here"


@dataclass(frozen=True, kw_only=True)
class Ability:
    """Whether one runtime can run here.

    Attributes:
        runtime: its name, and what chooses it.
        runs: whether everything that it needs was found.
        builds_for: GPUs that engines can be built for here.
        why: as a clause.
        fix: what to do to get it; "" when it runs.
    """

    runtime: str
    runs: bool
    why: str
    builds_for: tuple[str, ...] = ()
    fix: str = ""

    @property
    def lines(self) -> tuple[str, ...]:
        """For people: whether it runs here and why, what it builds, and what to do."""
        builds = f"it builds engines here for {', '.join(self.builds_for)}" if self.builds_for else ""
        first = f"{'yes' if self.runs else 'no '}  {self.runtime}: {self.why}"
        return (first, *(f"     {line}" for line in (builds, self.fix) if line))


def abilities(installed: Installed, place: Place) -> tuple[Ability, ...]:
    """Every runtime of `open_session`, graphs first.

    Args:
        installed: from `look_around`.
        place: what there is to run on.
    """
    judges: tuple[Callable[[Installed, Place], Ability], ...] = (_cpu, _openvino, _cuda, _tensorrt, _rtx)
    return (*(judge(installed, place) for judge in judges), _engines(installed, place), _rtx_engines(installed, place))


def _cpu(installed: Installed, place: Place) -> Ability:  # noqa: ARG001 - all are called alike
    runs = "CPUExecutionProvider" in installed.providers
    why = "fp32, fp16, INT8 and FP8 graphs on any CPU; no bf16" if runs else _no_onnxruntime(installed)
    return Ability(runtime="ONNX Runtime, CPU (cpu)", runs=runs, why=why, fix="" if runs else REMEDY["cpu"])


def _openvino(installed: Installed, place: Place) -> Ability:
    name = "OpenVINO, CPU (openvino)"
    if "openvino" not in installed.packages:
        return Ability(runtime=name, runs=False, why="it is not installed", fix=REMEDY["openvino"])
    how = "in bf16" if BF16_FLAGS & set(place.flags) else "in float32, for lack of bf16 instructions"
    return Ability(runtime=name, runs=True, why=f"fp32 and INT8 graphs, and bf16 ones {how}")


def _cuda(installed: Installed, place: Place) -> Ability:
    here = "CUDAExecutionProvider" in installed.providers
    missing = _no_onnxruntime(installed) or ("" if here else "this ONNX Runtime has no CUDA provider")
    why = "its provider and a GPU are here; whether CUDA and cuDNN load shows when a graph is opened"
    return _on_gpu("ONNX Runtime, CUDA (cuda)", missing, place, why, REMEDY["cuda"])


def _tensorrt(installed: Installed, place: Place) -> Ability:
    missing = _no_onnxruntime(installed)
    if installed.providers and TENSORRT_PROVIDER not in installed.providers:
        missing = "this ONNX Runtime has no TensorRT provider"
    elif installed.wanted_library and installed.wanted_library not in installed.libraries:
        missing = f"its provider needs {installed.wanted_library}, which the loader does not find"
    why = "its provider and a GPU are here; graphs are compiled when they are first opened"
    return _on_gpu("ONNX Runtime, TensorRT (tensorrt)", missing, place, why, REMEDY["tensorrt"])


def _rtx(installed: Installed, place: Place) -> Ability:
    name, why = "ONNX Runtime, TensorRT-RTX (rtx)", "its plugin and a GPU are here"
    missing = _no_onnxruntime(installed)
    version = next((text for name, text in installed.packages.items() if name.startswith("onnxruntime")), "")
    if RTX_PLUGIN.replace("_", "-") not in installed.packages:
        missing = missing or "its plugin is not installed"
    elif not missing and _numbers(version) < FIRST_WITH_PLUGINS:
        missing = f"ONNX Runtime {version} takes no plugins; 1.24 is the first that does"
    if _no_kernels(place):
        return _on_gpu(name, _no_kernels(place), place, why, ANOTHER_GPU)
    return _on_gpu(name, missing, place, why, REMEDY["rtx"])


def _engines(installed: Installed, place: Place) -> Ability:
    name, version = "TensorRT engines", installed.tensorrt.get("tensorrt", "")
    missing = "" if version else "TensorRT is not installed"
    if version[:1].isdecimal():
        try:
            judge_version("tensorrt", version, precision="fp16", targets=place.targets)
        except MachineError as error:
            missing = str(error)
    fix = "use JetPack's: python3 -m venv --system-site-packages" if place.jetson else REMEDY["tensorrt engine"]
    if not missing and missing_bindings(installed, place.jetson):
        missing, fix = NO_BINDINGS, missing_bindings(installed, place.jetson)
    found = _on_gpu(name, missing, place, "engines of this very version, for this GPU", fix)
    return replace(found, builds_for=place.targets if version and missing in ("", NO_BINDINGS) else ())


def _rtx_engines(installed: Installed, place: Place) -> Ability:
    name = "TensorRT-RTX engines"
    version = next((installed.tensorrt[module] for module in RTX_MODULES if module in installed.tensorrt), "")
    missing, fix = "" if version else "TensorRT-RTX is not installed", REMEDY["rtx engine"]
    if _no_kernels(place):
        missing, fix = _no_kernels(place), ANOTHER_GPU
    elif not missing and missing_bindings(installed, place.jetson):
        missing, fix = NO_BINDINGS, missing_bindings(installed, place.jetson)
    found = _on_gpu(name, missing, place, "engines of this very version", fix)
    return replace(found, builds_for=RTX_TARGETS if version else ())


def _on_gpu(name: str, missing: str, place: Place, why: str, fix: str) -> Ability:
    """A runtime for NVIDIA GPUs; without one, installing anything would be for nothing."""
    if place.without_gpu:
        both = f"{place.without_gpu}; {missing}" if missing else place.without_gpu
        there = f"on a machine with one {fix}" if missing else "take the model to a machine with one"
        return Ability(runtime=name, runs=False, why=both, fix=there)
    if missing:
        return Ability(runtime=name, runs=False, why=missing, fix=fix)
    return Ability(runtime=name, runs=True, why=why)


def _no_onnxruntime(installed: Installed) -> str:
    if installed.providers:
        return ""
    return "ONNX Runtime cannot be loaded" if installed.load_failure else "ONNX Runtime is not installed"


def _no_kernels(place: Place) -> str:
    """Why TensorRT-RTX has nothing for the GPUs that are here; "" without any."""
    if place.jetson:
        return "TensorRT-RTX has no kernels for Jetson"
    if place.targets and not set(place.targets) & set(RTX_TARGETS):
        return f"TensorRT-RTX has no kernels for {', '.join(place.targets)}, only for {', '.join(RTX_TARGETS)}"
    return ""


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version)[:2])
