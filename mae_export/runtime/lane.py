"""One batch in flight: its stream, its buffers, the contexts that compute it, and the CUDA graphs of frequent shapes.

An engine has two lanes, so that one batch is copied while the other is computed. Their computations do not overlap: the
contexts of TensorRT share one memory for activations, and each waits for the one before by an event. A captured graph
keeps the shapes and addresses of its context, so each graph has a context that nothing else uses.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from mae_export.errors import GraphError, MachineError
from mae_export.runtime.buckets import GRAPHS, REMEMBERED, Bucket, Recent
from mae_export.runtime.cuda import DeviceMemory, Event, Graph, PinnedMemory, Stream
from mae_export.runtime.device_outputs import KeptMemory
from mae_export.runtime.tensorrt_api import Library, extents, new_context, switch_profile

if TYPE_CHECKING:
    import tensorrt as trt

Array = npt.NDArray[Any]
Shape = tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Tensor:
    """An input or output of an engine, and the bytes of its largest shape."""

    name: str
    dtype: str
    is_input: bool
    size: int


class Gate:
    """Held while a computation is issued; `last` marks the end of the one before."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.last: Event | None = None


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A deserialised engine and what its lanes share.

    Attributes:
        library: the backend.
        engine: deserialised.
        config: of TensorRT-RTX; None for TensorRT.
        tensors: inputs and outputs.
        memory: address and bytes of the activations' memory.
        unified: whether the GPU uses pinned memory directly.
        gate: orders the lanes.
    """

    library: Library
    engine: trt.ICudaEngine
    config: Any
    tensors: tuple[Tensor, ...]
    memory: tuple[int, int]
    unified: bool
    gate: Gate = field(default_factory=Gate)

    def context(self) -> trt.IExecutionContext:
        """A new context."""
        return new_context(self.library, self.engine, self.config, self.memory)


class Place:
    """Where a tensor lives: pinned memory, and memory of the GPU unless that uses the pinned memory directly."""

    def __init__(self, tensor: Tensor, resources: ExitStack, *, unified: bool) -> None:
        self.dtype = tensor.dtype
        self.pinned = PinnedMemory(tensor.size, mapped=unified)
        resources.callback(self.pinned.close)
        self.device: DeviceMemory | None = None
        if not unified:
            self.device = DeviceMemory(tensor.size)
            resources.callback(self.device.close)

    @property
    def address(self) -> int:
        """The address that the GPU uses."""
        return self.pinned.device_address if self.device is None else self.device.address

    def array(self, shape: Shape) -> Array:
        """The pinned memory as an array."""
        return self.pinned.array(shape, self.dtype)


@dataclass(frozen=True, kw_only=True)
class Target:
    """Where some rows of an output shall be copied to on the GPU.

    Attributes:
        memory: of the whole output.
        offset: bytes before the first row.
        size: bytes of the rows.
    """

    memory: KeptMemory
    offset: int
    size: int


@dataclass(frozen=True, kw_only=True)
class _Captured:
    graph: Graph
    context: trt.IExecutionContext  # kept alive and untouched for the graph
    outputs: dict[str, Shape]


class Lane:
    """Runs one batch at a time; nothing is allocated before `open` or the first run."""

    def __init__(self, prepared: Prepared) -> None:
        self._prepared = prepared
        self._resources = ExitStack()
        self._opened = False
        self.pending = False  # whether work was left to the GPU that nobody waited for
        self._graphs: Recent[_Captured] = Recent(GRAPHS)
        self._seen: Recent[bool] = Recent(REMEMBERED)
        self._captures = prepared.config is None  # TensorRT-RTX captures by itself

    def open(self) -> None:
        """Allocate buffers for the largest shapes; once.

        Raises:
            ResourceError: when memory ran out; nothing stays allocated.
        """
        if self._opened:
            return
        with ExitStack() as resources:
            self._stream, self._done = Stream(), Event()
            resources.callback(self._stream.close)
            resources.callback(self._done.close)
            unified = self._prepared.unified
            self._places = {t.name: Place(t, resources, unified=unified) for t in self._prepared.tensors}
            self._plain = self._prepared.context()
            self._resources = resources.pop_all()
        self._opened = True

    def run(self, bucket: Bucket, feeds: Mapping[str, Array], names: Sequence[str]) -> dict[str, Array]:
        """Compute one batch.

        Args:
            bucket: of the feeds.
            feeds: all inputs.
            names: outputs wanted.

        Returns:
            Arrays of their own memory.

        Raises:
            GraphError: when TensorRT refuses to run.
            MachineError: when the GPU fails.
        """
        self._settle()
        try:
            shapes = self._issue(bucket, feeds)
            self._copy_out(names, shapes)
        finally:
            self._stream.synchronize()  # after an error too: buffers may still be in use
        return {name: self._places[name].array(shapes[name]).copy() for name in names}

    def run_onto(self, bucket: Bucket, feeds: Mapping[str, Array], targets: Mapping[str, Target]) -> None:
        """Compute one batch into memory of the GPU, and return before that is done.

        Args:
            bucket: of the feeds.
            feeds: all inputs.
            targets: by the names of the outputs wanted.

        Raises:
            GraphError, MachineError: as `run` does; what goes wrong later comes up when somebody waits.
        """
        self._settle()
        self.pending = True
        try:
            self._issue(bucket, feeds)
            for name, target in targets.items():
                source = self._places[name].address
                target.memory.fill(self._stream, source, target.size, offset=target.offset)
        except (GraphError, MachineError):
            self._settle()
            raise

    def _settle(self) -> None:
        """Wait for work that was left to the GPU, which uses the buffers."""
        self.open()
        if self.pending:
            self.pending = False
            self._stream.synchronize()

    def _issue(self, bucket: Bucket, feeds: Mapping[str, Array]) -> dict[str, Shape]:
        self._copy_in(feeds)
        gate = self._prepared.gate
        with gate.lock:
            if gate.last is not None:
                self._stream.wait(gate.last)
            shapes = self._compute(bucket, feeds)
            self._stream.record(self._done)
            gate.last = self._done
        return shapes

    def _copy_in(self, feeds: Mapping[str, Array]) -> None:
        for name, feed in feeds.items():
            place = self._places[name]
            np.copyto(place.array(feed.shape), feed)
            if place.device is not None:
                self._stream.copy_in(place.device, place.pinned, feed.nbytes)

    def _copy_out(self, names: Sequence[str], shapes: Mapping[str, Shape]) -> None:
        for name in names:
            place = self._places[name]
            if place.device is not None:
                self._stream.copy_out(place.pinned, place.device, place.array(shapes[name]).nbytes)

    def _compute(self, bucket: Bucket, feeds: Mapping[str, Array]) -> dict[str, Shape]:
        captured = self._graphs.get(bucket)
        if captured is not None:
            self._stream.launch(captured.graph)
            return captured.outputs
        again = self._seen.get(bucket) is not None
        self._seen.put(bucket, True)
        context = self._own_context() if again and self._captures else self._plain
        outputs = self._set_up(context, bucket, feeds)
        self._enqueue(context)
        if context is not self._plain:  # capturing needs one run before, in which TensorRT does what it puts off
            self._capture(bucket, context, outputs)
        return outputs

    def _own_context(self) -> trt.IExecutionContext:
        """A context for one graph; the common one where no memory is left for another."""
        try:
            return self._prepared.context()
        except MachineError:
            self._captures = False
            return self._plain

    def _set_up(self, context: trt.IExecutionContext, bucket: Bucket, feeds: Mapping[str, Array]) -> dict[str, Shape]:
        """Give a context its profile, shapes and addresses; returns the shapes of the outputs."""
        done = True
        if context.active_optimization_profile != bucket.profile:
            done = switch_profile(context, bucket.profile, self._stream.handle)
        for name, feed in feeds.items():
            done = done and context.set_input_shape(name, feed.shape)
        for name, place in self._places.items():
            done = done and context.set_tensor_address(name, place.address)
        if not done:
            raise self._refused(f"the shapes of {bucket}")
        return {t.name: extents(context.get_tensor_shape(t.name)) for t in self._prepared.tensors if not t.is_input}

    def _enqueue(self, context: trt.IExecutionContext) -> None:
        if not context.execute_async_v3(self._stream.handle):
            raise self._refused("to run")

    def _capture(self, bucket: Bucket, context: trt.IExecutionContext, outputs: dict[str, Shape]) -> None:
        try:
            graph = self._stream.capture(lambda: self._enqueue(context))
        except (GraphError, MachineError):  # some layers cannot be captured; the engine runs all the same
            self._captures = False
            return
        for old in self._graphs.put(bucket, _Captured(graph=graph, context=context, outputs=outputs)):
            old.graph.close()

    def _refused(self, what: str) -> GraphError:
        library = self._prepared.library
        return GraphError(f"{library.title} refuses {what}: {library.said()}. Build the engine again")

    def close(self) -> None:
        """Give everything back once the GPU has done its work; twice is harmless."""
        try:
            if self._opened:
                self._settle()
        finally:
            for captured in self._graphs.clear():
                captured.graph.close()
            if self._opened:
                del self._plain
                self._opened = False
            self._resources.close()
