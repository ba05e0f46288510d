"""Opening, recognising and hashing one file (damaged and foreign files: tests/hostile)."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch

from mae_export.encoders import weight_file
from mae_export.encoders.weight_file import read_weight_file
from mae_export.errors import CheckpointError


def test_digest_is_of_the_bytes(tmp_path: Path) -> None:
    torch.save({"w": torch.ones(1000, 600)}, tmp_path / "w.pth")  # more than the MiB that is hashed at a time
    content = (tmp_path / "w.pth").read_bytes()
    assert len(content) > 2**21
    assert read_weight_file(tmp_path / "w.pth").sha256 == hashlib.sha256(content).hexdigest()


def test_missing_file_and_folder(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="does not exist"):
        read_weight_file(tmp_path / "none")
    with pytest.raises(CheckpointError, match="is a folder; expected a regular file"):
        read_weight_file(tmp_path)


def test_any_suffix_will_do_for_torch(tmp_path: Path) -> None:
    torch.save({"w": torch.ones(2, 2)}, tmp_path / "weights.bin")
    found = read_weight_file(tmp_path / "weights.bin")
    assert (found.format, found.notes, list(found.root)) == ("torch", (), ["w"])


def test_a_file_that_changes_meanwhile_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.pth"
    torch.save({"w": torch.ones(2, 2)}, path)
    read_zip = weight_file.read_zip

    def grow_after_reading(*args: object) -> object:
        root = read_zip(*args)  # type: ignore[arg-type]
        with path.open("ab") as file:
            file.write(b"more")
        return root

    monkeypatch.setattr(weight_file, "read_zip", grow_after_reading)
    with pytest.raises(CheckpointError, match="changed while it was read"):
        read_weight_file(path)
