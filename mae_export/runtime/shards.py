"""One shard of features as `.npy` files, and what all shard files share: written atomically, hashed, checked."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from mae_export.errors import InputError, ResourceError, SecurityError
from mae_export.files import DISK_FULL, sha256_files
from mae_export.runtime.padding import stack_padded

Array = npt.NDArray[Any]
SHARD_FILE = re.compile(r"shard-\d{5,}\.[A-Za-z0-9_]+(\.[a-z]+)?")
IDS_KEEP = "ids_keep"


@dataclass(frozen=True, kw_only=True)
class Row:
    """The features of one image.

    Attributes:
        index: position in the listing.
        item_id: identity.
        arrays: by output name, without the batch axis.
        ids_keep: int64 [K], visible patches; None when every row sees all of them and nothing is per patch.
    """

    index: int
    item_id: str
    arrays: dict[str, Array]
    ids_keep: npt.NDArray[np.int64] | None

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        return sum(array.nbytes for array in self.columns.values())

    @property
    def columns(self) -> dict[str, Array]:
        """The arrays to store, `ids_keep` among them when there is one."""
        return self.arrays if self.ids_keep is None else {**self.arrays, IDS_KEEP: self.ids_keep}


@dataclass(frozen=True, kw_only=True)
class Shard:
    """What the manifest says of one shard: number of rows, and SHA-256 by file name.

    Raises:
        SecurityError: when a file name could lead outside the folder.
    """

    rows: int
    files: dict[str, str]

    def __post_init__(self) -> None:
        for name in self.files:
            if not SHARD_FILE.fullmatch(name):
                raise SecurityError(f"the manifest names the file {name!r}; expected names like shard-00000.pooled.npy")

    def open(self, folder: Path, name: str) -> Path:
        """Path of one of the shard's files, after its hash was compared.

        Raises:
            InputError: when the file is not listed, is missing or was changed.
        """
        path = folder / name
        if name not in self.files or not path.is_file():
            raise InputError(f"{path} is missing; copy the folder again, or extract again")
        if sha256_files(path) != self.files[name]:
            raise InputError(f"{path} differs from its SHA-256 in manifest.json; it is damaged or was changed")
        return path


def fill_of(column: str) -> int:
    """Padding of a column where rows differ in length: -1 is no patch, features are padded with zeros."""
    return -1 if column == IDS_KEEP else 0


@contextlib.contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn failures to write `path` into errors for people.

    Raises:
        ResourceError: when the disk or a quota is full, or the device fails.
        InputError: when the place cannot be written to.
    """
    try:
        yield
    except OSError as error:
        if error.errno in DISK_FULL:
            raise ResourceError(f"cannot write {path}: {error.strerror}; free space or choose another disk") from error
        raise InputError(f"cannot write {path}: {error.strerror}; choose a folder that you may write to") from error


class _Hashing(io.RawIOBase):
    """Passes what is written on to a file and hashes it."""

    def __init__(self, file: BinaryIO) -> None:
        self.sha = hashlib.sha256()
        self._file = file

    def writable(self) -> bool:
        return True

    def write(self, data: Any, /) -> int:
        self.sha.update(data)
        return self._file.write(data)

    def tell(self) -> int:
        return self._file.tell()


def write_atomic(path: Path, write: Callable[[io.RawIOBase], object]) -> str:
    """Write a file that appears complete or not at all.

    Args:
        path: where it appears.
        write: is given a binary file to write to.

    Returns:
        SHA-256 of what was written, hexadecimal.

    Raises:
        ResourceError, InputError: see `disk_errors`.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    with disk_errors(path):
        try:
            with temporary.open("wb") as file:
                hashing = _Hashing(file)
                write(hashing)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    return hashing.sha.hexdigest()


def write_npy(folder: Path, stem: str, rows: Sequence[Row]) -> dict[str, str]:
    """Write `STEM.ids.jsonl` and one `STEM.COLUMN.npy` [rows, ...] per column.

    Returns:
        SHA-256 by file name.
    """
    lines = "".join(json.dumps(row.item_id) + "\n" for row in rows).encode()
    name = f"{stem}.ids.jsonl"
    files = {name: write_atomic(folder / name, lambda file: file.write(lines))}
    columns = [row.columns for row in rows]
    for column in columns[0]:
        stacked = stack_padded([values[column] for values in columns], fill=fill_of(column))
        name = f"{stem}.{column}.npy"
        files[name] = write_atomic(folder / name, lambda file, a=stacked: np.save(file, a, allow_pickle=False))  # type: ignore[misc]
    return files


def read_npy(folder: Path, stem: str, shard: Shard, names: Sequence[str]) -> tuple[list[str], dict[str, Array]]:
    """Read a shard that `write_npy` wrote.

    Args:
        folder: of the shard.
        stem: first part of its file names.
        shard: its files and hashes.
        names: columns wanted; `ids_keep` is added where it was stored.

    Returns:
        The ids, and arrays [rows, ...] by column; large ones are memory-mapped.

    Raises:
        InputError: when a file is missing, damaged or of another length.
    """
    lines = shard.open(folder, f"{stem}.ids.jsonl").read_text("ascii").splitlines()
    stored = [*names, IDS_KEEP] if f"{stem}.{IDS_KEEP}.npy" in shard.files else names
    arrays = {}
    for name in stored:
        path = shard.open(folder, f"{stem}.{name}.npy")
        try:
            arrays[name] = np.load(path, mmap_mode="r", allow_pickle=False)
        except ValueError as error:
            raise InputError(f"{path} is not a plain .npy array ({error})") from error
    return [json.loads(line) for line in lines], arrays
