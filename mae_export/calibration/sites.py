"""Which products of a graph may run in 8 bits, and what each one is to the encoder: found by structure, not by name.

An attention block is a product of two activations that a softmax follows (scores), and the product that consumes the
softmax (mix). Every other product is with weights; what it is follows from its neighbours: what feeds an attention
product is a query, key or value projection, what a mix feeds is the output projection, and the two sides of an
activation function are the layers of an MLP. So rotary embeddings, position biases, gates, separate projections and
decoders need no rule of their own. Products of one-hot matrices and the like are no sites.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import onnx_ir as ir
from google.protobuf.message import DecodeError

from mae_export.errors import GraphError

Kind = Literal["qkv", "proj", "fc1", "fc2", "patch_embed", "other", "scores", "mix"]
WEIGHTED = ("MatMul", "Gemm", "Conv")
ACTIVATIONS = frozenset(
    {"Celu", "Elu", "Erf", "Gelu", "HardSigmoid", "HardSwish", "LeakyRelu", "Mish", "PRelu", "QuickGelu", "Relu"}
    | {"Selu", "Sigmoid", "Softplus", "Swish", "Tanh"}
)
# What only moves, retypes or rescales values by constants on their way.
MOVES = frozenset(
    {"Cast", "Concat", "Expand", "Flatten", "Gather", "GatherElements", "GatherND", "Identity", "Pad", "Reshape"}
    | {"ScatterElements", "ScatterND", "Slice", "Split", "Squeeze", "Tile", "Transpose", "Unsqueeze"}
)
ELEMENTWISE = frozenset({"Add", "Clip", "Div", "Mul", "Neg", "Pow", "Sqrt", "Sub", "Where"})
NORMS = frozenset(
    {"GroupNormalization", "InstanceNormalization", "LayerNormalization", "LpNormalization", "RMSNormalization"}
)
_BLOCK = re.compile(r"^.*s\.\d+(\.\d+)*(?=\.|$)|^.*?\d+(?=\.|$)")  # the last numbered plural, else what has a number


@dataclass(frozen=True, kw_only=True)
class Site:
    """One product that may be quantized.

    Attributes:
        node: name of the node.
        op: its operator.
        name: the encoder's name of the module, such as `blocks.7.mlp.fc2`; of attention products, the attention's.
        kind: what it is to the encoder.
        inputs: names of the activations it multiplies; of `scores` query and key, of `mix` softmax and value.
        weight: name of the weight initializer; empty for attention products.
    """

    node: str
    op: str
    name: str
    kind: Kind
    inputs: tuple[str, ...]
    weight: str = ""

    @property
    def block(self) -> str:
        """The encoder block it belongs to, such as `blocks.7`; outside blocks its own name."""
        found = _BLOCK.match(self.name)
        return found[0] if found else self.name


def sites_of(model: ir.Model | Path) -> tuple[Site, ...]:
    """The products of a float32 graph that may be quantized, in the order of the graph.

    Args:
        model: the graph, or where it is; weights are not read.

    Raises:
        GraphError: when the graph cannot be read, is quantized already or is not float32 throughout.
    """
    if isinstance(model, Path):
        try:
            model = ir.load(model)
        except (OSError, DecodeError) as error:
            raise GraphError(f"{model} cannot be read as an ONNX model: {error}") from error
    _require_float32(model)
    nodes = list(model.graph)
    attention = dict(_attention(nodes))
    weighted = [node for node in nodes if node not in attention and _has_weight(node)]
    kinds = _kinds(weighted, attention)
    return tuple(
        _site(node, attention.get(node) or kinds.get(node, "other"))
        for node in nodes
        if node in attention or node in kinds or _has_weight(node)
    )


def _require_float32(model: ir.Model) -> None:
    for node in model.graph:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            raise GraphError(
                f"the graph is quantized already (node {node.name!r}); expected a float32 graph: give the one it was "
                "made from"
            )
        for value in (*node.inputs, *node.outputs):
            dtype = None if value is None else value.dtype
            if value is not None and dtype is not None and dtype.is_floating_point() and dtype != ir.DataType.FLOAT:
                raise GraphError(
                    f"tensor {value.name!r} is {dtype}; expected a float32 graph: calibrate and quantize the graph as "
                    "`mae-export export` wrote it, and convert afterwards"
                )


def _site(node: ir.Node, kind: Kind) -> Site:
    names = [value.name or "" for value in node.inputs[:2] if value is not None]
    name = (node.name or "").rpartition("/")[0]
    weighted = kind not in ("scores", "mix")
    return Site(
        node=node.name or "",
        op=node.op_type,
        name=name,
        kind=kind,
        inputs=tuple(names[:1] if weighted else names),
        weight=names[1] if weighted else "",
    )


def _has_weight(node: ir.Node) -> bool:
    """Whether an activation is multiplied with an initializer of two or more axes."""
    if node.op_type not in WEIGHTED or len(node.inputs) < 2:
        return False
    activation, weight = node.inputs[:2]
    if activation is None or weight is None or weight.const_value is None or activation.const_value is not None:
        return False
    return len(weight.const_value.shape) >= 2


def _attention(nodes: list[ir.Node]) -> Iterator[tuple[ir.Node, Kind]]:
    """The two products around each softmax that has both."""
    for softmax in nodes:
        if softmax.op_type == "Softmax":
            mixes = [node for node in _after(softmax) if _is_product(node)]
            scores = [node for node in _before(softmax) if _is_product(node)]
            if mixes and scores:
                yield from ((node, "scores") for node in scores)
                yield from ((node, "mix") for node in mixes)


def _is_product(node: ir.Node) -> bool:
    """Whether two activations are multiplied."""
    return node.op_type == "MatMul" and all(value is not None and value.const_value is None for value in node.inputs)


def _producers(node: ir.Node) -> Iterator[ir.Node]:
    for value in node.inputs:
        producer = None if value is None else value.producer()
        if producer is not None and value is not None and value.dtype in (None, ir.DataType.FLOAT):
            yield producer


def _before(node: ir.Node) -> list[ir.Node]:
    """Nodes that only moves and elementwise arithmetic separate from a node's inputs; the first others included."""
    found: dict[ir.Node, None] = {}
    todo = list(_producers(node))
    while todo:
        maker = todo.pop()
        if maker not in found:
            found[maker] = None
            if maker.op_type in MOVES | ELEMENTWISE:
                todo += _producers(maker)
    return list(found)


