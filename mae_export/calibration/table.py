"""A calibration table: the range of every activation that may be quantized, bound to one graph and to named images.

A table says what was seen and what a method chose to represent of it. It holds no scales: those also depend on what
the quantizer does to the weights. Unknown keys, numbers that are not finite and another graph's table are errors.
"""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mae_export.artefacts import require_graph, require_table
from mae_export.errors import InputError
from mae_export.files import model_files, sha256_files
from mae_export.manifest import SCHEMA, read_json

Method = Literal["minmax", "percentile", "entropy", "mse"]


@dataclass(frozen=True, kw_only=True)
class TensorRange:
    """One observed activation.

    Attributes:
        low: lower end of what the method chose to represent; everything below is clipped.
        high: upper end; ranges are symmetric, so `low` is `-high`.
        minimum: smallest value seen.
        maximum: largest value seen.
        channels: largest |x| of each channel (last axis), for inputs of products with weights; else empty.
        means: mean of each of those channels.

    Raises:
        InputError: when a number is not finite, a range is empty, or channels reach beyond what was seen.
    """

    low: float
    high: float
    minimum: float
    maximum: float
    channels: tuple[float, ...] = ()
    means: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        numbers = (self.low, self.high, self.minimum, self.maximum, *self.channels, *self.means)
        if not all(map(math.isfinite, numbers)):
            raise InputError("a range holds NaN or infinity; the table is damaged: calibrate again")
        if self.low >= self.high or self.minimum > self.maximum:
            raise InputError(
                f"range {self.low:g}..{self.high:g} of values {self.minimum:g}..{self.maximum:g} is empty; "
                "expected low < high and minimum <= maximum: calibrate again, on images that differ"
            )
        if len(self.means) not in (0, len(self.channels)):
            raise InputError(
                f"there are {len(self.means)} means for {len(self.channels)} channels; the table is damaged: "
                "calibrate again"
            )
        if self.channels and not 0 <= min(self.channels) <= max(self.channels) <= self.reach:
            raise InputError(
                f"the largest |x| of a channel is {max(self.channels):g}, of the whole tensor {self.reach:g}; "
                "the table is damaged: calibrate again"
            )

    @property
    def reach(self) -> float:
        """Largest |x| seen."""
        return max(abs(self.minimum), abs(self.maximum))


@dataclass(frozen=True, kw_only=True)
class Table:
    """What was observed of a graph.

    Attributes:
        graph: SHA-256 of the graph's files, as in `Ancestor.sha256`.
        graph_name: its file name, for people.
        method: how ranges were chosen.
        percentile: of |x| that a range covers; used by the method of that name only.
        seed: by which images were chosen.
        visible: plan of visible patches, as written on the command line.
        samples: number of images used.
        images: SHA-256 of the bytes of each image file, in the order used.
        ranges: by name of the tensor in the graph.
        tools: versions of the programs that made it.
        schema: version of this structure.

    Raises:
        InputError: when nothing was observed, or the number of images is another than `samples`.
    """

    graph: str
    graph_name: str
    method: Method
    percentile: float
    seed: int
    visible: str
    samples: int
    images: tuple[str, ...]
    ranges: dict[str, TensorRange]
    tools: dict[str, str]
    schema: int = SCHEMA

    def __post_init__(self) -> None:
        if not self.ranges or len(self.images) != self.samples:
            raise InputError(
                f"a table of {len(self.ranges)} tensors names {len(self.images)} images for {self.samples} samples; "
                "expected some tensors and one image for each sample: calibrate again"
            )

    def to_json(self) -> str:
        """Serialise; the result is stable for equal tables."""
        return json.dumps(dataclasses.asdict(self), indent=1, sort_keys=True, ensure_ascii=True, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> Table:
        """Read what `to_json` wrote.

        Raises:
            InputError: when the text is anything else.
        """
        return read_json(text, cls, "calibration table")

    @classmethod
    def read(cls, path: Path) -> Table:
        """Read a table file.

        Raises:
            InputError: when it cannot be read or is no table.
        """
        require_table(path)
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(
                f"{path} cannot be read as a calibration table ({error}); write one with `mae-export calibrate`"
            ) from error
        return cls.from_json(text)

    def require_for(self, graph: Path) -> None:
        """Refuse the table for any graph but the one it was observed on.

        Raises:
            InputError: when the graph's digest is another, or it is no graph at all.
        """
        require_graph(graph)
        found = sha256_files(*model_files(graph))
        if found != self.graph:
            raise InputError(
                f"the table was observed on {self.graph_name} with SHA-256 {self.graph}; {graph} has {found}. "
                f"Ranges hold for one graph only: run `mae-export calibrate {graph} IMAGES -o NAME.calib.json`"
            )
