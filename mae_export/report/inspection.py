"""What a file or folder is and holds, as plain data: the same dictionary is shown as a table or as JSON."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from mae_export.artefacts import NAMES, kind_of
from mae_export.encoders.overrides import Overrides
from mae_export.errors import InputError
from mae_export.files import model_files, sha256_files
from mae_export.runtime.bundle import changed_files, is_bundle, read_bundle

SHOWN = 12  # tensors listed, of many
WHAT = "a checkpoint, an .onnx graph, an engine, a calibration table, a bundle or a features folder"


def inspect(path: Path, overrides: Overrides, *, family: str | None = None) -> dict[str, Any]:
    """Describe a checkpoint, a graph, an engine, a calibration table, a bundle or a features folder.

    `family` is that of a checkpoint; None recognises it.

    Raises:
        InputError: when nothing is there, or it is none of these.
    """
    if not path.exists():
        raise InputError(f"there is nothing at {path}; give {WHAT}")
    kind = kind_of(path)
    if kind == "table" or (kind == "json" and path.name.endswith(".calib.json")):
        return _table(path)
    if kind in ("sidecar", "sensitivity", "json"):
        raise InputError(f"{path} is {NAMES[kind]}, which `inspect` does not show; give {WHAT}")
    if path.suffix == ".onnx":
        return _graph(path)
    if path.suffix == ".engine":
        return _engine(path)
    if path.is_dir() and is_bundle(path):
        return _bundle(path)
    if path.is_dir() and any((path / name).is_file() for name in ("manifest.json", "failures.jsonl")):
        return _features(path)
    if path.is_dir() and not (path / "config.json").is_file():
        raise InputError(
            f"{path} holds neither config.json (a Hugging Face folder) nor manifest.json (finished features); "
            f"give {WHAT}"
        )
    return _checkpoint(path, overrides, family)


def _graph(path: Path) -> dict[str, Any]:
    from mae_export.runtime.session import open_as_is

    with open_as_is(path) as session:
        return {
            "kind": "graph",
            "path": str(path),
            "sha256": session.digest,
            "bytes": sum(file.stat().st_size for file in model_files(path)),
            "runtime": session.description,
            "manifest": asdict(session.manifest),
        }


def _engine(path: Path) -> dict[str, Any]:
    from mae_export.runtime.engine_file import bytes_match, read_sidecar

    sidecar = read_sidecar(path)
    return {
        "kind": "engine",
        "path": str(path),
        "bytes_match": bytes_match(path, sidecar),
        "made_from": {ancestor.name: ancestor.sha256 for ancestor in sidecar.manifest.made_from},
        "sidecar": asdict(sidecar),
    }


def _table(path: Path) -> dict[str, Any]:
    from mae_export.calibration.table import Table

    table = Table.read(path)
    graph = path.with_name(table.graph_name)
    widest = sorted(table.ranges.items(), key=lambda entry: entry[1].high, reverse=True)[:SHOWN]
    return {
        "kind": "table",
        "path": str(path),
        "sha256": sha256_files(path),
        "graph": table.graph_name,
        "graph_sha256": table.graph,
        "graph_matches": sha256_files(*model_files(graph)) == table.graph if graph.is_file() else None,
        "method": table.method,
        "percentile": table.percentile if table.method == "percentile" else None,
        "visible": table.visible,
        "seed": table.seed,
        "samples": table.samples,
        "images": list(table.images),
        "tensors": len(table.ranges),
        "clipped": sum(found.high < found.reach for found in table.ranges.values()),
        "widest": {
            name: {"low": found.low, "high": found.high, "minimum": found.minimum, "maximum": found.maximum}
            for name, found in widest
        },
        "tools": table.tools,
    }


def _bundle(path: Path) -> dict[str, Any]:
    manifest = read_bundle(path)
    changed = changed_files(path, manifest)
    return {"kind": "bundle", "path": str(path), "bytes_match": not changed, "changed": changed, **asdict(manifest)}


def _features(path: Path) -> dict[str, Any]:
    from mae_export.runtime.features import read_manifest

    return {"kind": "features", "path": str(path), **asdict(read_manifest(path))}


def _checkpoint(path: Path, overrides: Overrides, asked: str | None) -> dict[str, Any]:
    from mae_export.encoders.checkpoint import read_checkpoint
    from mae_export.encoders.load import load_encoder, recognise

    checkpoint = read_checkpoint(path, weights=overrides.weights)
    family, layout = recognise(checkpoint, asked)
    described: dict[str, Any] = {
        "kind": "checkpoint",
        "path": str(path),
        "sha256": checkpoint.sha256,
        "format": checkpoint.format,
        "container": checkpoint.container or "top level",
        "stripped": list(checkpoint.stripped),
        "family": f"{family.name}: {family.title}",
        "layout": layout.name,
        "licence_of_published_weights": family.licence,
        "repository": family.repository,
        "tensors": len(checkpoint.tensors),
        "parameters": sum(tensor.numel() for tensor in checkpoint.tensors.values()),
        "dtypes": sorted({str(tensor.dtype).removeprefix("torch.") for tensor in checkpoint.tensors.values()}),
        "first_tensors": {name: list(tensor.shape) for name, tensor in list(checkpoint.tensors.items())[:SHOWN]},
    }
    try:
        _, report = load_encoder(path, family=asked, overrides=overrides)
    except InputError as error:
        return described | {"loads": False, "because": str(error)}
    return described | {
        "loads": True,
        "encoder": asdict(report.spec),
        "used": len(report.used),
        "ignored": dict(report.ignored),
        "missing": list(report.missing),
        "notes": list(report.notes),
    }
