"""Archives and streams of torch.save: where each tensor lies (damaged and hostile files: tests/hostile)."""

from __future__ import annotations

import io
import mmap
import pickle
import struct
from pathlib import Path
from typing import Any

import pytest
import torch

from mae_export.encoders.stored import StoredTensor
from mae_export.encoders.torch_file import LEGACY_MAGIC, LEGACY_PROTOCOL, read_legacy, read_zip
from mae_export.errors import CheckpointError


def read(path: Path, *, zipped: bool = True) -> Any:
    with path.open("rb") as file:
        data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        return read_zip(file, data, path) if zipped else read_legacy(data, path)


@pytest.mark.parametrize("zipped", [True, False])
def test_bytes_lie_where_the_description_says(tmp_path: Path, zipped: bool) -> None:
    path = tmp_path / "x.pth"
    values = torch.randn(5, 3)
    torch.save({"a": torch.ones(7), "w": values[1:]}, path, _use_new_zipfile_serialization=zipped)
    stored = read(path, zipped=zipped)["w"]
    assert isinstance(stored, StoredTensor)
    assert (stored.shape, stored.stride, stored.offset, stored.nbytes) == ((4, 3), (3, 1), 3, 60)
    content = path.read_bytes()
    assert content[stored.start : stored.start + 60] == values.numpy().tobytes()


def test_tensors_are_resolved_in_four_nested_dicts(tmp_path: Path) -> None:
    nested: Any = {"w": torch.ones(1)}
    for _ in range(6):
        nested = {"inner": nested, "w": torch.ones(1)}
    torch.save(nested, tmp_path / "x.pth")
    found = read(tmp_path / "x.pth")
    for _ in range(5):
        assert isinstance(found["w"], StoredTensor)
        found = found["inner"]
    assert not any(isinstance(value, StoredTensor) for value in found.values())


def legacy(stored: object, *, keys: list[str], system: dict[str, object] | None = None, data: bytes = b"") -> bytes:
    """A stream by the format's own rules, so that fields torch no longer writes can be tried."""
    system = {"little_endian": True} if system is None else system

    class Pickler(pickle.Pickler):
        def persistent_id(self, value: object) -> object:
            return value.key if isinstance(value, Storage) else None

    buffer = io.BytesIO()
    for part in (LEGACY_MAGIC, LEGACY_PROTOCOL, system):
        pickle.dump(part, buffer, 2)
    Pickler(buffer, 2).dump(stored)
    pickle.dump(keys, buffer, 2)
    return buffer.getvalue() + data


class Storage:
    """Stands for ("storage", class, key, device, elements, view)."""

    def __init__(self, *key: object) -> None:
        self.key = key


class Tensor:
    def __init__(self, *args: object) -> None:
        self.args = args

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return torch._utils._rebuild_tensor_v2, self.args


def tensor(count: int, view: object, *, offset: int = 0) -> Tensor:
    return Tensor(Storage("storage", torch.FloatStorage, "k", "cpu", count, view), offset, (2,), (1,), False, {})


VALUES = struct.pack("<q4f", 4, 1, 2, 3, 4)


def test_legacy_views_of_a_storage(tmp_path: Path) -> None:
    path = tmp_path / "x.pth"
    path.write_bytes(legacy({"w": tensor(4, ("v", 2, 2))}, keys=["k"], data=VALUES))
    assert read(path, zipped=False)["w"].load("w").tolist() == [3.0, 4.0]


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (legacy({"w": tensor(4, None)}, keys=["k"], data=VALUES[:-1]), r"storage 'k' ends at byte \d+ of \d+"),
        (legacy({"w": tensor(4, None)}, keys=["k"], data=struct.pack("<q", -4) + VALUES), "truncated or damaged"),
        (legacy({"w": tensor(4, None)}, keys=["k", "z"], data=VALUES), "truncated or damaged"),
        (legacy({"w": tensor(4, None)}, keys=[], data=VALUES), "describes a tensor in a way that torch.save does not"),
        (legacy({"w": tensor(3, None)}, keys=["k"], data=VALUES), "holds 16 bytes, not 12"),
        (legacy({"w": tensor(4, None, offset=-1)}, keys=["k"], data=VALUES), "none negative|whole numbers"),
        (legacy({"w": tensor(4, ("v", -1, 2))}, keys=["k"], data=VALUES), "whole numbers"),
        (legacy({}, keys=[], system={"little_endian": False}), "big-endian machine"),
        (legacy({}, keys=[]).replace(struct.pack("<H", LEGACY_PROTOCOL), struct.pack("<H", 7)), "unknown version"),
    ],
)
def test_bad_legacy_streams(tmp_path: Path, content: bytes, text: str) -> None:
    path = tmp_path / "x.pth"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=text):
        read(path, zipped=False)
