"""Descriptions of tensors: what lies inside its storage is read, everything else is refused."""

from __future__ import annotations

import mmap
import struct
import tempfile

import pytest
import torch

from mae_export.encoders.stored import StoredTensor
from mae_export.errors import CheckpointError

VALUES = [float(value) for value in range(12)]


def mapped(content: bytes) -> mmap.mmap:
    with tempfile.TemporaryFile() as file:
        file.write(content)
        file.flush()
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)


def stored(start: int = 0, **changes: object) -> StoredTensor:
    fields: dict[str, object] = {
        "data": mapped(bytes(start) + struct.pack("<12f", *VALUES)),
        "dtype": torch.float32,
        "start": start,
        "nbytes": 48,
        "shape": (3, 4),
        "stride": (4, 1),
    }
    return StoredTensor(**(fields | changes))  # type: ignore[arg-type]


@pytest.mark.parametrize("start", [0, 1, 2, 4, 7, 64])
def test_aligned_and_unaligned_bytes_read_alike(start: int) -> None:
    tensor = stored(start).load("w")
    assert torch.equal(tensor, torch.tensor(VALUES).reshape(3, 4))
    assert tensor.data_ptr() % 4 == 0


def test_offset_and_stride() -> None:
    assert stored(offset=1, shape=(2, 2), stride=(4, 2)).load("w").tolist() == [[1.0, 3.0], [5.0, 7.0]]


def test_a_mapped_tensor_outlives_its_description() -> None:
    tensor = stored().load("w")
    assert tensor.sum() == sum(VALUES)


@pytest.mark.parametrize("shape", [(0,), (0, 8), (3, 0, 2)])
def test_empty_tensors_keep_their_shape(shape: tuple[int, ...]) -> None:
    tensor = stored(shape=shape, stride=(1,) * len(shape), nbytes=0).load("w")
    assert (tuple(tensor.shape), tensor.dtype) == (shape, torch.float32)


@pytest.mark.parametrize(
    "changes",
    [
        {"offset": 1},
        {"shape": (4, 4)},
        {"stride": (5, 1)},
        {"stride": (4, 2)},
        {"shape": (2**40, 1), "stride": (0, 0)},  # every element the same: tiny file, huge tensor
        {"shape": (2**62, 4), "stride": (4, 1)},
        {"shape": (0, 2**62), "stride": (1, 1)},
        {"nbytes": 47},
        {"shape": (1,) * 9, "stride": (1,) * 9},
    ],
)
def test_elements_outside_the_storage_are_refused(changes: dict[str, object]) -> None:
    with pytest.raises(CheckpointError, match=r"'w'.*does not fit its storage"):
        stored(**changes).load("w")  # type: ignore[arg-type]


def test_unreadable_kinds_are_named() -> None:
    with pytest.raises(CheckpointError, match="tensor 'w' is sparse; expected a dense tensor"):
        stored(unreadable="sparse").load("w")
    with pytest.raises(CheckpointError, match="tensor 'w' is complex64"):
        stored(dtype=torch.complex64).load("w")


def test_size_in_bytes() -> None:
    assert stored().size == 48
    assert stored(dtype=torch.float64, shape=()).size == 8
