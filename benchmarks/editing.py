"""Editing a saved graph of ours: nodes are found by the encoder's names, weights replaced, values rewired."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from mae_export.manifest import Manifest

Array = npt.NDArray[Any]


class Edit:
    """A graph being edited; nodes are found by the encoder's names, which the exporter keeps."""

    def __init__(self, model: ir.Model, manifest: Manifest) -> None:
        self.model, self.graph, self.manifest = model, model.graph, manifest
        self.dim: int = manifest.encoder["dim"]
        self.heads: int = manifest.encoder["heads"]
        self.depth: int = manifest.encoder["depth"]
        self._made = 0

    def nodes(self, start: str, op: str) -> list[ir.Node]:
        found = [node for node in self.graph if (node.name or "").startswith(start) and node.op_type == op]
        if not found:
            raise LookupError(f"no {op} in {start}")
        return found

    def node(self, start: str, op: str) -> ir.Node:
        return self.nodes(start, op)[0]

    def blocks(self, end: str, op: str) -> list[ir.Node]:
        return [node for index in range(self.depth) for node in self.nodes(f"blocks.{index}{end}", op)]

    def constant(self, node: ir.Node) -> tuple[int, Array]:
        """Which input of a node is a float tensor of weights, and a copy of it."""
        for index, value in enumerate(node.inputs):
            if value is not None and value.const_value is not None and value.const_value.dtype == ir.DataType.FLOAT:
                return index, value.const_value.numpy().copy()
        raise LookupError(f"{node.name} has no weights")

    def value(self, array: Array | float | int) -> ir.Value:
        """A new initializer."""
        self._made += 1
        tensor = ir.tensor(np.asarray(array), name=f"fault_{self._made}")
        made = ir.Value(
            name=tensor.name, const_value=tensor, shape=ir.Shape(tensor.shape), type=ir.TensorType(tensor.dtype)
        )
        self.graph.register_initializer(made)
        return made

    def change(self, node: ir.Node, function: Callable[[Array], Array], *, index: int | None = None) -> None:
        """Replace a node's weights by a function of them, for this node only."""
        if index is None:
            index, array = self.constant(node)
        else:
            value = node.inputs[index]
            if value is None or value.const_value is None:
                raise LookupError(f"input {index} of {node.name} is no constant")
            array = value.const_value.numpy().copy()
        changed = function(array)
        node.replace_input_with(index, self.value(changed.astype(array.dtype)))

    def add(self, op: str, *inputs: ir.Value | None, **attributes: Any) -> ir.Value:
        """A new node's output."""
        made = ir.node(op, list(inputs), attributes=attributes)
        self._made += 1
        made.name = f"fault/{op}_{self._made}"
        made.outputs[0].name = f"fault_{op}_{self._made}"
        self.graph.append(made)
        return made.outputs[0]

    def reuse(self, old: ir.Value, new: ir.Value) -> None:
        """Let every node that used `old` use `new`, except those that make `new`."""
        makers = _ancestors(new)
        for node, index in list(old.uses()):
            if node not in makers:
                node.replace_input_with(index, new)

    def output(self, name: str) -> ir.Value:
        for value in self.graph.outputs:
            if value.name == name:
                return value
        raise LookupError(f"no output {name}")

    def any_output(self) -> ir.Value:
        return self.graph.outputs[0]

    def give(self, old: ir.Value, new: ir.Value) -> None:
        """Return `new` under the name of the output `old`."""
        index, name = list(self.graph.outputs).index(old), old.name
        old.name = f"good_{name}"
        final = self.add("Identity", new)
        final.name, final.shape, final.type = name, old.shape, old.type
        self.graph.outputs[index] = final

    def extent(self, value: ir.Value, axis: int) -> ir.Value:
        """int64 scalar."""
        return self.add("Squeeze", self.add("Shape", value, start=axis, end=axis + 1))

    def range(self, value: ir.Value, axis: int) -> ir.Value:
        """int64 [extent]."""
        zero, one = self.value(np.int64(0)), self.value(np.int64(1))
        return self.add("Range", zero, self.extent(value, axis), one)

    def input(self, name: str) -> ir.Value:
        for value in self.graph.inputs:
            if value.name == name:
                return value
        raise LookupError(f"no input {name}")

    def embedding(self) -> ir.Node:
        return self.node("view/", "MatMul")

    def pixels(self, function: Callable[[Array], Array]) -> None:
        """Change the embedding as an array [p, p, C, D] of rows, columns, channels, width."""
        _, rows, columns = self.manifest.patches.patch
        shape = (rows, columns, self.manifest.image.channels, self.dim)
        self.change(self.embedding(), lambda weight: function(weight.reshape(shape)).reshape(weight.shape))

    def positions(self, function: Callable[[Array], Array]) -> None:
        """Change the position table as an array [N, D]."""
        size = self.manifest.patches.count * self.dim
        for node in [*self.graph]:
            for index, value in enumerate(node.inputs):
                tensor = None if value is None else value.const_value
                if node.name and node.name.startswith("view/") and tensor is not None and tensor.size == size:
                    self.change(
                        node, lambda table: function(table.reshape(-1, self.dim)).reshape(table.shape), index=index
                    )
                    return
        raise LookupError("no position table")

    def qkv(self, block: int, function: Callable[[Array], Array]) -> None:
        """Change query, key and value weights as an array [..., 3, H, D / H]."""
        start = f"blocks.{block}.attn.qkv/"
        for op in ("MatMul", "Add"):
            self.change(
                self.node(start, op),
                lambda array: function(array.reshape(*array.shape[:-1], 3, self.heads, -1)).reshape(array.shape),
            )

    def unfolded(self) -> tuple[Array, Array, Array]:
        """The embedding of pixels in [0, 1], W / std [p, p, C, D], and the mean and std that are folded into it."""
        image, (_, rows, columns) = self.manifest.image, self.manifest.patches.patch
        weight = self.constant(self.embedding())[1].astype(np.float64) * 255
        return weight.reshape(rows, columns, image.channels, -1), np.array(image.mean), np.array(image.std)

    def shift_bias(self, shift: Array) -> None:
        """Add to the bias of the embedding."""
        for node in self.nodes("view/", "Add"):
            if node.inputs[1] is self.graph.initializers["embed_bias"]:
                self.change(node, lambda bias: bias + shift)
                return
        raise LookupError("no bias of the embedding")


def _ancestors(value: ir.Value) -> set[ir.Node]:
    """Nodes made for a fault that a value comes from."""
    found: set[ir.Node] = set()
    waiting = [value.producer()]
    while waiting:
        node = waiting.pop()
        if node is not None and node not in found and (node.name or "").startswith("fault/"):
            found.add(node)
            waiting += [item.producer() for item in node.inputs if item is not None]
    return found
