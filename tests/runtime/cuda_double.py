# ruff: noqa: N802, N815, N818
"""A stand-in for `cuda.bindings.runtime` without a GPU that does everything as late as CUDA may, and forbids misuse.

Work waits in its stream until somebody synchronizes; then only what must have happened is done. Operations that touch
the same memory without being ordered by a stream or an event are a race, pinned memory that changes while it is copied
is noticed, and memory that a copy has not reached yet holds a pattern. Handles, statuses and results look as
cuda-python's do.
"""

import ctypes
import enum
import threading
from types import SimpleNamespace

PATTERN = 0xCD
ALIGNMENT = 256


class Misuse(AssertionError):
    """The code under test does what CUDA or TensorRT forbid."""


class cudaError_t(enum.IntEnum):  # noqa: N801
    cudaSuccess = 0
    cudaErrorInvalidValue = 1
    cudaErrorMemoryAllocation = 2
    cudaErrorInsufficientDriver = 35
    cudaErrorNoDevice = 100
    cudaErrorInvalidDevice = 101
    cudaErrorIllegalAddress = 700
    cudaErrorStreamCaptureInvalidated = 901


class cudaMemcpyKind(enum.IntEnum):  # noqa: N801
    cudaMemcpyHostToDevice = 1
    cudaMemcpyDeviceToHost = 2
    cudaMemcpyDefault = 4


class cudaStreamCaptureMode(enum.IntEnum):  # noqa: N801
    cudaStreamCaptureModeGlobal = 0
    cudaStreamCaptureModeThreadLocal = 1


class cudaDeviceAttr(enum.IntEnum):  # noqa: N801
    cudaDevAttrIntegrated = 18
    cudaDevAttrCanMapHostMemory = 19


class Refused(Exception):
    """A function of CUDA returns this status."""


class Block:
    """Allocated memory."""

    def __init__(self, size, device, *, gpu, host):
        self.size, self.device, self.gpu, self.host = size, device, gpu, host
        self.raw = ctypes.create_string_buffer(size + ALIGNMENT)
        start = ctypes.addressof(self.raw)
        self.address = start + (-start) % ALIGNMENT
        self.freed = False
        ctypes.memset(self.address, PATTERN, size)

    def read(self, size):
        return ctypes.string_at(self.address, size)

    def write(self, content):
        ctypes.memmove(self.address, content, len(content))


class ForeignBlock(Block):
    """Memory of a GPU that another library allocated."""

    def __init__(self, address, size, device):
        self.size, self.device, self.gpu, self.host, self.address = size, device, True, False, address


class Operation:
    """Work in a stream; `before` are the numbers of all operations that are ordered before it."""

    def __init__(self, number, name, stream, run, reads, writes):
        self.number, self.name, self.stream, self.run = number, name, stream, run
        self.reads, self.writes = set(reads), set(writes)
        self.before = frozenset(stream.known)

    def touches(self, other):
        return self.writes & (other.reads | other.writes) or self.reads & other.writes


class Stream:
    def __init__(self, number, device):
        self.number, self.device = number, device
        self.known = set()
        self.captured = None  # a list while capturing
        self.broken = False  # something that cannot be captured was met

    def __int__(self):
        return self.number


