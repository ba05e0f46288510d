"""Files written by torch.save, as zip archive and in the older stream of pickles: where each tensor's bytes lie.

An archive is refused before its pickle is read when it could not have come from torch.save: compressed entries,
entries that overlap, paths that leave the archive, several pickles. Checksums are verified. Tensors are described,
not read.
"""

from __future__ import annotations

import mmap
import struct
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

import torch

from mae_export.encoders.pickled import Global, Made, Reference, read_pickle
from mae_export.encoders.stored import MAX_RANK, StoredTensor
from mae_export.encoders.torch_names import (
    ALLOWED,
    DTYPES,
    REBUILD_DENSE,
    REBUILD_TYPED,
    REBUILD_UNREADABLE,
    REBUILD_WRAPPED,
    STORAGE_DTYPES,
    TENSOR_CLASSES,
)
from mae_export.errors import CheckpointError, SecurityError

MAX_ENTRIES = 100_000
MAX_DIRECTORY = 32 * 2**20  # bytes
MAX_PICKLE = 64 * 2**20  # bytes; the structure of the largest published training state takes a few MB
MAX_DEPTH = 4  # nested dicts in which tensors are looked for
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
LEGACY_PROTOCOL = 1001

Span = tuple[int, int]  # first byte and number of bytes


def read_zip(file: BinaryIO, data: mmap.mmap, path: Path) -> Any:
    """Describe a zip archive of torch.save.

    Args:
        file: the archive, open.
        data: the same, mapped.
        path: the same, for messages.

    Returns:
        What was saved, with a StoredTensor for every tensor within MAX_DEPTH nested dicts.

    Raises:
        CheckpointError: when it is damaged or something else than torch.save's archive.
        SecurityError: when it is made to harm.
    """
    try:
        _require_small_directory(data, path)
        with zipfile.ZipFile(file) as archive:
            entries = archive.infolist()
            pickle = _require_harmless(entries, len(data), path)
            damaged = archive.testzip()
            if damaged is not None:
                raise CheckpointError(
                    f"{path}: entry {damaged!r} does not match its checksum; the file is damaged (or was saved with "
                    "torch.serialization.set_crc32_options(False)): get it again or save it with checksums"
                )
            source = archive.read(pickle)
            spans = {entry.filename: (_data_start(data, entry), entry.file_size) for entry in entries}
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError, ValueError, struct.error) as error:
        raise CheckpointError(
            f"{path} begins as a PyTorch file but is truncated or damaged ({error}); get the file again"
        ) from error
    folder = str(PurePosixPath(pickle.filename).parent)
    order = spans.get(f"{folder}/byteorder")
    if order and data[order[0] : order[0] + order[1]] != b"little":
        raise CheckpointError(f"{path} was saved on a big-endian machine; save it again on a little-endian one")
    prefix = f"{folder}/data/"
    storages = {name.removeprefix(prefix): span for name, span in spans.items() if name.startswith(prefix)}
    return _Tensors(data=data, storages=storages, path=path).resolve(read_pickle(source, ALLOWED, str(path)).root)


def _require_small_directory(data: mmap.mmap, path: Path) -> None:
    """Refuse an archive with millions of entries before zipfile builds an object for each."""
    tail = data[max(0, len(data) - 2**17) :]
    for signature, field in ((b"PK\x05\x06", slice(12, 16)), (b"PK\x06\x06", slice(40, 48))):  # plain and zip64
        end = tail[tail.rfind(signature) :] if signature in tail else b""
        size = int.from_bytes(end[field], "little")
        if size > MAX_DIRECTORY and size != 0xFFFFFFFF:  # which refers to the zip64 record
            raise SecurityError(
                f"{path} has a directory of {size} bytes; expected at most {MAX_DIRECTORY}. Do not use this file"
            )