def _after(node: ir.Node) -> list[ir.Node]:
    """Nodes that only moves and elementwise arithmetic separate from a node's outputs; the first others included."""
    found: dict[ir.Node, None] = {}
    todo = [user for value in node.outputs for user in value.consumers()]
    while todo:
        user = todo.pop()
        if user not in found:
            found[user] = None
            if user.op_type in MOVES | ELEMENTWISE | {"IsNaN"}:
                todo += [next_user for value in user.outputs for next_user in value.consumers()]
    return list(found)


def _kinds(weighted: list[ir.Node], attention: dict[ir.Node, Kind]) -> dict[ir.Node, Kind]:
    """What each product with weights is; those without an entry are neither part of a block nor an embedding."""
    products = set(weighted)
    kinds: dict[ir.Node, Kind] = {}
    for node, part in attention.items():
        fed = node.inputs if part == "scores" else node.inputs[1:]
        kinds |= dict.fromkeys(products & _upstream(fed, sums=True), "qkv")
    for node in weighted:
        behind = _upstream(node.inputs[:1], sums=False)
        kind: Kind | None = None
        if any(attention.get(other) == "mix" for other in behind):
            kind = "proj"
        elif any(other.op_type in ACTIVATIONS for other in behind):
            kind = "fc2"
            for other in products & behind:
                kinds.setdefault(other, "fc1")
        elif all(other.op_type in MOVES | ELEMENTWISE for other in behind):
            kind = "patch_embed"
        if kind is not None and kinds.get(node) != "qkv":
            kinds[node] = kind
    return kinds


def _upstream(values: Sequence[ir.Value | None], *, sums: bool) -> set[ir.Node]:
    """Nodes between some values and the nearest products behind them, those included.

    Sums of two activations are crossed only where they cannot be the residual stream: from the start where `sums` is
    set (rotary embeddings), never behind a norm, always behind an activation function (which some write as sums).
    """
    todo = [(value, sums) for value in values]
    found: set[tuple[ir.Node, bool]] = set()
    while todo:
        value, free = todo.pop()
        node = None if value is None or value.dtype not in (None, ir.DataType.FLOAT) else value.producer()
        if node is None or (node, free) in found:
            continue
        found.add((node, free))
        free = (free and node.op_type not in NORMS) or node.op_type in ACTIVATIONS
        if node.op_type in MOVES | NORMS | ACTIVATIONS or (node.op_type in ELEMENTWISE and (free or not _is_sum(node))):
            todo += [(other, free) for other in node.inputs]
    return {node for node, _ in found}


def _is_sum(node: ir.Node) -> bool:
    """Whether a node adds two activations."""
    return node.op_type == "Add" and all(value is not None and value.const_value is None for value in node.inputs)
