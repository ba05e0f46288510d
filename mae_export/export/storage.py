"""How an edited graph is stored: weights inside the file up to 1 GiB, beyond that in one data file next to it."""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir

from mae_export.files import DATA_SUFFIX

EMBEDDED_LIMIT = 1 << 30  # bytes of weights kept inside the .onnx file


def save(model: ir.Model, path: Path, *, embedded: int = EMBEDDED_LIMIT) -> None:
    """Write a model to `path`, which must not be a file that the model's own weights are still read from.

    Args:
        model: not changed.
        path: the .onnx file.
        embedded: bytes of weights that may stay inside; with 0, which saves memory, they never do.
    """
    weights = sum(value.const_value.nbytes for value in model.graph.initializers.values() if value.const_value)
    ir.save(model, path, external_data=path.name + DATA_SUFFIX if weights > embedded else None)