def _require_harmless(entries: Sequence[zipfile.ZipInfo], size: int, path: Path) -> zipfile.ZipInfo:
    """The entry that holds the pickle, once the whole directory is known to be one of torch.save's."""
    names = [entry.orig_filename for entry in entries]
    strange = [
        name for name in names if name.startswith("/") or "\\" in name or "\0" in name or ".." in name.split("/")
    ]
    if strange:
        raise SecurityError(f"{path}: entry {strange[0]!r} points outside the archive; do not use this file")
    if len(entries) > MAX_ENTRIES or len(set(names)) < len(names):
        raise SecurityError(
            f"{path} has {len(names)} entries with {len(set(names))} names; expected at most {MAX_ENTRIES} and no two "
            "alike. Do not use this file"
        )
    if any(entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 1 for entry in entries):
        raise SecurityError(
            f"{path} has compressed or encrypted entries, which torch.save never writes and which may be a zip bomb; "
            "unpack it and pack it again with `zip -0`"
        )
    total = sum(entry.file_size for entry in entries)
    if total > size:
        raise SecurityError(f"{path} is a zip bomb: its entries claim {total} bytes in a file of {size}")
    if any(name.endswith("/constants.pkl") for name in names):
        raise CheckpointError(
            f"{path} is TorchScript, not a state dict; load it with torch.jit.load and save its state_dict()"
        )
    pickles = [entry for entry in entries if entry.filename.endswith(".pkl")]
    if len(pickles) > 1:
        raise SecurityError(f"{path} holds {len(pickles)} pickles; torch.save writes one. Do not use this file")
    if not pickles or PurePosixPath(pickles[0].filename).name != "data.pkl":
        raise CheckpointError(f"{path} is a zip archive without data.pkl, so torch.save did not write it")
    if pickles[0].file_size > MAX_PICKLE:
        raise SecurityError(
            f"{path}: its pickle takes {pickles[0].file_size} bytes; expected at most {MAX_PICKLE}. Save only the "
            "tensors: torch.save(model.state_dict(), ...)"
        )
    return pickles[0]


def _data_start(data: mmap.mmap, entry: zipfile.ZipInfo) -> int:
    """First byte of an entry's content: the local header says how long itself is."""
    header = entry.header_offset
    name, extra = struct.unpack("<26xHH", data[header : header + 30])
    return int(header + 30 + name + extra)


def read_legacy(data: mmap.mmap, path: Path) -> Any:
    """Describe a file of torch.save before 1.6, or with `_use_new_zipfile_serialization=False`.

    Args:
        data: the file, mapped.
        path: the same, for messages.

    Returns:
        As `read_zip`.

    Raises:
        CheckpointError: when it is damaged or an ordinary pickle.
        SecurityError: when it is made to harm.
    """
    data.seek(0)
    if read_pickle(data, ALLOWED, str(path)).root != LEGACY_MAGIC:
        raise CheckpointError(f"{path} is a pickle that torch.save did not write; save a state dict with torch.save")
    if read_pickle(data, ALLOWED, str(path)).root != LEGACY_PROTOCOL:
        raise CheckpointError(f"{path} has an unknown version of torch.save's format; save it again with torch.save")
    system = read_pickle(data, ALLOWED, str(path)).root
    if not isinstance(system, dict) or system.get("little_endian") is not True:
        raise CheckpointError(f"{path} was saved on a big-endian machine; save it again on a little-endian one")
    saved = read_pickle(data, ALLOWED, str(path))
    keys = read_pickle(data, ALLOWED, str(path)).root
    try:
        storages = _legacy_storages(data, keys, saved.references)
    except (AttributeError, IndexError, KeyError, TypeError, ValueError, struct.error) as error:
        raise CheckpointError(f"{path} is truncated or damaged ({error}); get the file again") from error
    return _Tensors(data=data, storages=storages, path=path).resolve(saved.root)


def _legacy_storages(data: mmap.mmap, keys: Any, references: Sequence[Reference]) -> dict[str, Span]:
    """Walk the storages behind the pickles: for each key, a count of elements and the elements."""
    itemsizes = {storage.key: storage.dtype.itemsize for storage in map(_Storage.parse, references)}
    storages = {}
    position = data.tell()
    for key in keys:
        (count,) = struct.unpack("<q", data[position : position + 8])
        start, nbytes = position + 8, count * itemsizes[key]
        position = start + nbytes
        if count < 0 or position > len(data):
            raise ValueError(f"storage {key!r} ends at byte {position} of {len(data)}")
        storages[key] = (start, nbytes)
    return storages


