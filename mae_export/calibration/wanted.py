"""What 8-bit graph is wanted: plain values with their defaults, free of onnx which the command line reads too."""

from __future__ import annotations

import typing
from dataclasses import dataclass
from typing import Literal

from mae_export.errors import UsageError

Eight = Literal["int8", "fp8"]
Preset = Literal["linear", "full"]


@dataclass(frozen=True, kw_only=True)
class QuantizeOptions:
    """What 8-bit graph is wanted.

    Attributes:
        precision: int8, or fp8 (e4m3).
        preset: `linear` quantizes products with weights; `full` the attention between them as well.
        keep: names of modules that stay in float32, such as `blocks.7.mlp.fc2` or a whole `blocks.0`.
        smooth: move outlier channels from activations into weights, at no cost at run time.
        correct_bias: take the mean error of the rounded weights out of the biases, by the table's means.
        lower: write the form that ONNX Runtime computes fastest on a CPU, which nothing else reads.
        force: replace an existing file.

    Raises:
        UsageError: when a value is not known, or options exclude each other.
    """

    precision: Eight
    preset: Preset = "linear"
    keep: tuple[str, ...] = ()
    smooth: bool = True
    correct_bias: bool = True
    lower: bool = False
    force: bool = False

    def __post_init__(self) -> None:
        if self.precision not in typing.get_args(Eight):
            raise UsageError(f"precision {self.precision!r} is not known; expected int8 or fp8")
        if self.preset not in typing.get_args(Preset):
            raise UsageError(f"preset {self.preset!r} is not known; expected linear or full")
        if self.lower and (self.precision, self.preset) != ("int8", "linear"):
            raise UsageError(
                f"the form for CPUs exists of int8 linear, not of {self.precision} {self.preset}: ONNX Runtime's CPU "
                "provider has no quicker kernels for the rest. Leave out --lower"
            )
