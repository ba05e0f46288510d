"""Loading and running plans: every difference between TensorRT 10.3, 10.13, 10.14 and later, 11, and TensorRT-RTX 1.

The same for building is in `export/flavour.py`. What every version has is called without asking: `Runtime`, named
tensors, `execute_async_v3`. What only some have is found out by name, never by comparing versions, and is listed in
`ABSENT`, against which a test holds the names that this package uses.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections import deque
from collections.abc import Callable, MutableSequence
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np

from mae_export.errors import MachineError, ResourceError
from mae_export.runtime.engine_file import Backend

if TYPE_CHECKING:
    import tensorrt as trt

MODULES: dict[Backend, tuple[str, ...]] = {
    "tensorrt": ("tensorrt",),
    "rtx": ("tensorrt_rtx", "tensorrt_rtx_bindings"),  # the first only re-exports the second
}
NAMES: dict[Backend, str] = {"tensorrt": "TensorRT", "rtx": "TensorRT-RTX"}

_RTX_ONLY = (
    "ComputeCapability",
    "IBuilderConfig.num_compute_capabilities",
    "IBuilderConfig.set_compute_capability",
    "IRuntimeConfig.create_runtime_cache",
    "IRuntimeConfig.set_runtime_cache",
    "IRuntimeConfig.cuda_graph_strategy",
    "IRuntimeCache",
    "IRuntimeCache.deserialize",
    "IRuntimeCache.serialize",
    "CudaGraphStrategy",
    "CudaGraphStrategy.WHOLE_GRAPH_CAPTURE",
)
# Names that this package uses where it finds them, and which version lacks them.
ABSENT: dict[str, tuple[str, ...]] = {
    "10.13": (*_RTX_ONLY, "IExecutionContext.device_memory"),  # it can only be written, and the stubs leave it out
    "11": (*_RTX_ONLY, "ICudaEngine.device_memory_size"),
    "rtx": ("ICudaEngine.device_memory_size",),
}
RECORDS = 32  # messages of TensorRT that are kept
SHOWN_ERRORS = 3
Record = tuple[str, str]  # severity and text
_loggers: dict[str, tuple[Any, deque[Record]]] = {}


def find_module(backend: Backend) -> str | None:
    """Name of the module of a backend that is installed; packages of type stubs alone do not count."""
    for name in MODULES[backend]:
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.origin is not None:
            return name
    return None


def import_backend(backend: Backend) -> ModuleType:
    """Import a backend.

    Raises:
        MachineError: when it is not installed or cannot be imported.
        ResourceError: when memory ran out while it was loaded.
    """
    name = find_module(backend)
    if name is None:
        raise MachineError(f"{NAMES[backend]} is not installed; run: pip install 'mae-export[{backend}]'")
    try:
        return importlib.import_module(name)
    except (ImportError, OSError, AttributeError) as error:
        if "failed to map segment" in str(error) and "not permitted" not in str(error):
            raise ResourceError(f"there is too little memory to load {NAMES[backend]} ({error})") from error
        raise MachineError(f"{NAMES[backend]} cannot be imported ({error}); install it again") from error


def make_logger(module: Any, records: MutableSequence[Record], kept: tuple[str, ...] = ()) -> trt.ILogger:
    """A logger that appends to `records`: everything but verbose messages, and of those the ones that begin as `kept`.

    Args:
        module: the backend.
        records: receives (severity, text).
        kept: beginnings of verbose messages.
    """

    class Logger(module.ILogger):  # type: ignore[misc]  # the module is known only when running
        def __init__(self) -> None:
            module.ILogger.__init__(self)

        def log(self, severity: trt.ILogger.Severity, msg: str) -> None:
            if severity != module.ILogger.Severity.VERBOSE or (kept and msg.startswith(kept)):
                records.append((severity.name, msg))

    logger: trt.ILogger = Logger()
    return logger


def shown_errors(records: MutableSequence[Record]) -> str:
    """The first errors among the records as one text, "" when there is none."""
    errors = [text for severity, text in records if severity in ("ERROR", "INTERNAL_ERROR")]
    return "; ".join(dict.fromkeys(errors[:SHOWN_ERRORS]))


@dataclass(frozen=True, kw_only=True)
class Library:
    """A backend that is loaded: its module, and what it said lately."""

    backend: Backend
    module: Any
    records: deque[Record]

    @property
    def version(self) -> str:
        """Such as `10.13.3.9`."""
        return str(self.module.__version__)

    @property
    def title(self) -> str:
        """Name and version, for people."""
        return f"{NAMES[self.backend]} {self.version}"

    def said(self) -> str:
        """The last errors, which are then forgotten."""
        text = shown_errors(self.records) or "no reason given"
        self.records.clear()
        return text


def open_library(backend: Backend) -> Library:
    """Load a backend for running engines.

    Raises:
        MachineError: when it is not installed or cannot be imported.
    """
    module = import_backend(backend)
    _logger(module)
    return Library(backend=backend, module=module, records=_loggers[module.__name__][1])


def _logger(module: Any) -> Any:
    """The logger of a backend; TensorRT keeps the first that it is given and ignores any other."""
    if module.__name__ not in _loggers:
        records: deque[Record] = deque(maxlen=RECORDS)
        _loggers[module.__name__] = (make_logger(module, records), records)
    return _loggers[module.__name__][0]


def deserialise(library: Library, plan: bytes) -> tuple[trt.Runtime, trt.ICudaEngine]:
    """Plan to engine; the runtime must outlive it.

    Raises:
        MachineError: when the library refuses the plan.
    """
    module = library.module
    try:
        runtime = module.Runtime(_logger(module))
        engine = runtime.deserialize_cuda_engine(plan)
    except (TypeError, RuntimeError) as error:  # no runtime comes of it when CUDA cannot be used
        library.records.append(("ERROR", str(error)))
        engine = None
    if engine is None:
        raise MachineError(
            f"{library.title} cannot load the plan: {library.said()}. Build it again on this machine; "
            "`mae-export doctor` says what is installed"
        )
    return runtime, engine


def activation_bytes(engine: trt.ICudaEngine) -> int:
    """Device memory that a context needs while it runs, over all profiles."""
    size = getattr(engine, "device_memory_size_v2", None)
    return int(engine.device_memory_size if size is None else size)


def numpy_dtype(library: Library, engine: trt.ICudaEngine, name: str) -> str:
    """Name of the numpy type of a tensor, or TensorRT's own name where numpy has none."""
    dtype = engine.get_tensor_dtype(name)
    try:
        return str(np.dtype(library.module.nptype(dtype)).name)
    except TypeError:
        return str(dtype.name)