@dataclass(frozen=True, kw_only=True)
class _Storage:
    """What a pickle says of a storage: ("storage", class, key, device, elements[, view])."""

    key: str
    dtype: torch.dtype
    nbytes: int
    offset: int  # elements before the part that the pickle refers to

    @staticmethod
    def parse(reference: Any) -> _Storage:
        if not isinstance(reference, Reference):
            raise TypeError("a tensor has no storage")
        kind, storage_class, key, _, count, *view = reference.key
        if kind != "storage" or not isinstance(key, str):
            raise ValueError("a storage is not described as one")
        dtype = STORAGE_DTYPES[storage_class.name]
        count, offset = _whole((count, view[0][1] if view and view[0] is not None else 0))
        return _Storage(key=key, dtype=dtype, nbytes=count * dtype.itemsize, offset=offset)


@dataclass(frozen=True, kw_only=True)
class _Tensors:
    """Turns what a pickle says of tensors into descriptions of them."""

    data: mmap.mmap
    storages: Mapping[str, Span]
    path: Path

    def resolve(self, root: Any) -> Any:
        """Describe the tensors in nested dicts; other values stay as the pickle has them.

        Raises:
            CheckpointError: when a tensor is described wrongly.
        """
        try:
            return self._resolve(root, 0, {})
        except (AttributeError, KeyError, IndexError, TypeError, ValueError, OverflowError) as error:
            raise CheckpointError(
                f"{self.path} describes a tensor in a way that torch.save does not ({error!r}); get the file again"
            ) from error

    def _resolve(self, value: Any, depth: int, seen: dict[tuple[int, int], Any]) -> Any:
        if isinstance(value, Made) and not value.items:
            return self._tensor(value) or value
        items = value.items if isinstance(value, Made) else value
        if not isinstance(items, dict) or depth > MAX_DEPTH:
            return value
        at = id(value), depth  # shared dicts are resolved once per depth: files may nest them exponentially
        if at not in seen:
            seen[at] = {key: self._resolve(item, depth + 1, seen) for key, item in items.items()}
        return seen[at]

    def _tensor(self, made: Made) -> StoredTensor | None:
        """The tensor that `made` stands for, or None."""
        name, args = made.name, made.args
        for _ in range(8):  # wrappers nest at most a few times
            if name == REBUILD_TYPED:
                if args[1].name not in TENSOR_CLASSES:
                    return self._unreadable(f"of class {args[1].name}")
                name, args = args[0].name, args[2]
            elif name in REBUILD_WRAPPED and args and isinstance(args[0], Made):
                name, args = args[0].name, args[0].args
            else:
                break
        if name in REBUILD_UNREADABLE:
            return self._unreadable(REBUILD_UNREADABLE[name])
        return self._dense(args) if name in REBUILD_DENSE else None

    def _unreadable(self, kind: str) -> StoredTensor:
        return StoredTensor(data=self.data, dtype=torch.uint8, unreadable=kind)

    def _dense(self, args: tuple[Any, ...]) -> StoredTensor:
        """From (storage, offset, size, stride, requires_grad, hooks[, dtype][, metadata])."""
        storage = _Storage.parse(args[0])
        shape, stride = _whole(args[2]), _whole(args[3])
        (offset,) = _whole((args[1],))
        if len(shape) != len(stride):
            raise ValueError(f"{len(shape)} sizes but {len(stride)} strides")
        dtypes = [DTYPES[arg.name] for arg in args[6:7] if isinstance(arg, Global)]
        flags = [arg for arg in args[6:] if not isinstance(arg, Global) and arg]
        start, nbytes = self.storages[storage.key] if storage.nbytes else (0, 0)
        if nbytes != storage.nbytes:
            raise ValueError(f"storage {storage.key!r} holds {nbytes} bytes, not {storage.nbytes}")
        return StoredTensor(
            data=self.data,
            dtype=dtypes[0] if dtypes else storage.dtype,
            start=start,
            nbytes=nbytes,
            offset=offset + storage.offset,
            shape=shape,
            stride=stride,
            unreadable="a conjugated or negated view" if flags else "",
        )


def _whole(values: Any) -> tuple[int, ...]:
    """The values as a tuple of whole numbers, none negative."""
    if isinstance(values, Made) and values.name == "torch.Size":
        (values,) = values.args
    if not isinstance(values, (tuple, list)) or len(values) > MAX_RANK:
        raise ValueError(f"expected up to {MAX_RANK} numbers")
    if any(type(value) is not int or not 0 <= value < 2**63 for value in values):
        raise ValueError("sizes, strides and offsets must be whole numbers")
    return tuple(values)
