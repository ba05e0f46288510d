"""Whether an engine computes as its graph asks: attention fused, and every product with weights in the graph's type."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import onnx

from mae_export.errors import GraphError
from mae_export.export.build_log import BuildLog
from mae_export.export.eight_bit import QuantizedAttention, quantized_attention
from mae_export.export.eight_bit import fallbacks as eight_bit_fallbacks
from mae_export.runtime.engine_file import Achieved, EngineLayer

PRODUCTS = ("MatMul", "Gemm", "Conv")
# Operators that carry attention probabilities from the softmax to the second product.
CARRIERS = ("Cast", "DequantizeLinear", "Identity", "IsNaN", "QuantizeLinear", "Where")
QUANTIZED = ("Int8", "FP8", "Float8")
DTYPES = {
    onnx.TensorProto.FLOAT: "Float",
    onnx.TensorProto.FLOAT16: "Half",
    onnx.TensorProto.BFLOAT16: "BFloat16",
    onnx.TensorProto.INT8: "Int8",
    onnx.TensorProto.FLOAT8E4M3FN: "FP8",
}


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What a graph asks of a builder.

    Attributes:
        operators: operator of each node by its name, in order.
        attention: softmax nodes of the attention blocks.
        products: data type of each node that multiplies with weights, as TensorRT spells it.
        quantized: attention blocks with 8-bit probabilities.
    """

    operators: dict[str, str]
    attention: tuple[str, ...]
    products: dict[str, str]
    quantized: tuple[QuantizedAttention, ...] = ()


def read_asked(path: Path) -> Asked:
    """What a graph asks for; its weights are not read.

    Raises:
        GraphError: when two nodes have one name.
    """
    graph = onnx.load_model(str(path), load_external_data=False).graph
    nodes = list(graph.node)
    operators = {node.name: node.op_type for node in nodes}
    if len(operators) != len(nodes):
        raise GraphError(f"nodes of {path} have no names of their own; expected a graph written by `mae-export export`")
    attention = tuple(_attention(nodes))
    return Asked(
        operators=operators,
        attention=attention,
        products=_products(graph),
        quantized=tuple(quantized_attention(graph, attention)),
    )


def _attention(nodes: list[onnx.NodeProto]) -> Iterator[str]:
    """Softmax nodes whose result is multiplied with something, not only given out."""
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in nodes:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    for node in nodes:
        if node.op_type == "Softmax":
            found, todo = False, [node]
            while todo and not found:
                following = [reader for name in todo.pop().output for reader in readers.get(name, [])]
                found = any(reader.op_type == "MatMul" for reader in following)
                todo += [reader for reader in following if reader.op_type in CARRIERS]
            if found:
                yield node.name


def _products(graph: onnx.GraphProto) -> dict[str, str]:
    weights = {tensor.name: tensor.data_type for tensor in graph.initializer}
    makers = {name: node for node in graph.node for name in node.output}

    def stored(name: str) -> str | None:
        """Data type that a weight arrives in; None for what is computed."""
        if name in weights:
            return DTYPES.get(weights[name])
        maker = makers.get(name)
        if maker is None or maker.op_type not in ("Cast", "DequantizeLinear", "QuantizeLinear", "Transpose"):
            return None
        source = stored(maker.input[0])
        if maker.op_type == "Cast" and source is not None:
            return DTYPES.get(next(attribute.i for attribute in maker.attribute if attribute.name == "to"))
        if maker.op_type == "QuantizeLinear" and source is not None:
            return DTYPES.get(weights.get(maker.input[2], 0)) if len(maker.input) > 2 else None
        return source

    found = {}
    for node in graph.node:
        kind = stored(node.input[1]) if node.op_type in PRODUCTS else None
        if kind in QUANTIZED and makers[node.input[0]].op_type != "DequantizeLinear":
            continue  # weights alone are quantized; they are multiplied in the type of the activations
        if kind is not None:
            found[node.name] = kind
    return found


def judge(asked: Asked, log: BuildLog, *, profiles: int) -> Achieved:
    """Compare what was planned for all profiles with what the graph asks."""
    products = [
        (layer.product_dtype, asked.products[node])
        for layer in log.layers
        if layer.weight is not None and not layer.fused_attention
        for node in layer.nodes
        if node in asked.products
    ]
    attention, fused = len(asked.attention) * profiles, sum(layer.fused_attention for layer in log.layers)
    taken = Counter(tensor.dtype for layer in log.layers if layer.fused_attention for tensor in layer.inputs[:1])
    fallbacks = [
        *_fallbacks(products, attention - fused, attention, bool(log.layers)),
        *eight_bit_fallbacks(asked.quantized, taken, profiles),
    ]
    return Achieved(
        attention=attention,
        fused=fused,
        gemms=dict(Counter(found for found, _ in products)),
        fallbacks=tuple(fallbacks),
        activation_bytes=log.activation_bytes,
        weights_bytes=log.weights_bytes,
        layers=tuple(
            EngineLayer(
                name=layer.name,
                kind=layer.kind,
                inputs=tuple(tensor.dtype for tensor in layer.inputs),
                outputs=tuple(tensor.dtype for tensor in layer.outputs),
            )
            for layer in log.layers
        ),
    )


def _fallbacks(products: list[tuple[str, str]], unfused: int, attention: int, listed: bool) -> Iterator[str]:
    if not listed:
        yield "the builder listed no layers, so what it planned is not known"
        return
    if unfused > 0:
        yield f"{unfused} of {attention} attention blocks are not fused into one kernel"
    for (found, wanted), count in sorted(Counter(products).items()):
        if found != wanted:
            yield f"{count} matrix products run in {found}; the graph asks for {wanted}"
