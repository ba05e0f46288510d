"""Hugging Face folders: one file, several shards, and what can be wrong with an index."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from mae_export.encoders.folder import INDEX, read_folder
from mae_export.errors import CheckpointError, MaeExportError, SecurityError

A, B = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two shards, with weight `a` in the first and `b` in the second."""
    (tmp_path / "config.json").write_text('{"model_type": "vit_mae"}')
    save_file({"a": torch.ones(2, 2)}, tmp_path / A)
    save_file({"b": torch.zeros(3)}, tmp_path / B, metadata={"format": "pt"})
    write_index(tmp_path, {"a": A, "b": B})
    return tmp_path


def write_index(folder: Path, weight_map: object) -> None:
    (folder / INDEX).write_text(json.dumps({"metadata": {"total_size": 28}, "weight_map": weight_map}))


def test_shards_are_joined(folder: Path) -> None:
    found = read_folder(folder)
    assert set(found.root) == {"a", "b"}
    assert found.root["a"].load("a").sum() == 4
    assert found.config == {"model_type": "vit_mae"}
    digests = "".join(hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in (A, B))
    assert found.sha256 == hashlib.sha256(digests.encode()).hexdigest()


def test_one_safetensors_file_wins_over_the_others(folder: Path) -> None:
    save_file({"c": torch.ones(1)}, folder / "model.safetensors")
    torch.save({"d": torch.ones(1)}, folder / "pytorch_model.bin")
    found = read_folder(folder)
    assert set(found.root) == {"c"}
    assert found.notes == (f"model.safetensors is used, {INDEX}, pytorch_model.bin is not",)
    assert found.sha256 == hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()


def test_torch_weights(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    torch.save({"d": torch.ones(2, 2)}, tmp_path / "pytorch_model.bin")
    found = read_folder(tmp_path)
    assert set(found.root) == {"d"}
    assert found.notes == ()


def test_links_as_the_hub_cache_makes_them(folder: Path) -> None:
    blobs = folder.parent / f"{folder.name}-blobs"
    blobs.mkdir()
    (folder / A).rename(blobs / "abc")
    (folder / A).symlink_to(blobs / "abc")
    assert set(read_folder(folder).root) == {"a", "b"}


def remove_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def break_config(folder: Path) -> None:
    (folder / "config.json").write_text('{"model_type"')


def list_config(folder: Path) -> None:
    (folder / "config.json").write_text("[]")


def remove_index(folder: Path) -> None:
    (folder / INDEX).unlink()


def break_index(folder: Path) -> None:
    write_index(folder, ["a", "b"])


def remove_shard(folder: Path) -> None:
    (folder / B).unlink()


def repeat_key(folder: Path) -> None:
    save_file({"a": torch.ones(1), "b": torch.ones(1)}, folder / B)


def lose_key(folder: Path) -> None:
    save_file({"z": torch.ones(1)}, folder / B)


def swap_files(folder: Path) -> None:
    write_index(folder, {"a": B, "b": A})


def escape(folder: Path) -> None:
    save_file({"b": torch.zeros(3)}, folder.parent / "evil.safetensors")
    write_index(folder, {"a": A, "b": "../evil.safetensors"})


def absolute(folder: Path) -> None:
    write_index(folder, {"a": A, "b": str(folder / B)})


def huge_config(folder: Path) -> None:
    with (folder / "config.json").open("wb") as file:
        file.truncate(2**24 + 1)


def torch_shard(folder: Path) -> None:
    torch.save({"b": torch.zeros(3)}, folder / B)


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        (remove_config, CheckpointError, "is a folder without config.json"),
        (break_config, CheckpointError, r"config\.json cannot be read as JSON"),
        (list_config, CheckpointError, "holds a list; expected a JSON object"),
        (huge_config, SecurityError, "expected at most 16777216"),
        (remove_index, CheckpointError, r"holds no weights; expected one of model\.safetensors"),
        (break_index, CheckpointError, "has no weight_map from tensor names to file names"),
        (remove_shard, CheckpointError, f"lacks {B}"),
        (repeat_key, CheckpointError, f"tensor 'a' is in both {A} and {B}"),
        (lose_key, CheckpointError, f"tensor 'b' is in {B}, but it is in no file"),
        (swap_files, CheckpointError, f"tensor 'a' is in {B}, but it is in {A}"),
        (escape, SecurityError, r"points to '\.\./evil\.safetensors'"),
        (absolute, SecurityError, "a shard must lie beside the index"),
        (torch_shard, CheckpointError, "is a torch file; expected a safetensors shard"),
    ],
)
def test_bad_folders(folder: Path, change: object, error: type[MaeExportError], text: str) -> None:
    assert callable(change)
    change(folder)
    with pytest.raises(error, match=text) as raised:
        read_folder(folder)
    assert type(raised.value) is error
