"""One file of weights: opened once, recognised by its first bytes whatever it is called, hashed and described."""

from __future__ import annotations

import hashlib
import mmap
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal

from mae_export.encoders.safetensors_file import read_safetensors
from mae_export.encoders.torch_file import read_legacy, read_zip
from mae_export.errors import CheckpointError

CHUNK = 2**20  # bytes read at a time while hashing

_FOREIGN = (  # first bytes of what people save under a checkpoint's name, and what to do about it
    (b"version https://git-lfs", "is a git-LFS pointer, not the weights; run `git lfs pull`"),
    (b"\x1f\x8b", "is gzip-compressed; unpack it first"),
    (b"\x89HDF", "is an HDF5 file; expected a PyTorch or safetensors file"),
    (b"PK\x05\x06", "is an empty zip archive; get the file again"),
)


@dataclass(frozen=True, kw_only=True)
class WeightFile:
    """What one file holds.

    Attributes:
        format: found by the first bytes.
        sha256: of the file's bytes, hexadecimal.
        root: what was saved, with a StoredTensor for each tensor.
        notes: for the user.
    """

    format: Literal["torch", "safetensors"]
    sha256: str
    root: Any
    notes: tuple[str, ...] = ()


def read_weight_file(path: Path) -> WeightFile:
    """Hash a `.pth`, `.pt`, `.bin` or `.safetensors` file and describe what it holds.

    Raises:
        CheckpointError: when it is missing, unreadable, damaged, something else, or changes meanwhile.
        SecurityError: when it is made to harm.
    """
    with _open_regular(path) as file:
        before = os.fstat(file.fileno())
        if before.st_size == 0:
            raise CheckpointError(f"{path} is empty; get the file again")
        data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        kind = _recognise(data, path)
        root: Any
        if kind == "safetensors":
            root = read_safetensors(data, path)
        else:
            root = read_zip(file, data, path) if kind == "zip" else read_legacy(data, path)
        digest = _sha256(file)
        after = os.fstat(file.fileno())
    if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
        raise CheckpointError(f"{path} changed while it was read; wait until it is written, then try again")
    form: Literal["torch", "safetensors"] = "safetensors" if kind == "safetensors" else "torch"
    renamed = (path.suffix == ".safetensors") != (form == "safetensors")
    notes = (f"{path.name} is a {form} file by its content, whatever its name says",) if renamed else ()
    return WeightFile(format=form, sha256=digest, root=root, notes=notes)


@contextmanager
def _open_regular(path: Path) -> Iterator[BinaryIO]:
    """Open a regular file; opening a pipe would wait for a writer, reading a device would never end."""
    try:
        mode = path.stat().st_mode
        if not stat.S_ISREG(mode):
            kind = "a folder" if stat.S_ISDIR(mode) else "a pipe, socket or device"
            raise CheckpointError(f"{path} is {kind}; expected a regular file")
        file = path.open("rb")
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} does not exist; give the path of a checkpoint") from error
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        raise CheckpointError(f"{str(path)!r} cannot be opened: {error}") from error
    with file:
        yield file


def _sha256(file: BinaryIO) -> str:
    digest = hashlib.sha256()
    file.seek(0)
    while chunk := file.read(CHUNK):
        digest.update(chunk)
    return digest.hexdigest()


def _recognise(data: mmap.mmap, path: Path) -> Literal["zip", "pickle", "safetensors"]:
    head = data[:512]
    if head[:4] == b"PK\x03\x04":
        return "zip"
    if head[8:9] == b"{":
        return "safetensors"
    if head[:1] == b"\x80" and head[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        return "pickle"
    for magic, remark in _FOREIGN:
        if head.startswith(magic):
            raise CheckpointError(f"{path} {remark}")
    if head.lstrip()[:1] == b"<":
        raise CheckpointError(f"{path} is an HTML page, probably the error page of a download; get the file again")
    if head[257:262] == b"ustar":
        raise CheckpointError(f"{path} is a tar archive; unpack it, or save the weights again with torch.save")
    if path.suffix == ".safetensors":
        return "safetensors"
    raise CheckpointError(
        f"{path} starts with {head[:8]!r}, which is neither a PyTorch nor a safetensors file; it is truncated or "
        "something else"
    )
