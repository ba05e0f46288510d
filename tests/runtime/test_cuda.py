"""The layer over cuda-python: statuses become errors, memory becomes arrays, and the names used exist."""

import ast
import json
import sys
from pathlib import Path

import numpy as np
import pytest

from mae_export.errors import MachineError, ResourceError
from mae_export.runtime import cuda
from mae_export.runtime.cuda import Device, DeviceMemory, Event, PinnedMemory, Stream, open_device
from tests.runtime.cuda_double import PATTERN, CudaDouble, Misuse, cudaError_t
from tests.runtime.tensorrt_double import install

DATA = Path(__file__).parents[1] / "data"


def test_a_missing_package_names_the_extras(monkeypatch):
    monkeypatch.setitem(sys.modules, "cuda", None)
    with pytest.raises(
        MachineError,
        match=r"need cuda-python.*'mae-export\[tensorrt\]', 'mae-export\[rtx\]' for TensorRT-RTX, 'mae-export\[gpu\]'",
    ):
        open_device()


def test_the_device(monkeypatch):
    install(monkeypatch, gpu=CudaDouble(name="Orin", capability=(8, 7), unified=True))
    assert open_device() == Device(name="Orin", target="sm87", integrated=True)
    install(monkeypatch)
    assert open_device() == Device(name="NVIDIA L4", target="sm89", integrated=False)


@pytest.mark.parametrize("status", [cudaError_t.cudaErrorInsufficientDriver, cudaError_t.cudaErrorNoDevice])
def test_no_gpu_or_driver(behaviour, status):
    behaviour.gpu.refuse["cudaSetDevice"] = status
    with pytest.raises(MachineError, match=f"opening the GPU: {status.name} .*driver no older than cuda-python"):
        open_device()


def test_a_package_that_raises_without_a_driver(behaviour):
    def dlopen(number):
        raise RuntimeError("Failed to dlopen libcuda.so.1")

    behaviour.gpu.cudaSetDevice = dlopen
    with pytest.raises(MachineError, match=r"CUDA cannot be used: Failed to dlopen libcuda\.so\.1; engines need"):
        open_device()


def test_too_little_memory(behaviour):
    behaviour.gpu.refuse = dict.fromkeys(("cudaMalloc", "cudaHostAlloc"), cudaError_t.cudaErrorMemoryAllocation)
    for kind in (DeviceMemory, PinnedMemory):
        with pytest.raises(ResourceError, match=r"taking 12,345 bytes .*: cudaErrorMemoryAllocation .*smaller --batch"):
            kind(12345)


def test_pinned_memory_is_an_array(behaviour):
    memory = PinnedMemory(64)
    values = memory.array((2, 3), "int64")
    values[:] = np.arange(6).reshape(2, 3)
    np.testing.assert_array_equal(memory.array((6,), "int64"), np.arange(6))
    assert memory.array((64,), "uint8")[48] == PATTERN  # what was not written
    assert (memory.device_address, values.flags.owndata) == (0, False)
    memory.close()
    memory.close()


def test_mapped_memory_has_an_address_for_the_gpu(behaviour):
    memory = PinnedMemory(64, mapped=True)
    assert behaviour.gpu.block_at(memory.device_address).gpu
    memory.close()


def test_a_copy_there_and_back(behaviour):
    stream, there, gpu, back = Stream(), PinnedMemory(64), DeviceMemory(64), PinnedMemory(64)
    there.array((8,), "float64")[:] = np.arange(8)
    stream.copy_in(gpu, there, 64)
    stream.copy_out(back, gpu, 40)
    assert (back.array((64,), "uint8")[:40] == PATTERN).all()  # not yet
    stream.synchronize()
    np.testing.assert_array_equal(back.array((5,), "float64"), np.arange(5))
    assert (back.array((64,), "uint8")[40:] == PATTERN).all()
    for each in (back, gpu, there, stream):
        each.close()
        each.close()


def test_events_order_streams(behaviour):
    """Two streams that write one memory: a race without the event, and in order with it."""
    first, second, event = Stream(), Stream(), Event()
    sources, gpu = [PinnedMemory(8), PinnedMemory(8)], DeviceMemory(8)
    for number, source in enumerate(sources):
        source.array((1,), "int64")[0] = number
    first.copy_in(gpu, sources[0], 8)
    with pytest.raises(Misuse, match="copy in races with copy in"):
        second.copy_in(gpu, sources[1], 8)
    first.record(event)
    second.wait(event)
    second.copy_in(gpu, sources[1], 8)
    second.synchronize()
    assert behaviour.gpu.block_at(gpu.address).read(8) == (1).to_bytes(8, "little")
    for each in (*sources, gpu, first, second, event):
        each.close()
    event.close()


def test_captured_work_is_done_when_it_is_launched(behaviour):
    stream, pinned, gpu = Stream(), PinnedMemory(8), DeviceMemory(8)
    done = []
    graph = stream.capture(lambda: behaviour.gpu.issue("work", stream.handle, lambda: done.append(1)))
    stream.synchronize()
    assert done == []
    for _ in range(2):
        stream.launch(graph)
    stream.synchronize()
    assert done == [1, 1]
    for each in (graph, graph, pinned, gpu, stream):
        each.close()


def test_a_capture_that_fails_ends(behaviour):
    def work():
        raise MachineError("cannot")

    stream = Stream()
    with pytest.raises(MachineError, match="cannot"):
        stream.capture(work)
    behaviour.gpu.graphs.clear()  # the empty graph that ending the capture made
    stream.synchronize()
    stream.close()


def test_other_errors_say_what_was_done_and_what_to_do(behaviour):
    stream = Stream()
    behaviour.gpu.refuse["cudaStreamSynchronize"] = cudaError_t.cudaErrorIllegalAddress
    with pytest.raises(MachineError, match=r"while running on the GPU: cudaErrorIllegalAddress .*restart the program"):
        stream.synchronize()
    stream.close()


def test_the_names_used_exist_in_cuda_python():
    """In the lists of versions 12 and 13, and none of the double's is made up."""
    listed = json.loads((DATA / "cuda_python_names.json").read_text())["names"]
    known = {name for kind, own in listed.items() for name in (kind, *own)}
    attributes = [
        node for node in ast.walk(ast.parse(Path(cuda.__file__).read_text())) if isinstance(node, ast.Attribute)
    ]
    used = {node.attr for node in attributes if node.attr.startswith("cuda")}
    assert len(used) > 30
    assert used - known == set()
    assert {name for name in dir(CudaDouble) if name.startswith("cuda")} - known == set()
    for kind in (cudaError_t, CudaDouble.cudaMemcpyKind, CudaDouble.cudaDeviceAttr, CudaDouble.cudaStreamCaptureMode):
        assert {member.name for member in kind} <= set(listed[kind.__name__])


def test_the_gpu_that_was_current_is_so_again(monkeypatch):
    gpu = install(monkeypatch, gpu=CudaDouble(count=3)).gpu
    gpu.cudaSetDevice(2)
    with cuda.on_device(1):
        assert gpu.current == 1
        memory = DeviceMemory(8)
    assert gpu.current == 2
    assert open_device(0).target == "sm89"
    assert gpu.current == 2
    assert gpu.block_at(memory.address).device == 1
    stream, pinned = Stream(), PinnedMemory(8)
    with pytest.raises(Misuse, match=r"copy in mixes the GPUs \[1, 2\]"):
        stream.copy_in(memory, pinned, 8)
