"""A features folder: shards, `failures.jsonl` and a `manifest.json` that is written last, so that it means complete.

Rows are keyed by the id of their image. Inside a shard they are in listing order; from shard to shard they are in the
order in which batches ran, which is listing order too unless rows were grouped by their number of visible patches.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from mae_export.errors import InputError, UsageError
from mae_export.manifest import SCHEMA, TensorSpec, read_json
from mae_export.runtime.padding import concatenate_padded
from mae_export.runtime.parquet import read_parquet, require_pyarrow, write_parquet
from mae_export.runtime.shards import (
    IDS_KEEP,
    SHARD_FILE,
    Row,
    Shard,
    disk_errors,
    fill_of,
    read_npy,
    write_atomic,
    write_npy,
)

Array = npt.NDArray[Any]
Format = Literal["npy", "parquet"]
MANIFEST = "manifest.json"
FAILURES = "failures.jsonl"
SHARD_ROWS = 65_536
SHARD_BYTES = 128 << 20
RESERVED = ("id", "ids", IDS_KEEP)
_WRITE = {"npy": write_npy, "parquet": write_parquet}
_READ = {"npy": read_npy, "parquet": read_parquet}


@dataclass(frozen=True, kw_only=True)
class FeaturesManifest:
    """What a features folder holds and what made it.

    Attributes:
        model: file name of the model, where the caller knew it.
        model_sha256: of the model's bytes.
        family: of the checkpoint.
        precision: of the model.
        runtime: what ran it, and where.
        features: name, dtype and shape of one row (symbolic axes depend on the visible patches).
        visible: the plan that chose the visible patches.
        format: of the shards.
        rows_in: images listed.
        rows_ok: rows in the shards.
        rows_failed: lines in `failures.jsonl`.
        shards: in order of their names.
        version: of mae-export.
        started: UTC, ISO 8601.
        seconds: wall time.
        schema: version of this structure.

    Raises:
        InputError: when the numbers of rows disagree.
    """

    model: str
    model_sha256: str
    family: str
    precision: str
    runtime: str
    features: tuple[TensorSpec, ...]
    visible: str
    format: Format
    rows_in: int
    rows_ok: int
    rows_failed: int
    shards: tuple[Shard, ...]
    version: str
    started: str
    seconds: float
    schema: int = SCHEMA

    def __post_init__(self) -> None:
        stored = sum(shard.rows for shard in self.shards)
        if stored != self.rows_ok or self.rows_ok + self.rows_failed != self.rows_in:
            raise InputError(
                f"the features manifest counts {self.rows_in} images, {self.rows_ok} rows, {stored} of them in shards, "
                f"and {self.rows_failed} failures; these do not add up"
            )


@dataclass(frozen=True, kw_only=True)
class Features:
    """Features read back.

    Attributes:
        ids: one per row.
        arrays: [rows, ...] by feature name; rows with fewer patches are padded with zeros.
        ids_keep: int64 [rows, K], -1 where padded; None when every patch was visible and nothing is per patch.
        manifest: what made them.
    """

    ids: tuple[str, ...]
    arrays: dict[str, Array]
    ids_keep: npt.NDArray[np.int64] | None
    manifest: FeaturesManifest


class FeaturesWriter:
    """Writes shards as rows come, and failures at once.

    Args:
        folder: is created; must be empty, or a features folder when `force` is set, whose files are then deleted.
        format: of the shards.
        force: replace an existing features folder.
        shard_rows: rows after which a shard is closed.
        shard_bytes: bytes after which a shard is closed.

    Raises:
        UsageError: when the folder is in use for something else.
        MachineError: when the format needs a package that is missing.
        ResourceError, InputError: when the folder cannot be written to.
    """

    def __init__(
        self,
        folder: Path,
        *,
        format: Format = "npy",  # noqa: A002 - the word of the command line and of the manifest
        force: bool = False,
        shard_rows: int = SHARD_ROWS,
        shard_bytes: int = SHARD_BYTES,
    ) -> None:
        if format == "parquet":
            require_pyarrow()
        _claim(folder, force)
        self.failures: Counter[str] = Counter()
        self.rows_ok = 0
        self._folder = folder
        self._format = format
        self._limits = shard_rows, shard_bytes
        self._rows: list[Row] = []
        self._widest = 0
        self._shards: list[Shard] = []
        with disk_errors(folder / FAILURES):
            self._log = (folder / FAILURES).open("x", encoding="ascii")

    def add(self, row: Row) -> None:
        """Keep a row, and write a shard when it is full.

        Raises:
            ResourceError, InputError: when the shard cannot be written.
        """
        self._rows.append(row)
        self._widest = max(self._widest, row.nbytes)  # the others are padded to it
        rows, size = self._limits
        if len(self._rows) >= rows or len(self._rows) * self._widest >= size:
            self._flush()

    def fail(self, item_id: str, reason: str, message: str) -> None:
        """Record an image that gave no row; it is on disk when this returns, unless the machine goes down.

        Raises:
            ResourceError, InputError: when the line cannot be written.
        """
        line = json.dumps({"id": item_id, "reason": reason, "message": message})
        with disk_errors(self._folder / FAILURES):
            self._log.write(line + "\n")
            self._log.flush()
        self.failures[reason] += 1

    def finish(self) -> tuple[Shard, ...]:
        """Write what is left; the folder is complete once `write_manifest` has run.

        Raises:
            ResourceError, InputError: when a file cannot be written.
        """
        self._flush()
        with disk_errors(self._folder / FAILURES):
            os.fsync(self._log.fileno())
        return tuple(self._shards)

    def write_manifest(self, manifest: FeaturesManifest) -> None:
        """Declare the folder complete.

        Raises:
            ResourceError, InputError: when the file cannot be written.
        """
        text = json.dumps(dataclasses.asdict(manifest), indent=1, sort_keys=True, allow_nan=False) + "\n"
        write_atomic(self._folder / MANIFEST, lambda file: file.write(text.encode()))

    def _flush(self) -> None:
        if not self._rows:
            return
        rows = sorted(self._rows, key=lambda row: row.index)
        files = _WRITE[self._format](self._folder, _stem(len(self._shards)), rows)
        self._shards.append(Shard(rows=len(rows), files=files))
        self.rows_ok += len(rows)
        self._rows, self._widest = [], 0

    def __enter__(self) -> FeaturesWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with disk_errors(self._folder / FAILURES):
            self._log.close()


def check_feature_names(names: tuple[str, ...]) -> None:
    """Refuse names that cannot be part of a file name, or that the folder uses itself.

    Raises:
        InputError: naming the first such name.
    """
    for name in names:
        if name in RESERVED or not re.fullmatch("[A-Za-z0-9_]+", name):
            raise InputError(f"the output {name!r} cannot be stored: use letters, digits and _, and none of {RESERVED}")


def read_features(folder: str | Path, *names: str) -> Features:
    """Read features back, after comparing the hash of every file that is read.

    Args:
        folder: written by `mae-export extract`.
        names: features wanted; none means all.

    Raises:
        InputError: when the folder is incomplete or damaged, or a feature is not in it.
        MachineError: when the shards need a package that is missing.
    """
    folder = Path(folder)
    manifest = read_manifest(folder)
    specs = {spec.name: spec for spec in manifest.features}
    for name in names:
        if name not in specs:
            raise InputError(f"{folder} has no feature {name!r}; it has: {', '.join(specs)}")
    wanted = list(names or specs)
    ids: list[str] = []
    parts: dict[str, list[Array]] = {name: [] for name in wanted}
    for number, shard in enumerate(manifest.shards):
        shard_ids, columns = _READ[manifest.format](folder, _stem(number), shard, wanted)
        for name, rows in [("ids", len(shard_ids)), *((name, len(array)) for name, array in columns.items())]:
            if rows != shard.rows:
                raise InputError(f"{folder}: {name} of shard {number} has {rows} rows; expected {shard.rows}")
        ids += shard_ids
        for name, array in columns.items():
            parts.setdefault(name, []).append(array)
    arrays = {
        name: concatenate_padded(pieces, fill=fill_of(name)) if pieces else _no_rows(specs[name])
        for name, pieces in parts.items()
    }
    return Features(ids=tuple(ids), ids_keep=arrays.pop(IDS_KEEP, None), arrays=arrays, manifest=manifest)


def read_manifest(folder: Path) -> FeaturesManifest:
    """Read the manifest of a complete folder.

    Raises:
        InputError: when there is none, or it is not one of ours.
    """
    path = folder / MANIFEST
    if not path.is_file() and not (folder / FAILURES).is_file():
        raise InputError(f"{folder} is no features folder: it has neither {MANIFEST} nor {FAILURES}; check the path")
    if not path.is_file():
        raise InputError(f"{folder} has no {MANIFEST}: the extraction did not finish. Run it again with --force")
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read ({error}); expected the JSON that `extract` writes") from error
    return read_json(text, FeaturesManifest, str(path))


def _no_rows(spec: TensorSpec) -> Array:
    return np.zeros((0, *(dim if isinstance(dim, int) else 0 for dim in spec.shape)), spec.dtype)


def _stem(number: int) -> str:
    return f"shard-{number:05d}"


def _claim(folder: Path, force: bool) -> None:
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder} is a file; give a folder for the features")
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        entries = sorted(folder.iterdir())
    if entries and not force:
        raise UsageError(f"{folder} is not empty; choose another folder, or pass --force to replace features in it")
    for entry in entries:
        if not _is_ours(entry):
            raise UsageError(
                f"{folder} holds {entry.name!r}, which is not part of a features folder; nothing was deleted"
            )
    with disk_errors(folder):
        for entry in sorted(entries, key=lambda entry: entry.name != MANIFEST):  # first what says complete
            entry.unlink()


def _is_ours(entry: Path) -> bool:
    if entry.name == MANIFEST:
        try:
            read_manifest(entry.parent)
        except InputError:
            return False
        return True
    name = re.sub(r"^\.(.*)\.tmp$", r"\1", entry.name)  # left by a process that was killed
    return entry.is_file() and (name in (FAILURES, MANIFEST) or SHARD_FILE.fullmatch(name) is not None)
