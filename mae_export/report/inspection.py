"""What a file or folder is and holds, as plain data: the same dictionary is shown as a table or as JSON."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from mae_export.encoders.overrides import Overrides
from mae_export.errors import InputError
from mae_export.files import model_files
from mae_export.manifest import Manifest

SHOWN = 12  # tensors or ids listed before "..."


def inspect(path: Path, overrides: Overrides) -> dict[str, Any]:
    """Describe a checkpoint, a graph or a features folder.

    Raises:
        InputError: when nothing is there, or it is none of these.
    """
    if not path.exists():
        raise InputError(f"there is nothing at {path}; give a checkpoint, an .onnx graph or a features folder")
    if path.suffix == ".onnx":
        return _graph(path)
    if path.is_dir() and (path / "manifest.json").is_file():
        return _features(path)
    if path.is_dir() and not (path / "config.json").is_file():
        raise InputError(
            f"{path} holds neither config.json (a Hugging Face folder) nor manifest.json (finished features); "
            "give a checkpoint, an .onnx graph or a features folder"
        )
    return _checkpoint(path, overrides)


def _graph(path: Path) -> dict[str, Any]:
    from mae_export.runtime.session import open_session

    with open_session(path) as session:
        return {
            "kind": "graph",
            "path": str(path),
            "sha256": session.digest,
            "bytes": sum(file.stat().st_size for file in model_files(path)),
            "runs on": session.description,
            **_described(session.manifest),
        }


def _described(manifest: Manifest) -> dict[str, Any]:
    values = asdict(manifest)
    for key in ("inputs", "outputs"):
        values[key] = {
            spec["name"]: f"{spec['dtype']} {list(spec['shape'])}" + (f": {spec['note']}" if spec["note"] else "")
            for spec in values[key]
        }
    return values


def _features(path: Path) -> dict[str, Any]:
    from mae_export.runtime.features import read_manifest

    return {"kind": "features", "path": str(path), **asdict(read_manifest(path))}


def _checkpoint(path: Path, overrides: Overrides) -> dict[str, Any]:
    from mae_export.encoders.checkpoint import read_checkpoint
    from mae_export.encoders.load import load_encoder, recognise

    checkpoint = read_checkpoint(path, weights=overrides.weights)
    family, layout = recognise(checkpoint)
    described: dict[str, Any] = {
        "kind": "checkpoint",
        "path": str(path),
        "sha256": checkpoint.sha256,
        "format": checkpoint.format,
        "found under": checkpoint.container or "top level",
        "stripped prefixes": list(checkpoint.stripped),
        "family": f"{family.name}: {family.title}",
        "layout": layout.name,
        "licence of the published weights": family.licence,
        "repository": family.repository,
        "tensors": len(checkpoint.tensors),
        "parameters": sum(tensor.numel() for tensor in checkpoint.tensors.values()),
        "dtypes": sorted({str(tensor.dtype).removeprefix("torch.") for tensor in checkpoint.tensors.values()}),
        "first tensors": {name: list(tensor.shape) for name, tensor in list(checkpoint.tensors.items())[:SHOWN]},
    }
    try:
        _, report = load_encoder(path, overrides=overrides)
    except InputError as error:
        return described | {"loads": f"no: {error}"}
    return described | {
        "loads": "yes",
        "encoder": asdict(report.spec),
        "used": len(report.used),
        "ignored": dict(report.ignored),
        "missing": list(report.missing),
        "notes": list(report.notes),
    }
