"""Outputs that stay in the memory of a GPU, handed to other libraries by DLPack: no copy, and neither needs the other.

The structures are those of dlpack.h (https://dmlc.github.io/dlpack/latest/c_api.html), the protocol that of the array
API standard (https://data-apis.org/array-api/latest/API_specification/generated/array_api.array.__dlpack__.html). The
memory is given back when neither the array nor any library that took it holds it any longer, whatever became of the
session. Work on it is done before anybody gets it, so no stream of a consumer has to wait.
"""

from __future__ import annotations

import ctypes
import math
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

CPU, CUDA = 1, 2  # kDLCPU and kDLCUDA
VERSION = (1, 0)  # of the structures below; later minor versions add flags only
# kind and bits of each type; kinds are integer 0, unsigned 1, float 2, bfloat 4 and bool 6
DTYPES = {
    "float64": (2, 64),
    "float32": (2, 32),
    "float16": (2, 16),
    "bfloat16": (4, 16),
    "int64": (0, 64),
    "int32": (0, 32),
    "int8": (0, 8),
    "uint8": (1, 8),
    "bool": (6, 8),
}


@dataclass(frozen=True, kw_only=True, eq=False)
class DeviceArray:
    """A dense array in the memory of a device.

    Attributes:
        address: of its first number.
        shape: extents; the last axis is contiguous.
        dtype: one of `DTYPES`.
        device: kind and number, such as (2, 0) for the first GPU.
        owner: holds the memory, and gives it back when nothing holds the owner.
    """

    address: int
    shape: tuple[int, ...]
    dtype: str
    device: tuple[int, int]
    owner: object = field(repr=False)

    @property
    def row_bytes(self) -> int:
        """From one row to the next."""
        return math.prod(self.shape[1:]) * DTYPES[self.dtype][1] // 8

    def __dlpack_device__(self) -> tuple[int, int]:
        """Kind and number of the device."""
        return self.device

    def __dlpack__(
        self,
        *,
        stream: Any = None,
        max_version: tuple[int, int] | None = None,
        dl_device: tuple[Any, int] | None = None,
        copy: bool | None = None,
    ) -> Any:
        """A capsule that owns the memory together with this array.

        Args:
            stream: of the consumer; whatever it is, the numbers are there already.
            max_version: of DLPack that the consumer reads; None, as older ones call, for what came before 1.0.
            dl_device: where the consumer wants it; only where it is.
            copy: True to ask for a copy, which is the consumer's to make.

        Raises:
            BufferError: when a copy, or another device, is asked for.
        """
        del stream
        if copy:
            raise BufferError("the array is handed over as it is; let the library that takes it make the copy")
        if dl_device is not None and (int(dl_device[0]), int(dl_device[1])) != self.device:
            raise BufferError(f"the array is on device {self.device}, not on {dl_device}; move it with the library")
        versioned = max_version is not None and max_version[0] >= VERSION[0]
        return _capsule(self, _Versioned if versioned else _Managed)


class _Device(ctypes.Structure):
    _fields_ = [("kind", ctypes.c_int32), ("number", ctypes.c_int32)]


class _DataType(ctypes.Structure):
    _fields_ = [("kind", ctypes.c_uint8), ("bits", ctypes.c_uint8), ("lanes", ctypes.c_uint16)]


class _Tensor(ctypes.Structure):
    _fields_ = [
        ("data", ctypes.c_void_p),
        ("device", _Device),
        ("ndim", ctypes.c_int32),
        ("dtype", _DataType),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    ]


_DELETER = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


class _Managed(ctypes.Structure):
    """DLManagedTensor."""

    NAME: ClassVar[bytes] = b"dltensor"
    _fields_ = [("tensor", _Tensor), ("context", ctypes.c_void_p), ("deleter", _DELETER)]


class _Versioned(ctypes.Structure):
    """DLManagedTensorVersioned."""

    NAME: ClassVar[bytes] = b"dltensor_versioned"
    _fields_ = [
        ("major", ctypes.c_uint32),
        ("minor", ctypes.c_uint32),
        ("context", ctypes.c_void_p),
        ("deleter", _DELETER),
        ("flags", ctypes.c_uint64),
        ("tensor", _Tensor),
    ]


# What consumers hold, by the address of its description: that, its extents, and the owner of the memory.
_held: dict[int, tuple[object, ...]] = {}


def _release(address: int | None) -> None:
    """Called once by whoever took a description, from any thread."""
    _held.pop(address or 0, None)


_RELEASE = _DELETER(_release)


def _capsule(array: DeviceArray, kind: type[_Managed] | type[_Versioned]) -> Any:
    described, rank = kind(), len(array.shape)
    extents = (ctypes.c_int64 * rank)(*array.shape)
    steps = (ctypes.c_int64 * rank)(*(math.prod(array.shape[axis + 1 :]) for axis in range(rank)))
    code, bits = DTYPES[array.dtype]
    described.tensor = _Tensor(
        data=array.address,
        device=_Device(*array.device),
        ndim=rank,
        dtype=_DataType(kind=code, bits=bits, lanes=1),
        shape=ctypes.cast(extents, ctypes.POINTER(ctypes.c_int64)),
        strides=ctypes.cast(steps, ctypes.POINTER(ctypes.c_int64)),
    )
    described.deleter = _RELEASE
    if isinstance(described, _Versioned):
        described.major, described.minor = VERSION
    address = ctypes.addressof(described)
    _held[address] = (described, extents, steps, array.owner)
    return _new_capsule(address, kind.NAME, _DROP_UNUSED)


_new_capsule = ctypes.pythonapi.PyCapsule_New
_new_capsule.restype = ctypes.py_object
_new_capsule.argtypes = [ctypes.c_void_p, ctypes.c_char_p, _DELETER]
# Of a capsule that is being destroyed, which must not become an object of Python again: by address.
_is_valid = ctypes.pythonapi.PyCapsule_IsValid
_is_valid.restype = ctypes.c_int
_is_valid.argtypes = [ctypes.c_void_p, ctypes.c_char_p]
_pointer = ctypes.pythonapi.PyCapsule_GetPointer
_pointer.restype = ctypes.c_void_p
_pointer.argtypes = [ctypes.c_void_p, ctypes.c_char_p]


def _drop_unused(capsule: int | None) -> None:
    """Release what nobody took: a consumer renames the capsule, and releases the description itself."""
    for kind in (_Managed, _Versioned):
        if _is_valid(capsule, kind.NAME):
            _release(_pointer(capsule, kind.NAME))


_DROP_UNUSED = _DELETER(_drop_unused)


def host_array(values: np.ndarray[Any, Any]) -> DeviceArray:
    """An array of the CPU's memory as one of a device, for sessions that run there."""
    dense = np.ascontiguousarray(values)
    return DeviceArray(
        address=dense.ctypes.data, shape=dense.shape, dtype=dense.dtype.name, device=(CPU, 0), owner=dense
    )
