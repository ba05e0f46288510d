"""What the builder planned, read from its log: each layer with its data types and the graph's nodes it computes.

At detailed verbosity TensorRT-RTX logs one record that begins with `Layers:` and has a line per layer; the engine
inspector of TensorRT prints the same lines.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass

KEPT = ("Layers:", "Total Activation Memory:", "Total Weights Memory:")  # records worth keeping begin so
FUSED_ATTENTION = "mha"  # part of the name of every fused attention kernel
_LIST = r"\[(?P<{}>[^{{}}\]]*(?:\{{[^{{}}]*\}}[^{{}}\]]*)*)\]"  # of tensors in braces, which hold brackets themselves
_LAYER = re.compile(
    rf"^Name: (?P<name>.*?), LayerType: (?P<kind>\w+), .*?Inputs: {_LIST.format('inputs')}, "
    rf"(?:Constants: {_LIST.format('constants')}, )?.*?Outputs: {_LIST.format('outputs')}"
    r"(?:.*?Metadata: (?P<metadata>.*))?"
)
_TENSOR = re.compile(r"Dimensions: \[(?P<shape>[-\d,]*)\].*?(?:Datatype: |Format/Datatype: )(?P<dtype>\w+)")
_NODE = re.compile(r"\[ONNX Layer: (.*?)\]")
_MEMORY = re.compile(r"^Total (Activation|Weights) Memory: (\d+) bytes", re.MULTILINE)


@dataclass(frozen=True, kw_only=True)
class PlannedTensor:
    """Data type as TensorRT spells it (Half, Float, BFloat16, Int8, ...) and shape with -1 for free extents."""

    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class PlannedLayer:
    """One layer of an engine, and the names of the graph's nodes that it computes or helps to."""

    name: str
    kind: str
    inputs: tuple[PlannedTensor, ...]
    constants: tuple[PlannedTensor, ...]
    outputs: tuple[PlannedTensor, ...]
    nodes: tuple[str, ...]

    @property
    def fused_attention(self) -> bool:
        """Whether it is a whole attention: product, softmax and product in one kernel."""
        return FUSED_ATTENTION in self.name

    @property
    def weight(self) -> PlannedTensor | None:
        """Its largest constant with more than one row and column; None when it has no such."""
        matrices = [tensor for tensor in self.constants if sum(extent > 1 for extent in tensor.shape) > 1]
        return max(matrices, key=lambda tensor: math.prod(tensor.shape), default=None)

    @property
    def product_dtype(self) -> str:
        """Data type in which its inputs are multiplied with its weight, "" when it has no weight.

        INT8 needs both in INT8; an INT8 weight alone is converted to the inputs' type first, and the reverse.
        """
        found = {tensor.dtype for tensor in self.inputs}
        if self.weight is None or self.weight.dtype in found:
            return self.weight.dtype if self.weight else ""
        return next((dtype for dtype in ("Float", "Half", "BFloat16") if dtype in {*found, self.weight.dtype}), "mixed")


@dataclass(frozen=True, kw_only=True)
class BuildLog:
    """Planned layers of all profiles, activation memory of each profile, memory of the weights; in bytes."""

    layers: tuple[PlannedLayer, ...]
    activation_bytes: tuple[int, ...]
    weights_bytes: int


def parse_build_log(text: str) -> BuildLog:
    """Read the records of a log that begin with one of `KEPT`; lines of any other form are passed over."""
    memory = _MEMORY.findall(text)
    return BuildLog(
        layers=tuple(_layers(text)),
        activation_bytes=tuple(int(size) for what, size in memory if what == "Activation"),
        weights_bytes=sum(int(size) for what, size in memory if what == "Weights"),
    )


def _layers(text: str) -> Iterator[PlannedLayer]:
    for line in text.splitlines():
        match = _LAYER.match(line)
        if match is not None:
            yield PlannedLayer(
                name=match["name"],
                kind=match["kind"],
                inputs=_tensors(match["inputs"]),
                constants=_tensors(match["constants"] or ""),
                outputs=_tensors(match["outputs"]),
                nodes=tuple(_NODE.findall(match["metadata"] or "")),
            )


def _tensors(text: str) -> tuple[PlannedTensor, ...]:
    return tuple(
        PlannedTensor(dtype=match["dtype"], shape=tuple(int(extent) for extent in match["shape"].split(",") if extent))
        for match in _TENSOR.finditer(text)
    )
