"""Arrays handed over by DLPack, in the CPU's memory, to numpy and PyTorch: both take both versions of the protocol."""

import gc
import threading
import weakref

import numpy as np
import pytest

from mae_export.runtime import device_arrays
from mae_export.runtime.device_arrays import CPU, CUDA, DTYPES, DeviceArray, host_array

torch = pytest.importorskip("torch", reason="PyTorch is the other library that takes arrays")
VERSIONS = [None, (0, 8), (1, 0), (1, 3)]


class Owner:
    """Holds memory."""

    def __init__(self, values) -> None:
        self.values = values


def array_of(values, dtype=None):
    owner = Owner(np.ascontiguousarray(values))
    array = DeviceArray(
        address=owner.values.ctypes.data,
        shape=owner.values.shape,
        dtype=dtype or owner.values.dtype.name,
        device=(CPU, 0),
        owner=owner,
    )
    return array, weakref.ref(owner)


@pytest.fixture(autouse=True)
def nothing_is_held_in_the_end():
    yield
    gc.collect()
    assert device_arrays._held == {}


@pytest.mark.parametrize("dtype", [name for name in DTYPES if name != "bfloat16"])
@pytest.mark.parametrize("shape", [(3,), (2, 5), (2, 3, 4)])
def test_numpy_and_pytorch_see_the_numbers(dtype, shape):
    values = np.random.default_rng(0).integers(0, 2, shape).astype(dtype)
    array, _ = array_of(values)
    np.testing.assert_array_equal(np.from_dlpack(array), values, strict=True)
    taken = torch.from_dlpack(array)
    assert (str(taken.dtype), tuple(taken.shape)) == (f"torch.{dtype}", shape)
    assert taken.stride() == tuple(step // values.itemsize for step in values.strides)
    np.testing.assert_array_equal(taken.numpy(), values)


def test_bfloat16_is_what_pytorch_calls_so():
    given = torch.tensor([1.5, -2.0, 3.25], dtype=torch.bfloat16)
    array, _ = array_of(given.view(torch.int16).numpy(), "bfloat16")
    assert torch.equal(torch.from_dlpack(array), given)


def test_memory_is_shared():
    array, _ = array_of(np.zeros((2, 2), np.float32))
    taken = torch.from_dlpack(array)
    taken[1, 0] = 7
    assert np.from_dlpack(array)[1, 0] == 7


@pytest.mark.parametrize("version", VERSIONS)
def test_a_capsule_that_nobody_takes_frees_the_memory(version):
    array, alive = array_of(np.zeros(3))
    capsule = array.__dlpack__(max_version=version)
    assert ("dltensor_versioned" in repr(capsule)) == (version is not None and version[0] >= 1)
    del array
    assert alive() is not None
    del capsule
    assert alive() is None


@pytest.mark.parametrize("last", ["array", "first", "second"])
def test_whoever_holds_it_last_frees_the_memory(last):
    array, alive = array_of(np.zeros(3, np.float32))
    held = {"array": array, "first": torch.from_dlpack(array), "second": np.from_dlpack(array)}
    del array
    for name in [name for name in held if name != last]:
        del held[name]
    gc.collect()
    assert alive() is not None
    held.clear()
    gc.collect()
    assert alive() is None


def test_each_taker_releases_its_own_once(monkeypatch):
    released = []
    release = device_arrays._release
    deleter = device_arrays._DELETER(lambda address: (released.append(address), release(address))[0])
    monkeypatch.setattr(device_arrays, "_RELEASE", deleter)
    array, _ = array_of(np.zeros(3, np.float32))
    takers = [torch.from_dlpack(array), torch.from_dlpack(array), np.from_dlpack(array)]
    del takers
    gc.collect()
    assert len(released) == len(set(released)) == 3


def test_other_threads_may_let_go():
    array, alive = array_of(np.zeros(3, np.float32))
    held = [torch.from_dlpack(array) for _ in range(20)]
    del array
    threads = [threading.Thread(target=held.pop) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (held, alive()) == ([], None)


@pytest.mark.parametrize("stream", [None, -1, 1, 2, 12345])
def test_no_stream_has_to_wait(stream):
    """The numbers are there before anybody gets the array."""
    array, alive = array_of(np.arange(3.0))
    assert "dltensor" in repr(array.__dlpack__(stream=stream))
    del array
    assert alive() is None


def test_what_cannot_be_handed_over():
    array, _ = array_of(np.zeros(3))
    with pytest.raises(BufferError, match="let the library that takes it make the copy"):
        array.__dlpack__(copy=True)
    with pytest.raises(BufferError, match=r"the array is on device \(1, 0\), not on \(2, 0\)"):
        array.__dlpack__(dl_device=(CUDA, 0))
    assert array.__dlpack__(copy=False, dl_device=(CPU, 0)) is not None


def test_the_device_is_told_before_anything_is_taken():
    array, _ = array_of(np.zeros(3))
    assert array.__dlpack_device__() == (CPU, 0)
    there = DeviceArray(address=array.address, shape=(3,), dtype="float64", device=(CUDA, 1), owner=array.owner)
    assert there.__dlpack_device__() == (CUDA, 1)


def test_arrays_of_the_host():
    values = np.arange(12, dtype=np.float32).reshape(3, 4)
    array = host_array(values[:, ::2])
    assert (array.shape, array.row_bytes) == ((3, 2), 8)
    np.testing.assert_array_equal(np.from_dlpack(array), values[:, ::2])
