"""safetensors headers: what the library writes is read alike (damaged headers: tests/hostile)."""

from __future__ import annotations

import mmap
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from mae_export.encoders.safetensors_file import read_safetensors
from mae_export.encoders.stored import READABLE, StoredTensor


def read(path: Path) -> dict[str, object]:
    with path.open("rb") as file:
        return read_safetensors(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY), path)


@pytest.mark.parametrize("dtype", sorted(READABLE, key=str), ids=str)
def test_every_type_matches_the_library(tmp_path: Path, dtype: torch.dtype) -> None:
    path = tmp_path / "x.safetensors"
    odd = torch.ones(3, dtype=torch.uint8)  # leaves what follows unaligned unless the library sorts
    values = torch.arange(24).reshape(2, 3, 4).remainder(2).to(dtype)
    save_file({"a": odd, "w": values, "none": torch.empty(0, 2, dtype=dtype), "one": values[1, 1, 1].clone()}, path)
    reference = load_file(path)
    ours = read(path)
    assert set(ours) == set(reference)
    for name, tensor in ours.items():
        assert isinstance(tensor, StoredTensor)
        loaded = tensor.load(name)
        assert loaded.dtype == reference[name].dtype
        assert torch.equal(loaded, reference[name])


def test_metadata_is_kept_beside_the_tensors(tmp_path: Path) -> None:
    save_file({"w": torch.ones(1)}, tmp_path / "x.safetensors", metadata={"format": "pt"})
    assert read(tmp_path / "x.safetensors")["__metadata__"] == {"format": "pt"}


def test_padding_after_the_header_is_part_of_it(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    text = b'{"w": {"dtype": "U8", "shape": [2], "data_offsets": [0, 2]}}   '
    path.write_bytes(len(text).to_bytes(8, "little") + text + b"\x05\x06")
    (tensor,) = read(path).values()
    assert isinstance(tensor, StoredTensor)
    assert tensor.load("w").tolist() == [5, 6]
