"""Outputs where they lie: the same object for the host's memory and a GPU's, as other libraries ask for it."""

import gc
import weakref

import numpy as np
import pytest
import torch

from mae_export.errors import UsageError
from mae_export.runtime.device_array import DeviceArray, DeviceType, HostMemory, on_host
from mae_export.runtime.dlpack import ExchangeError
from mae_export.runtime.fake import FakeSession
from tests.runtime.tensorrt_double import feeds


@pytest.fixture
def array():
    return on_host({"pooled": np.arange(6, dtype=np.float32).reshape(2, 3)})["pooled"]


def test_it_describes_itself(array):
    assert (array.shape, array.dtype, array.nbytes, array.device) == ((2, 3), "float32", 24, "cpu")
    assert repr(array) == "DeviceArray(float32 [2, 3] on cpu)"
    assert array.__dlpack_device__() == (1, 0)
    assert array.__dlpack_device__()[0] is DeviceType.CPU


def test_sessions_on_the_cpu_share_the_hosts_memory(make_manifest):
    session = FakeSession(make_manifest())
    fed, wanted = feeds(), session.run(feeds())
    found = session.run_on_device(fed)
    session.close()
    for name, array in found.items():
        np.testing.assert_array_equal(array.numpy(), wanted[name])
        shared, tensor = np.from_dlpack(array), torch.from_dlpack(array)
        np.testing.assert_array_equal(shared, wanted[name])
        shared[:] = 7
        assert (tensor == 7).all()
        assert not (array.numpy() != 7).any()


def test_only_the_outputs_wanted_come(make_manifest):
    with FakeSession(make_manifest()) as session:
        assert list(session.run_on_device(feeds(), ["pooled"])) == ["pooled"]


def test_arrays_with_gaps_become_whole():
    values = np.arange(24, dtype=np.int32).reshape(4, 6)[::2, ::3]
    np.testing.assert_array_equal(np.from_dlpack(on_host({"a": values})["a"]), values)


def test_a_view_outlives_the_array():
    array = on_host({"pooled": np.arange(6, dtype=np.float32).reshape(2, 3)})["pooled"]
    watched, view = weakref.ref(array), torch.from_dlpack(array)
    del array
    gc.collect()
    assert watched() is None
    assert view.tolist() == [[0, 1, 2], [3, 4, 5]]


def test_the_hosts_memory_has_no_streams(array):
    for stream in (-1, 0, 1, 2, 1234):
        with pytest.raises(ExchangeError, match=f"in the host's memory, which has no stream {stream}; expected None"):
            array.__dlpack__(stream=stream)
    assert np.from_dlpack(array).shape == (2, 3)


def test_copies_are_made_when_asked_for(array):
    shared, copy = np.from_dlpack(array, copy=False), np.from_dlpack(array, copy=True)
    shared[:] = 9
    assert copy.tolist() == [[0, 1, 2], [3, 4, 5]]
    assert np.from_dlpack(array, device="cpu")[0, 0] == 9
    assert torch.from_dlpack(array, copy=True).data_ptr() != torch.from_dlpack(array).data_ptr()
    alone = array.numpy()
    alone[:] = 1
    assert shared[0, 0] == 9


def test_another_device_is_refused(array):
    with pytest.raises(
        BufferError, match=r"on the device \(1, 0\) \(type, number\); \(2, 0\) was asked for\. Take them"
    ):
        array.__dlpack__(dl_device=(2, 0))


def test_read_only_values_stay_so():
    values = np.arange(3, dtype=np.float32)
    values.flags.writeable = False
    taken = np.from_dlpack(on_host({"a": values})["a"])
    assert not taken.flags.writeable
    assert np.from_dlpack(on_host({"a": values})["a"], copy=True).flags.writeable


def test_a_type_that_numpy_lacks():
    array = DeviceArray(HostMemory(np.array([0x3F80], np.uint16)), (1,), "bfloat16")
    assert array.nbytes == 2
    assert torch.from_dlpack(array).item() == 1
    with pytest.raises(UsageError, match="numpy has no bfloat16; take the values by DLPack"):
        array.numpy()
