"""What one machine has found out about an engine and keeps beside it: that it is proven, and TensorRT-RTX's kernels.

Both belong to the engine's bytes, the GPU and the library's version, and are ignored when one of these is another.
Neither is needed: where the folder cannot be written, the next opening finds out again.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from mae_export.errors import InputError, ResourceError
from mae_export.files import put_in_place, staging
from mae_export.manifest import SCHEMA, read_json

MARKER_SUFFIX = ".proven.json"
CACHE_SUFFIX = ".cache"
LONGEST_HEADER = 4096


@dataclass(frozen=True, kw_only=True)
class EngineHere:
    """An engine on a machine.

    Attributes:
        engine: SHA-256 of the plan.
        gpu: name and compute capability.
        version: of the library.
        content: SHA-256 of the bytes that follow, for caches; "" for markers.
        schema: version of this structure.
    """

    engine: str
    gpu: str
    version: str
    content: str = ""
    schema: int = SCHEMA


def is_proven(engine: Path, here: EngineHere) -> bool:
    """Whether the engine passed its golden check on this machine."""
    try:
        text = _beside(engine, MARKER_SUFFIX).read_text(encoding="utf-8")
        return read_json(text, EngineHere, "marker") == here
    except (OSError, UnicodeDecodeError, InputError):
        return False


def note_proven(engine: Path, here: EngineHere) -> None:
    """Remember that the engine passed."""
    _write(_beside(engine, MARKER_SUFFIX), _line(here))


def read_cache(engine: Path, here: EngineHere) -> bytes:
    """The kernels that were compiled on this machine; b"" when there are none that fit."""
    try:
        with _beside(engine, CACHE_SUFFIX).open("rb") as file:
            found = read_json(file.readline(LONGEST_HEADER).decode(), EngineHere, "cache")
            content = file.read()
    except (OSError, UnicodeDecodeError, InputError):
        return b""
    wanted = dataclasses.replace(here, content=hashlib.sha256(content).hexdigest())
    return content if found == wanted else b""


def write_cache(engine: Path, here: EngineHere, content: bytes) -> None:
    """Keep compiled kernels."""
    here = dataclasses.replace(here, content=hashlib.sha256(content).hexdigest())
    _write(_beside(engine, CACHE_SUFFIX), _line(here) + content)


def _beside(engine: Path, suffix: str) -> Path:
    return engine.with_name(engine.name + suffix)


def _line(here: EngineHere) -> bytes:
    return json.dumps(dataclasses.asdict(here), sort_keys=True).encode() + b"\n"


def _write(target: Path, content: bytes) -> None:
    try:
        with staging(target) as folder:
            staged = folder / target.name
            staged.write_bytes(content)
            put_in_place(staged, target)
    except (InputError, ResourceError, OSError):  # a folder of somebody else's, or a full disk
        return
