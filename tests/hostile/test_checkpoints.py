"""Damaged, foreign and hostile checkpoint files: each gives one error of ours, runs nothing, and says what to do."""

from __future__ import annotations

import io
import json
import os
import pickle
import runpy
import struct
import time
import zipfile
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from mae_export.encoders.checkpoint import read_checkpoint, require_finite
from mae_export.errors import CheckpointError, LayoutError, MaeExportError, SecurityError

CANARY = "canary"
STATE = {"patch_embed.proj.weight": torch.arange(48.0).reshape(4, 3, 2, 2), "norm.bias": torch.ones(4)}


class Runs:
    """Pickles into a call of `function(*args)`."""

    def __init__(self, function: Callable[..., Any], *args: Any) -> None:
        self.call = function, args

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.call


def touch(folder: Path) -> Runs:
    return Runs(os.system, f"touch {folder / CANARY}")


def saved(value: Any, *, zipped: bool = True, protocol: int = 2) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer, _use_new_zipfile_serialization=zipped, pickle_protocol=protocol)
    return buffer.getvalue()


def repacked(change: Callable[[dict[str, bytes]], None], *, compression: int = zipfile.ZIP_STORED) -> bytes:
    """A saved archive after `change` of its entries, with correct checksums."""
    with zipfile.ZipFile(io.BytesIO(saved({"model": STATE}))) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    change(entries)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def with_pickle(content: bytes) -> bytes:
    return repacked(lambda entries: entries.update({"archive/data.pkl": content}))


