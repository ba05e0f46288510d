import errno
import hashlib
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mae_export.errors import InputError, ResourceError, SecurityError
from mae_export.runtime.shards import Row, Shard, disk_errors, read_npy, write_atomic, write_npy


def row(index: int, keep: int | None = None, item_id: str | None = None) -> Row:
    arrays: dict[str, Any] = {"pooled": np.full(3, index, np.float32)}
    if keep is not None:
        arrays["patch_tokens"] = np.full((keep, 2), index + 0.5, np.float32)
    ids_keep = None if keep is None else np.arange(keep, dtype=np.int64)
    return Row(index=index, item_id=item_id or f"{index}.png", arrays=arrays, ids_keep=ids_keep)


def test_a_row_counts_all_its_bytes() -> None:
    assert row(0).nbytes == 3 * 4
    assert row(0, keep=5).nbytes == 3 * 4 + 5 * 2 * 4 + 5 * 8


def test_write_atomic_gives_the_hash_of_the_file(tmp_path: Path) -> None:
    sha = write_atomic(tmp_path / "a.bin", lambda file: [file.write(b"ab"), file.write(b"cd")])
    assert (tmp_path / "a.bin").read_bytes() == b"abcd"
    assert sha == hashlib.sha256(b"abcd").hexdigest()
    assert [path.name for path in tmp_path.iterdir()] == ["a.bin"]


def test_a_failing_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "a.bin").write_bytes(b"old")

    def write(file: Any) -> None:
        file.write(b"new")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_atomic(tmp_path / "a.bin", write)
    assert (tmp_path / "a.bin").read_bytes() == b"old"
    assert len(list(tmp_path.iterdir())) == 1


def test_a_file_that_may_grow_no_further_is_a_resource_error(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    big = [Row(index=0, item_id="a", arrays={"pooled": np.zeros(1 << 20, np.float32)}, ids_keep=None)]
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, hard))
    try:
        with pytest.raises(ResourceError, match=r"cannot write .*shard-00000.pooled.npy.*free space"):
            write_npy(tmp_path, "shard-00000", big)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [path.name for path in tmp_path.iterdir()] == ["shard-00000.ids.jsonl"]


def test_a_full_disk_at_the_last_moment_is_a_resource_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(fd: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ResourceError, match="No space left on device; free space"):
        write_atomic(tmp_path / "a.bin", lambda file: file.write(b"x"))
    assert not list(tmp_path.iterdir())


def test_other_disk_errors_are_input_errors(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot write there: Permission denied"), disk_errors(Path("there")):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))


def test_npy_shards_hold_one_file_per_column_and_any_id(tmp_path: Path) -> None:
    ids = ["a b.png", 'quote".png', "line\nbreak.png", "écran/écran.png", "lone\udcff.png"]
    rows = [row(index, item_id=item_id) for index, item_id in enumerate(ids)]
    files = write_npy(tmp_path, "shard-00007", rows)
    assert sorted(files) == ["shard-00007.ids.jsonl", "shard-00007.pooled.npy"]
    for name, sha in files.items():
        assert hashlib.sha256((tmp_path / name).read_bytes()).hexdigest() == sha
    stored = np.load(tmp_path / "shard-00007.pooled.npy")  # plain .npy, for anyone
    assert stored.dtype == np.float32
    assert stored.tolist() == [[i] * 3 for i in range(5)]
    found, arrays = read_npy(tmp_path, "shard-00007", Shard(rows=5, files=files), ["pooled"])
    assert found == ids
    assert np.array_equal(arrays["pooled"], stored)


def test_rows_that_differ_in_length_are_padded(tmp_path: Path) -> None:
    files = write_npy(tmp_path, "shard-00000", [row(0, keep=1), row(1, keep=3)])
    ids_keep = np.load(tmp_path / "shard-00000.ids_keep.npy")
    tokens = np.load(tmp_path / "shard-00000.patch_tokens.npy")
    assert ids_keep.dtype == np.int64
    assert ids_keep.tolist() == [[0, -1, -1], [0, 1, 2]]
    assert tokens.tolist() == [[[0.5, 0.5], [0, 0], [0, 0]], [[1.5, 1.5]] * 3]
    _, arrays = read_npy(tmp_path, "shard-00000", Shard(rows=2, files=files), ["pooled"])
    assert set(arrays) == {"pooled", "ids_keep"}  # only what was asked for, and the key to it


@pytest.mark.parametrize("name", ["../shard-00000.pooled.npy", "/etc/passwd", "shard-0.x/../../y", "shard-00000.a\\b"])
def test_file_names_that_lead_elsewhere_are_refused(name: str) -> None:
    with pytest.raises(SecurityError, match="the manifest names the file"):
        Shard(rows=1, files={name: "0" * 64})


def test_damaged_and_missing_files_are_refused(tmp_path: Path) -> None:
    shard = Shard(rows=1, files=write_npy(tmp_path, "shard-00000", [row(0)]))
    with pytest.raises(InputError, match=r"shard-00000.other.npy is missing"):
        shard.open(tmp_path, "shard-00000.other.npy")
    path = tmp_path / "shard-00000.pooled.npy"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(InputError, match=r"differs from its SHA-256 in manifest.json"):
        read_npy(tmp_path, "shard-00000", shard, ["pooled"])
    path.unlink()
    with pytest.raises(InputError, match=r"shard-00000.pooled.npy is missing; copy the folder again"):
        read_npy(tmp_path, "shard-00000", shard, ["pooled"])


def test_pickled_arrays_are_never_loaded(tmp_path: Path) -> None:
    name = "shard-00000.pooled.npy"
    np.save(tmp_path / name, np.array([{}], dtype=object), allow_pickle=True)
    files = write_npy(tmp_path, "shard-00001", [row(0)])
    (tmp_path / "shard-00000.ids.jsonl").write_bytes((tmp_path / "shard-00001.ids.jsonl").read_bytes())
    shard = Shard(
        rows=1,
        files={
            name: hashlib.sha256((tmp_path / name).read_bytes()).hexdigest(),
            "shard-00000.ids.jsonl": files["shard-00001.ids.jsonl"],
        },
    )
    with pytest.raises(InputError, match=r"is not a plain .npy array"):
        read_npy(tmp_path, "shard-00000", shard, ["pooled"])
