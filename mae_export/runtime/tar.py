"""Where the files of an uncompressed tar lie in it. Nothing is ever extracted, so names need no trust."""

from __future__ import annotations

import struct
import tarfile
from dataclasses import dataclass
from pathlib import Path

from mae_export.errors import InputError

_TAR_ERRORS = (
    tarfile.TarError,
    ArithmeticError,
    EOFError,
    LookupError,
    MemoryError,
    OSError,
    RecursionError,
    TypeError,
    ValueError,
    struct.error,
)


@dataclass(frozen=True, kw_only=True)
class Member:
    """A file in a tar: its name as stored (bytes that are not UTF-8 as surrogates) and its bytes' place."""

    name: str
    offset: int
    size: int


def list_members(path: Path) -> list[Member]:
    """Files of a tar, in its order; hard links to earlier files share their bytes, other kinds are left out.

    Raises:
        InputError: when the file is no uncompressed tar, or is damaged or cut short anywhere.
    """
    members: list[Member] = []
    by_name: dict[str, Member] = {}
    try:
        with tarfile.open(path, "r:", encoding="utf-8", errors="surrogateescape") as tar:
            position = -1
            while (entry := tar.next()) is not None:
                if entry.size < 0 or tar.offset <= position:  # a crafted header can make `tarfile` go round for ever
                    raise tarfile.ReadError(f"member {entry.name!r} has a size of {entry.size} bytes")
                position = tar.offset
                if entry.isreg() and not entry.issparse():
                    member = Member(name=entry.name, offset=entry.offset_data, size=entry.size)
                elif entry.islnk() and entry.linkname in by_name:
                    target = by_name[entry.linkname]
                    member = Member(name=entry.name, offset=target.offset, size=target.size)
                else:
                    continue
                by_name[entry.name] = member
                members.append(member)
            end = tar.offset
        with path.open("rb") as file:
            file.seek(end)
            if file.read(tarfile.BLOCKSIZE).strip(b"\0"):  # `tarfile` stops at a damaged header without a word
                raise tarfile.ReadError(f"the header at byte {end} is damaged")
    except _TAR_ERRORS as error:
        raise InputError(
            f"{path} is no uncompressed tar, or is damaged or cut short ({error}); decompress it or download it again"
        ) from error
    return members
