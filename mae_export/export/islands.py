"""Which nodes of a half-precision graph stay in float32, and why: the one place that decides it.

By rule: the embedding of raw pixels and its bias (a large mean is subtracted there; in half precision this one place
doubles the error of a ViT-B's features, for 0.7 % of its work), sums over tokens, and what ONNX does not define in the
type. By measurement: every node with an input or output whose largest value, times the headroom, exceeds the type;
every matrix product or convolution whose running sum could; every node whose weights the type cannot hold. Then nodes
between such nodes, where casts would cost more than they save. Attention stays in half precision unless it overflows,
because TensorRT fuses it only as a whole.
"""

from __future__ import annotations

from collections.abc import Iterator

import ml_dtypes
import numpy as np
import onnx_ir as ir

from mae_export.export.options import Half
from mae_export.export.ranges import Ranges
from mae_export.export.retype import FLOAT, TYPES, is_source, is_typed
from mae_export.export.rounding import EXACT

CONV_IN_BF16 = 22  # the operator set that defines it
PRODUCTS = frozenset({"MatMul", "Conv"})
SUMS = frozenset({"ReduceMean", "ReduceSum"})
WEIGHT_LOSS = 4  # times the rounding error of well-scaled weights; beyond that the type is too narrow for them


def choose_fp32(model: ir.Model, ranges: Ranges, *, half: Half, headroom: float) -> dict[str, str]:
    """Choose the nodes that stay in float32.

    Args:
        model: the float32 graph; not changed.
        ranges: measured on it.
        half: the type of the other nodes.
        headroom: a measured value may grow by this factor on other images.

    Returns:
        The reason by name of node, in the order of the graph.
    """
    nodes = [node for node in model.graph if is_typed(node)]
    limits = _Limits(ranges, half, headroom)
    kept = dict.fromkeys(_embedding(nodes), "embeds raw pixels")
    for node in nodes:
        reason = _by_rule(node, half, model.opset_imports[""]) or limits.broken_by(node)
        if node not in kept and reason:
            kept[node] = reason
    _fill(nodes, kept)
    return {node.name or "": kept[node] for node in nodes if node in kept}


def _by_rule(node: ir.Node, half: Half, opset: int) -> str | None:
    if node.op_type in SUMS:
        return "sums over tokens"
    if node.op_type == "Conv" and half == "bf16" and opset < CONV_IN_BF16:
        return f"ONNX has no bf16 convolution before operator set {CONV_IN_BF16}"
    return None


