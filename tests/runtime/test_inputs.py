"""Listing: order, ids and rules; and files of every odd kind, which must fail with a reason and never hang."""

import os
import re
import socket
import tarfile
from pathlib import Path

import pytest

from mae_export.errors import ImageError, InputError
from mae_export.runtime.inputs import MAX_BYTES, Item, label, list_items

AS_ROOT = hasattr(os, "geteuid") and os.geteuid() == 0


@pytest.fixture
def folder(tmp_path) -> Path:
    path = tmp_path / "in"
    path.mkdir()
    return path


def fill(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(name.encode("utf-8", "surrogateescape"))


def ids(*inputs: str | Path) -> list[str]:
    return [item.id for item in list_items(inputs)]


def reason(item: Item) -> str:
    with pytest.raises(ImageError) as caught:
        item.read()
    return caught.value.reason


def test_folders_are_walked_in_natural_order(folder):
    fill(folder, "10.jpg", "2.jpg", "a/b.PNG", "a-b.jpg", "2/x.webp", "a/a10b.tif", "a/a9b.jpeg", "010.jpg", "z.heic")
    fill(folder, "notes.txt", "x.jpg.bak", ".hidden.jpg", "._2.jpg", "jpg", ".git/x.jpg")
    expected = ["2/x.webp", "2.jpg", "010.jpg", "10.jpg", "a/a9b.jpeg", "a/a10b.tif", "a/b.PNG", "a-b.jpg", "z.heic"]
    assert ids(folder) == expected
    for item in list_items([folder]):
        assert item.read() == item.id.encode()


def test_a_single_file_is_a_picture_whatever_its_suffix(folder):
    fill(folder, "x.jpg", "0a1b2c")
    assert ids(folder / "x.jpg", folder / "0a1b2c") == [(folder / "x.jpg").as_posix(), (folder / "0a1b2c").as_posix()]


def test_several_folders_put_their_names_in_front(folder, monkeypatch):
    fill(folder, "train/1.jpg", "val/1.jpg")
    assert ids(folder / "train", folder / "val") == ["train/1.jpg", "val/1.jpg"]
    monkeypatch.chdir(folder / "train")
    assert ids(".", "../val") == ["train/1.jpg", "val/1.jpg"]


def test_lists_are_relative_to_their_folder_and_keep_their_order(folder):
    fill(folder, "b.jpg", "sub/a.jpg", "ü.jpg", "# odd.jpg")
    away = folder.parent / "away.jpg"
    away.write_bytes(b"away")
    lines = ["﻿b.jpg\r", "", "  # comment", "sub/a.jpg  ", str(away), "./# odd.jpg", "ü.jpg", "gone.jpg", "sub"]
    (folder / "list.txt").write_text("\n".join(lines), encoding="utf-8")
    items = list_items([folder / "list.txt"])
    assert [item.id for item in items] == ["b.jpg", "sub/a.jpg", str(away), "./# odd.jpg", "ü.jpg", "gone.jpg", "sub"]
    assert [item.read() for item in items[:3]] == [b"b.jpg", b"sub/a.jpg", b"away"]
    assert [reason(item) for item in items[5:]] == ["missing", "not-a-file"]


def test_tars_are_read_in_place(folder):
    fill(folder, "src/10.jpg", "src/2.png", "src/label.txt", "src/._2.png", "src/void.jpg")
    (folder / "src/void.jpg").write_bytes(b"")
    with tarfile.open(folder / "t.tar", "w") as tar:
        for name in ["10.jpg", "2.png", "label.txt", "._2.png", "void.jpg"]:
            tar.add(folder / "src" / name, f"../{name}")
    before = sorted(folder.rglob("*"))
    items = list_items([folder / "t.tar"])
    assert [item.id for item in items] == ["../10.jpg", "../2.png", "../void.jpg"]
    assert [item.read() for item in items] == [b"src/10.jpg", b"src/2.png", b""]
    assert ids(folder / "t.tar", folder / "src/2.png")[0] == "t.tar/../10.jpg"
    assert sorted(folder.rglob("*")) == before
    os.truncate(folder / "t.tar", items[1].offset + 4)
    assert reason(items[1]) == "truncated"


@pytest.mark.parametrize(
    "name",
    ["a" * 251 + ".jpg", "new\nline.jpg", "😀.jpg", "\u202egpj.exe.jpg", "-rf.jpg", "sp ace'\".jpg", "%s{x}.jpg"],
)
def test_odd_names_are_ids_as_they_are(folder, name):
    fill(folder, name)
    (item,) = list_items([folder])
    assert item.id == name
    assert item.read() == name.encode()


def test_names_that_are_not_utf8_have_readable_ids(folder):
    try:
        fill(folder, "caf\udce9.jpg")
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    (item,) = list_items([folder])
    assert item.id == "caf\\xe9.jpg" == label("caf\udce9.jpg")
    assert item.read() == b"caf\xe9.jpg"
    (folder / "list.txt").write_bytes(b"caf\xe9.jpg\n")
    (listed,) = list_items([folder / "list.txt"])
    assert (listed.id, listed.read()) == (item.id, item.read())


def test_loops_of_links_end_and_linked_folders_are_listed_once(folder):
    fill(folder, "z/1.jpg")
    (folder.parent / "far").mkdir()
    fill(folder.parent / "far", "2.jpg")
    (folder / "a").symlink_to("z")
    (folder / "far").symlink_to(folder.parent / "far")
    (folder / "z/up").symlink_to("..")
    (folder / "self").symlink_to("self")
    assert ids(folder) == ["far/2.jpg", "z/1.jpg"]


def test_files_that_cannot_be_read_are_items_with_a_reason(folder):
    (folder / "dangling.jpg").symlink_to("nowhere")
    (folder / "loop.jpg").symlink_to("loop.jpg")
    os.mkfifo(folder / "pipe.jpg")
    (folder / "null.jpg").symlink_to("/dev/zero")
    with socket.socket(socket.AF_UNIX) as server, os.scandir(folder):
        server.bind(os.path.relpath(folder / "sock.jpg"))
    fill(folder, "gone.jpg", "folder.jpg/inside.jpg")
    with (folder / "huge.jpg").open("wb") as huge:
        huge.truncate(MAX_BYTES + 1)
    items = list_items([folder])
    (folder / "gone.jpg").unlink()
    found = {item.id: reason(item) for item in items if item.id != "folder.jpg/inside.jpg"}
    assert found == {
        "dangling.jpg": "missing",
        "gone.jpg": "missing",
        "huge.jpg": "too-large",
        "loop.jpg": "unreadable",
        "null.jpg": "not-a-file",
        "pipe.jpg": "not-a-file",
        "sock.jpg": "not-a-file",
    }
    assert "folder.jpg/inside.jpg" in [item.id for item in items]


@pytest.mark.skipif(AS_ROOT, reason="root may read everything")
def test_permissions(folder):
    fill(folder, "locked.jpg", "closed/x.jpg")
    (folder / "locked.jpg").chmod(0)
    assert reason(Item(id="x", source=folder / "locked.jpg")) == "unreadable"
    (folder / "closed").chmod(0)
    with pytest.raises(InputError, match="closed cannot be listed"):
        list_items([folder])
    (folder / "closed").chmod(0o700)


def test_a_failing_disk_is_a_reason(folder, monkeypatch):
    fill(folder, "x.jpg")
    (item,) = list_items([folder])

    def fail(*arguments):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "open", fail)
    with pytest.raises(ImageError, match="Input/output error") as caught:
        item.read()
    assert caught.value.reason == "unreadable"