class CudaDouble:
    """GPUs that are alike; one of them is current in each thread.

    Attributes:
        issued: names of operations with the number of their stream, in the order issued.
        done: the same in the order done.
        refuse: function name to the status that it returns from now on.
        capacity: bytes of GPU memory.
        synchronizing: called with a stream's number before anything is done; may block.
    """

    cudaError_t, cudaMemcpyKind, cudaDeviceAttr = cudaError_t, cudaMemcpyKind, cudaDeviceAttr
    cudaStreamCaptureMode = cudaStreamCaptureMode
    cudaHostAllocDefault, cudaHostAllocMapped, cudaStreamNonBlocking, cudaEventDisableTiming = 0, 2, 1, 2

    def __init__(self, *, name="NVIDIA L4", capability=(8, 9), unified=False, capacity=1 << 30, count=1):
        self.device = SimpleNamespace(name=name.encode(), major=capability[0], minor=capability[1])
        self.unified, self.capacity, self.count = unified, capacity, count
        self.here = threading.local()
        self.blocks, self.streams, self.events, self.graphs = {}, {}, {}, {}
        self.pending = []
        self.issued, self.done, self.refuse = [], [], {}
        self.synchronizing = lambda number: None
        self.lock = threading.RLock()
        self.numbers = iter(range(100, 1 << 30))
        self.default_streams, self.foreign = {}, {}

    def __getattribute__(self, name):
        """Functions of CUDA run one at a time, and return a refusal where one was asked for."""
        value = super().__getattribute__(name)
        if not name.startswith("cuda") or not callable(value) or isinstance(value, type):
            return value

        def call(*arguments):
            if name in self.refuse:
                return self.refuse[name], None
            if name == "cudaStreamSynchronize":
                self.synchronizing(int(arguments[0]))
            try:
                with self.lock:
                    result = value(*arguments)
            except Refused as refusal:
                return refusal.args[0], None
            return (cudaError_t.cudaSuccess, *(() if result is None else (result,)))

        return call

    # Devices and errors

    def cudaSetDevice(self, number):
        if not 0 <= number < self.count:
            raise Refused(cudaError_t.cudaErrorInvalidDevice)
        self.here.current = number

    def cudaGetDevice(self):
        return self.current

    @property
    def current(self):
        """The current GPU of this thread."""
        return getattr(self.here, "current", 0)

    def cudaGetDeviceProperties(self, number):
        assert 0 <= number < self.count
        return self.device

    def cudaDeviceGetAttribute(self, attribute, number):
        assert attribute in cudaDeviceAttr
        assert 0 <= number < self.count
        return int(self.unified)

    def cudaGetErrorName(self, status):
        return status.name.encode()

    def cudaGetErrorString(self, status):
        return b"in words"

    # Memory

    def block_at(self, address):
        """The block that begins at an address."""
        block = self.blocks.get(int(address))
        if block is None:
            raise Misuse(f"{address} is no allocated memory, or was freed")
        return block

    def cudaMalloc(self, size):
        return self.allocate(Block(size, self.current, gpu=True, host=False))

    def cudaHostAlloc(self, size, flags):
        return self.allocate(Block(size, self.current, gpu=flags == self.cudaHostAllocMapped, host=True))

    def allocate(self, block):
        assert block.size > 0
        self.blocks[block.address] = block
        return block.address

    def cudaHostGetDevicePointer(self, address, flags):
        block = self.block_at(address)
        if not (block.host and block.gpu and flags == 0):
            raise Misuse("this memory was not allocated to be mapped")
        return block.address

    def cudaFree(self, address):
        self.release(address, host=False)

    def cudaFreeHost(self, address):
        self.release(address, host=True)

    def release(self, address, *, host):
        block = self.block_at(address)
        if block.host != host:
            raise Misuse("memory is freed with the function of the other kind")
        for operation in self.pending:
            if block in operation.reads | operation.writes:
                raise Misuse(f"memory is freed that {operation.name} still needs")
        del self.blocks[block.address]

    # Other libraries

    def adopt(self, address, size, device=0):
        """Memory that another library allocated."""
        self.foreign[address] = ForeignBlock(address, size, device)

    def read_on(self, handle, address, size):
        """Another library's kernel, which reads; returns a list that holds the bytes once it is done."""
        found, block = [], self.block_at(address)
        self.issue("read", handle, lambda: found.append(block.read(size)), reads=[block])
        return found

    # Streams

    def stream_of(self, handle):
        if int(handle) in (1, 2):  # the default streams, which every GPU has
            key = (int(handle), self.current)
            return self.default_streams.setdefault(key, Stream(*key))
        stream = self.streams.get(int(handle))
        if stream is None:
            raise Misuse("the stream does not exist any more")
        return stream

    def issue(self, name, handle, run, *, reads=(), writes=()):
        """Put work into a stream, or into the graph that it captures."""
        stream = self.stream_of(handle)
        devices = {self.current, stream.device, *(b.device for b in (*reads, *writes) if hasattr(b, "device"))}
        if len(devices) > 1:
            raise Misuse(f"{name} mixes the GPUs {sorted(devices)}; the current one is {self.current}")
        if stream.captured is not None:
            stream.captured.append((name, run, set(reads), set(writes)))
            return
        operation = Operation(next(self.numbers), name, stream, run, reads, writes)
        for other in self.pending:
            if other.number not in operation.before and operation.touches(other):
                raise Misuse(f"{name} races with {other.name} of stream {int(other.stream)}: nothing orders them")
        self.pending.append(operation)
        self.issued.append((name, int(stream)))
        stream.known.add(operation.number)

    def finish(self, operation):
        """Do an operation and all that is ordered before it."""
        for earlier in [other for other in self.pending if other.number in operation.before]:
            if earlier in self.pending:
                self.finish(earlier)
        self.pending.remove(operation)
        operation.run()
        self.done.append((operation.name, int(operation.stream)))

    def cudaStreamCreateWithFlags(self, flags):
        assert flags == self.cudaStreamNonBlocking
        stream = Stream(next(self.numbers), self.current)
        self.streams[int(stream)] = stream
        return stream

    def cudaStreamDestroy(self, handle):
        stream = self.stream_of(handle)
        if any(operation.stream is stream for operation in self.pending):
            raise Misuse("a stream is destroyed with work in it")
        del self.streams[int(stream)]

    def cudaStreamSynchronize(self, handle):
        stream = self.stream_of(handle)
        if stream.captured is not None:
            raise Misuse("a stream that captures cannot be synchronized")
        for operation in [operation for operation in self.pending if operation.stream is stream]:
            if operation in self.pending:
                self.finish(operation)

    def cudaDeviceSynchronize(self):
        if any(stream.captured is not None for stream in self.streams.values()):
            raise Misuse("nobody may wait for a GPU while a stream of it is captured")
        for operation in [operation for operation in self.pending if operation.stream.device == self.current]:
            if operation in self.pending:
                self.finish(operation)

    def cudaMemcpyAsync(self, target, source, size, kind, handle):
        if kind == cudaMemcpyKind.cudaMemcpyDefault:
            self.copy_within(target, source, size, handle)
            return
        target, source = self.block_at(target), self.block_at(source)
        inwards = kind == cudaMemcpyKind.cudaMemcpyHostToDevice
        if (source.host, target.host) != (inwards, not inwards) or size > min(source.size, target.size):
            raise Misuse(f"a copy of {size} bytes from {source.size} to {target.size} bytes, {kind.name}")
        before = source.read(size) if inwards else b""
        if not inwards:
            ctypes.memset(target.address, PATTERN, size)  # what a reader finds who does not wait

        def copy():
            content = source.read(size)
            if inwards and content != before:
                raise Misuse("pinned memory changed while it was being copied to the GPU")
            target.write(content)

        self.issue("copy in" if inwards else "copy out", handle, copy, reads=[source], writes=[target])

    def copy_within(self, target, source, size, handle):
        (target, start), (source, first) = self.block_over(target, size), self.block_over(source, size)
        if not (target.gpu and source.gpu):
            raise Misuse("a copy on the GPU between memory that it cannot reach")

        def copy():
            ctypes.memmove(target.address + start, source.address + first, size)

        self.issue("copy", handle, copy, reads=[source], writes=[target])

    def block_over(self, address, size):
        """The block that holds so many bytes at an address, and how many it has before."""
        for block in (*self.blocks.values(), *self.foreign.values()):
            if block.address <= address and address + size <= block.address + block.size:
                return block, address - block.address
        raise Misuse(f"{size} bytes at {address} are no allocated memory, or were freed")

    # Events: what was known to a stream when they were recorded

    def cudaEventCreateWithFlags(self, flags):
        assert flags == self.cudaEventDisableTiming
        number = next(self.numbers)
        self.events[number] = set()
        return number

    def cudaEventDestroy(self, event):
        del self.events[event]

    def cudaEventRecord(self, event, handle):
        self.events[event] = set(self.stream_of(handle).known)

    def cudaStreamWaitEvent(self, handle, event, flags):
        assert flags == 0
        self.stream_of(handle).known |= self.events[event]

    # Graphs

    def cudaStreamBeginCapture(self, handle, mode):
        assert mode == cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self.stream_of(handle).captured = []

    def cudaStreamEndCapture(self, handle):
        stream = self.stream_of(handle)
        work, stream.captured = stream.captured, None
        broken, stream.broken = stream.broken, False
        if broken:
            raise Refused(cudaError_t.cudaErrorStreamCaptureInvalidated)
        return self.keep_graph(work)

    def keep_graph(self, work):
        number = next(self.numbers)
        self.graphs[number] = work
        return number

    def cudaGraphInstantiate(self, graph, flags):
        assert flags == 0
        return self.keep_graph(self.graphs[graph])

    def cudaGraphDestroy(self, graph):
        del self.graphs[graph]

    def cudaGraphExecDestroy(self, graph):
        del self.graphs[graph]

    def cudaGraphLaunch(self, graph, handle):
        if graph not in self.graphs:
            raise Misuse("a graph is launched that was given back")
        for _, run, reads, writes in self.graphs[graph]:
            self.issue("graph", handle, run, reads=reads, writes=writes)

    def leaks(self):
        """What was never given back."""
        kinds = {"memory": self.blocks, "streams": self.streams, "events": self.events, "graphs": self.graphs}
        return {name: len(held) for name, held in kinds.items() if held}
