"""The edit that gives a graph its precision: every float tensor gets one type, and casts stand where types meet.

Inputs keep their types and outputs stay float32. Each tensor is cast at most once, right behind the node that made it,
and never back: casts of casts do not occur. Weights are converted in the file, not at run time.
"""

from __future__ import annotations

from collections.abc import Container

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from mae_export.errors import GraphError
from mae_export.export.options import Half

TYPES: dict[Half, ir.DataType] = {"fp16": ir.DataType.FLOAT16, "bf16": ir.DataType.BFLOAT16}
FLOAT = ir.DataType.FLOAT


def is_typed(node: ir.Node) -> bool:
    """Whether a node computes with float32 tensors; taking the shape of one is no computation."""
    return node.op_type != "Shape" and any(
        value is not None and value.dtype == FLOAT for value in (*node.inputs, *node.outputs)
    )


def is_source(node: ir.Node | None) -> bool:
    """Whether a node turns integers into floats, so that it can do so in any type at no cost."""
    return node is not None and node.op_type == "Cast" and node.inputs[0] is not None and not _is_float(node.inputs[0])


def retype(model: ir.Model, half: Half, fp32_nodes: Container[str]) -> None:
    """Turn a float32 model into a typed one of half precision, in place.

    Args:
        model: float32 throughout, with the type of every tensor noted, as `mae-export export` writes it.
        half: the type of everything else.
        fp32_nodes: names of the nodes that keep float32.

    Raises:
        GraphError: when a tensor has no type or a half-precision one already.
    """
    _require_float32(model)
    types = {node: FLOAT if node.name in fp32_nodes else TYPES[half] for node in model.graph if is_typed(node)}
    made: dict[tuple[ir.Value, ir.DataType], ir.Value] = {}
    for node, dtype in types.items():
        for index, value in enumerate(node.inputs):
            if value is not None and _is_float(value) and value.dtype != dtype:
                node.replace_input_with(index, _as_type(model, value, dtype, made))
        if node.op_type == "Cast" and node.outputs[0].dtype == FLOAT:
            node.attributes["to"] = ir.AttrInt64("to", dtype)
        for value in node.outputs:
            if value.dtype == FLOAT:
                value.dtype = dtype
    for index, value in enumerate(model.graph.outputs):
        if value.dtype == TYPES[half]:
            name, value.name = value.name, f"{value.name}_{half}"
            model.graph.outputs[index] = _as_type(model, value, FLOAT, made)
            model.graph.outputs[index].name = name
    RemoveUnusedNodesPass()(model)


def _require_float32(model: ir.Model) -> None:
    for value in (*model.graph.initializers.values(), *(value for node in model.graph for value in node.outputs)):
        if value.dtype is None or (_is_float(value) and value.dtype != FLOAT):
            found = "no type" if value.dtype is None else f"type {value.dtype}"
            raise GraphError(f"tensor {value.name!r} has {found}; expected a float32 graph from `mae-export export`")


def _is_float(value: ir.Value) -> bool:
    """Whether a tensor holds floats of 16 bits or more; 8-bit ones are stored numbers, like integers."""
    return value.dtype is not None and value.dtype.is_floating_point() and value.dtype.itemsize > 1


def _as_type(
    model: ir.Model,
    value: ir.Value,
    dtype: ir.DataType,
    made: dict[tuple[ir.Value, ir.DataType], ir.Value],
) -> ir.Value:
    """The same numbers in another type: converted weights, or the result of a cast, made once per tensor."""
    if (value, dtype) in made:
        return made[value, dtype]
    label = next((name for name, half in TYPES.items() if half == dtype), "fp32")
    producer = value.producer()
    result = ir.Value(name=f"{value.name}_{label}", shape=value.shape, type=ir.TensorType(dtype))
    if value.const_value is not None:
        with np.errstate(over="ignore"):  # what overflows becomes infinite, as it would at run time
            array = value.const_value.numpy().astype(dtype.numpy())
        result.const_value = ir.tensor(array, dtype=dtype, name=result.name)
        model.graph.register_initializer(result)
    elif producer is None:
        raise GraphError(
            f"input {value.name!r} is {value.dtype}; expected integer inputs, as `mae-export export` writes"
        )
    else:
        origin = producer.inputs[0] if is_source(producer) else value
        name = f"{producer.name}_{label}"
        cast = ir.node("Cast", [origin], {"to": dtype}, outputs=[result], name=name)
        model.graph.insert_after(producer, cast)
    made[value, dtype] = result
    return result