def runtime_config(library: Library, engine: trt.ICudaEngine, cache: bytes) -> tuple[Any, Any]:
    """How TensorRT-RTX runs an engine: with its kernels from a cache, and with CUDA graphs of its own.

    Args:
        library: the backend.
        engine: to run.
        cache: kernels from an earlier run; b"" for none.

    Returns:
        The configuration and its cache; both None for TensorRT, which has neither.
    """
    if library.backend != "rtx":
        return None, None
    module: Any = library.module
    config: Any = engine.create_runtime_config()
    kernels = config.create_runtime_cache()
    if cache:
        kernels.deserialize(cache)  # one that does not fit is ignored by TensorRT-RTX itself
    config.set_runtime_cache(kernels)
    strategy = getattr(module, "CudaGraphStrategy", None)
    if strategy is not None:
        config.cuda_graph_strategy = strategy.WHOLE_GRAPH_CAPTURE
    return config, kernels


def cache_bytes(kernels: Any) -> bytes:
    """The kernels that TensorRT-RTX compiled so far."""
    return bytes(kernels.serialize())


def new_context(
    library: Library, engine: trt.ICudaEngine, config: Any, memory: tuple[int, int]
) -> trt.IExecutionContext:
    """A context; TensorRT's share one memory for activations, TensorRT-RTX's have their own.

    Args:
        library: the backend.
        engine: to run.
        config: from `runtime_config`.
        memory: address and bytes of the shared memory; ignored where `config` is given.

    Raises:
        MachineError: when the library makes none, for want of memory for example.
    """
    if config is not None:
        context = engine.create_execution_context(config)
    else:
        context = engine.create_execution_context(library.module.ExecutionContextAllocationStrategy.USER_MANAGED)
    if context is None:
        raise MachineError(
            f"{library.title} cannot prepare the engine: {library.said()}. When memory ran out, build with a smaller "
            "--batch or with --low-memory"
        )
    if config is None and memory[1]:
        _set_memory(context, *memory)
    return context


def _set_memory(context: trt.IExecutionContext, address: int, size: int) -> None:
    setter: Callable[[int, int], None] | None = getattr(context, "set_device_memory", None)
    if setter is not None:
        setter(address, size)
    else:  # the first releases of 10
        older: Any = context
        older.device_memory = address


def switch_profile(context: trt.IExecutionContext, profile: int, stream: int) -> bool:
    """Whether a context took an optimization profile; some versions raise where others return False."""
    try:
        return bool(context.set_optimization_profile_async(profile, stream))
    except RuntimeError:
        return False


def extents(shape: trt.Dims) -> tuple[int, ...]:
    """A shape as Python's numbers; -1 for what is unknown."""
    return tuple(shape[axis] for axis in range(len(shape)))
