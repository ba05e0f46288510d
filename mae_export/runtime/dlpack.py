"""Memory handed to other libraries as DLPack capsules, without copying it and without importing any of them.

The structures are those of `dlpack.h` 1.x (https://github.com/dmlc/dlpack, `include/dlpack/dlpack.h`), the rules those
of `array.__dlpack__` in the array API standard (https://data-apis.org/array-api/latest/API_specification). A capsule is
named `dltensor` until a library takes it, which renames it and calls the deleter when it is done; a capsule that nobody
takes calls the deleter itself. Until then the owner of the memory is kept alive here. All of it is Python, so deleters
may come from any thread and from the garbage collector.
"""

from __future__ import annotations

import ctypes
import math
from dataclasses import dataclass
from typing import Any

from mae_export.errors import UsageError

CPU, CUDA = 1, 2  # DLDeviceType
VERSION = (1, 0)  # of the versioned structure, whose beginning every 1.x shares
READ_ONLY, IS_COPIED = 1, 2  # DLPACK_FLAG_BITMASK_*
# DLDataTypeCode and bits
TYPES: dict[str, tuple[int, int]] = {
    **{f"int{bits}": (0, bits) for bits in (8, 16, 32, 64)},
    **{f"uint{bits}": (1, bits) for bits in (8, 16, 32, 64)},
    **{f"float{bits}": (2, bits) for bits in (16, 32, 64)},
    "bfloat16": (4, 16),
    "bool": (6, 8),
}
NAME, NAME_VERSIONED = b"dltensor", b"dltensor_versioned"


class ExchangeError(UsageError, BufferError):
    """Another library asks for memory in a way that it cannot be had; the standard wants a BufferError."""


class DLTensor(ctypes.Structure):
    """Where values lie and how to read them; strides count elements."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


class DLManagedTensor(ctypes.Structure):
    """The structure before version 1."""

    _fields_ = (("dl_tensor", DLTensor), ("manager_ctx", ctypes.c_void_p), ("deleter", ctypes.c_void_p))


class DLManagedTensorVersioned(ctypes.Structure):
    """The structure since version 1."""

    _fields_ = (
        ("major", ctypes.c_uint32),
        ("minor", ctypes.c_uint32),
        ("manager_ctx", ctypes.c_void_p),
        ("deleter", ctypes.c_void_p),
        ("flags", ctypes.c_uint64),
        ("dl_tensor", DLTensor),
    )


@dataclass(frozen=True, kw_only=True)
class Exported:
    """Values in memory, in C order.

    Attributes:
        address: of the first value.
        shape: extents.
        dtype: one of `TYPES`.
        device: DLPack's device type and number.
        owner: keeps the memory as long as it is referred to.
        readonly: whether nobody may write.
        copied: whether the memory was made for whoever asks.
    """

    address: int
    shape: tuple[int, ...]
    dtype: str
    device: tuple[int, int]
    owner: object
    readonly: bool = False
    copied: bool = False


def make_capsule(values: Exported, *, max_version: tuple[int, int] | None = None) -> Any:
    """A capsule with a structure of version 1 for those who know it, else with the older one.

    Args:
        values: what to hand out.
        max_version: the newest that the other library understands; None for before 1.

    Raises:
        ExchangeError: when DLPack has no such type, or the older structure cannot say that memory is read-only.
    """
    if values.dtype not in TYPES:
        raise ExchangeError(f"DLPack has no type {values.dtype}; it has {', '.join(TYPES)}")
    versioned = max_version is not None and max_version[0] >= VERSION[0]
    if values.readonly and not versioned:
        raise ExchangeError(
            "read-only memory cannot be told apart before DLPack 1.0, and the other library asks for "
            f"{max_version or 'an older version'}; copy it, or use a newer release of that library"
        )
    tensor, buffers = _describe(values)
    managed: DLManagedTensor | DLManagedTensorVersioned
    if versioned:
        flags = READ_ONLY * values.readonly | IS_COPIED * values.copied
        managed = DLManagedTensorVersioned(VERSION[0], VERSION[1], None, _DELETER, flags, tensor)
    else:
        managed = DLManagedTensor(tensor, None, _DELETER)
    address = ctypes.addressof(managed)
    _held[address] = (managed, buffers, values.owner)
    return _new_capsule(address, NAME_VERSIONED if versioned else NAME, _DESTRUCTOR)


def exports() -> int:
    """How many capsules, or what was made of them, are not done with."""
    return len(_held)


def _describe(values: Exported) -> tuple[DLTensor, object]:
    """The tensor, and what it points to."""
    rank = len(values.shape)
    shape = (ctypes.c_int64 * rank)(*values.shape)
    strides = (ctypes.c_int64 * rank)(*(math.prod(values.shape[axis + 1 :]) for axis in range(rank)))
    code, bits = TYPES[values.dtype]
    data = values.address if math.prod(values.shape) else None
    pointer = ctypes.POINTER(ctypes.c_int64)
    extents = (ctypes.cast(shape, pointer), ctypes.cast(strides, pointer))
    return DLTensor(data, *values.device, rank, code, bits, 1, *extents, 0), (shape, strides)


# What is handed out, by the address of its structure.
_held: dict[int, tuple[object, object, object]] = {}


def _delete(address: int, held: dict[int, tuple[object, object, object]] = _held) -> None:
    held.pop(address, None)


def _destroy(capsule: int) -> None:
    """A capsule goes away: what nobody took is deleted; what somebody took has another name."""
    for name in (NAME, NAME_VERSIONED):
        if _is_valid(capsule, name):
            _delete(_pointer_of(capsule, name))


# The capsule is passed as a number: while it is being destroyed nothing may refer to it again.
_is_valid = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_char_p)(("PyCapsule_IsValid", ctypes.pythonapi))
_pointer_of = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p, ctypes.c_char_p)(
    ("PyCapsule_GetPointer", ctypes.pythonapi)
)
_new_capsule = ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)(
    ("PyCapsule_New", ctypes.pythonapi)
)
# Kept for ever: C code may call them at any time.
_delete_function = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(_delete)
_destroy_function = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(_destroy)
_DELETER = ctypes.cast(_delete_function, ctypes.c_void_p).value
_DESTRUCTOR = ctypes.cast(_destroy_function, ctypes.c_void_p).value
