import threading
from collections.abc import Generator

import pytest

from mae_export.runtime.stages import Ahead, Behind

WAIT = 10  # seconds; only a failing test waits that long


def numbers(count: int, log: list[str]) -> Generator[int, None, None]:
    try:
        yield from range(count)
    finally:
        log.append("closed")


def test_ahead_gives_every_item_in_order_and_closes_the_source() -> None:
    log: list[str] = []
    with Ahead(numbers(50, log), depth=3) as ahead:
        assert list(ahead) == list(range(50))
    assert log == ["closed"]


def test_ahead_gives_items_that_are_false() -> None:
    with Ahead((item for item in [0, "", None, []]), depth=2) as ahead:
        assert list(ahead) == [0, "", None, []]


def test_ahead_works_before_it_is_asked_but_no_further_than_its_depth() -> None:
    made, third = [], threading.Event()

    def source() -> Generator[int, None, None]:
        for number in range(10):
            made.append(number)
            if number == 2:
                third.set()
            yield number

    with Ahead(source(), depth=3) as ahead:
        assert third.wait(WAIT)  # nothing was asked for yet
        iterator = iter(ahead)
        assert next(iterator) == 0
    assert made in ([0, 1, 2], [0, 1, 2, 3])


def test_an_error_in_the_source_reaches_the_caller_in_its_place() -> None:
    def source() -> Generator[int, None, None]:
        yield 1
        raise ValueError("third image")

    with Ahead(source(), depth=4) as ahead:
        iterator = iter(ahead)
        assert next(iterator) == 1
        with pytest.raises(ValueError, match="third image"):
            next(iterator)


def test_leaving_early_closes_the_source_and_ends_the_thread() -> None:
    log: list[str] = []
    with pytest.raises(KeyboardInterrupt), Ahead(numbers(1000, log), depth=2) as ahead:  # noqa: PT012 - the loop is the test
        for number in ahead:
            if number == 3:
                raise KeyboardInterrupt
    assert log == ["closed"]
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("mae-export-ahead")]


def test_behind_calls_in_order_while_the_caller_goes_on() -> None:
    log: list[str] = []
    go = threading.Event()
    with Behind(limit=10) as behind:
        behind.submit(lambda: log.append(f"first {go.wait(WAIT)}"), size=1)
        behind.submit(lambda: log.append("second"), size=1)
        log.append("caller")
        go.set()
        behind.finish()
    assert log == ["caller", "first True", "second"]


def test_behind_holds_no_more_than_its_limit() -> None:
    log: list[str] = []
    go = threading.Event()
    with Behind(limit=10) as behind:
        behind.submit(lambda: log.append(f"large {go.wait(WAIT)}"), size=8)
        threading.Timer(0.05, go.set).start()
        behind.submit(lambda: log.append("next"), size=8)  # must wait for the first
        assert log[0] == "large True"
        behind.submit(lambda: log.append("beyond the limit"), size=99)  # alone it may pass, or nothing ever would
        behind.finish()
    assert log[1:] == ["next", "beyond the limit"]


def _fail() -> None:
    raise OSError("disk")


def test_an_error_behind_reaches_the_caller() -> None:
    with Behind(limit=10) as behind:
        behind.submit(_fail, size=1)
        with pytest.raises(OSError, match="disk"):
            behind.finish()
    with pytest.raises(OSError, match="disk"), Behind(limit=1) as behind:  # noqa: PT012 - it may surface at any submit
        for _ in range(3):
            behind.submit(_fail, size=1)


def test_leaving_with_an_error_drops_the_calls_that_have_not_begun() -> None:
    log: list[str] = []
    begun, go = threading.Event(), threading.Event()

    def first() -> None:
        begun.set()
        go.wait(WAIT)
        log.append("first")

    with pytest.raises(KeyboardInterrupt), Behind(limit=10) as behind:  # noqa: PT012 - the set-up belongs inside
        behind.submit(first, size=1)
        behind.submit(lambda: log.append("second"), size=1)
        assert begun.wait(WAIT)
        threading.Timer(0.05, go.set).start()
        raise KeyboardInterrupt
    assert log == ["first"]
