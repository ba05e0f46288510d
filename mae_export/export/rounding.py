"""The twin: the arithmetic of a half-precision graph, carried out so that ONNX Runtime on a CPU cannot hide its limits.

ONNX Runtime's CPU provider computes float16 nodes in float32 and keeps what overflows float16 in between. The twin is
the same graph in float32 in which every tensor that has a half-precision type is really rounded to it, by a cast there
and back: numbers above the largest become infinite, as in the hardware that multiplies in half precision and adds up
in float32.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

EXACT = frozenset({"Concat", "Expand", "Gather", "Identity", "Pad", "Reshape", "Slice", "Squeeze", "Transpose",
                   "Unsqueeze"})  # move values without computing: rounded inputs give rounded outputs  # fmt: skip


def make_twin(model: ir.Model) -> ir.Model:
    """Turn a typed half-precision model into its float32 twin, in place; returns it."""
    for value in model.graph.initializers.values():
        if _is_half(value) and value.const_value is not None:
            value.const_value = ir.tensor(value.const_value.numpy().astype(np.float32), name=value.name)
            value.dtype = ir.DataType.FLOAT
    for node in list(model.graph):
        for value in node.outputs:
            if value.dtype is not None and _is_half(value):
                _round(model, node, value, value.dtype)
    return model


def _is_half(value: ir.Value) -> bool:
    return value.dtype in (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)


def _round(model: ir.Model, node: ir.Node, value: ir.Value, half: ir.DataType) -> None:
    value.dtype = ir.DataType.FLOAT
    if node.op_type == "Cast":
        node.attributes["to"] = ir.AttrInt64("to", ir.DataType.FLOAT)
    if node.op_type in EXACT:
        return
    users = list(value.uses())
    there = ir.node("Cast", [value], {"to": half}, name=f"{node.name}_half")
    there.outputs[0].name, there.outputs[0].dtype = f"{value.name}_half", half
    # The rounded result takes the place of the exact one, also by name, so that an overflow is reported where it is.
    back = ir.node("Cast", there.outputs, {"to": ir.DataType.FLOAT}, name=node.name)
    back.outputs[0].name, back.outputs[0].dtype = value.name, ir.DataType.FLOAT
    node.name, value.name = f"{node.name}_exact", f"{value.name}_exact"
    for user, index in users:
        user.replace_input_with(index, back.outputs[0])
    model.graph.insert_after(node, [there, back])
