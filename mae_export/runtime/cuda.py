"""CUDA as far as engines need it: one GPU, its memory and the host's pinned memory, streams, events and graphs.

A thin layer over cuda-python, whose functions return a status with their result: a bad status becomes an error with
CUDA's own name for it and what to do. Which GPU is current is a fact of each thread, so whoever works on one says so
with `on_device`; memory, streams and events belong to the GPU that was current when they were made.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from mae_export.errors import MachineError, MaeExportError, ResourceError
from mae_export.runtime.capture_guard import captures

Array = npt.NDArray[Any]
DEFAULT_STREAM = 1  # the handle of the default stream that all threads share
NO_GPU = "engines need an NVIDIA GPU, and a driver no older than cuda-python. See `mae-export doctor`"


@dataclass(frozen=True, kw_only=True)
class Device:
    """A GPU.

    Attributes:
        name: as its maker calls it.
        target: its compute capability, such as `sm87`.
        integrated: whether it shares the memory of the CPU, as on Jetson: then it reads and writes pinned memory.
    """

    name: str
    target: str
    integrated: bool


@contextmanager
def on_device(index: int) -> Iterator[None]:
    """Make a GPU current for this thread; the one that was current before, for other libraries perhaps, is again after.

    Args:
        index: of the GPUs that CUDA shows, which CUDA_VISIBLE_DEVICES chooses.

    Raises:
        MachineError: when cuda-python, a driver or the GPU is missing.
    """
    cuda = _cuda()
    try:
        before = _check(cuda.cudaGetDevice(), "opening the GPU")
        _check(cuda.cudaSetDevice(index), "opening the GPU")
    except RuntimeError as error:  # cuda-python 12 without a driver
        raise MachineError(f"CUDA cannot be used: {error}; {NO_GPU}") from error
    try:
        yield
    finally:
        if before != index:
            _check(cuda.cudaSetDevice(before), "going back to the GPU before")


def open_device(index: int = 0) -> Device:
    """A GPU that engines may run on.

    Args:
        index: of the GPUs that CUDA shows.

    Raises:
        MachineError: when cuda-python, a driver or the GPU is missing.
    """
    with on_device(index):
        cuda = _cuda()
        properties = _check(cuda.cudaGetDeviceProperties(index), "asking for the GPU's properties")
        flags = (cuda.cudaDeviceAttr.cudaDevAttrIntegrated, cuda.cudaDeviceAttr.cudaDevAttrCanMapHostMemory)
        shared = [_check(cuda.cudaDeviceGetAttribute(flag, index), "asking for the GPU's memory") for flag in flags]
    name = properties.name
    return Device(
        name=(name.decode() if isinstance(name, bytes) else str(name)).rstrip("\0"),
        target=f"sm{properties.major}{properties.minor}",
        integrated=all(shared),
    )


class DeviceMemory:
    """Memory of the GPU, aligned to 256 bytes.

    Args:
        size: in bytes.

    Raises:
        ResourceError: when there is not enough.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        with captures.work():
            self.address = int(_check(_cuda().cudaMalloc(size), f"taking {size:,} bytes of GPU memory"))

    def close(self) -> None:
        """Give it back; twice is harmless."""
        address, self.address = self.address, 0
        if address:
            with captures.work():
                _check(_cuda().cudaFree(address), "giving GPU memory back")


class PinnedMemory:
    """Memory of the host that the GPU copies from and to without the CPU's help.

    Args:
        size: in bytes.
        mapped: whether the GPU shall also use it directly, at `device_address`.

    Raises:
        ResourceError: when there is not enough.
    """

    def __init__(self, size: int, *, mapped: bool = False) -> None:
        cuda = _cuda()
        flags = cuda.cudaHostAllocMapped if mapped else cuda.cudaHostAllocDefault
        self.size = size
        with captures.work():
            self.address = int(_check(cuda.cudaHostAlloc(size, flags), f"taking {size:,} bytes of pinned memory"))
        self.device_address = 0
        if mapped:
            self.device_address = int(_check(cuda.cudaHostGetDevicePointer(self.address, 0), "mapping pinned memory"))

    def array(self, shape: tuple[int, ...], dtype: str) -> Array:
        """The beginning of the memory as an array, which must not be used after `close`."""
        kind = np.dtype(dtype)
        count = int(np.prod(shape, dtype=np.int64))
        held = (ctypes.c_char * (count * kind.itemsize)).from_address(self.address)
        values: Array = np.frombuffer(memoryview(held), kind, count).reshape(shape)
        return values

    def close(self) -> None:
        """Give it back; twice is harmless."""
        address, self.address = self.address, 0
        if address:
            with captures.work():
                _check(_cuda().cudaFreeHost(address), "giving pinned memory back")


class Event:
    """A point in a stream's work, for which another stream can wait."""

    def __init__(self) -> None:
        cuda = _cuda()
        self.handle = _check(cuda.cudaEventCreateWithFlags(cuda.cudaEventDisableTiming), "making an event")

    def record_on(self, stream: int) -> None:
        """Stand for all work issued so far to another library's stream, given by its handle."""
        _check(_cuda().cudaEventRecord(self.handle, stream), "recording an event")

    def hold_back(self, stream: int) -> None:
        """Let another library's stream do no later work before the event's has been done."""
        _check(_cuda().cudaStreamWaitEvent(stream, self.handle, 0), "waiting for an event")

    def close(self) -> None:
        """Give it back; twice is harmless."""
        handle, self.handle = self.handle, None
        if handle is not None:
            _check(_cuda().cudaEventDestroy(handle), "giving an event back")


