"""How files are hashed and put in place: streamed digests, and writes that appear whole or not at all."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mae_export.errors import InputError, ResourceError, UsageError

DATA_SUFFIX = ".data"  # NAME.onnx keeps large weights in NAME.onnx.data
DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)


def sha256_files(*paths: Path) -> str:
    """SHA-256 of the bytes of the files one after another, hexadecimal.

    Raises:
        InputError: when a file cannot be read.
    """
    digest = hashlib.sha256()
    try:
        for path in paths:
            with path.open("rb") as file:
                while block := file.read(1 << 20):
                    digest.update(block)
    except OSError as error:
        raise InputError(f"{error.filename} cannot be read: {error.strerror}") from error
    return digest.hexdigest()


def model_files(path: Path) -> tuple[Path, ...]:
    """A model file and, when it exists, the data file next to it."""
    data = path.with_name(path.name + DATA_SUFFIX)
    return (path, data) if data.exists() else (path,)


def require_place(target: Path, *, suffix: str, force: bool) -> None:
    """Refuse a place where a file may not be put, before any work is done.

    Raises:
        UsageError: when the name has another suffix, the folder does not exist, or the file exists without `force`.
    """
    if target.suffix != suffix:
        raise UsageError(f"the name {target.name!r} must end in {suffix}")
    if not target.parent.is_dir():
        raise UsageError(f"{target.parent} is no folder; create it, or write {target.name} somewhere else")
    if target.exists() and not force:
        raise UsageError(f"{target} exists; add --force to replace it")


@contextmanager
def staging(target: Path) -> Iterator[Path]:
    """A private folder on the target's file system, removed at the end whatever happens.

    Files are written there and moved to `target` by `put_in_place` once they are good.

    Raises:
        InputError: when the target's folder does not exist or cannot be written.
        ResourceError: when the disk is full.
    """
    if not target.parent.is_dir():
        raise InputError(f"{target.parent} is no folder; create it, or write {target.name} somewhere else")
    try:
        folder = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".tmp", dir=target.parent))
    except OSError as error:
        if error.errno in DISK_FULL:
            raise _full(target) from error
        raise InputError(f"cannot write in {target.parent}: {error.strerror}") from error
    try:
        yield folder
    except OSError as error:
        if error.errno in DISK_FULL:
            raise _full(target) from error
        raise
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def put_in_place(staged: Path, target: Path) -> None:
    """Move a staged file and its data file to the target.

    An old target is removed before its data file changes, so that no reader ever pairs one with the other's data.
    """
    data, old_data = (path.with_name(path.name + DATA_SUFFIX) for path in (staged, target))
    if data.exists() or old_data.exists():
        target.unlink(missing_ok=True)
        old_data.unlink(missing_ok=True)
    if data.exists():
        _sync(data)
        data.replace(old_data)
    _sync(staged)
    staged.replace(target)


def _full(target: Path) -> ResourceError:
    return ResourceError(f"the disk of {target.parent} is full; free space and run again")


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
