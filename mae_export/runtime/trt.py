"""A session on an engine: opened only where it may run, proven once on each machine, safe with several threads."""

from __future__ import annotations

import contextlib
import math
import queue
import threading
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from mae_export.errors import GraphError, InputError, UsageError, VerificationError
from mae_export.manifest import Manifest
from mae_export.runtime import engine_here, tensorrt_api
from mae_export.runtime.buckets import Cut, cut_batch
from mae_export.runtime.cuda import Device, DeviceMemory, Stream, on_device, open_device
from mae_export.runtime.device_array import DeviceArray
from mae_export.runtime.device_outputs import DeviceOutputs, KeptMemory
from mae_export.runtime.engine_file import EngineSidecar, load_plan, read_sidecar
from mae_export.runtime.engine_here import EngineHere
from mae_export.runtime.engine_match import require_backend, require_target, require_version
from mae_export.runtime.feeds import check_feeds, output_shapes
from mae_export.runtime.golden import check_golden
from mae_export.runtime.lane import Lane, Prepared, Target, Tensor
from mae_export.runtime.tensorrt_api import extents

if TYPE_CHECKING:
    import tensorrt as trt

Array = npt.NDArray[Any]
LANES = 2  # one batch is copied while the other is computed


class EngineSession:
    """Runs an engine on one GPU.

    Args:
        path: the .engine file, with its sidecar beside it.
        device: of the GPUs that CUDA shows.
        check: run the golden check when the engine is unproven; whoever proves it in another way leaves it out.

    Raises:
        InputError: when a file is missing or damaged, or the plan's tensors are not the manifest's.
        SecurityError: when the plan's bytes are not the sidecar's.
        MachineError: when the library, its version or the GPU is not the engine's.
        ResourceError: when memory ran out.
        VerificationError: when the engine is unproven and fails its golden check.
    """

    def __init__(self, path: Path, *, device: int = 0, check: bool = True) -> None:
        sidecar = read_sidecar(path)
        require_backend(path, sidecar)
        library = tensorrt_api.open_library(sidecar.backend)
        require_version(path, sidecar, library.version)
        gpu = open_device(device)
        require_target(path, sidecar, target=gpu.target, name=gpu.name)
        self._path = path
        self._sidecar = sidecar
        self._device = device
        self._title = f"{library.title}, {gpu.name} ({gpu.target})"
        self._here = EngineHere(engine=sidecar.sha256, gpu=f"{gpu.name} {gpu.target}", version=library.title)
        self._closed = False
        self._closing = threading.Lock()
        self._outputs = DeviceOutputs(device)
        self._lanes: queue.LifoQueue[Lane | None] = queue.LifoQueue()
        with on_device(device), ExitStack() as resources:
            prepared = self._prepare(library, gpu, resources)
            lanes = [Lane(prepared) for _ in range(LANES)]
            for lane in lanes:
                resources.callback(lane.close)
                self._lanes.put(lane)
            lanes[-1].open()  # the one that a single thread uses always; the other may never be needed
            if check and not sidecar.proven:
                self._prove()
            self._resources = resources.pop_all()

    def _prepare(self, library: tensorrt_api.Library, gpu: Device, resources: ExitStack) -> Prepared:
        _, (runtime, engine) = load_plan(self._path, lambda plan: tensorrt_api.deserialise(library, plan))
        cached = engine_here.read_cache(self._path, self._here)
        config, kernels = tensorrt_api.runtime_config(library, engine, cached)
        resources.callback(lambda: runtime)  # until all else is closed
        if kernels is not None:
            resources.callback(self._keep_kernels, kernels, cached)
        size = tensorrt_api.activation_bytes(engine) if config is None else 0
        address = 0
        if size:
            memory = DeviceMemory(size)
            resources.callback(memory.close)
            address = memory.address
        _check_tensors(self._path, library, engine, self._sidecar.manifest)
        context = tensorrt_api.new_context(library, engine, config, (address, size))
        return Prepared(
            library=library,
            engine=engine,
            config=config,
            tensors=_tensors(library, engine, context),
            memory=(address, size),
            unified=gpu.integrated,
        )

    def _prove(self) -> None:
        if engine_here.is_proven(self._path, self._here):
            return
        if check_golden(self) is None:
            raise VerificationError(
                f"{self.name} was never compared with its graph and has no golden values that its profiles can run "
                f"({'; '.join(map(str, self._sidecar.profiles))}). Build it on a machine with its GPU, where it is "
                "compared, or with a further --profile that holds a quarter of the patches"
            )
        engine_here.note_proven(self._path, self._here)

    def _keep_kernels(self, kernels: Any, known: bytes) -> None:
        content = tensorrt_api.cache_bytes(kernels)
        if content != known:
            engine_here.write_cache(self._path, self._here, content)

    @property
    def name(self) -> str:
        """File name of the engine."""
        return self._path.name

    @property
    def manifest(self) -> Manifest:
        """What the engine promises."""
        return self._sidecar.manifest

    @property
    def sidecar(self) -> EngineSidecar:
        """Everything that is known about the engine."""
        return self._sidecar

    @property
    def digest(self) -> str:
        """SHA-256 of the plan."""
        return self._sidecar.sha256

    @property
    def description(self) -> str:
        """Library, version and GPU."""
        return self._title

    def run(self, feeds: Mapping[str, Array], outputs: Sequence[str] | None = None) -> dict[str, Array]:
        """Run one batch; see `Session.run`. Batches that no profile holds are cut, and the rest is filled up.

        Two threads may run at once: one's copies overlap the other's computation. The results are in the host's memory.

        Raises:
            InputError: also when no profile of the engine holds the number of visible patches.
            MachineError: when the GPU fails.
        """
        names, cuts = self._checked(feeds, outputs)
        with on_device(self._device):
            parts = [self._run_part(cut, feeds, names) for cut in cuts]
        return parts[0] if len(parts) == 1 else {n: np.concatenate([part[n] for part in parts]) for n in names}

    def run_on_device(self, feeds: Mapping[str, Array], outputs: Sequence[str] | None = None) -> dict[str, DeviceArray]:
        """Run one batch; see `Session.run_on_device`. It returns before the GPU is done.

        Called again and again, one batch is copied while the one before is computed, from a single thread as well.

        Raises:
            InputError: also when no profile of the engine holds the number of visible patches.
            MachineError: when the GPU fails, perhaps in an earlier run that nobody waited for.
            ResourceError: when no memory is left for the outputs.
        """
        names, cuts = self._checked(feeds, outputs)
        shapes = output_shapes(self.manifest, feeds, names)
        dtypes = {name: np.dtype(self.manifest.output(name).dtype) for name in names}
        rows = {name: math.prod(shapes[name][1:]) * dtypes[name].itemsize for name in names}
        memory: dict[str, KeptMemory] = {}
        with on_device(self._device):
            for cut in cuts:
                lane = self._borrow(idle=True)
                try:
                    memory = memory or {name: self._outputs.take(shapes[name][0] * rows[name]) for name in names}
                    lane.run_onto(
                        cut.bucket,
                        _part(cut, feeds),
                        {
                            name: Target(memory=memory[name], offset=cut.first * size, size=cut.rows * size)
                            for name, size in rows.items()
                        },
                    )
                finally:
                    self._lanes.put(lane)
        return {name: DeviceArray(memory[name], shapes[name], dtypes[name].name) for name in names}

    def _checked(self, feeds: Mapping[str, Array], outputs: Sequence[str] | None) -> tuple[list[str], list[Cut]]:
        """Check one batch before the GPU sees it; the outputs wanted, and how the batch is cut."""
        names = [spec.name for spec in self.manifest.outputs] if outputs is None else list(outputs)
        for name in names:
            self.manifest.output(name)
        check_feeds(self.manifest, feeds)
        batch = len(next(iter(feeds.values())))
        keep = feeds["ids_keep"].shape[1] if "ids_keep" in feeds else None
        return names, cut_batch(self._sidecar.profiles, batch, keep)

    def _run_part(self, cut: Cut, feeds: Mapping[str, Array], names: list[str]) -> dict[str, Array]:
        lane = self._borrow()
        try:
            found = lane.run(cut.bucket, _part(cut, feeds), names)
        finally:
            self._lanes.put(lane)
        if cut.rows == cut.bucket.batch:
            return found
        return {name: values[: cut.rows] for name, values in found.items()}

    def _borrow(self, *, idle: bool = False) -> Lane:
        """A lane that no other thread uses; `idle` prefers one whose buffers the GPU does not use either."""
        lane = self._lanes.get()
        if lane is not None and idle and lane.pending:
            with contextlib.suppress(queue.Empty):  # the lane below was used longer ago
                other = self._lanes.get_nowait()
                self._lanes.put(lane)
                lane = other
        if lane is None:
            self._lanes.put(None)  # for whoever waits next
            raise UsageError(f"the session on {self._path} is closed; open it again")
        return lane

    def close(self) -> None:
        """Wait for runs in flight and give the memory back, but for outputs on the GPU that somebody still has."""
        with self._closing:
            if self._closed:
                return
            self._closed = True
            for _ in range(LANES):
                self._lanes.get()
            try:
                with on_device(self._device):
                    self._resources.close()
                self._outputs.close()
            finally:
                self._lanes.put(None)

    def __enter__(self) -> EngineSession:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _part(cut: Cut, feeds: Mapping[str, Array]) -> dict[str, Array]:
    """The rows of a cut, filled up to its bucket by repeating the last."""
    part = {name: array[cut.first : cut.last] for name, array in feeds.items()}
    more = cut.bucket.batch - cut.rows
    if more:
        part = {name: np.concatenate([array, array[-1:].repeat(more, 0)]) for name, array in part.items()}
    return part


