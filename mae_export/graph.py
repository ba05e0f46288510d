"""An ONNX file as an artefact: it is checked and saved, its manifest read and written. No node is edited here.

Everything works by path, because a graph with its weights may exceed the 2 GiB that protobuf holds in memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import onnx
import onnx_ir as ir
from google.protobuf.message import DecodeError

from mae_export.artefacts import require_graph
from mae_export.errors import GraphError
from mae_export.files import DATA_SUFFIX, put_in_place
from mae_export.manifest import METADATA_KEY, Manifest

EMBEDDED_LIMIT = 1 << 30  # bytes of weights kept inside the .onnx file
_CHECK_ERRORS = (  # RuntimeError: the path is a folder
    onnx.checker.ValidationError,
    onnx.shape_inference.InferenceError,
    DecodeError,
    RuntimeError,
    ValueError,
)


def check(path: Path) -> None:
    """Run `onnx.checker` with shape inference.

    Raises:
        GraphError: with the checker's words.
    """
    try:
        onnx.checker.check_model(str(path), full_check=True)
    except _CHECK_ERRORS as error:
        raise GraphError(f"{path} is no valid ONNX model: {error}") from error


def save(model: ir.Model, path: Path, *, embedded: int = EMBEDDED_LIMIT) -> None:
    """Write a model to `path`, which must not be a file that the model's own weights are still read from.

    Args:
        model: not changed.
        path: the .onnx file.
        embedded: bytes of weights that may stay inside, beyond which all are in one data file next to it; with 0,
            which saves memory, they always are.
    """
    weights = sum(value.const_value.nbytes for value in model.graph.initializers.values() if value.const_value)
    ir.save(model, path, external_data=path.name + DATA_SUFFIX if weights > embedded else None)


def read_manifest(path: Path) -> Manifest:
    """The manifest inside a graph.

    Raises:
        GraphError: when the file is no ONNX model, or carries no manifest.
        InputError: when it is a checkpoint or another artefact; or the manifest is damaged or from another version.
    """
    require_graph(path)
    for entry in _load(path).metadata_props:
        if entry.key == METADATA_KEY:
            return Manifest.from_json(entry.value)
    raise GraphError(f"{path} carries no manifest; expected a graph written by `mae-export export`")


def write_manifest(path: Path, manifest: Manifest) -> None:
    """Put a manifest into a staged graph, replacing one that is there; weights in a data file stay untouched."""
    model = _load(path)
    kept = [entry for entry in model.metadata_props if entry.key != METADATA_KEY]
    del model.metadata_props[:]
    model.metadata_props.extend(kept)
    model.metadata_props.add(key=METADATA_KEY, value=manifest.to_json())
    onnx.save_model(model, str(path))


def rename(path: Path, target: Path) -> Path:
    """Rename a staged graph together with its data file, whose name is written in the graph; returns `target`."""
    data = path.with_name(path.name + DATA_SUFFIX)
    if data.exists():
        model = _load(path)
        for tensor in model.graph.initializer:
            for entry in tensor.external_data:
                if entry.key == "location":
                    entry.value = target.name + DATA_SUFFIX
        onnx.save_model(model, str(path))
        data.rename(target.with_name(target.name + DATA_SUFFIX))
    return path.rename(target)


@contextmanager
def judging(staged: Path, out: Path) -> Iterator[None]:
    """While a staged graph is judged: when that fails, it is kept as `OUT.rejected`, and the error goes on."""
    try:
        yield
    except Exception:
        rejected = out.with_name(out.name + ".rejected")
        put_in_place(rename(staged, staged.with_name(rejected.name)), rejected)
        raise


def _load(path: Path) -> onnx.ModelProto:
    try:
        return onnx.load_model(str(path), load_external_data=False)
    except (OSError, DecodeError) as error:
        raise GraphError(f"{path} cannot be read as an ONNX model: {error}") from error
