"""Attention as one operator of ONNX Runtime, whose CUDA provider then runs it in one kernel.

ONNX Runtime's own optimiser fuses attention where query, key and value are products of their own, as BERT's exporters
write them; here they are one product, reshaped, turned and cut, and Softmax stays between two products whose logits
[B, H, T, T] travel to memory and back. `MultiHeadAttention` of the domain com.microsoft takes them as [B, T, D]. Its
CUDA kernel (onnxruntime/contrib_ops/cuda/bert/multihead_attention.cc) runs flash attention in float16 where nothing is
added to the logits. With a bias it needs a number of tokens that 8 divides, which 1 + 196 and 1 + 49 are not, and
otherwise computes in three steps as before; so those are rewritten only when asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

DOMAIN, OPERATOR = "com.microsoft", "MultiHeadAttention"
HEADS_FIRST = (0, 2, 1, 3)  # [B, T, H, D / H] to [B, H, T, D / H], and back
JOINED = (2, 0, 3, 1, 4)  # [B, T, 3, H, D / H] to [3, B, H, T, D / H]


@dataclass(frozen=True, kw_only=True)
class _Attention:
    """What is computed around one softmax.

    Attributes:
        parts: query, key and value, each [B, H, T, D / H], without the scale.
        scale: of the logits.
        bias: added to them, [1 or B, 1 or H, 1 or T, T]; None for nothing.
        heads: H.
        end: the node that gives [B, T, D].
    """

    parts: tuple[ir.Value, ir.Value, ir.Value]
    scale: float
    bias: ir.Value | None
    heads: int
    end: ir.Node


def fuse_attention(model: ir.Model, *, biased: bool = False) -> int:
    """Rewrite the attention of a graph in place.

    Args:
        model: float32 or float16.
        biased: also where a mask of padding or a bias by position is added to the logits.

    Returns:
        How many were rewritten. What is not of the form that `mae-export export` writes, or is kept in float32 within
        a float16 graph, stays as it is.
    """
    fused = 0
    splits: dict[ir.Value, Sequence[ir.Value]] = {}
    for node in list(model.graph):
        found = _match(node) if node.op_type == "Softmax" else None
        if found is not None and (biased or found.bias is None):
            _replace(model, found, splits)
            fused += 1
    if fused:
        model.opset_imports[DOMAIN] = 1
    RemoveUnusedNodesPass()(model)
    return fused


def _match(softmax: ir.Node) -> _Attention | None:
    """The attention around a softmax; None where something is not as expected."""
    mix = _only_user(softmax, "MatMul")
    turned = None if mix is None else _only_user(mix, "Transpose")
    end = None if turned is None else _only_user(turned, "Reshape")
    logits = softmax.inputs[0]
    if mix is None or turned is None or end is None or logits is None or mix.inputs[0] is not softmax.outputs[0]:
        return None
    scores, bias = _scores(logits)
    query, key, value = (*(scores.inputs if scores is not None else (None, None)), mix.inputs[1])
    if query is None or key is None or value is None:
        return None
    query, by_query = _unscaled(query)
    key, by_turned = _unscaled(key)
    key = _turned_back(key)
    if key is None:
        return None
    key, by_key = _unscaled(key)
    heads = _heads((query, key, value))
    fits = heads and softmax.attributes.get_int("axis", -1) in (-1, 3) and _perm(turned) == HEADS_FIRST
    if not fits or (bias is not None and not _is_bias(bias, heads, query.dtype)):
        return None
    return _Attention(parts=(query, key, value), scale=by_query * by_turned * by_key, bias=bias, heads=heads, end=end)


def _only_user(node: ir.Node, op_type: str) -> ir.Node | None:
    """The node of this type that alone takes a node's output."""
    output = node.outputs[0]
    users = output.consumers()
    alone = len(users) == 1 and not output.is_graph_output() and users[0].op_type == op_type
    return users[0] if alone else None


def _scores(logits: ir.Value) -> tuple[ir.Node | None, ir.Value | None]:
    """The product that gives logits, and what is added to it."""
    maker = logits.producer()
    if maker is not None and maker.op_type == "Add":
        for place in (0, 1):
            value, bias = maker.inputs[place], maker.inputs[1 - place]
            product = None if value is None else value.producer()
            if product is not None and product.op_type == "MatMul":
                return product, bias
    return (maker if maker is not None and maker.op_type == "MatMul" else None), None


def _unscaled(value: ir.Value) -> tuple[ir.Value, float]:
    """A value before it was multiplied by constants, and those."""
    factor = 1.0
    while (maker := value.producer()) is not None and maker.op_type == "Mul":
        constants = [each for each in maker.inputs if each is not None and each.const_value is not None]
        others = [each for each in maker.inputs if each is not None and each.const_value is None]
        if len(constants) != 1 or len(others) != 1 or constants[0].const_value is None:
            break
        number = constants[0].const_value.numpy()
        if number.size != 1:
            break
        value, factor = others[0], factor * float(number.reshape(()))
    return value, factor


def _turned_back(value: ir.Value) -> ir.Value | None:
    """[B, H, T, D / H] of a value with the last two axes exchanged, at once or, as exporters write it, flattened."""
    maker = value.producer()
    if maker is None:
        return None
    if _perm(maker) == (0, 1, 3, 2):
        return maker.inputs[0]
    steps = [maker]
    for _ in range(2):
        source = steps[-1].inputs[0]
        maker = None if source is None else source.producer()
        if maker is None:
            return None
        steps.append(maker)
    unflatten, turn, flatten = steps
    is_so = unflatten.op_type == flatten.op_type == "Reshape" and _perm(turn) == (0, 2, 1)
    return flatten.inputs[0] if is_so else None


