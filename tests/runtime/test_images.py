"""What each kind of picture decodes to, and that every damaged one is refused with a reason."""

import io
import struct
import threading
import warnings
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFile

from mae_export.errors import ImageError, InputError
from mae_export.runtime.images import MAX_PIXELS, REASONS, decode, prepare
from mae_export.spec import ImageSpec

Y, X = np.mgrid[:40, :56]
RGB = np.stack([X * 4, Y * 6, (X + Y) * 2], -1).astype(np.uint8)  # no symmetry
GREY = RGB[..., 0]
RED, BLUE = Image.new("RGB", (9, 7), (255, 0, 0)), Image.new("RGB", (9, 7), (0, 0, 255))


def encode(image: Image.Image | np.ndarray, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(buffer, kind, **options)
    return buffer.getvalue()


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(width: int, height: int, *, bits: int = 8, colour: int = 0, rows: bytes = b"", extra: bytes = b"") -> bytes:
    """A PNG written by hand; `colour` is 0 for grey and 2 for RGB, `rows` are the filtered scan lines."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + extra + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def tiff(image: np.ndarray, *, bits: int, photometric: int = 1) -> bytes:
    """A little-endian, uncompressed grey TIFF of one strip, written by hand."""
    if bits == 12:  # two pixels in three bytes, high bits first
        a, b = image.ravel()[::2].astype(int), image.ravel()[1::2].astype(int)
        strip = np.stack([a >> 4, (a & 15) << 4 | b >> 8, b & 255], -1).astype(np.uint8).tobytes()
    else:
        strip = image.astype("<u2").tobytes()
    height, width = image.shape
    tags = {256: width, 257: height, 258: bits, 259: 1, 262: photometric, 273: 8, 277: 1, 278: height, 279: len(strip)}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    return b"II*\0" + struct.pack("<I", 8 + len(strip)) + strip + struct.pack("<H", len(tags)) + entries + bytes(4)


def grey_to_rgb(grey: np.ndarray) -> np.ndarray:
    return np.repeat(grey[..., None], 3, -1)


def with_alpha(image: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    return np.dstack([image, alpha])


def palette() -> Image.Image:
    image = Image.fromarray((X % 4).astype(np.uint8), "L")
    image.putpalette(PALETTE.ravel().tolist())
    return image


WIDE = (X * 1171 + Y * 37).astype(np.uint16)  # 16-bit values up to 65535
NARROW = (WIDE >> 4).astype(np.uint16)  # 12-bit values
PALETTE = np.array([[9, 8, 7], [255, 0, 50], [0, 200, 0], [30, 60, 90]], np.uint8)
ALPHA = (Y * 6).astype(np.uint8)
SCALED = grey_to_rgb(np.rint(WIDE / 257).astype(np.uint8))
FRAMES = {"save_all": True, "append_images": [BLUE]}
RED_PIXELS = np.asarray(RED)
ROWS16 = b"".join(b"\0" + row.astype(">u2").tobytes() for row in np.dstack([WIDE, WIDE, WIDE]))
ZIP = b"PK\5\6" + bytes(18)

ACCEPTED = {
    "RGB PNG": (encode(RGB, "PNG"), RGB),
    "RGB WebP": (encode(RGB, "WEBP", lossless=True), RGB),
    "RGB BMP": (encode(RGB, "BMP"), RGB),
    "RGB PPM": (encode(RGB, "PPM"), RGB),
    "RGB TIFF, LZW": (encode(RGB, "TIFF", compression="tiff_lzw"), RGB),
    "RGB BigTIFF": (encode(RGB, "TIFF", big_tiff=True), RGB),
    "grey": (encode(GREY, "PNG"), grey_to_rgb(GREY)),
    "grey and alpha": (encode(with_alpha(GREY, ALPHA), "PNG"), grey_to_rgb(GREY)),
    "RGBA keeps the colour under alpha 0": (encode(with_alpha(RGB, ALPHA), "PNG"), RGB),
    "RGBA WebP": (encode(with_alpha(RGB, ALPHA), "WEBP", lossless=True, exact=True), RGB),
    "1 bit": (encode(Image.fromarray(X % 3 == 0), "PNG"), grey_to_rgb(np.uint8(X % 3 == 0) * 255)),
    "palette": (encode(palette(), "PNG"), PALETTE[X % 4]),
    "palette, one transparent": (encode(palette(), "PNG", transparency=1), PALETTE[X % 4]),
    "palette, alpha table": (encode(palette(), "PNG", transparency=b"\x10\x20\x30\x40"), PALETTE[X % 4]),
    "palette GIF, transparent": (encode(palette(), "GIF", transparency=2), PALETTE[X % 4]),
    "16-bit grey PNG": (encode(WIDE, "PNG"), SCALED),
    "16-bit grey PGM": (b"P5 56 40 65535\n" + WIDE.astype(">u2").tobytes(), SCALED),
    "16-bit grey TIFF": (tiff(WIDE, bits=16), SCALED),
    "16-bit big-endian TIFF": (
        encode(Image.frombytes("I;16B", (56, 40), WIDE.astype(">u2").tobytes()), "TIFF"),
        SCALED,
    ),
    "16-bit TIFF, white is 0": (tiff(65535 - WIDE, bits=16, photometric=0), SCALED),
    "12-bit grey TIFF": (tiff(NARROW, bits=12), grey_to_rgb(np.rint(NARROW / 4095 * 255).astype(np.uint8))),
    "16-bit RGB PNG keeps the high byte": (png(56, 40, bits=16, colour=2, rows=ROWS16), grey_to_rgb(WIDE >> 8)),
    "gamma is ignored": (
        png(
            56, 40, rows=b"".join(b"\0" + row.tobytes() for row in GREY), extra=chunk(b"gAMA", struct.pack(">I", 90000))
        ),
        grey_to_rgb(GREY),
    ),
    "animated GIF": (encode(RED, "GIF", **FRAMES), RED_PIXELS),
    "animated PNG": (encode(RED, "PNG", **FRAMES), RED_PIXELS),
    "animated WebP": (encode(RED, "WEBP", lossless=True, **FRAMES), RED_PIXELS),
    "multi-page TIFF": (encode(RED, "TIFF", **FRAMES), RED_PIXELS),
    "junk at the end": (encode(RGB, "PNG") + b"junk" * 99, RGB),
    "polyglot with a ZIP": (encode(RGB, "GIF") + ZIP, np.asarray(Image.fromarray(RGB).quantize().convert("RGB"))),
    "broken ICC profile": (encode(RGB, "PNG", icc_profile=b"broken"), RGB),
    "EXIF of 60 kB of garbage": (encode(RGB, "PNG", exif=b"Exif\0\0MM\0*" + b"\xa5" * 60000), RGB),
    "one pixel": (encode(RGB[:1, :1], "PNG"), RGB[:1, :1]),
    "one column": (encode(RGB[:, :1], "PNG"), RGB[:, :1]),
    "black": (encode(RGB * 0, "PNG"), RGB * 0),
}


@pytest.mark.parametrize("name", ACCEPTED)
def test_pictures_without_loss_decode_exactly(name):
    data, expected = ACCEPTED[name]
    image = decode(data)
    assert image.mode == "RGB"
    np.testing.assert_array_equal(np.asarray(image), expected)


JPEGS = {
    "baseline": ({}, RGB),
    "progressive": ({"progressive": True}, RGB),
    "EXIF garbage": ({"exif": b"Exif\0\0II*\0" + b"\x07" * 5000}, RGB),
    "broken ICC profile": ({"icc_profile": b"broken"}, RGB),
}


@pytest.mark.parametrize("name", JPEGS)
def test_jpegs_decode_with_junk_at_the_end(name):
    options, expected = JPEGS[name]
    data = encode(RGB, "JPEG", quality=95, subsampling=0, **options) + ZIP
    assert np.abs(np.asarray(decode(data)).astype(int) - expected).max() <= 12


def test_cmyk_jpegs_are_not_inverted():
    inks = {
        (255, 0, 0, 0): (0, 255, 255),
        (0, 255, 0, 0): (255, 0, 255),
        (0, 0, 0, 255): (0, 0, 0),
        (0,) * 4: (255,) * 3,
    }
    for ink, colour in inks.items():
        data = encode(Image.new("CMYK", (16, 16), ink), "JPEG", quality=95)
        assert b"Adobe" in data
        assert np.abs(np.asarray(decode(data)).astype(int) - colour).max() <= 3


# What a viewer must do to the stored rows and columns, from the definition of the EXIF tag.
UPRIGHT = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: np.rot90(a, 1),
}


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP", "JPEG"])
@pytest.mark.parametrize("orientation", UPRIGHT)
def test_every_exif_orientation_is_applied_once(kind, orientation):
    exif = Image.Exif()
    exif[274] = orientation
    options = {"PNG": {}, "TIFF": {}, "WEBP": {"lossless": True}, "JPEG": {"quality": 95, "subsampling": 0}}[kind]
    found = np.asarray(decode(encode(RGB, kind, exif=exif, **options)))
    expected = UPRIGHT[orientation](RGB)
    assert found.shape == expected.shape
    assert np.abs(found.astype(int) - expected).max() <= (12 if kind == "JPEG" else 0)


def test_orientation_is_applied_to_16_bit_grey_and_an_unknown_one_is_ignored():
    exif = Image.Exif()
    exif[274] = 6
    np.testing.assert_array_equal(np.asarray(decode(encode(WIDE, "PNG", exif=exif))), np.rot90(SCALED, -1))
    exif[274] = 9
    np.testing.assert_array_equal(np.asarray(decode(encode(RGB, "PNG", exif=exif))), RGB)


JPEG, PNG = encode(RGB, "JPEG"), encode(RGB, "PNG")
IDAT = PNG.index(b"IDAT")
WRONG_HUFFMAN = JPEG.replace(JPEG[(dht := JPEG.index(b"\xff\xc4")) : dht + 21], JPEG[dht : dht + 5] + b"\xff" * 16)

REFUSED = {
    "no bytes": (b"", "empty", "0 bytes"),
    "one byte": (JPEG[:1], "not-an-image", "no picture"),
    "a web page": (b"<html>503</html>", "not-an-image", "no picture"),
    "EPS": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "unsupported-format", "PostScript"),
    "JPEG header": (JPEG[:20], "truncated", "JPEG data ends too early"),
    "JPEG up to its scan": (JPEG[: JPEG.index(b"\xff\xda")], "truncated", "JPEG data ends too early"),
    "half a JPEG": (JPEG[: len(JPEG) // 2], "truncated", "Copy or download"),
    "JPEG, wrong Huffman table": (WRONG_HUFFMAN, "corrupt", "JPEG data is damaged"),
    "half a PNG": (PNG[: len(PNG) // 2], "truncated", "PNG data ends too early"),
    "PNG, wrong header checksum": (PNG[:29] + b"\0\0\0\0" + PNG[33:], "corrupt", "PNG data is damaged"),
    "PNG, wrong pixel": (PNG[: IDAT + 9] + bytes([PNG[IDAT + 9] ^ 1]) + PNG[IDAT + 10 :], "corrupt", "checksum"),
    "PNG, rows missing": (png(56, 40, rows=b"\0" * 99), "truncated", "PNG"),
    "PNG of 0x0": (png(0, 0), "corrupt", "PNG"),
    "PNG of 2^31-1 squared": (png(2**31 - 1, 2**31 - 1), "too-large", "tiles"),
    "PNG bomb below Pillow's limit": (png(9000, 9000, bits=1, rows=bytes(1126 * 9000)), "too-large", "9000x9000"),
    "PNG where Pillow warns": (png(13000, 13000, bits=1), "too-large", f"at most {MAX_PIXELS}"),
    "PNG where Pillow raises": (png(13500, 13500, bits=1), "too-large", "tiles"),
    "PNG text bomb": (
        png(1, 1, rows=b"\0\0", extra=chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(1 << 24)))),
        "corrupt",
        "PNG data is damaged",
    ),
    "half a GIF": (encode(RGB, "GIF")[:900], "truncated", "GIF"),
    "half a WebP": (encode(RGB, "WEBP")[:100], "truncated", "WEBP"),
    "half a BMP": (encode(RGB, "BMP")[:3000], "truncated", "BMP"),
    "half a PPM": (encode(RGB, "PPM")[:3000], "truncated", "PPM"),
    "half a TIFF": (encode(RGB, "TIFF")[:3000], "truncated", "TIFF"),
    "half a TIFF, LZW": (encode(RGB, "TIFF", compression="tiff_lzw")[:3000], "corrupt", "TIFF"),
    "float TIFF": (encode(np.float32(X), "TIFF"), "unsupported-pixels", "mode F"),
    "32-bit TIFF": (encode(np.int32(X), "TIFF"), "unsupported-pixels", "mode I"),
    "Lab TIFF": (encode(Image.new("LAB", (4, 4)), "TIFF"), "unsupported-pixels", "mode LAB"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_bad_pictures_are_refused_with_a_reason(name, capfd):  # libtiff writes to stderr
    data, reason, text = REFUSED[name]
    with pytest.raises(ImageError, match=text) as caught:
        decode(data)
    assert caught.value.reason == reason


def test_too_many_pixels_are_refused_before_decoding_whatever_pillow_is_told(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    monkeypatch.delattr(ImageFile.ImageFile, "load")
    with pytest.raises(ImageError, match="13500x13500") as caught:
        decode(png(13500, 13500, bits=1))
    assert caught.value.reason == "too-large"


@pytest.mark.parametrize("data", [PNG, REFUSED["EPS"][0], b"unknown"])
def test_only_the_decoder_of_the_announced_format_sees_the_data(data, monkeypatch):
    Image.init()

    def trespass(*arguments):
        pytest.fail("another decoder was entered")

    others = {name: (trespass, None) for name in Image.OPEN if name != "PNG"}
    monkeypatch.setattr(Image, "OPEN", {**others, "PNG": Image.OPEN["PNG"]})
    if data is PNG:
        decode(data)
    else:
        with pytest.raises(ImageError):
            decode(data)


def test_memory_running_out_is_a_reason(monkeypatch):
    def fail(self):
        raise MemoryError

    monkeypatch.setattr(ImageFile.ImageFile, "load", fail)
    with pytest.raises(ImageError, match="memory ran out") as caught:
        decode(PNG)
    assert caught.value.reason == "out-of-memory"


CUT_EXIF = encode(RGB, "JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0\x09\0" + struct.pack("<HHII", 274, 3, 1, 3))


def test_warnings_of_pillow_neither_escape_nor_change_the_result():
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        quiet = np.asarray(decode(CUT_EXIF))
    assert seen  # else the picture tests nothing
    filters = list(warnings.filters)
    results = []
    threads = [threading.Thread(target=lambda: results.append(np.asarray(decode(CUT_EXIF)))) for _ in range(8)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert warnings.filters == filters
    assert len(results) == 8
    for found in results:
        np.testing.assert_array_equal(found, quiet)


def test_transparent_palettes_do_not_even_warn():
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        decode(ACCEPTED["palette, alpha table"][0])
    assert not seen


def test_prepare_fits_and_refuses_encoders_of_other_samples():
    spec = ImageSpec(size=(16, 24))
    pixels = prepare(PNG, spec)
    assert pixels.shape == (16, 24, 3)
    assert pixels.dtype == np.uint8
    for other in (ImageSpec(size=(16, 16), frames=4), ImageSpec(size=(16, 16), channels=1, mean=(0.5,), std=(0.5,))):
        with pytest.raises(InputError, match=f"{other.channels} channels and {other.frames} frames"):
            prepare(PNG, other)


SEEDS = [JPEG, PNG, encode(RGB, "JPEG", progressive=True), encode(RGB, "WEBP"), encode(RGB, "GIF"), encode(RGB, "TIFF")]


@settings(max_examples=300)
@given(
    seed=st.sampled_from(SEEDS),
    keep=st.floats(0, 1),
    flips=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(1, 255)), max_size=6),
)
def test_damaged_data_decodes_or_is_refused(seed, keep, flips):
    data = bytearray(seed[: round(len(seed) * keep) if keep < 0.5 else len(seed)])
    for place, mask in flips:
        if data:
            data[int(place * len(data))] ^= mask
    image, reason = None, None
    try:
        image = decode(bytes(data))
    except ImageError as error:
        reason = error.reason
    if image is None:
        assert reason in REASONS
    else:
        assert np.asarray(image).shape == (image.height, image.width, 3)
