"""Faults of 8-bit graphs, as edits of saved Q/DQ graphs, and what a table of other weights does.

An edit changes one product of the second block; it raises `LookupError` where the graph is not quantized.
"""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir

from benchmarks.editing import Edit
from mae_export.calibration.table import TensorRange

BLOCK = "blocks.1"
OLD = 8.0  # times larger are the norms now than when the stale table was made


def _dequantize(edit: Edit, module: str, role: str) -> ir.Node:
    return edit.node(f"{BLOCK}.{module}/DequantizeLinear_{role}", "DequantizeLinear")


def wrong_activation_scale(edit: Edit) -> None:
    """As when a range is taken for its half."""
    edit.change(_dequantize(edit, "mlp.fc1", "in"), lambda scale: 2 * scale, index=1)


def wrong_weight_scale(edit: Edit) -> None:
    edit.change(_dequantize(edit, "attn.qkv", "weight"), lambda scale: scale / 2, index=1)


def scale_of_another_tensor(edit: Edit) -> None:
    """Quantized and dequantized alike, but in steps for values of another size."""
    for op in ("QuantizeLinear", "DequantizeLinear"):
        node = edit.node(f"{BLOCK}.mlp.fc2/{op}_in", op)
        edit.change(node, lambda scale: scale / 16, index=1)


def missing_dequantize(edit: Edit) -> None:
    """Stored integers taken for the numbers that they stand for."""
    node = _dequantize(edit, "mlp.fc1", "in")
    edit.reuse(node.outputs[0], edit.add("Cast", node.inputs[0], to=ir.DataType.FLOAT))


def missing_weight_dequantize(edit: Edit) -> None:
    node = _dequantize(edit, "attn.proj", "weight")
    edit.reuse(node.outputs[0], edit.add("Cast", node.inputs[0], to=ir.DataType.FLOAT))


def wrong_axis(edit: Edit) -> None:
    """Scales of the outputs along the inputs, where a square weight lets it pass."""
    _dequantize(edit, "attn.proj", "weight").attributes["axis"] = ir.AttrInt64("axis", 0)


EIGHT_BIT_FAULTS: dict[str, Callable[[Edit], None]] = {
    "wrong scale of an activation": wrong_activation_scale,
    "wrong scale of a weight": wrong_weight_scale,
    "scale of another tensor": scale_of_another_tensor,
    "missing DequantizeLinear": missing_dequantize,
    "missing DequantizeLinear of a weight": missing_weight_dequantize,
    "scales along the wrong axis": wrong_axis,
}
STALE = "stale table"


def stale(ranges: dict[str, TensorRange]) -> dict[str, TensorRange]:
    """Ranges as they were when every activation was smaller, say before a long training."""
    return {
        name: TensorRange(
            low=found.low / OLD,
            high=found.high / OLD,
            minimum=found.minimum / OLD,
            maximum=found.maximum / OLD,
            channels=tuple(channel / OLD for channel in found.channels),
            means=tuple(mean / OLD for mean in found.means),
        )
        for name, found in ranges.items()
    }
