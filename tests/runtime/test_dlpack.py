"""Capsules as NumPy and PyTorch take them: what they find, and that memory is let go exactly once, in every order."""

import ctypes
import gc
import subprocess
import sys
import threading
import weakref

import numpy as np
import pytest
import torch

from mae_export.errors import UsageError
from mae_export.runtime import dlpack
from mae_export.runtime.dlpack import CPU, DLManagedTensor, DLManagedTensorVersioned, ExchangeError, Exported

NAMES = ctypes.pythonapi.PyCapsule_GetName
NAMES.restype, NAMES.argtypes = ctypes.c_char_p, [ctypes.py_object]
POINTER = ctypes.pythonapi.PyCapsule_GetPointer
POINTER.restype, POINTER.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
RENAME = ctypes.pythonapi.PyCapsule_SetName
RENAME.argtypes = [ctypes.py_object, ctypes.c_char_p]
DELETER = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


class Owner:
    """Keeps an array, and counts the times that it was let go."""

    def __init__(self, array):
        self.array = array


class Producer:
    """An object as libraries expect it; `owner` can be watched."""

    def __init__(self, array, dtype=None, *, readonly=False):
        self.array, self.dtype, self.readonly = array, dtype or array.dtype.name, readonly

    def exported(self):
        owner = Owner(self.array)
        self.owner = weakref.ref(owner)
        return Exported(
            address=self.array.ctypes.data,
            shape=self.array.shape,
            dtype=self.dtype,
            device=(CPU, 0),
            owner=owner,
            readonly=self.readonly,
        )

    def __dlpack_device__(self):
        return CPU, 0

    def __dlpack__(self, *, max_version=None, stream=None, dl_device=None, copy=None):
        return dlpack.make_capsule(self.exported(), max_version=max_version)


class Older(Producer):
    """Hands out the structure from before version 1, as to libraries that know no other."""

    def __dlpack__(self, **options):
        return dlpack.make_capsule(self.exported())


@pytest.fixture(autouse=True)
def nothing_left():
    gc.collect()
    before = dlpack.exports()
    yield
    gc.collect()
    assert dlpack.exports() == before


TAKERS = {"numpy": np.from_dlpack, "torch": torch.from_dlpack}


