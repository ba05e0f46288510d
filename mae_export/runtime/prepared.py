"""What this machine prepared of graphs for itself, and where `open_session` finds it: engines, and lowered graphs.

An entry is a folder with a model and `entry.json`, named by the SHA-256 of what it belongs to: the graph's bytes, the
device and the library with its version. Looking one up costs next to nothing where there are none: a graph is hashed
only when an entry has its size, and a library is loaded only when an entry is the graph's.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Literal

from mae_export.errors import InputError, MachineError, MaeExportError, SecurityError
from mae_export.files import model_files, sha256_files, staging
from mae_export.manifest import SCHEMA, read_json
from mae_export.runtime import engine_file, private_folder, tensorrt_api
from mae_export.runtime.cuda import open_device
from mae_export.runtime.doctor import read_cpu

ENTRY, ENGINE = "entry.json", ".engine"
FOLDER = re.compile(r"([0-9a-f]{64})|\.([0-9a-f]{64})\..*\.tmp")  # entries, and those being made or left by a crash
AGAIN = "run `mae-export prepare` again"
Library = Literal["tensorrt", "rtx", "onnxruntime"]


@dataclass(frozen=True, kw_only=True)
class Fit:
    """What a prepared model belongs to.

    Attributes:
        source: SHA-256 of the graph's files.
        library: that runs it.
        version: of the library.
        device: name and compute capability of the GPU, or model and instruction sets of the CPU.
    """

    source: str
    library: Library
    version: str
    device: str

    @property
    def key(self) -> str:
        """Name of the entry's folder."""
        return hashlib.sha256(json.dumps(dataclasses.astuple(self)).encode()).hexdigest()


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A prepared model.

    Attributes:
        fit: what it belongs to.
        size: of the graph's files in bytes.
        model: file name.
        sha256: of the model's files.
        made: when, in UTC.
        schema: version of this structure.
    """

    fit: Fit
    size: int
    model: str
    sha256: str
    made: str
    schema: int = SCHEMA


def fit_here(source: str, library: Library) -> Fit:
    """What a model of a graph must belong to, to run on this machine now.

    Args:
        source: SHA-256 of the graph's files.
        library: that shall run it.

    Raises:
        MachineError: when the library, a driver or a GPU is missing.
    """
    if library == "onnxruntime":
        try:
            import onnxruntime
        except ImportError as error:
            raise MachineError("ONNX Runtime is not installed; run: pip install 'mae-export[cpu]'") from error
        cpu = read_cpu()
        device = " ".join((cpu.model, *cpu.flags))
        return Fit(source=source, library=library, version=onnxruntime.__version__, device=device)
    version = tensorrt_api.open_library(library).version
    gpu = open_device()
    return Fit(source=source, library=library, version=version, device=f"{gpu.name} {gpu.target}")


def find(graph: Path) -> tuple[Path | None, str]:
    """The model that was prepared from a graph and fits this machine now.

    Args:
        graph: the .onnx file.

    Returns:
        The model, or None; and why one that is there is not used, "" when there is none. Never raises: a graph runs
        without what was prepared.
    """
    try:
        root = private_folder.location()
    except InputError:  # then nothing can have been prepared
        return None, ""
    try:
        folders = [path.parent for path in root.glob(f"[0-9a-f]*/{ENTRY}")]  # none that is being removed
        if not folders:
            return None, ""
        private_folder.require_private(root)
        size = _size(graph)
        source = ""
    except (OSError, SecurityError) as error:
        return None, f"what was prepared is not looked at ({error})"
    remark = ""
    for folder in folders:
        try:
            entry = _read(folder)
            if entry.size != size:
                continue
            source = source or sha256_files(*model_files(graph))
            if entry.fit.source == source:
                remark = _why_not(folder, entry)
                if not remark:
                    return folder / entry.model, ""
        except MaeExportError as error:
            remark = f"what was prepared cannot be used ({error})"
    return None, remark


def _why_not(folder: Path, entry: Entry) -> str:
    """Why an entry of a graph is not used here, "" when it is."""
    here = fit_here(entry.fit.source, entry.fit.library)
    if entry.fit != here:
        return f"prepared for {entry.fit.library} {entry.fit.version} on another machine or version; {AGAIN}"
    # The bytes of an engine are compared when it is loaded.
    if not entry.model.endswith(ENGINE) and sha256_files(*_files(folder / entry.model)) != entry.sha256:
        return f"what was prepared is damaged; {AGAIN} with --force"
    return ""


@contextmanager
def adding(graph: Path, fit: Fit) -> Iterator[Path]:
    """A private folder in which to put the model of a graph; it becomes the entry when all goes well.

    The caller holds `private_folder.locked(fit.key)`, and puts one model in, an engine with its sidecar or a graph;
    with none there is no entry.

    Raises:
        InputError: when the folder cannot be written.
        ResourceError: when the disk is full.
    """
    target = private_folder.location() / fit.key
    with staging(target) as parent:
        folder = parent / fit.key
        folder.mkdir(mode=0o700)
        yield folder
        models = [path for path in folder.iterdir() if path.suffix in (ENGINE, ".onnx")]
        if not models:
            return
        (model,) = models
        entry = Entry(
            fit=fit,
            size=_size(graph),
            model=model.name,
            sha256=sha256_files(*_files(model)),
            made=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        )
        (folder / ENTRY).write_text(json.dumps(dataclasses.asdict(entry), indent=1, sort_keys=True), encoding="utf-8")
        if target.exists():
            target.rename(parent / "old")  # removed with the private folder
        folder.rename(target)


def known(fit: Fit) -> Path | None:
    """The model of an entry that is whole, or None."""
    folder = private_folder.location() / fit.key
    try:
        entry = _read(folder)
        model = folder / entry.model
        return model if entry.fit == fit and sha256_files(*_files(model)) == entry.sha256 else None
    except (OSError, InputError):
        return None


@dataclass(frozen=True, kw_only=True)
class Cleared:
    """What became of the entries: how many were removed, and how many stay because they are being made just now."""

    removed: int = 0
    busy: int = 0


def clear() -> Cleared:
    """Remove everything that was prepared, of all graphs, but what some process is making: that is left to it.

    Raises:
        SecurityError: when others may write in the folder.
        InputError: when it cannot be written.
    """
    root = private_folder.location()
    if not root.is_dir():
        return Cleared()
    found = [match for path in root.iterdir() if (match := FOLDER.fullmatch(path.name))]
    removed = busy = 0
    for key in dict.fromkeys(match[1] or match[2] for match in found):
        with private_folder.locked_if_free(key) as free:
            busy += not free
            removed += free and _remove(root, key)
    return Cleared(removed=removed, busy=busy)


def _remove(root: Path, key: str) -> bool:
    """Remove an entry and what crashes left of it; whether there was an entry. Its lock is held."""
    entry = root / key
    was_there = entry.is_dir()
    if was_there:  # it is gone at once for those who look, not file by file
        entry.rename(root / f".{key}.removed.tmp")
    for rest in root.glob(f".{key}.*.tmp"):
        shutil.rmtree(rest)
    return was_there


def _read(folder: Path) -> Entry:
    try:
        entry = read_json((folder / ENTRY).read_text(encoding="utf-8"), Entry, ENTRY)
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{folder / ENTRY} cannot be read: {error}") from error
    if Path(entry.model).name != entry.model:
        raise InputError(f"{folder / ENTRY} names a model outside its folder")
    return entry


def _files(model: Path) -> tuple[Path, ...]:
    """The files that are the model: a plan and its sidecar, or a graph and its data."""
    return (model, engine_file.sidecar_path(model)) if model.suffix == ENGINE else model_files(model)


def _size(graph: Path) -> int:
    return sum(path.stat().st_size for path in model_files(graph))
