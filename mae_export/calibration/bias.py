"""The mean error that rounding a weight makes, taken out of the bias behind it, where it costs nothing.

A rounded weight W' gives E[x] (W - W') too little on average (Nagel et al. 2019, arXiv:1906.04721); the mean activation
E[x] is in the calibration table.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from mae_export.calibration.insert import constant, output_axis, stored

Array = npt.NDArray[Any]


def correct_bias(model: ir.Model, node: ir.Node, shift: Array) -> None:
    """Add to the bias behind a product, in place; where there is none, nothing is changed.

    Args:
        model: float32.
        node: the product.
        shift: [output channels].
    """
    place = bias_place(node)
    if place is not None:
        user, index = place
        corrected = (stored(user, index) + shift).astype(np.float32)
        user.replace_input_with(index, constant(model, f"{node.name}_corrected", corrected))


def bias_place(node: ir.Node) -> tuple[ir.Node, int] | None:
    """The node that adds a bias [output channels] to a product and nothing else, and which of its inputs that is."""
    output, weight = node.outputs[0], node.inputs[1]
    users = output.consumers()
    if weight is None or weight.shape is None:
        return None
    if node.op_type == "Gemm":
        place = node, 2
    elif len(users) == 1 and users[0].op_type == "Add" and not output.is_graph_output():
        place = users[0], 1 - list(users[0].inputs).index(output)
    else:
        return None
    bias = place[0].inputs[place[1]] if place[1] < len(place[0].inputs) else None
    fits = bias is not None and bias.const_value is not None and bias.shape == [weight.shape[output_axis(node)]]
    return place if fits else None