@pytest.mark.parametrize("kind", [Producer, Older])
@pytest.mark.parametrize("taker", TAKERS)
@pytest.mark.parametrize(
    "dtype",
    ["float16", "float32", "float64", "int8", "int16", "int32", "int64", "uint8", "bool"],
)
def test_values_types_and_strides_arrive_without_a_copy(taker, dtype, kind):
    array = np.arange(24).reshape(2, 3, 4).astype(dtype)
    taken = TAKERS[taker](kind(array))
    assert str(taken.dtype).removeprefix("torch.") == dtype
    steps = taken.stride() if taker == "torch" else tuple(step // array.itemsize for step in taken.strides)
    assert (tuple(taken.shape), steps) == ((2, 3, 4), (12, 4, 1))
    np.testing.assert_array_equal(np.asarray(taken), array)
    array[1, 2, 3] = 0
    assert taken[1, 2, 3] == 0


def test_bfloat16_arrives_in_pytorch():
    bits = np.array([0x3F80, 0xC000, 0x3F00], np.uint16)  # 1, -2 and 0.5
    taken = torch.from_dlpack(Producer(bits, "bfloat16"))
    assert taken.dtype == torch.bfloat16
    assert taken.tolist() == [1, -2, 0.5]


@pytest.mark.parametrize("shape", [(), (0, 3), (1, 1), (5,)])
def test_shapes_at_the_edge(shape):
    array = np.ones(shape, np.float32)
    for take in TAKERS.values():
        taken = take(Producer(array))
        assert tuple(taken.shape) == shape
        np.testing.assert_array_equal(np.asarray(taken), array)


@pytest.mark.parametrize(
    ("version", "name", "structure"),
    [
        (None, b"dltensor", DLManagedTensor),
        ((0, 8), b"dltensor", DLManagedTensor),
        ((1, 0), b"dltensor_versioned", DLManagedTensorVersioned),
        ((1, 3), b"dltensor_versioned", DLManagedTensorVersioned),
        ((2, 0), b"dltensor_versioned", DLManagedTensorVersioned),
    ],
)
def test_the_structure_is_the_newest_that_the_other_side_knows(version, name, structure):
    array = np.zeros((2, 5), np.float16)
    capsule = dlpack.make_capsule(Producer(array).exported(), max_version=version)
    assert NAMES(capsule) == name
    found = structure.from_address(POINTER(capsule, name))
    tensor = found.dl_tensor
    assert (tensor.data, tensor.ndim, tensor.byte_offset) == (array.ctypes.data, 2, 0)
    assert (tensor.code, tensor.bits, tensor.lanes) == (2, 16, 1)
    assert (tensor.shape[:2], tensor.strides[:2]) == ([2, 5], [5, 1])
    if structure is DLManagedTensorVersioned:
        assert (found.major, found.minor, found.flags) == (1, 0, 0)


def test_the_structures_have_the_sizes_that_a_compiler_gives_them():
    """On 64 bits: DLTensor 48, with an 8-byte type and device each; 64 and 80 for what manages it."""
    sizes = [ctypes.sizeof(kind) for kind in (dlpack.DLTensor, DLManagedTensor, DLManagedTensorVersioned)]
    assert sizes == [48, 64, 80]
    assert (dlpack.DLTensor.shape.offset, DLManagedTensorVersioned.dl_tensor.offset) == (24, 32)


# Who lets go when


def test_a_capsule_that_nobody_takes_lets_go():
    for version in (None, (1, 0)):
        producer = Producer(np.zeros(3))
        capsule = producer.__dlpack__(max_version=version)
        gc.collect()
        assert producer.owner() is not None
        del capsule
        assert producer.owner() is None


@pytest.mark.parametrize("kind", [Producer, Older])
@pytest.mark.parametrize("taker", TAKERS)
def test_what_was_taken_keeps_the_memory(taker, kind):
    producer = kind(np.arange(3.0))
    taken = TAKERS[taker](producer)
    part = taken[1:]
    owner = producer.owner
    del producer, taken
    gc.collect()
    assert owner() is not None
    assert part.tolist() == [1, 2]
    del part
    gc.collect()
    assert owner() is None


@pytest.mark.parametrize("capsule_first", [True, False])
@pytest.mark.parametrize("version", [None, (1, 0)])
def test_the_deleter_is_called_once_whether_it_or_the_used_capsule_goes_first(version, capsule_first):
    """A library that takes a capsule renames it, and calls the deleter whenever it likes."""
    producer = Producer(np.zeros(3))
    capsule = producer.__dlpack__(max_version=version)
    name = NAMES(capsule)
    structure = DLManagedTensor if version is None else DLManagedTensorVersioned
    address = POINTER(capsule, name)
    delete = DELETER(structure.from_address(address).deleter)
    used = b"used_" + name
    RENAME(capsule, used)
    if capsule_first:
        del capsule
        assert producer.owner() is not None
    delete(address)
    assert producer.owner() is None
    if not capsule_first:
        other = Producer(np.zeros(3))
        again = other.__dlpack__(max_version=version)  # may get the memory of the structure that went
        del capsule
        assert other.owner() is not None
        del again


def test_several_capsules_of_one_array_are_counted_each():
    array = np.arange(4.0)
    producers = [Producer(array) for _ in range(3)]
    taken = [
        take(producer)
        for take, producer in zip((np.from_dlpack, torch.from_dlpack, np.from_dlpack), producers, strict=True)
    ]
    for number, producer in enumerate(producers):
        taken[number] = None
        gc.collect()
        assert [each.owner() is None for each in producers[: number + 1]] == [True] * (number + 1)
        assert all(each.owner() is not None for each in producers[number + 1 :])
        del producer


def test_memory_is_let_go_from_another_thread():
    producer = Producer(np.zeros(3))
    held = [torch.from_dlpack(producer)]
    thread = threading.Thread(target=held.clear)
    thread.start()
    thread.join()
    gc.collect()
    assert producer.owner() is None


def test_a_capsule_may_go_while_an_error_is_on_its_way():
    producer = Producer(np.zeros(3))

    def fail():
        capsule = producer.__dlpack__()
        raise ValueError(str(capsule))

    with pytest.raises(ValueError, match="capsule object"):
        fail()
    gc.collect()
    assert producer.owner() is None


def test_a_cycle_is_collected():
    producer = Producer(np.zeros(3))
    ring = [producer.__dlpack__()]
    ring.append(ring)
    del ring
    gc.collect()
    assert producer.owner() is None


def test_what_lives_until_the_program_ends_does_no_harm():
    script = (
        "import numpy, torch\n"
        "from mae_export.runtime.device_array import on_host\n"
        "array = on_host({'a': numpy.ones(3, numpy.float32)})['a']\n"
        "kept, tensor, view = array.__dlpack__(), torch.from_dlpack(array), numpy.from_dlpack(array)\n"
        "print(float(tensor.sum() + view.sum()))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stdout, done.stderr) == (0, "6.0\n", "")


# What cannot be said


def test_read_only_memory_is_marked_or_refused():
    producer = Producer(np.arange(3.0), readonly=True)
    assert not np.from_dlpack(producer).flags.writeable
    assert np.from_dlpack(Producer(np.arange(3.0))).flags.writeable
    with pytest.raises(ExchangeError, match=r"read-only memory cannot be told apart before DLPack 1\.0.*copy it"):
        producer.__dlpack__()
    with pytest.raises(BufferError, match=r"asks for \(0, 8\)"):
        producer.__dlpack__(max_version=(0, 8))


def test_types_that_dlpack_lacks():
    with pytest.raises(UsageError, match=r"DLPack has no type complex64; it has int8, .*bfloat16"):
        Producer(np.zeros(3, np.complex64)).__dlpack__()
