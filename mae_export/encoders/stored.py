"""A tensor that a file describes but that nobody has read yet: where its bytes lie, and whether they may be trusted.

Reading is mapping: the bytes stay in the file until a computation touches them, so that tensors nobody uses, such as
an optimiser's, cost nothing. The file must not be truncated while its tensors are in use.
"""

from __future__ import annotations

import math
import mmap
from dataclasses import dataclass

import torch

from mae_export.errors import CheckpointError

MAX_RANK = 8  # a video patch embedding has 5 dimensions

READABLE = frozenset(
    getattr(torch, name)
    for name in (
        *("float64", "float32", "float16", "bfloat16", "bool"),
        *("int64", "int32", "int16", "int8", "uint64", "uint32", "uint16", "uint8"),
    )
)


@dataclass(frozen=True, kw_only=True, eq=False)
class StoredTensor:
    """One tensor of a file.

    Attributes:
        data: the whole file, mapped.
        dtype: of one element.
        start: first byte of the storage in the file.
        nbytes: bytes of the storage, which tensors may share.
        offset: first element of the tensor, counted from the storage's start.
        shape: elements along each dimension.
        stride: elements to step along each dimension.
        unreadable: why this tensor cannot be used, such as "sparse"; empty when it can.
    """

    data: mmap.mmap
    dtype: torch.dtype
    start: int = 0
    nbytes: int = 0
    offset: int = 0
    shape: tuple[int, ...] = ()
    stride: tuple[int, ...] = ()
    unreadable: str = ""

    @property
    def size(self) -> int:
        """Bytes of the tensor's elements."""
        return math.prod(self.shape) * self.dtype.itemsize

    def load(self, name: str) -> torch.Tensor:
        """The tensor, mapped where its bytes are aligned and copied where they are not.

        Args:
            name: of the tensor, for messages.

        Raises:
            CheckpointError: when the kind is unsupported or the elements lie outside the storage.
        """
        if self.unreadable or self.dtype not in READABLE:
            kind = self.unreadable or str(self.dtype).removeprefix("torch.")
            raise CheckpointError(
                f"tensor {name!r} is {kind}; expected a dense tensor of floats, integers or booleans. "
                "Convert it before saving"
            )
        itemsize = self.dtype.itemsize
        last = self.offset + sum((extent - 1) * step for extent, step in zip(self.shape, self.stride, strict=True))
        inside = (last + 1) * itemsize <= self.nbytes and self.size <= self.nbytes and self.nbytes % itemsize == 0
        sane = len(self.shape) <= MAX_RANK and math.prod(extent or 1 for extent in self.shape) < 2**60
        if not sane or (self.size and not inside):
            raise CheckpointError(
                f"tensor {name!r} of shape {list(self.shape)[: MAX_RANK + 1]} and {itemsize} bytes per element does "
                f"not fit its storage of {self.nbytes} bytes; the file is damaged, get it again"
            )
        if not self.size:
            return torch.empty(self.shape, dtype=self.dtype)
        stored = torch.frombuffer(self.data, dtype=torch.uint8, count=self.nbytes, offset=self.start)
        if self.start % itemsize:
            stored = stored.clone()  # an unaligned address may not be viewed as a wider type
        return stored.view(self.dtype).as_strided(self.shape, self.stride, self.offset)