def _names(engine: trt.ICudaEngine) -> list[str]:
    return [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]


def _check_tensors(path: Path, library: tensorrt_api.Library, engine: trt.ICudaEngine, manifest: Manifest) -> None:
    found = {name: tensorrt_api.numpy_dtype(library, engine, name) for name in _names(engine)}
    expected = {spec.name: np.dtype(spec.dtype).name for spec in (*manifest.inputs, *manifest.outputs)}
    if found != expected:
        raise InputError(f"{path.name} has the tensors {found}; its manifest says {expected}. Build the engine again")


def _tensors(
    library: tensorrt_api.Library, engine: trt.ICudaEngine, context: trt.IExecutionContext
) -> tuple[Tensor, ...]:
    """Inputs and outputs with the bytes of their largest shapes; outputs grow with inputs, so TensorRT is asked once
    per profile."""
    names = _names(engine)
    inputs = {name for name in names if engine.get_tensor_mode(name) == library.module.TensorIOMode.INPUT}
    dtypes = {name: tensorrt_api.numpy_dtype(library, engine, name) for name in names}
    elements = dict.fromkeys(names, 0)
    with ExitStack() as resources:
        stream = Stream()
        resources.callback(stream.close)
        for profile in range(engine.num_optimization_profiles):
            tensorrt_api.switch_profile(context, profile, stream.handle)
            for name in inputs:
                context.set_input_shape(name, extents(engine.get_tensor_profile_shape(name, profile)[2]))
            for name in names:
                shape = extents(context.get_tensor_shape(name))
                if min(shape) < 1:
                    raise GraphError(f"{library.title} knows no shape of {name!r} ({shape}): {library.said()}")
                elements[name] = max(elements[name], math.prod(shape))
        stream.synchronize()
    return tuple(
        Tensor(
            name=name,
            dtype=dtypes[name],
            is_input=name in inputs,
            size=elements[name] * np.dtype(dtypes[name]).itemsize,
        )
        for name in names
    )
