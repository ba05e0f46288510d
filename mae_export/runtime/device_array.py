"""One output where it was computed, for libraries that take arrays by DLPack: PyTorch, CuPy, JAX, NumPy.

The memory is the array's own: no later run writes into it, and it stays for as long as this object or anything that was
made of it lives, whether the session is still open or not.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from enum import IntEnum
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from mae_export.errors import UsageError
from mae_export.runtime import dlpack
from mae_export.runtime.dlpack import CPU, CUDA, TYPES, ExchangeError, Exported

Array = npt.NDArray[Any]
Place = tuple[int, int]


class DeviceType(IntEnum):
    """DLPack's numbers of the devices that outputs lie on."""

    CPU = CPU
    CUDA = CUDA


class Memory(Protocol):
    """Memory that is kept while somebody refers to this object."""

    @property
    def address(self) -> int:
        """Where it begins."""
        ...

    @property
    def device(self) -> Place:
        """DLPack's device type and number."""
        ...

    @property
    def readonly(self) -> bool:
        """Whether nobody may write."""
        ...

    def let_wait(self, stream: int | None) -> None:
        """Let a stream of another library do no later work before the values are there."""
        ...

    def to_host(self, size: int) -> bytearray:
        """A copy of the first bytes, once they are there."""
        ...

    def copied(self, size: int, stream: int | None) -> Memory:
        """A copy of the first bytes in new memory of the same device."""
        ...


class HostMemory:
    """Memory of an array in C order.

    Args:
        array: the array.
    """

    def __init__(self, array: Array) -> None:
        self._array = array
        self.address = array.ctypes.data
        self.device = (CPU, 0)
        self.readonly = not array.flags.writeable

    def let_wait(self, stream: int | None) -> None:
        """Refuse anything but None, as the standard says of devices without streams."""
        if stream is not None:
            raise ExchangeError(f"the values are in the host's memory, which has no stream {stream}; expected None")

    def to_host(self, size: int) -> bytearray:
        """A copy of the first bytes."""
        return bytearray(self._array.reshape(-1).view(np.uint8)[:size])

    def copied(self, size: int, stream: int | None) -> Memory:
        """A copy of the first bytes."""
        self.let_wait(stream)
        return HostMemory(np.frombuffer(self.to_host(size), np.uint8))


class DeviceArray:
    """Values in C order on some device.

    Args:
        memory: of the values, and nobody else's.
        shape: extents.
        dtype: name of the type; `bfloat16` is one, though numpy does not know it.
    """

    def __init__(self, memory: Memory, shape: tuple[int, ...], dtype: str) -> None:
        self._memory = memory
        self._shape = shape
        self._dtype = dtype

    @property
    def shape(self) -> tuple[int, ...]:
        """Extents, batch first."""
        return self._shape

    @property
    def dtype(self) -> str:
        """Name of the type, such as `float16`."""
        return self._dtype

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return math.prod(self._shape) * TYPES[self._dtype][1] // 8

    @property
    def device(self) -> str:
        """`cpu`, or `cuda:N` with CUDA's number of the GPU."""
        kind, number = self._memory.device
        return "cpu" if kind == CPU else f"cuda:{number}"

    def numpy(self) -> Array:
        """A copy in the host's memory, once the values are there.

        Raises:
            UsageError: when numpy has no such type.
        """
        if self._dtype == "bfloat16":
            raise UsageError("numpy has no bfloat16; take the values by DLPack, such as torch.from_dlpack(array)")
        return np.frombuffer(self._memory.to_host(self.nbytes), self._dtype).reshape(self._shape)

    def __dlpack_device__(self) -> tuple[DeviceType, int]:
        kind, number = self._memory.device
        return DeviceType(kind), number

    def __dlpack__(
        self,
        *,
        stream: int | None = None,
        max_version: tuple[int, int] | None = None,
        dl_device: tuple[int, int] | None = None,
        copy: bool | None = None,
    ) -> Any:
        """A DLPack capsule, as the array API standard describes it; libraries call this.

        Args:
            stream: of the GPU, on which the other library will work, as a number: it waits until the values are
                there. None and 1 are the default stream, 2 the thread's; -1 lets nothing wait.
            max_version: the newest version of DLPack that the other library understands.
            dl_device: device type and number wanted: the array's own, or (1, 0) for a copy in the host's memory.
            copy: True for a copy, False for none.

        Raises:
            ExchangeError: a BufferError, when the values cannot be had so.
        """
        own = self._memory.device
        wanted = own if dl_device is None else (int(dl_device[0]), int(dl_device[1]))
        memory, copied = self._memory, bool(copy)
        if wanted != own:
            if wanted != (CPU, 0) or copy is False:
                raise ExchangeError(
                    f"the values are on the device {own} (type, number); {wanted} was asked for"
                    f"{' without a copy' if copy is False else ''}. Take them where they are, or as (1, 0) with a copy"
                )
            if stream is not None:
                raise ExchangeError(f"a copy in the host's memory has no stream {stream}; expected None")
            host: Array = np.frombuffer(memory.to_host(self.nbytes), np.uint8)
            memory, copied = HostMemory(host), True
        elif copy:
            memory = memory.copied(self.nbytes, stream)
        memory.let_wait(stream)
        values = Exported(
            address=memory.address,
            shape=self._shape,
            dtype=self._dtype,
            device=memory.device,
            owner=memory,
            readonly=memory.readonly,
            copied=copied,
        )
        return dlpack.make_capsule(values, max_version=max_version)

    def __repr__(self) -> str:
        return f"DeviceArray({self._dtype} {list(self._shape)} on {self.device})"


def on_host(arrays: Mapping[str, Array]) -> dict[str, DeviceArray]:
    """Arrays of the host, which share their memory, for sessions that compute there."""
    rows = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    return {name: DeviceArray(HostMemory(array), array.shape, array.dtype.name) for name, array in rows.items()}
