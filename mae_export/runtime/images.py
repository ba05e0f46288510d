"""From the bytes of a picture to the uint8 pixels that an encoder takes.

What a picture means is decided here, once, for every runtime:

- Formats: those of `mae_export.runtime.formats.FORMATS`, whatever the file is called.
- Colours: as Pillow's `convert("RGB")`, which the authors' data loaders use. Alpha is dropped, not composited; grey
  fills all three channels; CMYK is converted without a profile; ICC profiles and gamma are ignored.
- 16-bit grey is scaled by 1/257 and rounded (Pillow alone would saturate it); 16-bit colour keeps its high byte.
  Float and 32-bit pixels have no fixed range and are refused.
- Orientation: EXIF (or, without it, XMP) orientation 1 to 8 is applied; unreadable EXIF counts as upright.
- Animations give their first frame, multi-page TIFFs their first page.
- More than `MAX_PIXELS` pixels are refused before they are decoded, whatever limits Pillow was given.
- A damaged or truncated picture is an error, never a partly grey image.
"""

from __future__ import annotations

import io
import struct
import threading
import warnings
import zlib

import numpy as np
import numpy.typing as npt
from PIL import Image, TiffImagePlugin, UnidentifiedImageError, WebPImagePlugin  # noqa: F401 - WebP registers itself

from mae_export.errors import ImageError, InputError
from mae_export.runtime.formats import REASONS, check_whole, ends_early, recognise
from mae_export.runtime.resize import MAX_PIXELS, fit
from mae_export.spec import ImageSpec

__all__ = ["MAX_PIXELS", "REASONS", "decode", "fit", "prepare", "require_rgb"]

Image.preinit()  # here rather than in whichever thread opens the first picture

_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_BITS, _PHOTOMETRIC, _ORIENTATION = 258, 262, 274  # TIFF tags
_CONVERTIBLE = frozenset({"1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr"})
# What Pillow's decoders raise on bad data.
_DECODER_ERRORS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    EOFError,
    LookupError,
    OSError,
    RuntimeError,
    SyntaxError,
    TypeError,
    ValueError,
    struct.error,
    zlib.error,
)
_warnings_lock = threading.Lock()


def prepare(data: bytes, spec: ImageSpec) -> npt.NDArray[np.uint8]:
    """Decode a picture and fit it to what an encoder takes.

    Returns:
        uint8 [H, W, 3], RGB, with (H, W) = `spec.size`.

    Raises:
        ImageError: as `decode` and `fit` do.
        InputError: as `require_rgb` does.
    """
    require_rgb(spec)
    return fit(decode(data), spec)


def require_rgb(spec: ImageSpec) -> None:
    """Refuse an encoder whose samples cannot come from single picture files.

    Raises:
        InputError: when `spec` wants other channels than RGB, or several frames.
    """
    if spec.channels != 3 or spec.frames != 1:
        raise InputError(
            f"this encoder takes {spec.channels} channels and {spec.frames} frames; picture files give 3 channels and "
            "1 frame. Pass arrays instead of files"
        )


def decode(data: bytes) -> Image.Image:
    """Decode a picture by the rules at the top of this file. Safe to call from many threads.

    Returns:
        An upright picture of mode RGB with all its pixels in memory.

    Raises:
        ImageError: when that is impossible; `reason` is one of `REASONS`.
    """
    kind = recognise(data)
    try:
        check_whole(data, kind)
        try:
            return _decode(data, kind)
        except Warning:
            # Only where the caller's filters turn warnings into errors. Filters belong to the whole process, so
            # they are touched in this rare case only, by one thread at a time.
            with _warnings_lock, warnings.catch_warnings():
                warnings.simplefilter("ignore")
                return _decode(data, kind)
    except Image.DecompressionBombError as error:
        raise ImageError("too-large", f"{kind} picture: {error} Reduce it or cut it into tiles") from error
    except MemoryError as error:
        raise ImageError("out-of-memory", f"memory ran out decoding a {kind} picture; use fewer threads") from error
    except _DECODER_ERRORS as error:
        cut = "truncated" in str(error).lower() or ends_early(data, kind)
        # The text of this one error holds an address in memory.
        words = "header not understood" if isinstance(error, UnidentifiedImageError) else str(error)
        raise ImageError(
            "truncated" if cut else "corrupt",
            f"the {kind} data {'ends too early' if cut else 'is damaged'} ({type(error).__name__}: {words}); "
            "expected a complete picture. Copy or download the file again, or convert it to PNG",
        ) from error


def _decode(data: bytes, kind: str) -> Image.Image:
    with Image.open(io.BytesIO(data), formats=(kind,)) as image:
        width, height = image.size
        if width < 1 or height < 1:
            raise ImageError("corrupt", f"the {kind} header says {width}x{height} pixels; expected at least 1x1")
        if width * height > MAX_PIXELS:
            raise ImageError(
                "too-large",
                f"the {kind} picture has {width}x{height} pixels; expected at most {MAX_PIXELS} in all. "
                "Reduce it or cut it into tiles",
            )
        image.load()
        return _upright(image, _to_rgb(image))


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
        return _from_16_bits(image)
    if image.mode not in _CONVERTIBLE:
        raise ImageError(
            "unsupported-pixels",
            f"the {image.format} picture has pixels of Pillow's mode {image.mode}, which have no fixed range; "
            "expected 8-bit pixels or 16-bit grey. Convert it to one of those",
        )
    image.info.pop("transparency", None)  # dropped like any alpha; Pillow would warn about it
    return image if image.mode == "RGB" else image.convert("RGB")


def _from_16_bits(image: Image.Image) -> Image.Image:
    tags = image.tag_v2 if isinstance(image, TiffImagePlugin.TiffImageFile) else {}
    top = (1 << tags.get(_BITS, (16,))[0]) - 1  # TIFF also stores 12 bits
    grey = np.clip(np.asarray(image), 0, top).astype(np.uint32)
    if tags.get(_PHOTOMETRIC) == 0:  # white is zero
        grey = top - grey
    return Image.fromarray(((grey * 255 + top // 2) // top).astype(np.uint8)).convert("RGB")


def _upright(source: Image.Image, image: Image.Image) -> Image.Image:
    """Turn `image` as the metadata of `source`, the picture that Pillow opened, says."""
    try:
        orientation = source.getexif().get(_ORIENTATION, 1)
    except _DECODER_ERRORS:
        return image
    return image.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else image
