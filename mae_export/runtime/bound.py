"""Running ONNX Runtime on a GPU with inputs and outputs in the GPU's memory, and shapes that come often as CUDA graphs.

A batch is copied in, computed and copied out once; ONNX Runtime alone would stage it through buffers of its own. A CUDA
graph replays all kernels of a batch with one launch, which counts where batches are small; it holds addresses, so every
captured shape keeps buffers. Shapes that come once, as in jobs whose rows keep different numbers of patches, are not
worth that.

Outputs that stay on the GPU are copied there once more, out of buffers that ONNX Runtime or a graph uses again.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from mae_export.manifest import Manifest
from mae_export.runtime.capture_guard import captures
from mae_export.runtime.cuda import Stream, on_device
from mae_export.runtime.device_array import DeviceArray
from mae_export.runtime.device_outputs import DeviceOutputs
from mae_export.runtime.feeds import output_shapes

Array = npt.NDArray[Any]
Key = tuple[tuple[str, ...], tuple[tuple[int, ...], ...]]
DEVICE = "cuda"
GRAPHS = 8  # captured per session; each keeps the buffers of one batch
REMEMBERED = 64  # shapes whose first sighting is remembered
NO_GRAPH = -1  # the id of runs that ONNX Runtime neither captures nor replays


@dataclass(frozen=True, kw_only=True)
class _Captured:
    """Buffers of one shape, and the number of the graph that reads and writes them."""

    inputs: dict[str, Any]
    binding: Any
    number: int


class _Here(threading.local):
    """The numbers of the graphs that ONNX Runtime has captured for this thread."""

    def __init__(self) -> None:
        self.known: set[int] = set()


class BoundRuns:
    """Runs one session; from several threads one after another, because they share a GPU and its buffers.

    Args:
        runtime: the module onnxruntime.
        session: on a GPU.
        manifest: of the graph.
        graphs: whether the session was made with `enable_cuda_graph`.
        device: number of the session's GPU.
    """

    def __init__(self, runtime: Any, session: Any, manifest: Manifest, *, graphs: bool, device: int = 0) -> None:
        self._runtime = runtime
        self._session = session
        self._manifest = manifest
        self._graphs = graphs
        self._device = device
        self._seen: dict[Key, None] = {}
        self._captured: dict[Key, _Captured] = {}
        self._lock = threading.Lock()
        self._outputs = DeviceOutputs(device)
        self._here = _Here()

    def run(self, feeds: Mapping[str, Array], names: Sequence[str]) -> list[Array]:
        """Values of the outputs, in the order of their names; feeds were checked against the manifest."""
        with self._lock, self._ran(feeds, names) as binding:
            values: list[Array] = binding.copy_outputs_to_cpu()
        return values

    def run_on_device(self, feeds: Mapping[str, Array], names: Sequence[str]) -> dict[str, DeviceArray]:
        """The same with the values left on the GPU, by name."""
        shapes = output_shapes(self._manifest, feeds, names)
        with self._lock, on_device(self._device), self._ran(feeds, names) as binding, ExitStack() as resources:
            stream = Stream()
            resources.callback(stream.close)
            binding.synchronize_outputs()
            found = {}
            for name, value in zip(names, binding.get_outputs(), strict=True):
                dtype = np.dtype(self._manifest.output(name).dtype)
                size = math.prod(shapes[name]) * dtype.itemsize
                memory = self._outputs.take(size)
                memory.fill(stream, value.data_ptr(), size)
                found[name] = DeviceArray(memory, shapes[name], dtype.name)
            stream.synchronize()  # the next run writes into the same buffers
        return found

    def close(self) -> None:
        """Give back the memory of outputs that nobody has any more."""
        self._outputs.close()

    @contextmanager
    def _ran(self, feeds: Mapping[str, Array], names: Sequence[str]) -> Iterator[Any]:
        """The binding whose outputs hold the values; ONNX Runtime captures a graph anew for each thread."""
        arrays = {name: np.ascontiguousarray(array) for name, array in feeds.items()}
        key = (tuple(names), tuple(arrays[name].shape for name in sorted(arrays)))
        with captures.work():
            captured = self._captured_for(key, arrays)
        if captured is None:
            with captures.work():
                yield self._run_once(arrays, names)
            return
        with captures.work() if captured.number in self._here.known else captures.capture():
            for name, value in captured.inputs.items():
                value.update_inplace(arrays[name])
            yield self._finish(captured.binding, captured.number)
        self._here.known.add(captured.number)

    def _captured_for(self, key: Key, arrays: Mapping[str, Array]) -> _Captured | None:
        """Buffers for a shape that came before, while there are graphs left."""
        if not self._graphs or key in self._captured:
            return self._captured.get(key)
        if key not in self._seen or len(self._captured) == GRAPHS:
            self._seen[key] = None
            if len(self._seen) > REMEMBERED:
                del self._seen[next(iter(self._seen))]
            return None
        shapes = output_shapes(self._manifest, arrays, key[0])
        binding = self._session.io_binding()
        inputs = {name: self._buffer(array.shape, array.dtype) for name, array in arrays.items()}
        for name, value in inputs.items():
            binding.bind_ortvalue_input(name, value)
        for name in key[0]:
            dtype = np.dtype(self._manifest.output(name).dtype)
            binding.bind_ortvalue_output(name, self._buffer(shapes[name], dtype))
        self._captured[key] = _Captured(inputs=inputs, binding=binding, number=len(self._captured) + 1)
        return self._captured[key]

    def _buffer(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Any:
        return self._runtime.OrtValue.ortvalue_from_shape_and_type(shape, dtype.type, DEVICE, self._device)

    def _run_once(self, arrays: Mapping[str, Array], names: Sequence[str]) -> Any:
        binding = self._session.io_binding()
        for name, array in arrays.items():
            value = self._runtime.OrtValue.ortvalue_from_numpy(array, DEVICE, self._device)
            binding.bind_ortvalue_input(name, value)
        for name in names:
            binding.bind_output(name, DEVICE, self._device)
        return self._finish(binding, NO_GRAPH)

    def _finish(self, binding: Any, number: int) -> Any:
        options = self._runtime.RunOptions()
        options.add_run_config_entry("gpu_graph_id", str(number))
        self._session.run_with_iobinding(binding, options)
        return binding
