"""What a file or folder is that was given in the place of another: told by its first bytes, and named by its kind.

Nothing is loaded and nothing is trusted here; only whoever reads an artefact knows whether it is sound.
"""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any, Literal

from mae_export.errors import InputError

CHECKPOINT_SUFFIXES = (".pth", ".pt", ".bin", ".ckpt", ".safetensors")
ENGINE_SUFFIX, GRAPH_SUFFIX = ".engine", ".onnx"
HEAD = 1024  # bytes; the first entry of a PyTorch archive is named within them
LARGEST_JSON = 1 << 30  # of a table; nothing larger is read to say what it is
ONNX = b"\x08"  # a graph begins with the version of its format, field 1 of the message
PICKLED = tuple(bytes([0x80, protocol]) for protocol in range(2, 6))  # how a pickle of each protocol begins

Kind = Literal["graph", "checkpoint", "engine", "table", "sidecar", "sensitivity", "bundle", "features", "json"]
NAMES: dict[Kind, str] = {
    "graph": "a graph",
    "checkpoint": "a checkpoint",
    "engine": "an engine",
    "table": "a calibration table",
    "sidecar": "the sidecar of an engine",
    "sensitivity": "a finding of `mae-export sensitivity`",
    "bundle": "a bundle",
    "features": "a folder of features",
    "json": "a JSON file",
}
# Keys that only a file of this kind has, all of them at the top level.
_KEYS: dict[Kind, frozenset[str]] = {
    "table": frozenset({"graph", "graph_name", "ranges"}),
    "sidecar": frozenset({"achieved", "backend", "manifest"}),
    "sensitivity": frozenset({"sensitivity", "plan"}),
}


def kind_of(path: Path) -> Kind | None:
    """What a file or folder is; None for what is not there, and for what nothing here writes or reads."""
    if path.is_dir():
        return _kind_of_folder(path)
    if not path.is_file():
        return None
    try:
        with path.open("rb") as file:
            head = file.read(HEAD)
    except OSError:
        return None
    suffix = path.suffix.lower()
    if suffix == ENGINE_SUFFIX:
        return "engine"
    if head.startswith(PICKLED) or (head.startswith(b"PK\x03\x04") and b"data.pkl" in head) or _is_safetensors(head):
        return "checkpoint"
    if head.lstrip()[:1] == b"{":
        return _kind_of_json(_read_json(path))
    if suffix in CHECKPOINT_SUFFIXES and not head.startswith(ONNX):
        return "checkpoint"
    return "graph" if suffix == GRAPH_SUFFIX else None


def require_graph(path: Path) -> None:
    """Refuse what is known to be something else than a graph; whoever reads the file judges what is not known.

    Raises:
        InputError: with the kind of file or folder that was found, and what to do.
    """
    kind = kind_of(path)
    if kind not in (None, "graph"):
        raise InputError(f"{path} is {NAMES[kind]}, not a graph; {_advice(kind, path)}")


def require_table(path: Path) -> None:
    """Refuse what is known to be something else than a calibration table.

    Raises:
        InputError: with the kind of file or folder that was found, and what to do.
    """
    kind = kind_of(path)
    if kind not in (None, "table", "json"):
        raise InputError(
            f"{path} is {NAMES[kind]}, not a calibration table; the graph comes first, then the table that "
            "`mae-export calibrate` wrote of it"
        )


def _advice(kind: Kind, path: Path) -> str:
    if kind == "checkpoint":
        return f"run first: {export_command(path)}"
    if kind == "engine":
        return f"give the {GRAPH_SUFFIX} file that it was built from, which `mae-export inspect {path}` names"
    if kind == "table":
        return f"give {_read_json(path).get('graph_name')}, which it was observed on"
    if kind == "bundle":
        return f"give one of its models, such as {next(iter(sorted(path.glob('*.onnx'))), path / 'NAME.onnx')}"
    return f"expected an {GRAPH_SUFFIX} file written by `mae-export export`"


def export_command(checkpoint: Path) -> str:
    """The command that makes a graph of a checkpoint, beside where the user is."""
    name = (checkpoint.name if checkpoint.is_dir() else checkpoint.stem) or "encoder"
    return f"mae-export export {shlex.quote(str(checkpoint))} -o {shlex.quote(name + GRAPH_SUFFIX)}"


def _is_safetensors(head: bytes) -> bool:
    """The length of a header in 8 bytes, then the header, which is JSON."""
    return head[8:9] == b"{" and 0 < int.from_bytes(head[:8], "little") < 1 << 32


def _kind_of_folder(path: Path) -> Kind | None:
    if (path / "config.json").is_file():
        return "checkpoint"
    if (path / "manifest.json").is_file():
        return "bundle" if _read_json(path / "manifest.json").get("kind") == "bundle" else "features"
    return None


def _kind_of_json(value: dict[str, Any]) -> Kind:
    return next((kind for kind, keys in _KEYS.items() if keys <= value.keys()), "json")


def _read_json(path: Path) -> dict[str, Any]:
    """The object in a file, empty when there is none that can be read."""
    try:
        if path.stat().st_size > LARGEST_JSON:
            return {}
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}
