"""Reading the manifest out of an .onnx file without a runtime, so that a runtime can be chosen by what the graph is.

An ONNX file is one protobuf message; the manifest is an entry of its field `metadata_props`. The fields before it, the
weights among them, are skipped by their stated length and never read.
"""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

from mae_export.manifest import METADATA_KEY, Manifest

METADATA_PROPS = 14  # field of ModelProto: entries of key (field 1) and value (field 2)
LONGEST_ENTRY = 64 << 20
VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5  # wire types


def read_manifest(path: Path) -> Manifest | None:
    """The manifest of a graph, or None when the file holds none: what it is then, a runtime says better.

    Raises:
        InputError: when there is a manifest that this version cannot read.
    """
    try:
        with path.open("rb") as file:
            text = _find(file, path.stat().st_size)
    except (OSError, EOFError, UnicodeDecodeError):
        return None
    return None if text is None else Manifest.from_json(text)


def _find(file: BinaryIO, size: int) -> str | None:
    """The text of the manifest; EOFError when the file is no protobuf message, or is cut."""
    while file.tell() < size:
        field, kind = divmod(_varint(file), 8)
        if kind == VARINT:
            _varint(file)
            continue
        length = _varint(file) if kind == BYTES else {FIXED64: 8, FIXED32: 4}.get(kind, size)
        if length > size - file.tell():
            raise EOFError
        if field != METADATA_PROPS or kind != BYTES or length > LONGEST_ENTRY:
            file.seek(length, 1)
            continue
        end = file.tell() + length
        key, value = _text(file, end), _text(file, end)
        if key == METADATA_KEY:
            return value
        file.seek(end)
    return None


def _text(file: BinaryIO, end: int) -> str:
    """The next field of an entry; writers put the key before the value."""
    if file.tell() >= end:
        return ""
    if _varint(file) % 8 != BYTES:
        raise EOFError
    length = _varint(file)
    if length > end - file.tell():
        raise EOFError
    return file.read(length).decode()


def _varint(file: BinaryIO) -> int:
    """Seven bits a byte, the lowest first; the highest bit says that more follow."""
    value = shift = 0
    while shift < 70:
        byte = file.read(1)
        if not byte:
            raise EOFError
        value |= (byte[0] & 0x7F) << shift
        if byte[0] < 0x80:
            return value
        shift += 7
    raise EOFError
