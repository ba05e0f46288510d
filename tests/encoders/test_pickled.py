"""The inert pickle reader against the library that writes pickles: same data, no objects."""

from __future__ import annotations

import argparse
import collections
import mmap
import os
import pathlib
import pickle
import tempfile
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mae_export.encoders.pickled import Global, Made, read_pickle
from mae_export.errors import CheckpointError, SecurityError

PROTOCOLS = range(pickle.HIGHEST_PROTOCOL + 1)
PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(max_size=5) | st.integers(-(2**60), 2**60), inner, max_size=4)
        | st.tuples(inner, inner)
    ),
    max_leaves=20,
)


def read(content: bytes, *allowed: str) -> Any:
    return read_pickle(content, frozenset(allowed), "x.pth").root


@given(value=PLAIN, protocol=st.sampled_from(PROTOCOLS))
def test_plain_data_comes_back_as_itself(value: Any, protocol: int) -> None:
    assert read(pickle.dumps(value, protocol)) == value


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_objects_become_notes(protocol: int) -> None:
    made = read(pickle.dumps(argparse.Namespace(lr=0.1, name="a"), protocol), "argparse.Namespace")
    assert isinstance(made, Made)
    assert (made.name, made.state) == ("argparse.Namespace", {"lr": 0.1, "name": "a"})


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_dict_subclasses_keep_their_items(protocol: int) -> None:
    counts = collections.defaultdict(int, a=1)
    # protocol 2 writes the names of Python 2
    made = read(pickle.dumps(counts, protocol), "collections.defaultdict", "builtins.int", "builtins.long")
    assert made.items == {"a": 1}
    assert isinstance(made.args[0], Global)


def test_sets_become_lists() -> None:
    assert read(pickle.dumps({1}, 4)) == [1]
    assert read(pickle.dumps(frozenset({1}), 4)) == (1,)
    assert read(pickle.dumps({1}, 2), "builtins.set").args == ([1],)


def test_shared_values_stay_shared() -> None:
    inner = [1]
    first, second = read(pickle.dumps([inner, inner], 4))
    assert first is second


def test_keyword_construction_and_old_instances() -> None:
    made = read(b"\x80\x04\x8c\x01m\x8c\x01C\x93)}\x92.", "m.C")  # NEWOBJ_EX
    assert (made.name, made.args) == ("m.C", ())
    assert read(b"(I1\nim\nC\n.", "m.C").args == (1,)  # INST
    assert read(b"(cm\nC\nI1\no.", "m.C").args == (1,)  # OBJ


def test_references_are_collected() -> None:
    pickled = read_pickle(b"\x80\x02K\x07QK\x08Q\x86.", frozenset(), "x.pth")
    assert [reference.key for reference in pickled.references] == [7, 8]
    assert pickled.root == pickled.references


def test_a_mapped_file_is_left_after_the_pickle() -> None:
    with tempfile.TemporaryFile() as file:
        file.write(pickle.dumps(1) + pickle.dumps("two") + b"rest")
        file.flush()
        data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    assert [read_pickle(data, frozenset(), "x.pth").root for _ in range(2)] == [1, "two"]
    assert data.read() == b"rest"


def test_all_refused_names_are_listed() -> None:
    content = pickle.dumps([os.getcwd, pathlib.PurePosixPath("a"), print], 4)
    with pytest.raises(
        SecurityError, match=r"x\.pth wants to import or run.*: posix\.getcwd, .*builtins\.print\. Nothing"
    ):
        read(content)


def test_refused_names_are_shortened_and_escaped() -> None:
    content = b"\x80\x02" + b"".join(b"cm\x1b[31m\nf%d\n" % index for index in range(12)) + b"."
    with pytest.raises(SecurityError, match=r"m\\x1b\[31m\.f0, .* and 4 more"):
        read(content)


def test_a_refused_name_counts_even_in_a_damaged_pickle() -> None:
    with pytest.raises(SecurityError, match=r"os\.system"):
        read(b"\x80\x02cos\nsystem\n\xff")


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"", "exhausted before seeing STOP"),
        (b"\x80\x02K", "damaged"),
        (b"\x80\x02.", "damaged"),  # nothing on the stack
        (b"\x80\x02h\x05.", "damaged"),  # no such memo
        (b"\x80\x02t.", "damaged"),  # no mark
        (b"\x80\x02K\x01\x87.", "stack is empty"),
        (b"\x80\x02K\x01K\x02R.", "something uncallable is called"),
        (b"\x80\x02K\x01}b.", "a plain value is given a state"),
        (b"\x80\x02}K\x01a.", "something that is no list"),
        (b"\x80\x02]K\x01K\x01s.", "something that is no dict"),
        (b"\x80\x02}(K\x01u.", "damaged"),  # a key without a value
        (b"\x80\x02}]K\x01s.", "a long list is used as a key"),
        (b"\x80\x02}))\x86K\x01s.", "a long tuple is used as a key"),
        (b"\x80\x04K\x01K\x02\x93.", "a name is not text"),
        (b"\x80\x05\x97.", "unsupported operation NEXT_BUFFER"),
        (b"\x80\x04\x8d" + b"\xff" * 7 + b"\x7f.", "damaged"),  # a text of 2^63 - 1 bytes
    ],
)
def test_damage_is_reported(content: bytes, text: str) -> None:
    with pytest.raises(CheckpointError, match=r"x\.pth holds a damaged pickle") as raised:
        read(content)
    assert text in str(raised.value)


@pytest.mark.parametrize("key", ["x" * 5000, 2**200, tuple(range(9)), ((1,),)])
def test_keys_that_are_slow_to_hash_are_refused(key: Any) -> None:
    with pytest.raises(CheckpointError, match="is used as a key"):
        read(pickle.dumps({key: 1}, 4))


def test_flat_tuples_are_keys() -> None:
    assert read(pickle.dumps({("a", 1): 2}, 4)) == {("a", 1): 2}
