"""What graph is wanted: plain values with their defaults, free of torch so that the command line reads them too."""

from __future__ import annotations

import typing
from dataclasses import dataclass
from typing import Literal

from mae_export.errors import UsageError
from mae_export.manifest import MaskMode

Rival = Literal["torch", "compile", "torch-bf16"]  # what PyTorch does beside a graph; see `rivals.py`
Half = Literal["fp16", "bf16"]
OPSETS = range(18, 23)  # from 23 on torch writes Attention nodes, which TensorRT before 10.14 cannot read


@dataclass(frozen=True, kw_only=True)
class TraceOptions:
    """What graph is wanted.

    Attributes:
        mask: mask mode.
        ragged: add `num_keep`, so that rows may keep different numbers of patches.
        features: names of the outputs, in order.
        image_size: height and width in pixels; None keeps the checkpoint's.
        opset: ONNX operator set; 20 is the newest that TensorRT 10.3 (JetPack 6) reads.
        force: replace an existing file.

    Raises:
        UsageError: when options exclude each other.
    """

    mask: MaskMode = "none"
    ragged: bool = False
    features: tuple[str, ...] = ("pooled",)
    image_size: tuple[int, int] | None = None
    opset: int = 20
    force: bool = False

    def __post_init__(self) -> None:
        if self.mask not in typing.get_args(MaskMode):
            raise UsageError(f"mask mode {self.mask!r} is not known; expected {', '.join(typing.get_args(MaskMode))}")
        if self.ragged and self.mask not in ("keep", "patches"):
            raise UsageError("--ragged needs a mask input: add --mask keep or --mask patches")
        if self.opset not in OPSETS:
            raise UsageError(f"opset {self.opset} is not supported; expected {OPSETS.start} to {OPSETS.stop - 1}")
        if not all(self.features) or not self.features or len(set(self.features)) != len(self.features):
            raise UsageError(f"features {', '.join(self.features) or '(none)'} must name each output once")
        if "dense" in self.features and self.mask in ("keep", "patches"):
            raise UsageError("the output 'dense' needs every patch; it exists with --mask none and mask-token only")


@dataclass(frozen=True, kw_only=True)
class ConvertOptions:
    """What half-precision graph is wanted.

    Attributes:
        precision: fp16 or bf16.
        headroom: factor by which a value may exceed what was measured before it overflows; a node without that much
            room stays in float32.
        force: replace an existing file.

    Raises:
        UsageError: when a value is not known or impossible.
    """

    precision: Half
    headroom: float = 4.0
    force: bool = False

    def __post_init__(self) -> None:
        if self.precision not in typing.get_args(Half):
            raise UsageError(f"precision {self.precision!r} is not known; expected fp16 or bf16")
        if not 1 <= self.headroom < float("inf"):
            raise UsageError(f"headroom {self.headroom:g} must be a number of at least 1")