def safetensors(header: dict[str, Any] | str, data: bytes = b"", *, length: int | None = None) -> bytes:
    text = (header if isinstance(header, str) else json.dumps(header)).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(begin: int, end: int, shape: list[int], dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def module_archive(_: Path) -> bytes:
    return saved(torch.nn.Linear(2, 2))


def torchscript(folder: Path) -> bytes:
    def add(entries: dict[str, bytes]) -> None:
        entries.update({"archive/constants.pkl": pickle.dumps(()), "archive/code/m.py": b""})

    return repacked(add)


def stacked_name(folder: Path) -> bytes:
    """A name put together on the stack, as STACK_GLOBAL does, so that no GLOBAL opcode shows it."""
    return with_pickle(pickle.dumps(touch(folder), protocol=4))


def shared_storage(_: Path) -> bytes:
    """A thousand tensors that all view one storage."""
    base = torch.zeros(64, 64)
    return saved({f"layer{index}.weight": base.view(64, 64) for index in range(1000)})


def stride_out(_: Path) -> bytes:
    """A tensor whose last element lies behind its storage."""
    content = saved({"w": torch.zeros(3, 5)})
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        pickled = archive.read("archive/data.pkl")
    assert pickled.count(b"K\x05K\x01\x86") == 1  # the strides (5, 1)

    def change(entries: dict[str, bytes]) -> None:
        entries.clear()
        entries.update({"archive/data.pkl": pickled.replace(b"K\x05K\x01\x86", b"K\x09K\x01\x86")})
        entries.update({"archive/data/0": bytes(60)})

    return repacked(change)


def bad_checksum(_: Path) -> bytes:
    content = bytearray(saved({"model": STATE}))
    content[content.index(STATE["norm.bias"].numpy().tobytes())] ^= 1
    return bytes(content)


def huge_directory(_: Path) -> bytes:
    content = bytearray(saved({"model": STATE}))
    end = content.rindex(b"PK\x05\x06")
    content[end + 12 : end + 16] = struct.pack("<I", 2**31)
    return bytes(content)


def quantised(_: Path) -> bytes:
    # torch announces the end of its quantised tensors, files with them exist all the same
    storage, zero = "ctorch\nQInt8Storage\n", "K\x00"
    text = "\x80\x02}X\x01\x00\x00\x00wctorch._utils\n_rebuild_qtensor\n(" + storage + zero + "tRs."
    return with_pickle(text.encode("latin1"))


Make = Callable[[Path], bytes]
PTH: dict[str, tuple[Make, type[MaeExportError], str]] = {
    "empty": (lambda _: b"", CheckpointError, "is empty"),
    "one byte": (lambda _: b"\x80", CheckpointError, "neither a PyTorch nor a safetensors file"),
    "html": (lambda _: b"\n<!DOCTYPE html><html>404</html>", CheckpointError, "HTML page"),
    "git-lfs": (
        lambda _: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
        CheckpointError,
        "git lfs pull",
    ),
    "gzip": (lambda _: b"\x1f\x8b\x08" + bytes(20), CheckpointError, "unpack it first"),
    "tar": (lambda _: bytes(257) + b"ustar" + bytes(300), CheckpointError, "tar archive"),
    "truncated zip": (lambda _: saved({"model": STATE})[:-200], CheckpointError, "truncated or damaged"),
    "truncated storage": (lambda _: saved({"model": STATE})[:700], CheckpointError, "truncated or damaged"),
    "bad checksum": (bad_checksum, CheckpointError, "does not match its checksum"),
    "no pickle": (lambda _: repacked(lambda e: e.pop("archive/data.pkl")), CheckpointError, "without data.pkl"),
    "missing storage": (lambda _: repacked(lambda e: e.pop("archive/data/0")), CheckpointError, "get the file again"),
    "short storage": (
        lambda _: repacked(lambda e: e.update({"archive/data/0": b"1234"})),
        CheckpointError,
        "holds 4 bytes, not 192",
    ),
    "big-endian": (
        lambda _: repacked(lambda e: e.update({"archive/byteorder": b"big"})),
        CheckpointError,
        "big-endian",
    ),
    "stride out of storage": (stride_out, CheckpointError, "does not fit its storage"),
    "zip bomb": (
        lambda _: repacked(lambda e: e.update({"archive/data/9": bytes(10**7)}), compression=zipfile.ZIP_DEFLATED),
        SecurityError,
        "zip bomb",
    ),
    "huge directory": (huge_directory, SecurityError, "a directory of 2147483648 bytes"),
    "path out of zip": (lambda _: repacked(lambda e: e.update({"archive/../../x": b""})), SecurityError, "outside"),
    "absolute path": (lambda _: repacked(lambda e: e.update({"/etc/x": b""})), SecurityError, "outside"),
    "two pickles": (
        lambda folder: repacked(lambda e: e.update({"archive/b/data.pkl": pickle.dumps(touch(folder))})),
        SecurityError,
        "2 pickles",
    ),
    "os.system": (lambda folder: saved({"model": STATE, "x": touch(folder)}), SecurityError, "posix.system"),
    "os.system, legacy": (lambda folder: saved(touch(folder), zipped=False), SecurityError, "posix.system"),
    "os.system, plain": (lambda folder: pickle.dumps(touch(folder), protocol=2), SecurityError, "posix.system"),
    "os.system, protocol 5": (lambda folder: saved(touch(folder), protocol=5), SecurityError, "posix.system"),
    "os.system, then damage": (
        lambda folder: with_pickle(pickle.dumps(touch(folder), protocol=2)[:-3]),
        SecurityError,
        "posix.system",
    ),
    "stacked name": (stacked_name, SecurityError, "posix.system"),
    "runpy": (lambda _: saved({"x": Runs(runpy.run_path, "x.py")}), SecurityError, "runpy.run_path"),
    "eval": (lambda _: saved({"x": Runs(eval, "1")}), SecurityError, "builtins.eval"),
    "extension": (lambda _: with_pickle(b"\x80\x02\x82\x01)R."), SecurityError, "copyreg.extension_1"),
    "old instance": (lambda _: with_pickle(b"(S'x'\nios\nsystem\n."), SecurityError, "os.system"),
    "unknown class": (
        lambda _: saved({"model": STATE, "when": time.gmtime(0)}),
        SecurityError,
        "time.struct_time. Nothing was run. If you trust its origin",
    ),
    "whole module": (module_archive, SecurityError, "a whole pickled module, not a state dict"),
    "whole module, legacy": (
        lambda _: saved(torch.nn.Linear(2, 2), zipped=False),
        SecurityError,
        "a whole pickled module, not a state dict",
    ),
    "endless pickle": (lambda _: with_pickle(b"\x80\x02" + b"N0" * 1_600_000 + b"}."), SecurityError, "operations"),
    "views of one storage": (shared_storage, SecurityError, "at most 16 times"),
    "torchscript": (torchscript, CheckpointError, "is TorchScript, not a state dict"),
    "plain pickle": (lambda _: pickle.dumps({"a": 1}), CheckpointError, "torch.save did not write"),
    "truncated legacy": (lambda _: saved({"w": STATE}, zipped=False)[:-9], CheckpointError, "truncated or damaged"),
    "cut legacy pickle": (lambda _: saved({"w": STATE}, zipped=False)[:150], CheckpointError, "damaged pickle"),
    "list": (lambda _: saved([torch.ones(2, 2)]), LayoutError, "holds no weights"),
    "no matrix": (lambda _: saved({"epoch": torch.ones(()), "mean": torch.ones(3)}), LayoutError, "no weights"),
    "empty dict": (lambda _: saved({}), LayoutError, "holds no weights"),
    "two sets": (
        lambda _: saved({"model": STATE, "student": {"w": torch.zeros(1, 1)}}),
        LayoutError,
        "'model' (2 entries), 'student' (1 entries). Choose one with --set weights=NAME",
    ),
    "complex": (lambda _: saved({"w": torch.ones(2, 2, dtype=torch.complex64)}), CheckpointError, "'w' is complex64"),
    "sparse": (lambda _: saved({"w": torch.eye(2).to_sparse()}), CheckpointError, "'w' is sparse"),
    "meta": (lambda _: saved({"w": torch.ones(2, 2, device="meta")}), CheckpointError, "'w' is a meta tensor"),
    "quantised": (quantised, CheckpointError, "'w' is quantised"),
    "float8": (lambda _: saved({"w": torch.ones(2, 2).to(torch.float8_e4m3fn)}), CheckpointError, "float8_e4m3fn"),
}

HEADER = {"a": entry(0, 16, [2, 2]), "b": entry(16, 20, [1])}
SAFETENSORS: dict[str, tuple[Make, type[MaeExportError], str]] = {
    "one byte": (lambda _: b"\x01", CheckpointError, "truncated or no safetensors"),
    "length 2^63": (lambda _: safetensors(HEADER, bytes(20), length=2**63), CheckpointError, str(2**63)),
    "header longer than file": (lambda _: safetensors(HEADER, length=10**4), CheckpointError, "header of 10000 bytes"),
    "huge header": (lambda _: safetensors("{" + " " * 2**24), SecurityError, "expected at most 16777216"),
    "no JSON": (lambda _: safetensors('{"a": '), CheckpointError, "not valid"),
    "deep JSON": (lambda _: safetensors('{"a":' + "[" * 10**5), CheckpointError, "not valid"),
    "not UTF-8": (lambda _: struct.pack("<Q", 4) + b'{"\xff\xff', CheckpointError, "not valid"),
    "leading space": (lambda _: safetensors(" " + json.dumps(HEADER), bytes(20)), CheckpointError, "starts with b' '"),
    "repeated key": (
        lambda _: safetensors(json.dumps(HEADER)[:-1] + ', "a": 1}', bytes(20)),
        CheckpointError,
        "'a' appears 2 times",
    ),
    "overlap": (
        lambda _: safetensors({"a": entry(0, 16, [4]), "b": entry(12, 20, [2])}, bytes(20)),
        CheckpointError,
        "'b' overlaps",
    ),
    "hole": (
        lambda _: safetensors({"a": entry(0, 16, [4]), "b": entry(20, 24, [1])}, bytes(24)),
        CheckpointError,
        "'b' leaves a hole",
    ),
    "trailing bytes": (lambda _: safetensors(HEADER, bytes(23)), CheckpointError, "3 bytes after its last tensor"),
    "truncated data": (lambda _: safetensors(HEADER, bytes(19)), CheckpointError, "is truncated"),
    "shape overflow": (
        lambda _: safetensors({"a": entry(0, 16, [2**62, 4])}, bytes(16)),
        CheckpointError,
        "does not fill its 16 bytes",
    ),
    "negative shape": (lambda _: safetensors({"a": entry(0, 16, [-2, -2])}, bytes(16)), CheckpointError, "malformed"),
    "true as a size": (
        lambda _: safetensors('{"a": {"dtype":"I8","shape":[true],"data_offsets":[0,1]}}', b"1"),
        CheckpointError,
        "malformed",
    ),
    "many dimensions": (lambda _: safetensors({"a": entry(0, 4, [1] * 99)}, bytes(4)), CheckpointError, "malformed"),
    "list as entry": (lambda _: safetensors({"a": [1]}), CheckpointError, "'a' is malformed"),
    "unknown type": (
        lambda _: safetensors({"a": entry(0, 4, [2, 2], "F8_E4M3")}, bytes(4)),
        CheckpointError,
        "'a' is of type F8_E4M3",
    ),
    "metadata of numbers": (lambda _: safetensors({"__metadata__": {"a": 1}}), CheckpointError, "no table of texts"),
    "too many tensors": (
        lambda _: safetensors({str(index): entry(0, 0, [0]) for index in range(100_001)}),
        SecurityError,
        "names 100001 tensors",
    ),
    "no tensors": (lambda _: safetensors({}, b""), LayoutError, "holds no weights"),
}
CASES = [
    pytest.param(name, *case, id=f"{name[1:]}: {title}")
    for name, cases in (("x.pth", PTH), ("x.safetensors", SAFETENSORS))
    for title, case in cases.items()
]


@pytest.mark.parametrize(("name", "make", "error", "text"), CASES)
def test_bad_file_gives_one_clear_error(
    tmp_path: Path, name: str, make: Make, error: type[MaeExportError], text: str
) -> None:
    path = tmp_path / name
    path.write_bytes(make(tmp_path))
    began = time.monotonic()
    with pytest.raises(MaeExportError) as raised:
        read_checkpoint(path)
    assert time.monotonic() - began < 10
    assert type(raised.value) is error
    assert text in str(raised.value)
    assert str(path) in str(raised.value) or str(raised.value).startswith("tensor ")
    assert not (tmp_path / CANARY).exists()


def test_canary_appears_when_such_a_pickle_is_trusted(tmp_path: Path) -> None:
    """The hostile files do what they say, so that the absence of the canary above means something."""
    pickle.loads(pickle.dumps(touch(tmp_path), protocol=4))
    assert (tmp_path / CANARY).exists()


def test_missing_path(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"none\.pth does not exist"):
        read_checkpoint(tmp_path / "none.pth")


def test_path_with_nul() -> None:
    with pytest.raises(CheckpointError, match="cannot be opened"):
        read_checkpoint("a\0b")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="pipes need POSIX")
