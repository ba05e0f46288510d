"""Every difference between the builders: TensorRT 10.3 (JetPack 6), 10.13, 10.14 and later, 11, and TensorRT-RTX 1.

Those of loading and running, and the list of names that some versions lack, are in `runtime/tensorrt_api.py`.

What all of them share, and `build_plan.py` therefore uses without asking: strongly typed networks, `OnnxParser` by
path, optimization profiles, `IProgressMonitor`, `WORKSPACE`, `max_aux_streams`, detailed profiling verbosity and
`build_serialized_network`. Never used, because 11 dropped them: precision flags, calibrators, `EXPLICIT_BATCH`, layer
precisions. Never used, because 10.3 lacks them: `add_attention`, `build_serialized_network_to_stream`.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from mae_export.errors import MachineError, UsageError
from mae_export.export.plan import THIS, EnginePlan
from mae_export.runtime.abilities import RTX_TARGETS
from mae_export.runtime.cuda import open_device
from mae_export.runtime.doctor import nvidia_gpus
from mae_export.runtime.engine_file import Backend
from mae_export.runtime.tensorrt_api import NAMES, find_module, import_backend

if TYPE_CHECKING:
    import tensorrt as trt

# Named always: with no target set the builder claims GPUs that cannot run BF16 or FP8.
RTX_DEFAULT_TARGETS = ("sm86", "sm89", "sm120")


def choose_backend(plan: EnginePlan) -> Backend:
    """The backend that builds this plan here.

    Raises:
        MachineError: when it is not installed.
    """
    if plan.backend != "auto":
        wanted: tuple[Backend, ...] = (plan.backend,)
    elif set(plan.targets) - {THIS}:
        wanted = ("rtx", "tensorrt")
    else:
        wanted = ("tensorrt", "rtx")
    for backend in wanted:
        if find_module(backend):
            return backend
    names = " or ".join(f"{NAMES[backend]} (pip install 'mae-export[{backend}]')" for backend in wanted)
    raise MachineError(f"building this engine needs {names}, which is not installed")


def resolve_targets(backend: Backend, plan: EnginePlan) -> tuple[str, ...]:
    """The GPUs that the engine is for.

    Raises:
        UsageError: when the backend cannot build for them.
        MachineError: when this machine's GPU is needed and there is none.
    """
    if backend == "rtx":
        return _rtx_targets(plan)
    here = _gpu_here()
    if plan.targets not in ((), (THIS,)) and plan.targets != here:
        raise UsageError(
            f"TensorRT builds for the GPU of its own machine ({', '.join(here) or 'none found'}), "
            f"not for {', '.join(plan.targets)}; build there, or use --backend rtx for GeForce and RTX boards"
        )
    return here or (THIS,)


def _rtx_targets(plan: EnginePlan) -> tuple[str, ...]:
    targets = plan.targets or RTX_DEFAULT_TARGETS
    if targets == (THIS,):
        targets = _gpu_here()
    if not targets:
        raise MachineError("--target this needs an NVIDIA GPU and nvidia-smi lists none; name it, such as sm86")
    unknown = [name for name in targets if name not in RTX_TARGETS]
    if unknown:
        raise UsageError(
            f"TensorRT-RTX cannot build for {', '.join(unknown)}; it knows {', '.join(RTX_TARGETS)}. "
            "For others use --backend tensorrt on a machine with that GPU"
        )
    return targets


def _gpu_here() -> tuple[str, ...]:
    """The compute capability of the GPU that CUDA takes; () when there is none.

    CUDA is asked where nvidia-smi is missing, as on some Jetsons, or lists several kinds, of which it need not be the
    first.
    """
    listed = list(dict.fromkeys(f"sm{gpu.compute_capability.replace('.', '')}" for gpu in nvidia_gpus()))
    if len(listed) == 1:
        return (listed[0],)
    try:
        return (open_device().target,)
    except MachineError:
        return tuple(listed[:1])


def refuse_unhonoured(backend: Backend, plan: EnginePlan) -> None:
    """Refuse options that the backend would silently ignore.

    Raises:
        UsageError: naming the option.
    """
    if backend == "rtx":
        ignored = {"--timing-cache": plan.timing_cache is not None, "--level": plan.level is not None}
        for option in (name for name, given in ignored.items() if given):
            raise UsageError(f"TensorRT-RTX ignores {option}; leave it out, or use --backend tensorrt")


def load(backend: Backend) -> ModuleType:
    """Import a backend under the name `tensorrt`, so that one code serves all; for a process that builds one engine.

    Raises:
        MachineError: when it cannot be imported.
    """
    module = import_backend(backend)
    sys.modules["tensorrt"] = module
    return module


def network_flags() -> int:
    """Flags of a strongly typed network; from 11 on there is no other kind."""
    import tensorrt as trt

    flag = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    return 0 if flag is None else 1 << int(flag)


def set_targets(config: trt.IBuilderConfig, targets: tuple[str, ...]) -> None:
    """Name the GPUs of a TensorRT-RTX engine; TensorRT knows only the GPU it runs on."""
    import tensorrt as trt

    known: Any = getattr(trt, "ComputeCapability", None)
    if known is None:
        return
    rtx: Any = config
    rtx.num_compute_capabilities = len(targets)  # before the first is set
    for index, name in enumerate(targets):
        rtx.set_compute_capability(getattr(known, name.upper()), index)


def attach_timing_cache(config: trt.IBuilderConfig, path: Path) -> None:
    """Start from the measurements in a file, when it exists and fits this GPU and version."""
    cache = config.create_timing_cache(path.read_bytes() if path.is_file() else b"")
    if not config.set_timing_cache(cache, False):
        config.set_timing_cache(config.create_timing_cache(b""), False)


def timing_cache_bytes(config: trt.IBuilderConfig) -> bytes:
    """The measurements of a finished build."""
    return bytes(config.get_timing_cache().serialize())


def layer_listing(plan: trt.IHostMemory, logger: trt.ILogger) -> Iterator[str]:
    """The planned layers of each profile, for backends whose build log lists none; needs the GPU that built the plan.

    The plan was built a moment ago by this process, so it may be deserialised.
    """
    import tensorrt as trt

    engine = trt.Runtime(logger).deserialize_cuda_engine(plan)
    if engine is None:
        return
    inspector = engine.create_engine_inspector()
    for index in range(engine.num_optimization_profiles):
        context = engine.create_execution_context()
        context.set_optimization_profile_async(index, 0)
        inspector.execution_context = context
        yield inspector.get_engine_information(trt.LayerInformationFormat.ONELINE)
