"""Memory of outputs that stay on the GPU: who waits for whom, who may write when, and who gives what back."""

import gc
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from mae_export.errors import MachineError, ResourceError
from mae_export.runtime.cuda import DeviceMemory, Stream, on_device
from mae_export.runtime.device_array import DeviceArray, DeviceType
from mae_export.runtime.device_outputs import IDLE, DeviceOutputs
from mae_export.runtime.dlpack import ExchangeError
from tests.runtime.cuda_double import CudaDouble, Misuse, Refused, cudaError_t
from tests.runtime.tensorrt_double import install, names

SIZE = 32


@pytest.fixture
def outputs(behaviour):
    found = DeviceOutputs(0)
    yield found
    gc.collect()
    found.close()


@pytest.fixture
def write(behaviour, outputs):
    """Make an output of eight numbers without waiting for the GPU; its source is overwritten by each."""
    stream, source = Stream(), DeviceMemory(SIZE)

    def make(value, *, taken=None):
        memory = outputs.take(SIZE) if taken is None else taken
        block = behaviour.gpu.block_at(source.address)
        values = np.full(8, value, np.float32).tobytes()
        behaviour.gpu.issue("compute", stream.handle, lambda: block.write(values), writes=[block])
        memory.fill(stream, source.address, SIZE)
        return DeviceArray(memory, (8,), "float32")

    yield make
    stream.synchronize()
    for each in (source, stream):
        each.close()


def consume(gpu, array, stream, handle=None):
    """As a library does: ask, then read on its stream; returns what it will have read."""
    capsule = array.__dlpack__(stream=stream)
    address = array._memory.address
    return capsule, gpu.read_on(handle or stream or 1, address, SIZE)


def numbers(found):
    return np.frombuffer(found[0], np.float32).tolist()


def test_the_device_is_the_gpu(write):
    array = write(1)
    assert array.device == "cuda:0"
    assert array.__dlpack_device__() == (DeviceType.CUDA, 0) == (2, 0)


@pytest.mark.parametrize("stream", [None, 1, 2])
def test_default_streams_wait_for_the_values(behaviour, write, stream):
    array = write(5)
    capsule, found = consume(behaviour.gpu, array, stream)
    assert found == []  # nothing was waited for by the host
    behaviour.gpu.cudaStreamSynchronize(stream or 1)
    assert numbers(found) == [5] * 8
    assert names(behaviour.gpu.done) == ["compute", "copy", "read"]
    del capsule


def test_a_stream_of_another_library_waits_for_the_values(behaviour, write):
    own = behaviour.gpu.cudaStreamCreateWithFlags(1)[1]
    array = write(5)
    _, found = consume(behaviour.gpu, array, int(own))
    behaviour.gpu.cudaStreamSynchronize(own)
    assert numbers(found) == [5] * 8
    behaviour.gpu.cudaStreamDestroy(own)


def test_who_wants_no_waiting_must_wait_alone(behaviour, write):
    array = write(5)
    with pytest.raises(Misuse, match="read races with copy"):
        consume(behaviour.gpu, array, -1, handle=1)
    array.__dlpack__(stream=-1)
    behaviour.gpu.cudaDeviceSynchronize()


@pytest.mark.parametrize("stream", [0, -2])
def test_numbers_that_are_no_stream(write, stream):
    with pytest.raises(ExchangeError, match=rf"the stream {stream} means nothing; expected None or 1 for the default"):
        write(1).__dlpack__(stream=stream)


def test_a_copy_for_the_host_waits_and_is_the_others(behaviour, write):
    array = write(3)
    found = np.from_dlpack(array, device="cpu")
    assert found.tolist() == [3] * 8
    found[:] = 1
    assert array.numpy().tolist() == [3] * 8
    with pytest.raises(ExchangeError, match=r"\(1, 0\) was asked for without a copy"):
        array.__dlpack__(dl_device=(1, 0), copy=False)
    with pytest.raises(ExchangeError, match="a copy in the host's memory has no stream 1"):
        array.__dlpack__(dl_device=(1, 0), stream=1)
    with pytest.raises(ExchangeError, match=r"on the device \(2, 0\) .*\(2, 1\) was asked for"):
        array.__dlpack__(dl_device=(2, 1))


