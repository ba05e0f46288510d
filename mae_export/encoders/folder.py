"""Hugging Face folders: config.json beside one weight file, or an index of several."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mae_export.encoders.weight_file import WeightFile, read_weight_file
from mae_export.errors import CheckpointError, SecurityError

INDEX = "model.safetensors.index.json"
SINGLE = ("model.safetensors", "pytorch_model.bin")
MAX_JSON = 16 * 2**20  # bytes


@dataclass(frozen=True, kw_only=True)
class Folder:
    """What a folder holds.

    Attributes:
        config: the parsed config.json.
        sha256: of the weight file; of several, of their hexadecimal digests joined in the order of their names.
        root: as in WeightFile; of several files, all their tensors.
        notes: for the user.
    """

    config: dict[str, Any]
    sha256: str
    root: Any
    notes: tuple[str, ...] = ()


def read_folder(path: Path) -> Folder:
    """Describe a Hugging Face folder.

    Raises:
        CheckpointError: when config.json or weights are missing or damaged, or the index disagrees with the files.
        SecurityError: when the index points outside the folder.
    """
    if not (path / "config.json").is_file():
        raise CheckpointError(
            f"{path} is a folder without config.json; give a weight file, or a Hugging Face folder with config.json"
        )
    config = _read_json(path / "config.json")
    present = [name for name in (SINGLE[0], INDEX, SINGLE[1]) if (path / name).is_file()]
    if not present:
        raise CheckpointError(f"{path} holds no weights; expected one of {', '.join((SINGLE[0], INDEX, SINGLE[1]))}")
    notes = (f"{present[0]} is used, {', '.join(present[1:])} is not",) if present[1:] else ()
    if present[0] == INDEX:
        sha256, root = _read_shards(path)
        return Folder(config=config, sha256=sha256, root=root, notes=notes)
    weights = read_weight_file(path / present[0])
    return Folder(config=config, sha256=weights.sha256, root=weights.root, notes=(*weights.notes, *notes))


def _read_shards(path: Path) -> tuple[str, dict[str, Any]]:
    """Digest and tensors of all the files that the index names."""
    index = path / INDEX
    listed = _read_json(index).get("weight_map")
    if not isinstance(listed, dict) or not listed or any(type(name) is not str for name in listed.values()):
        raise CheckpointError(f"{index} has no weight_map from tensor names to file names; get it again")
    names = sorted(set(listed.values()))
    for name in names:
        if name in ("", ".", "..") or any(character in name for character in "/\\\0"):
            raise SecurityError(
                f"{index} points to {name!r}; a shard must lie beside the index. Do not use this folder"
            )
        if not (path / name).exists():
            raise CheckpointError(f"{path} lacks {name}, which {INDEX} names; get the missing shard")
    shards = {name: read_weight_file(path / name) for name in names}
    digests = "".join(shard.sha256 for shard in shards.values())
    return hashlib.sha256(digests.encode()).hexdigest(), _join(shards, listed, index)


def _join(shards: Mapping[str, WeightFile], listed: Mapping[str, str], index: Path) -> dict[str, Any]:
    found: dict[str, str] = {}
    root: dict[str, Any] = {}
    for file, shard in shards.items():
        if shard.format != "safetensors":
            raise CheckpointError(f"{index.parent / file} is a {shard.format} file; expected a safetensors shard")
        for name, tensor in shard.root.items():
            if name == "__metadata__":
                continue
            if name in found:
                raise CheckpointError(f"tensor {name!r} is in both {found[name]} and {file}; get the folder again")
            found[name], root[name] = file, tensor
    if found != listed:
        name = min(dict(found.items() ^ listed.items()))
        raise CheckpointError(
            f"{index} says that tensor {name!r} is in {listed.get(name, 'no file')}, but it is in "
            f"{found.get(name, 'no file')}; get the folder again"
        )
    return root


def _read_json(path: Path) -> dict[str, Any]:
    try:
        size = path.stat().st_size
        if size > MAX_JSON:
            raise SecurityError(f"{path} takes {size} bytes; expected at most {MAX_JSON}")
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read as JSON ({error}); get the file again") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds a {type(content).__name__}; expected a JSON object")
    return content
