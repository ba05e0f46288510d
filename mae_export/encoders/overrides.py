"""What a user may state about a checkpoint that its tensors do not say: the `--set KEY=VALUE` options, typed."""

from __future__ import annotations

import difflib
import typing
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from mae_export.errors import UsageError
from mae_export.spec import Resize


@dataclass(frozen=True, kw_only=True)
class Overrides:
    """Facts given by the user; None leaves a fact to the checkpoint and the family's table.

    Attributes:
        heads: attention heads of the encoder.
        decoder_heads: attention heads of the decoder, predictor or regresser.
        eps: of every LayerNorm that has weights.
        mean: per channel, of pixels in [0, 1].
        std: per channel, of pixels in [0, 1].
        image_size: height and width the checkpoint was trained at, when its position table does not say.
        resize: `cover` or `stretch`.
        crop_fraction: side of the centre crop over the side of the resized image.
        norm_pix_loss: whether the decoder predicts pixels normalised per patch.
        weights: which state dict of the file to use.
        ignore: name prefixes of tensors that may stay unused.

    Raises:
        UsageError: when a number is not positive.
    """

    heads: int | None = None
    decoder_heads: int | None = None
    eps: float | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    image_size: tuple[int, int] | None = None
    resize: Resize | None = None
    crop_fraction: float | None = None
    norm_pix_loss: bool | None = None
    weights: str | None = None
    ignore: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("heads", "decoder_heads", "eps", "crop_fraction"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise UsageError(f"{name} is {value}; expected a positive number")


def parse_image_size(text: str) -> tuple[int, int]:
    """Read `224` or `192x320` as (height, width) in pixels.

    Raises:
        UsageError: when the text is neither.
    """
    parts = text.lower().split("x")
    if len(parts) not in (1, 2) or not all(len(part) < 10 and part.isdecimal() and int(part) for part in parts):
        raise UsageError(f"image size {text!r} is neither N nor HxW; write for example 224 or 192x320")
    return int(parts[0]), int(parts[-1])


def _boolean(text: str) -> bool:
    if text not in ("true", "false"):
        raise ValueError("expected true or false")
    return text == "true"


def _floats(text: str) -> tuple[float, ...]:
    return tuple(float(part) for part in text.split(","))


def _resize(text: str) -> str:
    if text not in typing.get_args(Resize):
        raise ValueError(f"expected one of {', '.join(typing.get_args(Resize))}")
    return text


def _names(text: str) -> tuple[str, ...]:
    names = tuple(part.strip() for part in text.split(","))
    if not all(names):  # an empty prefix would match every tensor
        raise ValueError("expected prefixes separated by commas")
    return names


_READERS: dict[str, Callable[[str], Any]] = {
    "heads": int,
    "decoder_heads": int,
    "eps": float,
    "mean": _floats,
    "std": _floats,
    "image_size": parse_image_size,
    "resize": _resize,
    "crop_fraction": float,
    "norm_pix_loss": _boolean,
    "weights": str,
    "ignore": _names,
}


def parse_overrides(settings: Sequence[str]) -> Overrides:
    """Read `KEY=VALUE` settings, for example `heads=4`, `mean=0.5,0.5,0.5`, `image_size=192x320`.

    Raises:
        UsageError: on an unknown or repeated key, or a value that its key cannot take.
    """
    values: dict[str, Any] = {}
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals:
            raise UsageError(f"--set {setting!r} is not KEY=VALUE; write for example --set heads=12")
        if key not in _READERS:
            near = difflib.get_close_matches(key, _READERS, 1)
            hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(_READERS)}"
            raise UsageError(f"--set {key!r} is not known; {hint}")
        if key in values:
            raise UsageError(f"--set {key} is given twice; give it once")
        try:
            values[key] = _READERS[key](text)
        except ValueError as error:
            raise UsageError(f"--set {key}={text!r} cannot be read: {error}") from error
    return Overrides(**values)
