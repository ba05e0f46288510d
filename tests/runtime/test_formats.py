"""Formats are told apart by their bytes, and damage that Pillow would overlook is found."""

import io
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mae_export.errors import ImageError
from mae_export.runtime import formats


def encode(kind: str, **options) -> bytes:
    values = np.arange(48 * 32 * 3, dtype=np.uint32).reshape(32, 48, 3)
    buffer = io.BytesIO()
    Image.fromarray((values * 7919 >> 5).astype(np.uint8)).save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("kind", formats.FORMATS)
def test_what_pillow_writes_is_recognised(kind):
    assert formats.recognise(encode(kind)) == kind


def test_bigtiff_and_plain_netpbm_are_recognised():
    assert formats.recognise(encode("TIFF", big_tiff=True)) == "TIFF"
    assert formats.recognise(b"P2\n1 1\n255\n7\n") == "PPM"


@pytest.mark.parametrize(
    ("data", "reason", "text"),
    [
        (b"", "empty", "0 bytes"),
        (b"\xff", "not-an-image", "no picture"),
        (b"\0" * 1000, "not-an-image", "no picture"),
        (b"<!DOCTYPE html><html>not found</html>", "not-an-image", "<!DOCTYPE html>"),
        (b"version https://git-lfs.github.com/spec/v1\noid", "not-an-image", "git lfs pull"),
        (b"PK\3\4" + b"\0" * 40, "not-an-image", "no picture"),
        (b"P7\nWIDTH 1", "not-an-image", "no picture"),
        (b'<?xml version="1.0"?>\n<SVG xmlns="http://www.w3.org/2000/svg"/>', "unsupported-format", "SVG"),
        (b"%PDF-1.7", "unsupported-format", "PDF"),
        (b"%!PS-Adobe-3.0 EPSF-3.0", "unsupported-format", "PostScript"),
        (b"\xc5\xd0\xd3\xc6" + b"\0" * 28, "unsupported-format", "PostScript"),
        (b"8BPS\0\1", "unsupported-format", "Photoshop"),
        (b"SIMPLE  =                    T", "unsupported-format", "FITS"),
        (b"DDS |\0\0\0", "unsupported-format", "DDS"),
        (b"\0\0\1\0\1\0", "unsupported-format", "icon"),
        (b"Pf\n1 1\n-1.0\n\0\0\0\0", "unsupported-format", "float"),
        (b"\0\0\0\x1cftypavif", "unsupported-format", "AVIF"),
        (b"\0\0\0\x18ftypheic", "unsupported-format", "HEIC"),
        (b"\xff\x0a\0\0", "unsupported-format", "JPEG XL"),
        (b"\0\0\0\x0cjP  \r\n\x87\n", "unsupported-format", "JPEG 2000"),
    ],
)
def test_other_data_is_named(data, reason, text):
    with pytest.raises(ImageError, match=re.escape(text)) as caught:
        formats.recognise(data)
    assert caught.value.reason == reason


def test_a_wrong_checksum_of_png_pixels_is_found_and_of_a_comment_is_not():
    good = encode("PNG")
    at = good.index(b"IDAT")
    length = int.from_bytes(good[at - 4 : at], "big")
    bad = bytearray(good)
    bad[at + 4 + length] ^= 1
    formats.check_whole(good, "PNG")
    with pytest.raises(ImageError, match="checksum") as caught:
        formats.check_whole(bytes(bad), "PNG")
    assert caught.value.reason == "corrupt"
    comment = b"\0\0\0\1tEXtx\0\0\0\0"
    formats.check_whole(good[: at - 4] + comment + good[at - 4 :], "PNG")


def test_scans_are_counted_without_the_thumbnail_and_junk():
    progressive = encode("JPEG", progressive=True)
    scan = progressive.rindex(b"\xff\xda")
    repeated = progressive[:scan] + progressive[scan:-2] * formats.MAX_SCANS + b"\xff\xd9"
    with pytest.raises(ImageError, match=f"{formats.MAX_SCANS + 9} scans") as caught:  # encoders write ten
        formats.check_whole(repeated, "JPEG")
    assert caught.value.reason == "too-large"
    markers = b"\xff\xda" * 200
    comment = b"\xff\xfe" + (len(markers) + 2).to_bytes(2, "big") + markers
    formats.check_whole(progressive[:2] + comment + progressive[2:] + markers, "JPEG")


def test_every_reason_raised_is_documented_and_every_one_documented_is_raised():
    folder = Path(formats.__file__).parent
    sources = "".join(
        (folder / f"{name}.py").read_text() for name in ("formats", "images", "resize", "inputs", "loading")
    )
    raised = set(re.findall(r'ImageError\(\s*"([a-z-]+)"', sources))
    raised |= set(re.findall(r'"(truncated)" if cut else "corrupt"', sources))
    assert raised == set(formats.REASONS)
