"""What is kept beside an engine counts for these bytes, this GPU and this version only, and damage means nothing."""

import dataclasses

import pytest

from mae_export.runtime.engine_here import EngineHere, is_proven, note_proven, read_cache, write_cache

HERE = EngineHere(engine="a" * 64, gpu="NVIDIA L4 sm89", version="TensorRT-RTX 1.7.1.116")
OTHERS = [dataclasses.replace(HERE, **{name: "other"}) for name in ("engine", "gpu", "version")]
KERNELS = b"\x00\n\xff" * 1000


@pytest.fixture
def path(tmp_path):
    return tmp_path / "vit.engine"


def test_the_marker(path):
    assert not is_proven(path, HERE)
    note_proven(path, HERE)
    assert is_proven(path, HERE)
    assert not any(is_proven(path, other) for other in OTHERS)
    assert [file.name for file in path.parent.iterdir()] == ["vit.engine.proven.json"]


def test_the_cache(path):
    assert read_cache(path, HERE) == b""
    write_cache(path, HERE, KERNELS)
    assert read_cache(path, HERE) == KERNELS
    assert not any(read_cache(path, other) for other in OTHERS)
    assert [file.name for file in path.parent.iterdir()] == ["vit.engine.cache"]


@pytest.mark.parametrize("damage", [lambda b: b[:-2], lambda b: b"{" + b, lambda b: b"", lambda b: b"\xff" * 9000])
def test_damage_means_nothing(path, damage):
    write_cache(path, HERE, KERNELS)
    note_proven(path, HERE)
    for file in path.parent.iterdir():
        file.write_bytes(damage(file.read_bytes()))
    assert read_cache(path, HERE) == b""
    assert not is_proven(path, HERE)


def test_a_flipped_bit_in_the_kernels(path):
    write_cache(path, HERE, KERNELS)
    cache = path.with_name("vit.engine.cache")
    content = bytearray(cache.read_bytes())
    content[-1] ^= 1
    cache.write_bytes(content)
    assert read_cache(path, HERE) == b""


def test_a_place_that_cannot_be_written_is_no_error(tmp_path):
    lost = tmp_path / "gone" / "vit.engine"
    note_proven(lost, HERE)
    write_cache(lost, HERE, KERNELS)
    assert not is_proven(lost, HERE)
    (tmp_path / "vit.engine.proven.json").mkdir()  # something else is there
    note_proven(tmp_path / "vit.engine", HERE)
    assert not is_proven(tmp_path / "vit.engine", HERE)
