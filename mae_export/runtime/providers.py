"""What runs a graph here, and why: the backends, the options that each needs, and the proof that it is really used.

ONNX Runtime falls back to the CPU without a word when a provider cannot be loaded or refuses a node. Here that is an
error. Its own switch for it, `session.disable_cpu_ep_fallback`, counts the arithmetic on shapes too, which the CUDA
provider leaves to the CPU by design and graphs with a free batch always have; so it is set only for providers that take
whole graphs, and elsewhere ONNX Runtime's record of where each node went is judged.
"""

from __future__ import annotations

import importlib
import importlib.util
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args

from mae_export.errors import MachineError, UsageError
from mae_export.files import model_files, sha256_files
from mae_export.manifest import Manifest, Range
from mae_export.runtime.abilities import REMEDY, RTX_PLUGIN
from mae_export.runtime.doctor import nvidia_gpus
from mae_export.runtime.graph_manifest import read_manifest

Backend = Literal["auto", "cpu", "cuda", "tensorrt", "rtx", "openvino"]
BACKENDS: tuple[Backend, ...] = get_args(Backend)

PROVIDERS: dict[str, str] = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
    "rtx": "NvTensorRTRTXExecutionProvider",
}
WHOLE_GRAPH = ("tensorrt", "rtx")  # providers that compile all of a graph, arithmetic on shapes included
# What a node on the CPU may be while the products run on a GPU: arithmetic on shapes and indices.
SHAPE_OPS = frozenset(
    {
        *("Shape", "Size", "Gather", "Slice", "Squeeze", "Unsqueeze", "Concat", "Cast", "Range", "Constant"),
        *("ConstantOfShape", "Expand", "Reshape", "Add", "Sub", "Mul", "Div", "Mod", "Min", "Max", "Equal", "Where"),
        *("Less", "Greater", "Not", "ReduceProd", "Identity", "Transpose"),
    }
)
# The manifest's word for graphs in operators of ONNX Runtime's own, and what it says of those for the CUDA provider.
LOWERED, FOR_CUDA = "lowered", "ONNX Runtime, CUDA"
DEVICE_ID = "device_id"  # the option that names a GPU
_registering = threading.Lock()  # a library may be registered once per process
# Shapes that TensorRT prepares for; others make it compile once more.
PROFILE_BATCH = Range(minimum=1, typical=8, maximum=64)


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What was chosen to run a model.

    Attributes:
        backend: one of `BACKENDS` but `auto`, or `engine`.
        reason: why, as the end of a sentence.
        options: of the execution provider, or of OpenVINO.
    """

    backend: str
    reason: str
    options: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.backend}: {self.reason}"


ON_CPU = Choice(backend="cpu", reason="a graph runs on any CPU")
AS_WRITTEN = Choice(backend="cpu", reason="a graph is judged node by node", options={"session.disable_quant_qdq": "1"})


def choose(path: Path, backend: Backend = "auto") -> Choice:
    """Decide what runs a graph here.

    Left to itself it takes the CUDA provider where it and an NVIDIA GPU are present; else the CPU: OpenVINO for bf16
    graphs, for which ONNX Runtime has no CPU kernels, and ONNX Runtime for all others. Graphs that were lowered for the
    CPU run there alone. Providers that compile before they run (`tensorrt`, `rtx`) are taken only when asked for.

    Raises:
        UsageError: when there is no such backend.
    """
    if backend not in BACKENDS:
        raise UsageError(f"there is no backend {backend!r}; expected one of {', '.join(BACKENDS)}")
    manifest = read_manifest(path)
    reason = "it was asked for"
    if backend == "auto":
        if manifest is not None and manifest.tools.get(LOWERED, FOR_CUDA) != FOR_CUDA:
            return Choice(backend="cpu", reason="the graph is lowered for its kernels")
        backend, reason = _best("fp32" if manifest is None else manifest.precision)
    return Choice(backend=backend, reason=reason, options={} if manifest is None else _options(backend, path, manifest))


def _best(precision: str) -> tuple[Backend, str]:
    providers = available()
    if PROVIDERS["cuda"] in providers:
        gpus = nvidia_gpus()
        if gpus:
            return "cuda", f"ONNX Runtime has its CUDA provider and here is an {gpus[0].name}"
        why = "ONNX Runtime has its CUDA provider, but nvidia-smi lists no GPU"
    else:
        why = "ONNX Runtime has no CUDA provider here" if providers else "ONNX Runtime is not installed"
    if precision == "bf16" and _is_installed("openvino"):
        return "openvino", f"{why}, and its CPU has no bf16 kernels"
    if not providers and _is_installed("openvino"):
        return "openvino", why
    return "cpu", why


def available() -> tuple[str, ...]:
    """ONNX Runtime's providers, best first; empty when it is not installed."""
    if not _is_installed("onnxruntime"):
        return ()
    import onnxruntime

    return tuple(onnxruntime.get_available_providers())


