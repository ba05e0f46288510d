"""How large the numbers of a graph become: every float32 tensor is measured while the graph runs on images.

The reductions run inside the graph, so that one number per tensor leaves ONNX Runtime. Graph optimisations are off:
what is measured is each tensor as it stands in the file, and rounding written as a pair of casts is really done.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import onnxruntime as ort

from mae_export.graph import save

Array = npt.NDArray[Any]
Axis = int | None  # of the vectors whose Euclidean norm is taken; None: each element by itself
BATCH = 1  # all activations of a run may be in memory at once


@dataclass(frozen=True, kw_only=True)
class Ranges:
    """The largest magnitude met in each tensor.

    Attributes:
        found: by (name of the tensor, axis) in the order of the graph: the largest |x|, or where an axis is given the
            largest norm of a vector along it; infinite when the tensor holds an infinity or NaN.
    """

    found: dict[tuple[str, Axis], float]

    def first_infinite(self) -> str | None:
        """Name of the first tensor that is not finite."""
        return next((name for (name, _), value in self.found.items() if not np.isfinite(value)), None)


def measure(model: ir.Model, path: Path, feeds: Iterable[Mapping[str, Array]]) -> tuple[Ranges, list[dict[str, Array]]]:
    """Run a model and measure its float32 tensors.

    Args:
        model: changed: outputs are added.
        path: where the changed model may be written; ONNX Runtime reads it there.
        feeds: whole scenes; each runs row by row.

    Returns:
        The ranges over all feeds, and the model's own outputs for each.
    """
    names = [value.name or "" for value in model.graph.outputs]
    probes = _add_probes(model)
    save(model, path, embedded=0)
    del model  # its weights would be in memory twice
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    found = np.zeros(len(probes))
    results = []
    for scene in feeds:
        parts = []
        for first in range(0, len(next(iter(scene.values()))), BATCH):
            values = session.run(None, {name: array[first : first + BATCH] for name, array in scene.items()})
            parts.append(values[: len(names)])
            found = np.maximum(found, np.nan_to_num(values[len(names) :], nan=np.inf, posinf=np.inf))
        outputs = [np.concatenate(arrays) for arrays in zip(*parts, strict=True)]
        results.append(dict(zip(names, outputs, strict=True)))
    return Ranges(found=dict(zip(probes, found.tolist(), strict=True))), results


def _add_probes(model: ir.Model) -> list[tuple[str, Axis]]:
    """Add an output for each float32 tensor, and for the vectors that each matrix product sums over."""
    wanted: dict[tuple[str, Axis], ir.Value] = {}
    for node in list(model.graph):
        if node.op_type == "MatMul":
            for value, axis in zip(node.inputs, (-1, -2), strict=True):
                if value is not None and not value.is_initializer():
                    wanted[value.name or "", axis] = value
        wanted |= {(value.name or "", None): value for value in node.outputs if value.dtype == ir.DataType.FLOAT}
    infinity = _constant(model, "range/infinity", np.array(np.inf, np.float32))
    axes = {
        -1: _constant(model, "range/last", np.array([-1])),
        -2: _constant(model, "range/second_last", np.array([-2])),
    }
    for (name, along), value in wanted.items():
        size = ir.node("Abs", [value]) if along is None else ir.node("ReduceL2", [value, axes[along]])
        # Spelled out, because ReduceMax passes over NaN.
        undefined = ir.node("IsNaN", [size.outputs[0]])
        replaced = ir.node("Where", [undefined.outputs[0], infinity, size.outputs[0]])
        largest = ir.node("ReduceMax", [replaced.outputs[0]], {"keepdims": 0})
        number = largest.outputs[0]
        number.name, number.dtype, number.shape = f"range/{name}/{along}", ir.DataType.FLOAT, ir.Shape([])
        model.graph.extend([size, undefined, replaced, largest])
        model.graph.outputs.append(number)
    return list(wanted)


def _constant(model: ir.Model, name: str, array: Array) -> ir.Value:
    value = ir.Value(name=name, const_value=ir.tensor(array, name=name))
    value.dtype, value.shape = ir.DataType.from_numpy(array.dtype), ir.Shape(array.shape)
    model.graph.register_initializer(value)
    return value
