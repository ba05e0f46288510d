"""safetensors files: a JSON header that says where each tensor's bytes lie, checked more strictly than usual.

The header must start with `{`, name each tensor once, and cover the data exactly: no overlap, no hole, nothing left
over. Files that break these rules are damaged or made to mean different things to different readers.
"""

from __future__ import annotations

import json
import math
import mmap
from collections import Counter
from pathlib import Path
from typing import Any

import torch

from mae_export.encoders.stored import MAX_RANK, StoredTensor
from mae_export.errors import CheckpointError, SecurityError

MAX_HEADER = 16 * 2**20  # bytes; a thousand tensors take about 100 kB
MAX_TENSORS = 100_000
_DTYPES = {
    **{"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16},
    **{"I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8},
    **{"U64": torch.uint64, "U32": torch.uint32, "U16": torch.uint16, "U8": torch.uint8, "BOOL": torch.bool},
}


def read_safetensors(data: mmap.mmap, path: Path) -> dict[str, Any]:
    """Describe a safetensors file.

    Args:
        data: the file, mapped.
        path: the same, for messages.

    Returns:
        A StoredTensor by name, and the header's own text under `__metadata__` when it has any.

    Raises:
        CheckpointError: when it is damaged or breaks the format's rules.
        SecurityError: when it is absurdly large for what it is.
    """
    header, start = _header(data, path)
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or any(type(text) is not str for text in metadata.values()):
        raise CheckpointError(f"{path}: __metadata__ is no table of texts; write the file again")
    if len(header) > MAX_TENSORS:
        raise SecurityError(f"{path} names {len(header)} tensors; expected at most {MAX_TENSORS}")
    tensors = {name: _tensor(name, entry, data, start, path) for name, entry in header.items()}
    _require_cover(tensors, start, len(data), path)
    return {**tensors, "__metadata__": metadata} if metadata else dict(tensors)


def _header(data: mmap.mmap, path: Path) -> tuple[dict[str, Any], int]:
    """The parsed header and the first byte behind it."""
    length = int.from_bytes(data[:8], "little")
    if len(data) < 10 or length > len(data) - 8:
        raise CheckpointError(
            f"{path} states a header of {length} bytes in a file of {len(data)}; it is truncated or no safetensors file"
        )
    if length > MAX_HEADER:
        raise SecurityError(f"{path} has a header of {length} bytes; expected at most {MAX_HEADER}")
    text = data[8 : 8 + length]
    if not text.startswith(b"{"):
        raise CheckpointError(
            f"{path}: its header starts with {text[:1]!r}; the safetensors format demands '{{'. Write the file again "
            "with the safetensors library"
        )
    try:
        header = json.loads(text, object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} has a header that is not valid ({error}); get the file again") from error
    return header, 8 + length


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) < len(pairs):
        ((repeated, count),) = Counter(name for name, _ in pairs).most_common(1)
        raise ValueError(f"{repeated!r} appears {count} times")
    return table


def _tensor(name: str, entry: Any, data: mmap.mmap, start: int, path: Path) -> StoredTensor:
    """Describe one tensor from its {dtype, shape, data_offsets}."""
    wrong = CheckpointError(f"{path}: the header's entry for tensor {name!r} is malformed; get the file again")
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise wrong
    kind, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    for numbers in (shape, offsets):
        if not isinstance(numbers, list) or len(numbers) > MAX_RANK:
            raise wrong
        if any(type(number) is not int or not 0 <= number < 2**63 for number in numbers):
            raise wrong
    if not isinstance(kind, str) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise wrong
    begin, nbytes = start + offsets[0], offsets[1] - offsets[0]
    if kind not in _DTYPES:
        return StoredTensor(data=data, dtype=torch.uint8, start=begin, nbytes=nbytes, unreadable=f"of type {kind[:20]}")
    dtype = _DTYPES[kind]
    if math.prod(shape) * dtype.itemsize != nbytes:
        raise CheckpointError(
            f"{path}: tensor {name!r} of shape {shape} and type {kind} does not fill its {nbytes} bytes; "
            "get the file again"
        )
    stride = tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))
    return StoredTensor(data=data, dtype=dtype, start=begin, nbytes=nbytes, shape=tuple(shape), stride=stride)


def _require_cover(tensors: dict[str, StoredTensor], start: int, end: int, path: Path) -> None:
    """Refuse tensors that overlap, leave holes, or do not end with the file."""
    position = start
    for name, tensor in sorted(tensors.items(), key=lambda item: (item[1].start, item[1].nbytes)):
        if tensor.start != position:
            fault = "overlaps the tensor before it" if tensor.start < position else "leaves a hole before it"
            raise CheckpointError(f"{path}: tensor {name!r} {fault}; the file is damaged, get it again")
        position += tensor.nbytes
    if position > end:
        raise CheckpointError(f"{path} is truncated: its tensors end at byte {position} of {end}; get the file again")
    if position < end:
        raise CheckpointError(f"{path} has {end - position} bytes after its last tensor; get the file again")