def _perm(node: ir.Node) -> tuple[int, ...]:
    """The order of axes of a transposition; empty for other nodes."""
    return tuple(node.attributes.get_ints("perm", ())) if node.op_type == "Transpose" else ()


def _heads(parts: tuple[ir.Value, ir.Value, ir.Value]) -> int:
    """Heads of the query, key and value; 0 where they do not have four known axes of the same kind."""
    shapes = [None if part.shape is None else tuple(part.shape) for part in parts]
    types = {part.dtype for part in parts}
    if any(shape is None or len(shape) != 4 for shape in shapes) or not types <= {
        ir.DataType.FLOAT,
        ir.DataType.FLOAT16,
    }:
        return 0
    known = {(shape[1], shape[3]) for shape in shapes if shape is not None}
    heads, size = known.pop()
    return heads if not known and len(types) == 1 and isinstance(heads, int) and isinstance(size, int) else 0


def _is_bias(bias: ir.Value, heads: int, dtype: ir.DataType | None) -> bool:
    """Whether the operator can add it."""
    return bias.shape is not None and len(bias.shape) == 4 and bias.shape[1] in (1, heads) and bias.dtype == dtype


def _replace(model: ir.Model, found: _Attention, splits: dict[ir.Value, Sequence[ir.Value]]) -> None:
    inputs: list[ir.Value | None] = []
    added: list[ir.Node] = []
    for part in found.parts:
        whole, place = _joined(part, found.heads)
        if whole is None:
            inputs.append(_rows(model, part, added))
            continue
        if whole not in splits:
            split = ir.node("Split", [whole], {"axis": -1, "num_outputs": 3}, num_outputs=3)
            maker = whole.producer()
            model.graph.insert_after(maker, split) if maker is not None else model.graph.insert_before(found.end, split)
            splits[whole] = split.outputs
        inputs.append(splits[whole][place])
    if found.bias is not None:
        inputs += [None, None, _for_each_query(model, found.bias, added)]
    attributes = {"num_heads": found.heads, "scale": found.scale}
    fused = ir.node(OPERATOR, inputs, attributes, domain=DOMAIN, name=f"{found.end.name}_attention")
    old, new = found.end.outputs[0], fused.outputs[0]
    new.shape, new.type = old.shape, old.type
    ir.convenience.replace_nodes_and_values(model.graph, found.end, [found.end], [*added, fused], [old], [new])


def _joined(part: ir.Value, heads: int) -> tuple[ir.Value | None, int]:
    """[B, T, 3 D] of which a query, key or value was cut, and which third it is."""
    squeeze = part.producer()
    cut = squeeze.inputs[0].producer() if squeeze is not None and squeeze.inputs[0] is not None else None
    if squeeze is None or cut is None or (squeeze.op_type, cut.op_type) != ("Squeeze", "Slice"):
        return None, 0
    turn = cut.inputs[0].producer() if cut.inputs[0] is not None else None
    shaped = turn.inputs[0].producer() if turn is not None and turn.inputs[0] is not None else None
    first, axis = (_number(cut.inputs[place]) for place in (1, 3))
    if turn is None or shaped is None or _perm(turn) != JOINED or shaped.op_type != "Reshape" or axis != 0:
        return None, 0
    whole, size = shaped.inputs[0], None if part.shape is None else part.shape[3]
    if whole is None or whole.shape is None or not isinstance(size, int) or first not in (0, 1, 2):
        return None, 0
    return (whole if len(whole.shape) == 3 and whole.shape[2] == 3 * heads * size else None), first


def _number(value: ir.Value | None) -> int | None:
    """The only number of a constant."""
    tensor = None if value is None else value.const_value
    return int(tensor.numpy().reshape(())) if tensor is not None and tensor.size == 1 else None


def _rows(model: ir.Model, part: ir.Value, added: list[ir.Node]) -> ir.Value:
    """[B, H, T, D / H] to [B, T, D]."""
    shape = _constant(model, f"{part.name}_rows", np.array([0, 0, -1], np.int64))
    turn = ir.node("Transpose", [part], {"perm": HEADS_FIRST})
    flat = ir.node("Reshape", [turn.outputs[0], shape])
    added += [turn, flat]
    return flat.outputs[0]


def _for_each_query(model: ir.Model, bias: ir.Value, added: list[ir.Node]) -> ir.Value:
    """A bias with an entry for every query, which the operator insists on; [.., .., 1, T] says the same of all."""
    if bias.shape is None or bias.shape[2] != 1:
        return bias
    ones = _constant(model, f"{bias.name}_ones", np.array([1, 1], np.int64))
    one = _constant(model, f"{bias.name}_one", np.array([1], np.int64))
    tokens = ir.node("Shape", [bias], {"start": 3, "end": 4})
    shape = ir.node("Concat", [ones, tokens.outputs[0], one], {"axis": 0})
    wide = ir.node("Expand", [bias, shape.outputs[0]])
    added += [tokens, shape, wide]
    return wide.outputs[0]


def _constant(model: ir.Model, name: str, array: np.ndarray[tuple[int, ...], np.dtype[np.int64]]) -> ir.Value:
    if name in model.graph.initializers:
        return model.graph.initializers[name]
    tensor = ir.tensor(array, name=name)
    value = ir.Value(name=name, const_value=tensor, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype))
    model.graph.register_initializer(value)
    return value