def test_a_file_replaced_by_a_pipe_after_the_check_does_not_hang(folder, monkeypatch):
    fill(folder, "x.jpg")
    (item,) = list_items([folder])
    status = item.source.stat()
    item.source.unlink()
    os.mkfifo(item.source)
    monkeypatch.setattr(Path, "stat", lambda self, **options: status)
    assert reason(item) in ("unreadable", "truncated")


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ([], "expected a list of folders"),
        ("folder", "expected a list of folders"),
        (["nowhere"], "no file or folder 'nowhere'; check the path"),
        (["*.jpg"], "the shell found nothing that matches"),
        (["https://host/x.jpg"], "is a URL; nothing is fetched"),
        ([Path("s3://bucket/x.jpg")], "is a URL; nothing is fetched"),
        (["a\0b"], "check the path"),
        (["x" * 300], "cannot be read"),
        (["empty"], "holds no picture among 0 files"),
        (["texts"], r"holds no picture among 2 files.*\.jpeg"),
        (["pipe"], "is a FIFO, socket or device"),
        (["x.tgz"], "expected an uncompressed .tar"),
        (["x.zip"], "expected an uncompressed .tar"),
        (["x.csv"], "expected a .txt list"),
        (["blank.txt"], "names no picture"),
        (["binary.txt"], "NUL bytes"),
        (["urls.txt"], "holds the URL 'http://host/1.jpg'"),
        (["texts.tar"], "holds no picture among 1 files"),
        (["broken.tar"], "is no uncompressed tar"),
        (["twice.txt"], "the id 'a.jpg' occurs twice"),
        (["one/x.jpg", "one/x.jpg"], "the id 'one/x.jpg' occurs twice"),
        (["one", "two/one"], "the id 'one/x.jpg' occurs twice, for one/x.jpg and two/one/x.jpg"),
    ],
)
def test_bad_inputs_are_refused_with_advice(folder, monkeypatch, given, text):
    fill(folder, "texts/a.md", "texts/b", "x.tgz", "x.zip", "x.csv", "one/x.jpg", "two/one/x.jpg", "broken.tar")
    (folder / "empty").mkdir()
    os.mkfifo(folder / "pipe")
    (folder / "blank.txt").write_text("\n# nothing\n")
    (folder / "binary.txt").write_bytes(b"\x89PNG\0\0")
    (folder / "urls.txt").write_text("x.jpg\nhttp://host/1.jpg\n")
    (folder / "twice.txt").write_text("a.jpg\nb.jpg\na.jpg\n")
    with tarfile.open(folder / "texts.tar", "w") as tar:
        tar.add(folder / "x.csv", "a.md")
    monkeypatch.chdir(folder)
    with pytest.raises(InputError, match=re.compile(text, re.DOTALL)):
        list_items(given)


def test_ids_that_differ_only_in_case_stay_apart(folder):
    (folder / "list.txt").write_text("A.jpg\na.jpg\n")
    assert ids(folder / "list.txt") == ["A.jpg", "a.jpg"]


@pytest.mark.parametrize(("offset", "size"), [(-1, None), (0, -1)])
def test_items_have_a_place_that_exists(offset, size):
    with pytest.raises(InputError, match="expected 0 or more"):
        Item(id="x", source=Path("x"), offset=offset, size=size)
