"""Files are hashed as hashlib hashes them, and appear whole or not at all, whatever interrupts the writer."""

import errno
import hashlib
import os
import tempfile
from pathlib import Path

import pytest

from mae_export.errors import InputError, ResourceError
from mae_export.files import model_files, put_in_place, sha256_files, staging


def left_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def write_pair(path: Path, text: str, *, data: bool = True) -> Path:
    path.write_text(text)
    if data:
        path.with_name(path.name + ".data").write_text(text)
    return path


def write_half(target: Path, error: BaseException) -> None:
    with staging(target) as folder:
        (folder / "half").write_text("x")
        raise error


@pytest.mark.parametrize("size", [0, 1, 2**20 - 1, 2**20, 2**20 + 1, 3 * 2**20])
def test_digests_are_those_of_hashlib(tmp_path: Path, size: int) -> None:
    content = os.urandom(size)
    (tmp_path / "a").write_bytes(content)
    assert sha256_files(tmp_path / "a") == hashlib.sha256(content).hexdigest()


def test_several_files_are_hashed_one_after_another(tmp_path: Path) -> None:
    for name, content in (("a", b"one"), ("b", b"two")):
        (tmp_path / name).write_bytes(content)
    assert sha256_files(tmp_path / "a", tmp_path / "b") == hashlib.sha256(b"onetwo").hexdigest()
    assert sha256_files(tmp_path / "b", tmp_path / "a") == hashlib.sha256(b"twoone").hexdigest()
    assert sha256_files() == hashlib.sha256(b"").hexdigest()


def test_files_that_cannot_be_hashed(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"/gone cannot be read: No such file or directory"):
        sha256_files(tmp_path / "gone")
    with pytest.raises(InputError, match=rf"{tmp_path.name} cannot be read: Is a directory"):
        sha256_files(tmp_path)


def test_a_model_is_its_file_and_the_data_beside_it(tmp_path: Path) -> None:
    model = write_pair(tmp_path / "m.onnx", "x", data=False)
    assert model_files(model) == (model,)
    write_pair(model, "x")
    assert model_files(model) == (model, tmp_path / "m.onnx.data")


def test_staging_lies_beside_the_target_and_goes_away(tmp_path: Path) -> None:
    with staging(tmp_path / "m.onnx") as folder:
        assert folder.parent == tmp_path  # a rename needs the same file system
        assert folder.name.startswith(".m.onnx.")
        (folder / "deep").mkdir()
        (folder / "deep" / "file").write_text("x")
    assert left_in(tmp_path) == []


@pytest.mark.parametrize("kind", [ValueError, KeyboardInterrupt, SystemExit, FileNotFoundError])
def test_staging_goes_away_when_something_fails(tmp_path: Path, kind: type[BaseException]) -> None:
    with pytest.raises(kind, match=r"^why$"):
        write_half(tmp_path / "m.onnx", kind("why"))
    assert left_in(tmp_path) == []


def test_staging_needs_the_folder_of_the_target(tmp_path: Path) -> None:
    target = tmp_path / "gone" / "m.onnx"
    with pytest.raises(InputError) as caught, staging(target):
        pass
    assert str(caught.value) == f"{tmp_path}/gone is no folder; create it, or write m.onnx somewhere else"
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match=r"/file is no folder"), staging(tmp_path / "file" / "m.onnx"):
        pass


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_full_disk_while_writing_is_said(tmp_path: Path, number: int) -> None:
    with pytest.raises(ResourceError) as caught:
        write_half(tmp_path / "m.onnx", OSError(number, os.strerror(number)))
    assert str(caught.value) == f"the disk of {tmp_path} is full; free space and run again"
    assert left_in(tmp_path) == []


@pytest.mark.parametrize(
    ("number", "kind", "message"),
    [
        (errno.ENOSPC, ResourceError, "is full; free space and run again"),
        (errno.EROFS, InputError, "cannot write in .*: Read-only file system"),
        (errno.EACCES, InputError, "cannot write in .*: Permission denied"),
    ],
)
def test_a_folder_that_takes_no_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, kind: type[Exception], message: str
) -> None:
    def refuse(**_: object) -> str:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(tempfile, "mkdtemp", refuse)
    with pytest.raises(kind, match=message), staging(tmp_path / "m.onnx"):
        pass


@pytest.mark.parametrize("new", [False, True])
@pytest.mark.parametrize("old", [None, False, True])
def test_a_model_is_put_in_place(tmp_path: Path, new: bool, old: bool | None) -> None:
    """With and without a data file, over nothing, over a file, and over a file with data."""
    target = tmp_path / "m.onnx"
    if old is not None:
        write_pair(target, "old", data=old)
    with staging(target) as folder:
        put_in_place(write_pair(folder / "staged.onnx", "new", data=new), target)
    assert left_in(tmp_path) == (["m.onnx", "m.onnx.data"] if new else ["m.onnx"])
    assert {path.read_text() for path in tmp_path.iterdir()} == {"new"}


@pytest.mark.parametrize("new", [False, True])
@pytest.mark.parametrize("old", [False, True])
def test_at_every_step_a_reader_finds_a_whole_model_or_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, new: bool, old: bool
) -> None:
    target = write_pair(tmp_path / "m.onnx", "old", data=old)
    staged = write_pair(tmp_path / "staged.onnx", "new", data=new)
    seen: list[tuple[str, ...]] = []
    for name in ("replace", "unlink", "rename"):
        original = getattr(Path, name)

        def watched(self: Path, *args: object, original=original, **options: object) -> object:
            result = original(self, *args, **options)
            seen.append(tuple(path.read_text() for path in model_files(target)) if target.exists() else ())
            return result

        monkeypatch.setattr(Path, name, watched)
    put_in_place(staged, target)
    whole = {(), ("new", "new") if new else ("new",), ("old", "old") if old else ("old",)}
    assert set(seen) <= whole
    assert seen[-1] == (("new", "new") if new else ("new",))
    if not new and not old:
        assert () not in seen  # a single file is replaced in one step


def test_what_is_moved_was_synced_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    staged = write_pair(tmp_path / "staged.onnx", "new")
    graph, data = staged.stat().st_ino, (tmp_path / "staged.onnx.data").stat().st_ino
    steps: list[tuple[str, int]] = []
    fsync, replace = os.fsync, Path.replace

    def watched_fsync(number: int) -> None:
        steps.append(("sync", os.fstat(number).st_ino))
        fsync(number)

    def watched_replace(path: Path, target: Path) -> Path:
        steps.append(("move", path.stat().st_ino))
        return replace(path, target)

    monkeypatch.setattr(os, "fsync", watched_fsync)
    monkeypatch.setattr(Path, "replace", watched_replace)
    put_in_place(staged, tmp_path / "m.onnx")
    assert steps == [("sync", data), ("move", data), ("sync", graph), ("move", graph)]