def test_pipe_does_not_hang(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.pth")
    with pytest.raises(CheckpointError, match="is a pipe, socket or device"):
        read_checkpoint(tmp_path / "pipe.pth")


@pytest.mark.skipif(not Path("/dev/zero").exists(), reason="no /dev/zero")
def test_device_does_not_hang() -> None:
    with pytest.raises(CheckpointError, match="is a pipe, socket or device"):
        read_checkpoint("/dev/zero")


@pytest.mark.skipif(hasattr(os, "geteuid") and os.geteuid() == 0, reason="root may read every file")
def test_unreadable_file(tmp_path: Path) -> None:
    path = tmp_path / "x.pth"
    path.write_bytes(saved(STATE))
    path.chmod(0)
    with pytest.raises(CheckpointError, match="cannot be opened"):
        read_checkpoint(path)


def test_shared_parts_do_not_multiply(tmp_path: Path) -> None:
    """Forty lists, each holding the one before it twice, are a trillion values when written out."""
    bomb: list[Any] = ["x"]
    tables: dict[str, Any] = {"x": 1}
    for _ in range(40):
        bomb = [bomb, bomb]
        tables = {"a": tables, "b": tables}
    path = tmp_path / "x.pth"
    torch.save({"model": STATE, "args": {"bomb": bomb}, "config": tables, "counts": defaultdict(int)}, path)
    began = time.monotonic()
    checkpoint = read_checkpoint(path)
    assert time.monotonic() - began < 5
    assert len(str(checkpoint.metadata)) < 10**6


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("mutated")


ZIPPED, LEGACY = saved({"model": STATE, "epoch": 3}), saved({"model": STATE, "epoch": 3}, zipped=False)
with zipfile.ZipFile(io.BytesIO(ZIPPED)) as _archive:
    PICKLED = _archive.read("archive/data.pkl")
TENSORS = safetensors(HEADER, bytes(20))
FLIPS = st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(1, 255)), max_size=4)


