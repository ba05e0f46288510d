"""Work goes on together, captures alone, and nobody waits for himself."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from mae_export.runtime.capture_guard import CaptureGuard


def test_work_is_done_together():
    guard, barrier = CaptureGuard(), threading.Barrier(3)

    def work():
        with guard.work():
            barrier.wait(20)

    with ThreadPoolExecutor(3) as pool:
        for done in [pool.submit(work) for _ in range(3)]:
            done.result(20)


def test_captures_are_alone():
    guard, inside, most = CaptureGuard(), [], []

    def enter(name, context):
        with context():
            inside.append(name)
            most.append((inside.count("capture"), inside.count("work")))
            time.sleep(0.001)
            inside.remove(name)

    with ThreadPoolExecutor(8) as pool:
        tasks = [("capture", guard.capture) if turn % 5 == 0 else ("work", guard.work) for turn in range(100)]
        for done in [pool.submit(enter, *task) for task in tasks]:
            done.result(60)
    assert all(captures + (work > 0) <= 1 for captures, work in most)
    assert max(work for _, work in most) > 1


def test_a_capture_goes_before_new_work():
    guard, order = CaptureGuard(), []
    holding, release = threading.Event(), threading.Event()

    def first():
        with guard.work():
            holding.set()
            assert release.wait(20)
            with guard.work():  # what is in may come in again
                order.append("work again")

    def capture():
        with guard.capture():
            order.append("capture")

    def later():
        with guard.work():
            order.append("work")

    with ThreadPoolExecutor(3) as pool:
        tasks = [pool.submit(first)]
        assert holding.wait(20)
        tasks.append(pool.submit(capture))
        while not guard._waiting:
            time.sleep(0.001)
        tasks.append(pool.submit(later))
        time.sleep(0.05)
        assert order == []
        release.set()
        for done in tasks:
            done.result(20)
    assert order == ["work again", "capture", "work"]


def test_who_captures_may_work():
    """The garbage collector may give memory back at any moment."""
    guard = CaptureGuard()
    with guard.capture(), guard.work(), guard.work():
        pass
    with guard.capture():
        pass


def test_errors_leave_nobody_in():
    guard = CaptureGuard()
    for context in (guard.work, guard.capture):
        with pytest.raises(ValueError, match="stop"), context():
            raise ValueError("stop")
    with guard.capture():
        pass
