"""The edit that gives a graph its 8-bit products: where quantize and dequantize nodes stand, and how they are called.

Each activation is quantized once and dequantized once, right behind the node that made it; weights are stored in 8 bits
with one dequantize node. New nodes are named after the module they serve, such as
`blocks.0.mlp.fc1/QuantizeLinear_in`. Nothing else is touched.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from mae_export.calibration.scales import Grid
from mae_export.calibration.sites import Site
from mae_export.errors import GraphError

Array = npt.NDArray[Any]
ROLES = {"scores": ("query", "key"), "mix": ("softmax", "value")}


def output_axis(node: ir.Node) -> int:
    """The axis of a weight that its output channels lie along."""
    weight = node.inputs[1]
    transposed = node.op_type == "Gemm" and "transB" in node.attributes and node.attributes["transB"].as_int()
    if node.op_type == "Conv" or transposed:
        return 0
    return len(weight.shape) - 1  # type: ignore[union-attr, arg-type]


def stored(node: ir.Node, index: int) -> Array:
    """The initializer that is an input of a node.

    Raises:
        GraphError: when that input is computed.
    """
    value = node.inputs[index]
    if value is None or value.const_value is None:
        raise GraphError(f"input {index} of {node.name} is computed; expected a stored tensor")
    return value.const_value.numpy()


def insert(
    model: ir.Model,
    sites: Sequence[Site],
    grid: Grid,
    *,
    activations: Mapping[str, Array],
    weights: Mapping[str, Array],
) -> None:
    """Quantize products, in place.

    Args:
        model: float32.
        sites: products to quantize, with all their inputs.
        grid: the 8-bit type.
        activations: float32 scale by name of the tensor.
        weights: float32 scales [output channels] by name of the node.
    """
    edit = _Edit(model, grid)
    nodes = {node.name: node for node in model.graph}
    for site in sites:
        node = nodes[site.node]
        for index, name in enumerate(site.inputs):
            role = ROLES[site.kind][index] if site.kind in ROLES else "in"
            value = node.inputs[index]
            if value is not None:
                node.replace_input_with(index, edit.activation(value, f"{site.name}/", role, activations[name]))
        if site.weight:
            node.replace_input_with(1, edit.weight(node, site, weights[site.node]))
    model.graph.sort()
    RemoveUnusedNodesPass()(model)


def constant(model: ir.Model, name: str, array: Array, dtype: ir.DataType | None = None) -> ir.Value:
    """A new initializer."""
    tensor = ir.tensor(np.asarray(array, order="C"), name=name, dtype=dtype)
    value = ir.Value(name=name, const_value=tensor, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype))
    model.graph.register_initializer(value)
    return value


class _Edit:
    """A graph being quantized: what was quantized already is used again, and no name is given twice."""

    def __init__(self, model: ir.Model, grid: Grid) -> None:
        self._model, self._grid = model, grid
        self._done: dict[str, ir.Value] = {}
        self._names = {node.name for node in model.graph} | set(model.graph.initializers)

    def activation(self, value: ir.Value, module: str, role: str, scale: Array) -> ir.Value:
        name = value.name or ""
        if name not in self._done:
            start, zero = self._constant(f"{module}{role}_scale", scale), self._zero(f"{module}{role}_zero", ())
            stored = self._node("QuantizeLinear", [value, start, zero], f"{module}QuantizeLinear_{role}")
            self._type(stored, f"{name}_quantized", value.shape, self._grid.dtype)
            back = self._node("DequantizeLinear", [stored, start, zero], f"{module}DequantizeLinear_{role}")
            self._type(back, f"{name}_dequantized", value.shape, ir.DataType.FLOAT)
            self._done[name] = back
        return self._done[name]

    def weight(self, node: ir.Node, site: Site, scale: Array) -> ir.Value:
        array, axis = stored(node, 1), output_axis(node)
        along = scale.reshape([-1 if index == axis else 1 for index in range(array.ndim)])
        inputs = [
            self._constant(f"{site.name}/weight", self._grid.store(array, along), self._grid.dtype),
            self._constant(f"{site.name}/weight_scale", scale),
            self._zero(f"{site.name}/weight_zero", scale.shape),
        ]
        back = self._node("DequantizeLinear", inputs, f"{site.name}/DequantizeLinear_weight", {"axis": axis})
        self._type(back, f"{inputs[0].name}_dequantized", ir.Shape(array.shape), ir.DataType.FLOAT)
        return back

    def _zero(self, name: str, shape: tuple[int, ...]) -> ir.Value:
        return self._constant(name, np.zeros(shape, self._grid.dtype.numpy()), self._grid.dtype)

    def _constant(self, name: str, array: Array, dtype: ir.DataType | None = None) -> ir.Value:
        return constant(self._model, self._unique(name), array, dtype)

    def _node(self, op: str, inputs: list[ir.Value], name: str, attributes: dict[str, int] | None = None) -> ir.Value:
        node = ir.node(op, inputs, attributes, name=self._unique(name))
        self._model.graph.append(node)
        return node.outputs[0]

    def _unique(self, name: str) -> str:
        number, found = 1, name
        while found in self._names:
            number += 1
            found = f"{name}_{number}"
        self._names.add(found)
        return found

    @staticmethod
    def _type(value: ir.Value, name: str, shape: ir.Shape | None, dtype: ir.DataType) -> None:
        value.name, value.shape, value.type = name, shape, ir.TensorType(dtype)