class _Limits:
    """What half precision can hold of a graph.

    Args:
        ranges: measured on the float32 graph.
        half: the type.
        headroom: see `choose_fp32`.
    """

    def __init__(self, ranges: Ranges, half: Half, headroom: float) -> None:
        self._found = ranges.found
        self._dtype = TYPES[half].numpy()
        self._headroom = headroom
        self._half = half
        info = ml_dtypes.finfo(self._dtype)  # type: ignore[no-untyped-call]
        self._largest = float(info.max)
        self._loss = WEIGHT_LOSS * float(info.eps) / 4  # eps / 4: about the rms rounding error of normal numbers
        self._known: dict[ir.Value, float | None] = {}
        self._lossy: dict[ir.Value, bool] = {}

    def broken_by(self, node: ir.Node) -> str | None:
        """Why half precision is not enough for a node; None when it is."""
        for value in (*node.inputs, *node.outputs):
            if value is None or value.dtype != FLOAT:
                continue
            if self.reach(value) > self._largest:
                measured = self._found.get((value.name or "", None), self.known(value))
                return f"{value.name} reaches {measured:.3g}"
            if value.const_value is not None and self.lossy(value):
                return f"{value.name} loses precision in {self._half}"
        if node.op_type in PRODUCTS and self.running_sum(node) > self._largest:
            return f"running sums reach {self.running_sum(node):.3g}"
        return None

    def reach(self, value: ir.Value) -> float:
        """The largest magnitude to reckon with: exact for constants, else measured times the headroom."""
        known = self.known(value)
        if known is not None:
            return known
        producer = value.producer()
        if producer is not None and producer.op_type == "Add":  # an exact constant needs no headroom: masks are -3e4
            terms = [term for term in producer.inputs if term is not None]
            if any(self.known(term) is not None for term in terms):
                return sum(self.reach(term) for term in terms)
        return self._headroom * self._found[value.name or "", None]

    def known(self, value: ir.Value) -> float | None:
        """The largest magnitude of a tensor made of constants only, whatever the images show."""
        if value not in self._known:
            self._known[value] = self._bound(value)
        return self._known[value]

    def _bound(self, value: ir.Value) -> float | None:
        if value.const_value is not None:
            return float(np.abs(value.const_value.numpy()).max(initial=0))
        producer = value.producer()
        if producer is None or producer.op_type not in EXACT | {"Where"}:
            return None
        bounds = [self.known(term) for term in producer.inputs if term is not None and term.dtype == FLOAT]
        known = [bound for bound in bounds if bound is not None]
        return max(known) if known and len(known) == len(bounds) else None

    def lossy(self, value: ir.Value) -> bool:
        """Whether weights lose more than their last digits, because they are too small for the type."""
        if value not in self._lossy and value.const_value is not None:
            weights = value.const_value.numpy()
            error = np.linalg.norm(weights.astype(self._dtype).astype(np.float32) - weights)
            self._lossy[value] = bool(error > self._loss * np.linalg.norm(weights))
        return self._lossy[value]

    def running_sum(self, node: ir.Node) -> float:
        """A bound of every partial sum of a product in any order: by Cauchy and Schwarz, or of a convolution by the
        largest value that it meets and the absolute sum of each of its filters."""
        bound = 1.0
        if node.op_type == "Conv":
            for value in node.inputs[:2]:
                if value is not None and value.const_value is not None:
                    bound *= float(np.abs(value.const_value.numpy()).sum(axis=(1, 2, 3)).max())
                elif value is not None:
                    bound *= self._found[value.name or "", None]
            return bound
        for value, axis in zip(node.inputs, (-1, -2), strict=True):
            if value is not None and value.const_value is not None:
                bound *= float(np.linalg.norm(value.const_value.numpy(), axis=axis).max())
            elif value is not None:
                bound *= self._found[value.name or "", axis]
        return bound


def _embedding(nodes: list[ir.Node]) -> Iterator[ir.Node]:
    """The matrix product of the pixels, which only moves and one conversion from integers separate from the input."""
    for node in nodes:
        if node.op_type == "MatMul" and _is_pixels(node.inputs[0]):
            yield node
            yield from (user for user in node.outputs[0].consumers() if user.op_type == "Add")


def _is_pixels(value: ir.Value | None) -> bool:
    producer = None if value is None else value.producer()
    if producer is not None and is_source(producer):
        return producer.inputs[0] is not None and producer.inputs[0].dtype == ir.DataType.UINT8
    return producer is not None and producer.op_type in EXACT and _is_pixels(producer.inputs[0])


def _fill(nodes: list[ir.Node], kept: dict[ir.Node, str]) -> None:
    """Add what lies between float32 nodes, or between them and outputs or integers; never a product."""
    between = (node for node in nodes if node not in kept and node.op_type not in PRODUCTS)
    free = {node for node in between if _makers(node) or _moves(node)}
    before = None
    while before != len(free):
        before = len(free)
        for node in (*nodes, *reversed(nodes)):
            others = (*_makers(node), *_users(node))
            if node in free and not all(other in kept or other in free for other in others):
                free.remove(node)
    kept |= dict.fromkeys(free, "stands between float32 nodes")


def _moves(node: ir.Node) -> bool:
    return node.op_type in EXACT or is_source(node)


def _users(node: ir.Node) -> Iterator[ir.Node]:
    for value in node.outputs:
        if value.dtype == FLOAT:
            yield from (user for user in value.consumers() if is_typed(user))


def _makers(node: ir.Node) -> list[ir.Node]:
    producers = [value.producer() for value in node.inputs if value is not None and value.dtype == FLOAT]
    return [producer for producer in producers if producer is not None]