def test_a_copy_on_the_gpu_has_memory_of_its_own(behaviour, outputs, write):
    array = write(3)
    before = len(behaviour.gpu.blocks)
    capsule = array.__dlpack__(copy=True)
    assert len(behaviour.gpu.blocks) == before + 1
    write(4, taken=array._memory)
    del capsule
    gc.collect()
    assert array.numpy().tolist() == [4] * 8
    assert outputs.take(SIZE).address != array._memory.address


# Using memory again


def test_memory_serves_again_when_nobody_has_it(behaviour, outputs, write):
    first, second = write(1), write(2)
    addresses = {first._memory.address, second._memory.address}
    assert len(addresses) == 2
    del first, second
    assert {write(number)._memory.address for number in range(5)} <= addresses


def test_a_capsule_holds_memory_as_an_array_does(behaviour, write):
    array = write(1)
    address = array._memory.address
    capsule = array.__dlpack__()
    del array
    assert write(2)._memory.address != address
    del capsule
    assert address in {each._memory.address for each in (write(3), write(4))}


def test_the_next_writer_waits_for_what_the_default_stream_reads(behaviour, write):
    """The library let go while its kernel is still to run; the memory is written again all the same, later."""
    array = write(1)
    capsule, found = consume(behaviour.gpu, array, None)
    address = array._memory.address
    del array, capsule
    again = write(2)
    assert again._memory.address == address
    assert found == []  # the host did not wait
    assert again.numpy().tolist() == [2] * 8
    assert numbers(found) == [1] * 8


@pytest.mark.parametrize("stream", [2, -1, "own"])
def test_the_next_writer_waits_for_the_gpu_where_other_streams_read(behaviour, write, stream):
    own = behaviour.gpu.cudaStreamCreateWithFlags(1)[1]
    array = write(1)
    if stream == -1:
        behaviour.gpu.cudaDeviceSynchronize()
    asked = int(own) if stream == "own" else stream
    capsule, found = consume(behaviour.gpu, array, asked, handle=int(own) if stream == -1 else asked)
    del array, capsule
    again = write(2)
    assert numbers(found) == [1] * 8
    assert again.numpy().tolist() == [2] * 8
    behaviour.gpu.cudaStreamDestroy(own)


def test_values_that_nobody_took_are_overwritten_in_order(behaviour, outputs, write):
    other = Stream()
    source = DeviceMemory(SIZE)
    array = write(1)
    del array  # while it is still being computed
    memory = outputs.take(SIZE)
    memory.fill(other, source.address, SIZE)
    other.synchronize()
    assert names(behaviour.gpu.done) == ["compute", "copy", "copy"]
    for each in (source, other):
        each.close()


def test_without_waiting_the_double_would_notice(behaviour, write):
    """The control: the same memory written by another stream that waits for nobody."""
    other, source, array = Stream(), DeviceMemory(SIZE), write(1)
    with pytest.raises(Misuse, match="copy races with copy"):
        other.copy_within(array._memory.address, source.address, SIZE)
    behaviour.gpu.cudaDeviceSynchronize()
    for each in (source, other):
        each.close()


def test_only_so_much_lies_idle(behaviour, outputs):
    kept = [outputs.take(SIZE) for _ in range(IDLE + 5)]
    before = len(behaviour.gpu.blocks)
    kept.clear()
    outputs.take(100 * SIZE)
    assert len(behaviour.gpu.blocks) == before - 5 + 1


def test_sizes_that_are_far_apart_share_nothing(outputs):
    large = outputs.take(100 * SIZE)
    address = large.address
    del large
    assert outputs.take(SIZE).address != address
    assert outputs.take(60 * SIZE).address == address


def test_idle_memory_makes_room(behaviour, outputs):
    outputs.take(SIZE)
    calls, malloc = [], behaviour.gpu.cudaMalloc

    def full_once(size):
        calls.append(size)
        if len(calls) == 1:
            raise Refused(cudaError_t.cudaErrorMemoryAllocation)
        return malloc(size)[1]

    behaviour.gpu.cudaMalloc = full_once
    memory = outputs.take(10 * SIZE)
    assert (calls, len(behaviour.gpu.blocks)) == ([10 * SIZE] * 2, 1)
    behaviour.gpu.cudaMalloc = malloc
    behaviour.gpu.refuse["cudaMalloc"] = cudaError_t.cudaErrorMemoryAllocation
    with pytest.raises(ResourceError, match="taking 640 bytes of GPU memory"):
        outputs.take(20 * SIZE)
    del memory


