"""Reads a published checkpoint as data: what the weights are, where they were, and what the file says about itself.

Files are never trusted: see `pickled` for why reading one cannot run code. This file joins the parts: a weight file
or a folder, the dict that holds the weights, and tensors that stay mapped in the file until they are used.
"""

from __future__ import annotations

import mmap
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from mae_export.encoders.folder import Folder, read_folder
from mae_export.encoders.state_dict import StateDict, choose
from mae_export.encoders.weight_file import WeightFile, read_weight_file
from mae_export.errors import CheckpointError, SecurityError

CHUNK = 2**18  # elements looked at at a time, so that temporaries stay small
LISTED = 8  # names in one message
MAX_SHARED = 16  # times that tensors may use the file's bytes: tied weights and shared buffers use some twice


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A checkpoint, read but not yet understood.

    Attributes:
        path: the file or folder.
        format: found by content, not by name.
        sha256: of the weight file's bytes, hexadecimal; of a folder with several weight files, of their hexadecimal
            digests joined in the order of their names.
        tensors: by name without wrapper prefixes, dtype as stored. They are mapped from the file, which must not be
            truncated while they are in use; writing to one changes memory only.
        container: path of keys under which they were found, joined by "/", such as "model"; "" at the top level.
        stripped: prefixes removed from every name, outermost first, such as ("module.",).
        metadata: plain data. Of a Hugging Face folder, config.json. Of other files, the tables found beside the
            weights by key, such as {"args": {...}}; what is not plain is replaced by a text like "<name>".
        notes: what a user should know.
        maps: the mapped files.
    """

    path: Path
    format: Literal["torch", "safetensors", "huggingface"]
    sha256: str
    tensors: Mapping[str, torch.Tensor]
    container: str
    stripped: tuple[str, ...]
    metadata: Mapping[str, Any]
    notes: tuple[str, ...]
    maps: tuple[mmap.mmap, ...] = ()

    def forget_pages(self) -> None:
        """Drop what was read of the mapped files from memory; a tensor that is touched again reads it again.

        Whoever copies tensors calls this on the way, so that copies and originals are never in memory together.
        """
        if hasattr(mmap, "MADV_DONTNEED"):
            for data in self.maps:
                data.madvise(mmap.MADV_DONTNEED)


def read_checkpoint(path: str | Path, *, weights: str | None = None) -> Checkpoint:
    """Read a `.pth`, `.pt` or `.safetensors` file, or a Hugging Face folder, without running anything in it.

    Args:
        path: the file or folder.
        weights: the container to use when a file holds several, such as `model_ema`; None when there is no choice.

    Raises:
        CheckpointError: when it is missing, damaged, something else, or holds tensors of an unsupported kind.
        LayoutError: when it holds no weights, or several sets of them and `weights` names none.
        SecurityError: when it wants to run or import code, points outside its folder, or claims absurd sizes.
    """
    path = Path(path)
    source: Folder | WeightFile
    try:
        source = read_folder(path) if path.is_dir() else read_weight_file(path)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    found = choose(source.root, weights=weights, where=str(path))
    _require_bounded(found, path)
    return Checkpoint(
        path=path,
        format=source.format if isinstance(source, WeightFile) else "huggingface",
        sha256=source.sha256,
        tensors={name: tensor.load(name) for name, tensor in found.tensors.items()},
        container=found.container,
        stripped=found.stripped,
        metadata=found.metadata if isinstance(source, WeightFile) else source.config,
        notes=(*source.notes, *found.notes),
        maps=tuple({id(tensor.data): tensor.data for tensor in found.tensors.values()}.values()),
    )


def _require_bounded(found: StateDict, path: Path) -> None:
    """Refuse a small file whose tensors all view the same bytes: reading them would take forever."""
    files = {id(tensor.data): tensor.data for tensor in found.tensors.values()}
    claimed, present = sum(tensor.size for tensor in found.tensors.values()), sum(map(len, files.values()))
    if claimed > MAX_SHARED * present:
        raise SecurityError(
            f"{path} claims {claimed} bytes of tensors in {present} bytes of file; expected at most {MAX_SHARED} times "
            "the file. Save contiguous copies of the tensors"
        )


def require_finite(tensors: Mapping[str, torch.Tensor]) -> None:
    """Refuse NaN and infinity in floating-point tensors, looking at a part of each tensor at a time.

    Args:
        tensors: by name, any shape and dtype; integers and booleans are passed over.

    Raises:
        CheckpointError: with the number of tensors and of values, and the names of the first tensors.
    """
    counts = {name: _count_not_finite(tensor) for name, tensor in tensors.items() if tensor.is_floating_point()}
    bad = {name: count for name, count in counts.items() if count}
    if bad:
        listed = ", ".join(
            f"{name!r} ({count} of {tensors[name].numel()})" for name, count in list(bad.items())[:LISTED]
        )
        more = f" and {len(bad) - LISTED} more" if len(bad) > LISTED else ""
        raise CheckpointError(
            f"{len(bad)} tensors hold NaN or infinite values: {listed}{more}. Training diverged or the file is "
            "damaged; use another checkpoint"
        )


def _count_not_finite(tensor: torch.Tensor) -> int:
    values = tensor.detach().reshape(-1)
    chunks = (values[start : start + CHUNK] for start in range(0, values.numel(), CHUNK))
    return sum(int(chunk.numel() - chunk.isfinite().sum()) for chunk in chunks)
