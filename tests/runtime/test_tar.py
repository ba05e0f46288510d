"""Tars are read in place: every kind of member, and every way of being damaged."""

import io
import os
import tarfile

import pytest

from mae_export.errors import InputError
from mae_export.runtime.tar import list_members


def member(name: str, data: bytes = b"", **fields) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    for field, value in fields.items():
        setattr(info, field, value)
    return info, data


def build(*members: tuple[tarfile.TarInfo, bytes], form: int = tarfile.PAX_FORMAT) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form, encoding="utf-8", errors="surrogateescape") as tar:
        for info, data in members:
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


@pytest.fixture
def write(tmp_path):
    def write(data: bytes):
        path = tmp_path / "x.tar"
        path.write_bytes(data)
        return path

    return write


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_members_lie_where_the_index_says(write, form):
    names = ["b.jpg", "a/empty.png", "../up.jpg", "/etc/root.jpg", "d" * 90 + "/" + "n" * 90 + ".jpg", "2.jpg"]
    contents = {name: name.encode() * 60 * (name != "a/empty.png") for name in names}
    path = write(build(*(member(name, data) for name, data in contents.items()), form=form))
    data = path.read_bytes()
    found = {m.name: data[m.offset : m.offset + m.size] for m in list_members(path)}
    assert found == contents
    assert list(found) == names


def test_names_of_any_bytes_survive(write):
    names = ["\udcff.jpg", "ü\n😀.jpg", "-x.jpg"]
    assert [m.name for m in list_members(write(build(*map(member, names), form=tarfile.GNU_FORMAT)))] == names


def test_hard_links_share_bytes_and_other_kinds_are_left_out(write):
    path = write(
        build(
            member("a.jpg", b"pixels"),
            member("hard.jpg", type=tarfile.LNKTYPE, linkname="a.jpg"),
            member("astray.jpg", type=tarfile.LNKTYPE, linkname="../../etc/passwd"),
            member("soft.jpg", type=tarfile.SYMTYPE, linkname="/etc/passwd"),
            member("pipe.jpg", type=tarfile.FIFOTYPE),
            member("device.jpg", type=tarfile.CHRTYPE),
            member("folder.jpg", type=tarfile.DIRTYPE),
            member("inner.tar", build(member("b.jpg", b"inner"))),
        )
    )
    members = {m.name: m for m in list_members(path)}
    assert list(members) == ["a.jpg", "hard.jpg", "inner.tar"]
    assert (members["hard.jpg"].offset, members["hard.jpg"].size) == (members["a.jpg"].offset, 6)


def seal(header: bytearray) -> bytes:
    """A header with its checksum corrected."""
    header[148:156] = b"%06o\0 " % (sum(header[:148]) + 8 * ord(" ") + sum(header[156:]))
    return bytes(header)


def sparse(size: bytes) -> bytes:
    """A GNU tar whose first member has holes: one block of data of a file of 4 GiB."""
    data = build(member("holes.jpg", b"x" * 512), member("a.jpg"), form=tarfile.GNU_FORMAT)
    header = bytearray(data[:512])
    header[124:136] = size
    header[156:157] = tarfile.GNUTYPE_SPARSE
    header[386:410] = b"%011o\0%011o\0" % (0, 512)
    header[483:495] = b"%011o\0" % (1 << 32)
    return seal(header) + data[512:]


def test_sparse_members_are_left_out(write):
    assert [m.name for m in list_members(write(sparse(b"%011o\0" % 512)))] == ["a.jpg"]


GOOD = build(member("a.jpg", b"x" * 700), member("b.jpg", b"y" * 700), form=tarfile.USTAR_FORMAT)
SECOND = 512 + 1024  # offset of the second header


def with_size(field: bytes) -> bytes:
    """The second member's size replaced."""
    header = bytearray(GOOD[SECOND : SECOND + 512])
    header[124:136] = field
    return GOOD[:SECOND] + seal(header) + GOOD[SECOND + 512 :]


BACK = (-2048 & (1 << 96) - 1).to_bytes(12, "big")  # -2048 bytes: from the second member back to the first


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"not a tar" * 100,
        b"\x1f\x8b\x08" + b"\0" * 600,  # gzip
        GOOD[:300],
        GOOD[:1000],
        GOOD[: SECOND + 100],
        GOOD[: SECOND + 512 + 100],
        GOOD[: SECOND + 10] + b"!" + GOOD[SECOND + 11 :],  # damaged second header
        with_size(b"\xff" * 12),  # -1 byte
        with_size(b"\xff" * 12)[: SECOND + 512] + bytes(1024),
        with_size(BACK),
        GOOD[:SECOND] + sparse((-512 & (1 << 96) - 1).to_bytes(12, "big")),  # `tarfile` goes round for ever
        with_size(b"\x80" + b"\0" * 3 + b"\x7f" + b"\xff" * 7),  # 8 EiB
    ],
)
def test_damage_is_an_error_and_never_a_shorter_list(write, data):
    with pytest.raises(InputError, match=r"x\.tar is no uncompressed tar, or is damaged or cut short"):
        list_members(write(data))


def test_a_tar_without_its_end_marker_is_read(write):
    assert [m.name for m in list_members(write(GOOD[: SECOND + 512 + 1024]))] == ["a.jpg", "b.jpg"]


def test_no_cut_of_a_tar_lists_a_member_that_is_not_whole(write):
    for length in range(0, len(GOOD), 97):
        try:
            members = list_members(write(GOOD[:length]))
        except InputError:
            continue
        assert length >= SECOND
        assert all(m.offset + m.size <= length for m in members)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read everything")
def test_unreadable_tars_are_named(write):
    path = write(GOOD)
    path.chmod(0)
    with pytest.raises(InputError, match="Permission"):
        list_members(path)