def mutate(content: bytes, flips: list[tuple[float, int]], kept: float) -> bytes:
    changed = bytearray(content)
    for position, bits in flips:
        changed[int(position * len(changed))] ^= bits
    return bytes(changed[: int(kept * len(changed))])


@pytest.mark.parametrize(
    ("content", "wrap"),
    [(ZIPPED, bytes), (PICKLED, with_pickle), (LEGACY, bytes), (TENSORS, bytes)],
    ids=["archive", "pickle", "legacy", "safetensors"],
)
def test_mutated_file_is_read_or_refused(content: bytes, wrap: Callable[[bytes], bytes], scratch: Path) -> None:
    path = scratch / "x.pth"

    @settings(max_examples=150)
    @given(flips=FLIPS, kept=st.one_of(st.just(1.0), st.floats(0, 1)))
    @example(flips=[], kept=1.0)
    def check(flips: list[tuple[float, int]], kept: float) -> None:
        path.write_bytes(wrap(mutate(content, flips, kept)))
        try:
            checkpoint = read_checkpoint(path)
            require_finite(checkpoint.tensors)
        except MaeExportError:
            return
        assert checkpoint.tensors

    check()
    path.write_bytes(wrap(content))
    assert read_checkpoint(path).tensors  # the unchanged file is a good one


def test_safetensors_library_agrees_that_the_sample_is_good(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(2, 2), "b": torch.zeros(1)}, tmp_path / "x.safetensors")
    ours = tmp_path / "y.safetensors"
    ours.write_bytes(TENSORS)
    theirs = read_checkpoint(tmp_path / "x.safetensors").tensors
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in read_checkpoint(ours).tensors.items())
