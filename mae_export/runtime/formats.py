"""What the bytes of a picture say before they are decoded: their format, whether it is read, whether they are whole.

Formats are told apart by their first bytes, never by a name, so that only the decoder of the announced format ever
sees the data: neither Ghostscript nor a rare decoder can be reached.
"""

from __future__ import annotations

import re
import zlib
from types import MappingProxyType

from mae_export.errors import ImageError

FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
MAX_SCANS = 100  # of a progressive JPEG; encoders write about ten, and each one costs a pass over the picture

# Every code that `ImageError.reason` takes while pictures are read and prepared.
REASONS = MappingProxyType(
    {
        "missing": "there is no such file (any more), or it is a link to nothing",
        "not-a-file": "a folder, FIFO, socket or device",
        "unreadable": "the file cannot be read: permissions, a loop of links, an I/O error",
        "empty": "zero bytes",
        "not-an-image": "the bytes are of no picture format",
        "unsupported-format": "a picture in a format that is not read here",
        "unsupported-pixels": "pixels without a fixed range, such as float",
        "truncated": "the data ends too early",
        "corrupt": "the data is damaged",
        "too-large": "more bytes, pixels or scans than the limits allow",
        "extreme-aspect": "so elongated that the resized picture would exceed the pixel limit",
        "out-of-memory": "memory ran out while decoding",
    }
)

_MAGIC = (
    (b"\xff\xd8\xff", "JPEG"),
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"GIF87a", "GIF"),
    (b"GIF89a", "GIF"),
    (b"BM", "BMP"),
    (b"II*\0", "TIFF"),
    (b"MM\0*", "TIFF"),
    (b"II+\0", "TIFF"),
    (b"MM\0+", "TIFF"),
)
_REFUSED = (
    (b"%PDF", "a PDF"),
    (b"%!PS", "PostScript"),
    (b"\xc5\xd0\xd3\xc6", "PostScript"),
    (b"8BPS", "a Photoshop file"),
    (b"SIMPLE  =", "a FITS file"),
    (b"DDS ", "a DDS texture"),
    (b"\0\0\1\0", "an icon"),
    (b"PF\n", "a float PFM"),
    (b"Pf\n", "a float PFM"),
    (b"v/1\1", "OpenEXR"),
    (b"\xff\x0a", "JPEG XL"),
    (b"\0\0\0\x0cJXL ", "JPEG XL"),
    (b"\0\0\0\x0cjP  ", "JPEG 2000"),
    (b"\xff\x4f\xff\x51", "JPEG 2000"),
)
_JPEG_MARKER = re.compile(rb"\xff([\x01-\xcf\xd8-\xfe])")


def recognise(data: bytes) -> str:
    """The format that the first bytes announce, one of `FORMATS`.

    Raises:
        ImageError: `empty`, `not-an-image` or `unsupported-format`.
    """
    if not data:
        raise ImageError("empty", "the file has 0 bytes; expected a picture. Copy or download it again")
    for prefix, kind in _MAGIC:
        if data.startswith(prefix):
            return kind
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return "WEBP"
    if re.match(rb"P[1-6]\s", data):
        return "PPM"
    refused = [name for prefix, name in _REFUSED if data.startswith(prefix)]
    if data[4:8] == b"ftyp":
        refused.append("AVIF, HEIC or video")
    if b"<svg" in data[:1024].lower():
        refused.append("an SVG drawing")
    expected = ", ".join(FORMATS)
    if refused:
        raise ImageError("unsupported-format", f"the data is {refused[0]}; expected {expected}. Convert it first")
    found, advice = f"starts with {data[:16]!r}, which is no picture", "Check what wrote the file"
    if data.startswith(b"version https://git-lfs"):
        found, advice = "is a Git LFS pointer", "Run: git lfs pull"
    raise ImageError("not-an-image", f"the data {found}; expected {expected}. {advice}")


def check_whole(data: bytes, kind: str) -> None:
    """Check what Pillow does not: checksums of PNG pixels, and the number of scans in a JPEG.

    Raises:
        ImageError: `corrupt` or `too-large`.
    """
    if kind == "PNG" and _wrong_png_checksum(data):
        raise ImageError("corrupt", "a checksum of the PNG pixels is wrong. Copy or download the file again")
    if kind == "JPEG" and (scans := _jpeg_scans(data)) > MAX_SCANS:
        raise ImageError("too-large", f"the JPEG has {scans} scans; expected at most {MAX_SCANS}. Save it again")


def _wrong_png_checksum(data: bytes) -> bool:
    position = 8
    while (end := position + 8 + int.from_bytes(data[position : position + 4], "big")) + 4 <= len(data):
        stored = int.from_bytes(data[end : end + 4], "big")
        if data[position + 4 : position + 8] == b"IDAT" and zlib.crc32(memoryview(data)[position + 4 : end]) != stored:
            return True
        position = end + 4
    return False


def _jpeg_scans(data: bytes) -> int:
    position, scans = 2, 0
    while (found := _JPEG_MARKER.search(data, position)) and found[1] != b"\xd9":
        scans += found[1] == b"\xda"
        position = found.end() + int.from_bytes(data[found.end() : found.end() + 2], "big")  # skips the segment
    return scans


def ends_early(data: bytes, kind: str) -> bool:
    """Whether data that could not be decoded lacks its end, as far as its format shows that."""
    if kind == "JPEG":
        return b"\xff\xd9" not in data
    if kind == "PNG":
        return b"IEND" not in data
    if kind == "GIF":
        return not data.endswith(b";")
    if kind == "WEBP":
        return int.from_bytes(data[4:8], "little") + 8 > len(data)
    return kind == "BMP" and int.from_bytes(data[2:6], "little") > len(data)
