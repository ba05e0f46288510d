"""Threaded loading: order, isolation of failures, bounded work, and threads that stop."""

import io
import threading
import time

import numpy as np
import pytest
from PIL import Image

from mae_export.errors import ImageError, InputError
from mae_export.runtime import loading
from mae_export.runtime.images import prepare
from mae_export.runtime.inputs import Item, list_items
from mae_export.runtime.loading import load
from mae_export.spec import ImageSpec

SPEC = ImageSpec(size=(32, 32))


@pytest.fixture
def items(make_images) -> list[Item]:
    return list_items([make_images(24)])


def live_threads() -> int:
    return sum(thread.name.startswith("mae-load") for thread in threading.enumerate())


@pytest.mark.parametrize(("threads", "lookahead"), [(0, 64), (1, 1), (4, 2), (2, 24)])
def test_results_come_in_order_and_equal_those_of_one_thread(items, threads, lookahead):
    loaded = list(load(items, SPEC, threads=threads, lookahead=lookahead))
    assert [row.index for row in loaded] == list(range(24))
    for item, row in zip(items, loaded, strict=True):
        assert row.item is item
        assert row.error is None
        np.testing.assert_array_equal(row.pixels, prepare(item.read(), SPEC))
    assert live_threads() == 0


def test_order_holds_when_early_items_are_slow(items, monkeypatch):
    def slow_first(data, spec):
        if data == first:
            time.sleep(0.1)
        return prepare(data, spec)

    first = items[0].read()
    monkeypatch.setattr(loading, "prepare", slow_first)
    assert [row.index for row in load(items, SPEC, threads=4)] == list(range(24))


def test_a_bad_item_costs_nothing_else(items):
    items[3].source.write_bytes(items[3].source.read_bytes()[:60])
    items[7].source.unlink()
    items[9].source.write_bytes(b"<html>")
    buffer = io.BytesIO()
    Image.open(items[11].source).save(buffer, "TIFF")
    items[11].source.write_bytes(buffer.getvalue())  # the name still says PNG
    loaded = list(load(items, SPEC, threads=3))
    failed = {row.index: row.error.reason for row in loaded if row.error}
    assert failed == {3: "truncated", 7: "missing", 9: "not-an-image"}
    for row in loaded:
        assert (row.pixels is None) == (row.index in failed)


@pytest.mark.parametrize("failure", [MemoryError(), ImageError("corrupt", "made up")])
def test_memory_and_picture_errors_are_rows(items, monkeypatch, failure):
    def fail(data, spec):
        raise failure

    monkeypatch.setattr(loading, "prepare", fail)
    rows = list(load(items[:3], SPEC))
    expected = "out-of-memory" if isinstance(failure, MemoryError) else "corrupt"
    assert [row.error.reason for row in rows] == [expected] * 3


def test_work_ahead_is_bounded(items, monkeypatch):
    started = []

    def count(data, spec):
        started.append(1)
        return prepare(data, spec)

    monkeypatch.setattr(loading, "prepare", count)
    stream = load(items, SPEC, threads=2, lookahead=5)
    assert not started  # nothing runs before it is asked for
    for taken in range(1, 6):
        next(stream)
        time.sleep(0.02)
        assert len(started) <= taken + 4
    stream.close()


def test_all_threads_are_used_at_once(items, monkeypatch):
    together = threading.Barrier(3, timeout=10)

    def meet(data, spec):
        together.wait()
        return prepare(data, spec)

    monkeypatch.setattr(loading, "prepare", meet)
    assert len(list(load(items, SPEC, threads=3))) == 24


def test_closing_stops_the_threads_and_drops_what_waits(items, monkeypatch):
    started = []

    def slow(data, spec):
        started.append(1)
        time.sleep(0.05)
        return prepare(data, spec)

    monkeypatch.setattr(loading, "prepare", slow)
    stream = load(items, SPEC, threads=2)
    next(stream)
    stream.close()
    assert live_threads() == 0
    assert len(started) <= 6


def test_an_error_that_is_no_pictures_fault_reaches_the_consumer(items, monkeypatch):
    def fail(data, spec):
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(loading, "prepare", fail)
    with pytest.raises(ZeroDivisionError, match="a bug"):
        list(load(items, SPEC))
    assert live_threads() == 0


def test_no_items_give_nothing():
    assert list(load([], SPEC)) == []


@pytest.mark.parametrize(
    ("spec", "options", "text"),
    [
        (SPEC, {"threads": -1}, "threads is -1"),
        (SPEC, {"lookahead": 0}, "lookahead 0"),
        (ImageSpec(size=(32, 32), frames=2), {}, "2 frames"),
    ],
)
def test_bad_arguments_are_refused_at_once(items, spec, options, text):
    with pytest.raises(InputError, match=text):
        load(items, spec, **options)
