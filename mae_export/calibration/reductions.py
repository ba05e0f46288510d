"""The copy of a graph that is run to observe it: reductions of its activations are its outputs, its weights are shared.

What is reduced inside the graph never leaves ONNX Runtime. Each activation gives its smallest and largest value and its
sum, by channel where a product with weights follows, and its number of values. Sums are NaN or infinite when any value
is; extremes need not be.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir

from mae_export.calibration.sites import Site
from mae_export.files import DATA_SUFFIX, model_files
from mae_export.manifest import METADATA_KEY, Manifest, TensorSpec

REDUCTIONS = ("minimum", "maximum", "sum", "size")


def output_name(activation: str, reduction: str) -> str:
    """Name of the output that reduces an activation; one of `REDUCTIONS`."""
    return f"observed/{activation}/{reduction}"


def columns_of(model: ir.Model, site: Site) -> int:
    """Channels of the activation that a site multiplies with weights, its last axis; 0 where there are none."""
    if not site.weight or site.op == "Conv":
        return 0
    node = next(node for node in model.graph if node.name == site.node)
    shape = model.graph.initializers[site.weight].shape
    transposed = site.op == "Gemm" and node.attributes.get_int("transB", False)
    return 0 if shape is None else int(shape.numpy()[-1 if transposed else -2])


def write_observed(source: Path, manifest: Manifest, columns: Mapping[str, int], *, folder: Path, fetch: bool) -> Path:
    """Write the copy.

    Args:
        source: the graph.
        manifest: of the graph; the copy carries it with its own outputs.
        columns: channels of each activation to observe, by name; 0 for none.
        folder: private folder to write into; a copy that is there is replaced.
        fetch: whether the activations themselves are outputs too.

    Returns:
        The copy, which runs only where it is.
    """
    model = ir.load(source)
    values = {value.name: value for node in model.graph for value in node.outputs}
    every = ir.Value(name="observed/every", const_value=ir.tensor(np.array([0]), name="observed/every"))
    model.graph.register_initializer(every)
    outputs = [output for name, count in columns.items() for output in _reduce(model, values[name], count, every)]
    if fetch:
        outputs += [values[name] for name in columns]
    model.graph.outputs[:] = outputs
    specs = tuple(TensorSpec(name=value.name or "", dtype="float32", shape=()) for value in outputs)
    model.metadata_props[METADATA_KEY] = replace(manifest, outputs=specs).to_json()
    path = folder / "observed.onnx"
    for old in model_files(path):
        old.unlink(missing_ok=True)
    # Weights inside the file would be in memory several times while ONNX Runtime reads it.
    ir.save(model, path, external_data=None if share_weights(source, folder) else path.name + DATA_SUFFIX)
    return path


def share_weights(source: Path, folder: Path) -> bool:
    """Make a graph's data file, if it has one, reachable in another folder, for a copy that still refers to it.

    ONNX Runtime follows no symbolic link out of a model's folder, so it is a hard link, or a copy on other disks.

    Returns:
        Whether there is one.
    """
    data = source.with_name(source.name + DATA_SUFFIX)
    shared = folder / data.name
    if data.exists() and not shared.exists():
        try:
            os.link(data, shared)
        except OSError:
            shutil.copyfile(data, shared)
    return data.exists()


def _reduce(model: ir.Model, value: ir.Value, columns: int, every: ir.Value) -> Iterator[ir.Value]:
    """Add the reductions of one activation; yields their outputs."""
    shape = ir.Value(
        name=f"observed/{value.name}/shape", const_value=ir.tensor(np.array([-1, columns] if columns else [-1]))
    )
    model.graph.register_initializer(shape)
    flat = ir.node("Reshape", [value, shape])
    reduced = [
        ir.node("ReduceMin", [flat.outputs[0], every], {"keepdims": 0}),
        ir.node("ReduceMax", [flat.outputs[0], every], {"keepdims": 0}),
        ir.node("ReduceSum", [flat.outputs[0], every], {"keepdims": 0}),
        ir.node("Size", [value]),
    ]
    model.graph.extend([flat, *reduced])
    for node, reduction in zip(reduced, REDUCTIONS, strict=True):
        result = node.outputs[0]
        result.name = output_name(value.name or "", reduction)
        result.dtype = ir.DataType.INT64 if reduction == "size" else ir.DataType.FLOAT
        result.shape = ir.Shape([columns] if columns and reduction != "size" else [])
        yield result