def _is_installed(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def _options(backend: Backend, path: Path, manifest: Manifest) -> dict[str, str]:
    if backend == "cuda":  # TF32 would keep 10 bits of a float32 graph's 23
        return {DEVICE_ID: "0", "use_tf32": "0", "enable_cuda_graph": "1"}
    if backend == "tensorrt":
        folder, digest = str(path.with_name(path.name + ".trt")), sha256_files(*model_files(path))
        return {
            DEVICE_ID: "0",
            "trt_engine_cache_enable": "1",
            "trt_engine_cache_path": folder,
            "trt_engine_cache_prefix": digest[:16],
            "trt_timing_cache_enable": "1",
            "trt_timing_cache_path": folder,
            **_profile("trt_profile", ",", manifest),
        }
    if backend == "rtx":  # its CUDA graphs allow one shape only
        return _profile("nv_profile", ";", manifest)
    return {}


def _profile(prefix: str, separator: str, manifest: Manifest) -> dict[str, str]:
    """Smallest, usual and largest shapes of all inputs, as TensorRT's providers read them."""
    count = manifest.patches.count
    kept = Range(minimum=1, typical=max(1, count // 4), maximum=count)
    options = {}
    for name, extreme in (("min", "minimum"), ("opt", "typical"), ("max", "maximum")):
        batch, keep = (str(getattr(extent, extreme)) for extent in (PROFILE_BATCH, kept))
        shapes = (
            [str(dim) if isinstance(dim, int) else keep if axis else batch for axis, dim in enumerate(spec.shape)]
            for spec in manifest.inputs
        )
        named = (f"{spec.name}:{'x'.join(shape)}" for spec, shape in zip(manifest.inputs, shapes, strict=True))
        options[f"{prefix}_{name}_shapes"] = separator.join(named)
    return options


def open_on_gpu(runtime: Any, path: Path, settings: Any, choice: Choice) -> tuple[Any, Choice]:
    """ONNX Runtime's session on a GPU, and the choice as it came out: CUDA graphs are left out where they cannot be.

    Args:
        runtime: the module onnxruntime, whose errors are passed on.
        path: the graph.
        settings: its SessionOptions.
        choice: one of `PROVIDERS` but `cpu`.

    Raises:
        MachineError: when the provider is missing, or does not run the whole graph.
    """
    settings.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    if choice.backend in WHOLE_GRAPH:
        settings.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    if choice.backend == "rtx":
        devices = _rtx_devices(runtime)
        settings.add_provider_for_devices(devices[:1], dict(choice.options))  # a session runs on one GPU
        session = runtime.InferenceSession(str(path), settings)
    else:
        session, choice = _open_built_in(runtime, path, settings, choice)
    require_used(session, choice)
    return session, choice


def _open_built_in(runtime: Any, path: Path, settings: Any, choice: Choice) -> tuple[Any, Choice]:
    wanted, found = PROVIDERS[choice.backend], runtime.get_available_providers()
    if wanted not in found:
        raise MachineError(
            f"the installed ONNX Runtime has no {wanted}, only {', '.join(found)}; {REMEDY[choice.backend]}"
        )
    if hasattr(runtime, "preload_dlls"):  # finds CUDA and cuDNN where pip put them
        runtime.preload_dlls()
    try:
        return _session(runtime, path, settings, choice), choice
    except runtime.capi.onnxruntime_pybind11_state.Fail as error:  # a graph that cannot be captured as a whole
        if "enable_cuda_graph" not in choice.options or "graph capture" not in str(error).lower():
            raise
    options = {**choice.options, "enable_cuda_graph": "0"}
    choice = replace(choice, options=options, reason=f"{choice.reason}; without CUDA graphs, which this graph prevents")
    return _session(runtime, path, settings, choice), choice


def _session(runtime: Any, path: Path, settings: Any, choice: Choice) -> Any:
    provider = (PROVIDERS[choice.backend], dict(choice.options))
    return runtime.InferenceSession(str(path), settings, providers=[provider], enable_fallback=0)


def _rtx_devices(runtime: Any) -> list[Any]:
    """The GPUs of the TensorRT-RTX provider, which is a plugin in a wheel of its own."""
    try:
        plugin = importlib.import_module(RTX_PLUGIN)
    except ModuleNotFoundError as error:
        raise MachineError(f"the TensorRT-RTX provider is not installed; {REMEDY['rtx']}") from error
    if not hasattr(runtime, "register_execution_provider_library"):
        raise MachineError(f"ONNX Runtime {runtime.__version__} takes no plugin providers; install 1.24 or newer")
    name = plugin.get_ep_name()
    with _registering:
        if not any(device.ep_name == name for device in runtime.get_ep_devices()):
            try:
                runtime.register_execution_provider_library(name, plugin.get_library_path())
            except runtime.capi.onnxruntime_pybind11_state.Fail as error:
                raise MachineError(
                    f"the TensorRT-RTX provider cannot be loaded ({error}); it needs the driver of an RTX GPU. "
                    "`mae-export doctor` shows what is here"
                ) from error
    devices = [device for device in runtime.get_ep_devices() if device.ep_name == name]
    if not devices:
        raise MachineError(
            "the TensorRT-RTX provider finds no GPU; it runs on GeForce and RTX boards from Ampere on. Use another "
            "backend, such as 'cuda' or 'cpu'"
        )
    return devices


def require_used(session: Any, choice: Choice) -> None:
    """Refuse a session that runs on something else than was chosen.

    Args:
        session: ONNX Runtime's, freshly made.
        choice: what it was made for.

    Raises:
        MachineError: when the provider was dropped, or nodes other than arithmetic on shapes run elsewhere.
    """
    wanted, found = PROVIDERS[choice.backend], session.get_providers()
    if wanted not in found:
        raise MachineError(
            f"ONNX Runtime dropped {wanted} and would run on {', '.join(found)}: a library or the driver it needs is "
            f"missing or of another version. To use it {REMEDY[choice.backend]}; or open with backend 'cpu'. "
            "`mae-export doctor` shows what is installed"
        )
    elsewhere = _elsewhere(session, wanted)
    if elsewhere:
        raise MachineError(
            f"{wanted} does not run {', '.join(elsewhere)} of this graph; ONNX Runtime would run them on the CPU and "
            "copy back and forth. Use a newer ONNX Runtime, another precision (`mae-export convert`), or backend 'cpu'"
        )


def _elsewhere(session: Any, wanted: str) -> list[str]:
    """Operators that another provider runs; empty where ONNX Runtime (before 1.24) keeps no record."""
    if not hasattr(session, "get_provider_graph_assignment_info"):
        return []
    return sorted(
        {
            node.op_type
            for part in session.get_provider_graph_assignment_info()
            if part.ep_name != wanted
            for node in part.get_nodes()
            if node.op_type not in SHAPE_OPS
        }
    )