class Graph:
    """Captured work, launched as a whole."""

    def __init__(self, handle: Any) -> None:
        self.handle = handle

    def close(self) -> None:
        """Give it back; twice is harmless."""
        handle, self.handle = self.handle, None
        if handle is not None:
            _check(_cuda().cudaGraphExecDestroy(handle), "giving a CUDA graph back")


class Stream:
    """Work for the GPU that is done in order. Its own methods return before the work is done, but `synchronize`."""

    def __init__(self) -> None:
        cuda = _cuda()
        self._stream = _check(cuda.cudaStreamCreateWithFlags(cuda.cudaStreamNonBlocking), "making a stream")

    @property
    def handle(self) -> int:
        """The stream as TensorRT takes it."""
        return int(self._stream)

    def copy_in(self, target: DeviceMemory, source: PinnedMemory, size: int) -> None:
        """Copy the first `size` bytes to the GPU; `source` must not change before the stream is synchronized."""
        kind = _cuda().cudaMemcpyKind.cudaMemcpyHostToDevice
        _check(_cuda().cudaMemcpyAsync(target.address, source.address, size, kind, self._stream), "copying to the GPU")

    def copy_out(self, target: PinnedMemory, source: DeviceMemory, size: int) -> None:
        """Copy the first `size` bytes from the GPU; they are there once the stream is synchronized."""
        kind = _cuda().cudaMemcpyKind.cudaMemcpyDeviceToHost
        _check(
            _cuda().cudaMemcpyAsync(target.address, source.address, size, kind, self._stream), "copying from the GPU"
        )

    def copy_within(self, target: int, source: int, size: int) -> None:
        """Copy between two addresses that the GPU uses."""
        kind = _cuda().cudaMemcpyKind.cudaMemcpyDefault  # on boards that share memory the source is the host's
        _check(_cuda().cudaMemcpyAsync(target, source, size, kind, self._stream), "copying on the GPU")

    def record(self, event: Event) -> None:
        """Let the event stand for all work issued so far."""
        _check(_cuda().cudaEventRecord(event.handle, self._stream), "recording an event")

    def wait(self, event: Event) -> None:
        """Do no later work before the event's has been done."""
        _check(_cuda().cudaStreamWaitEvent(self._stream, event.handle, 0), "waiting for an event")

    def launch(self, graph: Graph) -> None:
        """Do a graph's work."""
        _check(_cuda().cudaGraphLaunch(graph.handle, self._stream), "launching a CUDA graph")

    def capture(self, issue: Callable[[], None]) -> Graph:
        """Make a graph of the work that `issue` gives this stream; nothing of it is done yet.

        Raises:
            MachineError: when that work cannot be captured.
        """
        cuda = _cuda()
        mode = cuda.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal  # other threads may go on allocating
        with captures.capture():
            _check(cuda.cudaStreamBeginCapture(self._stream, mode), "capturing a CUDA graph")
            try:
                issue()
            finally:
                status, captured = cuda.cudaStreamEndCapture(self._stream)
        _check((status,), "capturing a CUDA graph")
        try:
            return Graph(_check(cuda.cudaGraphInstantiate(captured, 0), "preparing a CUDA graph"))
        finally:
            _check(cuda.cudaGraphDestroy(captured), "giving a CUDA graph back")

    def synchronize(self) -> None:
        """Wait until all work is done; errors of that work come up here."""
        _check(_cuda().cudaStreamSynchronize(self._stream), "running on the GPU")

    def close(self) -> None:
        """Give it back; twice is harmless."""
        stream, self._stream = self._stream, None
        if stream is not None:
            _check(_cuda().cudaStreamDestroy(stream), "giving a stream back")


def wait_for_gpu() -> None:
    """Wait until the current GPU has done all work of this process, whoever issued it."""
    with captures.work():
        _check(_cuda().cudaDeviceSynchronize(), "waiting for the GPU")


def _cuda() -> Any:
    try:
        from cuda.bindings import runtime
    except ImportError as error:
        raise MachineError(
            f"engines, and outputs that stay on the GPU, need cuda-python, which cannot be imported ({error}); run: "
            "pip install 'mae-export[tensorrt]', 'mae-export[rtx]' for TensorRT-RTX, 'mae-export[gpu]' for ONNX Runtime"
        ) from error
    return runtime


def _check(result: tuple[Any, ...], doing: str) -> Any:
    """The value of a call whose result begins with a status."""
    status, *values = result
    if int(status) != 0:
        raise _error(status, doing)
    return values[0] if values else None


def _error(status: Any, doing: str) -> MaeExportError:
    cuda = _cuda()
    name, words = (call(status)[1].decode() for call in (cuda.cudaGetErrorName, cuda.cudaGetErrorString))
    said = f"CUDA failed while {doing}: {name} ({words})"
    if name == "cudaErrorMemoryAllocation":
        return ResourceError(f"{said}; close other programs on the GPU, or build the engine with a smaller --batch")
    if name == "cudaErrorInvalidDevice":
        return MachineError(f"{said}: CUDA shows fewer GPUs. They count from 0, and CUDA_VISIBLE_DEVICES hides some")
    if name in ("cudaErrorInsufficientDriver", "cudaErrorNoDevice", "cudaErrorStubLibrary"):
        return MachineError(f"{said}; {NO_GPU}")
    return MachineError(
        f"{said}; close the session. When it happens again, restart the program: the GPU lost its state"
    )