def test_threads_never_share_memory(behaviour, outputs):
    def work(seed):
        addresses = []
        for _ in range(30):
            held = [outputs.take(SIZE) for _ in range(3)]
            addresses.append(len({each.address for each in held}))
            taken.update(each.address for each in held)
            assert len(taken) >= 3
        return addresses

    taken = set()
    with ThreadPoolExecutor(4) as pool:
        assert {count for counts in pool.map(work, range(4)) for count in counts} == {3}
    assert len(behaviour.gpu.blocks) <= 12 + IDLE


def test_the_garbage_collector_may_come_while_memory_is_looked_for(behaviour, outputs, monkeypatch):
    """Arrays in cycles come back at any moment, even to a pool that is closed and being looked through."""
    outputs.close()
    ring = [outputs.take(SIZE)]
    ring.append(ring)
    del ring
    look = outputs._all_idle

    def collected():
        gc.collect()
        return look()

    monkeypatch.setattr(outputs, "_all_idle", collected)
    memory = outputs.take(SIZE)
    assert len(behaviour.gpu.blocks) == 1
    del memory


# Ending


def test_closing_leaves_what_somebody_has(behaviour, outputs, write):
    idle, array, other = write(1), write(2), write(3)
    del idle
    capsule = other.__dlpack__()
    del other
    outputs.close()
    assert array.numpy().tolist() == [2] * 8
    before = len(behaviour.gpu.blocks)
    del array
    assert len(behaviour.gpu.blocks) == before - 1
    del capsule
    assert len(behaviour.gpu.blocks) == before - 2


def test_a_copy_after_closing(outputs, write):
    array = write(2)
    outputs.close()
    assert DeviceArray(array._memory.copied(SIZE, None), (8,), "float32").numpy().tolist() == [2] * 8


def test_a_gpu_that_is_gone_disturbs_nobody(behaviour, outputs, write):
    array = write(2)
    outputs.close()
    behaviour.gpu.cudaDeviceSynchronize()
    behaviour.gpu.refuse["cudaDeviceSynchronize"] = cudaError_t.cudaErrorIllegalAddress
    del array
    behaviour.gpu.refuse.clear()
    for held in (behaviour.gpu.blocks, behaviour.gpu.events):  # lost with the GPU's state
        for key in list(held)[1:] if held is behaviour.gpu.blocks else list(held):
            del held[key]


def test_nobody_waits_for_a_gpu_while_a_stream_is_captured(behaviour, outputs):
    outputs.take(SIZE)
    stream = Stream()
    with pytest.raises(Misuse, match="while a stream of it is captured"):
        stream.capture(lambda: outputs.close())
    behaviour.gpu.graphs.clear()
    stream.close()
    behaviour.gpu.blocks.clear()
    behaviour.gpu.events.clear()


def test_everything_happens_on_its_own_gpu(monkeypatch):
    gpu = install(monkeypatch, gpu=CudaDouble(count=2)).gpu
    outputs = DeviceOutputs(1)
    with on_device(1):
        stream, source = Stream(), DeviceMemory(SIZE)
        memory = outputs.take(SIZE)
        memory.fill(stream, source.address, SIZE)
    array = DeviceArray(memory, (8,), "float32")
    assert array.device == "cuda:1"
    assert array.__dlpack_device__() == (2, 1)
    del memory
    capsule = array.__dlpack__(stream=1)
    assert array.numpy().shape == (8,)
    outputs.close()
    del array, capsule
    with on_device(1):
        for each in (source, stream):
            each.close()
    assert (gpu.current, gpu.leaks()) == (0, {})


def test_without_cuda_python_the_extras_are_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "cuda", None)
    with pytest.raises(MachineError, match=r"outputs that stay on the GPU, need cuda-python.*'mae-export\[gpu\]'"):
        DeviceOutputs(0).take(SIZE)
