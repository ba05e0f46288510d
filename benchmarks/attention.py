"""Attention as ONNX Runtime's own operator, to measure whether that is worth a lowering.

ONNX Runtime fuses attention where query, key and value are products of their own, as BERT's exporters write them. Here
they are one product, reshaped to [B, T, 3, H, D / H], transposed and cut: no pattern of its optimiser fits, and
Softmax stays between two products. This rewrites the pattern by hand to `MultiHeadAttention`, which runs flash or fused
kernels on GPUs in float16.
"""

from __future__ import annotations

from pathlib import Path

import onnx
from onnx import NodeProto, helper

DOMAIN = "com.microsoft"
THROUGH = ("Mul", "Slice", "Squeeze", "Gather", "Split", "Transpose", "Reshape", "Cast")


class _Index:
    """Who makes and who takes each value of a graph."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self.makers = {name: node for node in graph.node for name in node.output}
        self.takers: dict[str, list[NodeProto]] = {}
        for node in graph.node:
            for name in node.input:
                self.takers.setdefault(name, []).append(node)
        self.constants = {weight.name: tuple(weight.dims) for weight in graph.initializer}

    def projection(self, node: NodeProto | None) -> NodeProto | None:
        """The addition of a bias from which a value was only cut, turned and scaled."""
        while node is not None and node.op_type in THROUGH:
            node = next((self.makers[name] for name in node.input if name in self.makers), None)
        if node is None or node.op_type != "Add":
            return None
        return node if any(len(self.constants.get(name, ())) == 1 for name in node.input) else None

    def only_taker(self, node: NodeProto, kind: str) -> NodeProto | None:
        """What alone takes the value of a node, casts left out, when it is of this kind."""
        while len(takers := self.takers.get(node.output[0], [])) == 1:
            node = takers[0]
            if node.op_type != "Cast":
                return node if node.op_type == kind else None
        return None


def fuse_attention(source: Path, out: Path, *, heads: int) -> int:
    """Write the graph with every unmasked attention as one operator; returns how many there were."""
    model = onnx.load(source)
    index, fused = _Index(model.graph), 0
    for softmax in [node for node in model.graph.node if node.op_type == "Softmax"]:
        scores = index.makers[softmax.input[0]]
        if scores.op_type == "Cast":
            scores = index.makers[scores.input[0]]
        joined = index.projection(index.makers.get(scores.input[0]))
        end: NodeProto | None = softmax
        for kind in ("MatMul", "Transpose", "Reshape"):
            end = None if end is None else index.only_taker(end, kind)
        if scores.op_type != "MatMul" or joined is None or end is None:
            continue
        parts = [f"{end.output[0]}_{name}" for name in ("query", "key", "value")]
        place = list(model.graph.node).index(end)
        attention = helper.make_node("MultiHeadAttention", parts, end.output, domain=DOMAIN, num_heads=heads)
        model.graph.node.remove(end)
        model.graph.node.insert(place, attention)
        model.graph.node.insert(place, helper.make_node("Split", joined.output, parts, axis=-1, num_outputs=3))
        fused += 1
    _prune(model.graph)
    model.opset_import.append(helper.make_opsetid(DOMAIN, 1))
    onnx.save(model, out)
    return fused


def _prune(graph: onnx.GraphProto) -> None:
    while True:
        used = {name for node in graph.node for name in node.input} | {value.name for value in graph.output}
        dead = [node for node in graph.node if not used.intersection(node.output)]
        if not dead:
            return
        for node in dead:
            graph.node.remove(node)
