"""Who may do what while the work of a stream is captured into a CUDA graph.

A capture fails when a thread of the process does certain things meanwhile: takes or gives memory, copies and waits, or
waits for a whole GPU. ONNX Runtime captures in the mode that minds every thread (cuda_graph.cc of its CUDA provider),
so with two sessions, on two GPUs for example, one's first runs would break the other's capture. Here all that is done
together, and captures alone.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class CaptureGuard:
    """Lets work in together and captures alone; a thread that is in may come in again for work."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._working: dict[int, int] = {}  # how often each thread is in
        self._waiting = 0  # captures; new work lets them go first
        self._capturing: int | None = None  # the thread

    @contextmanager
    def work(self) -> Iterator[None]:
        """Do what captures do not bear, beside other work."""
        me = threading.get_ident()
        with self._changed:
            while me not in self._working and self._capturing != me and (self._capturing is not None or self._waiting):
                self._changed.wait()
            self._working[me] = self._working.get(me, 0) + 1
        try:
            yield
        finally:
            with self._changed:
                self._working[me] -= 1
                if not self._working[me]:
                    del self._working[me]
                self._changed.notify_all()

    @contextmanager
    def capture(self) -> Iterator[None]:
        """Capture alone, once other work is done; a thread must not be at work itself."""
        with self._changed:
            self._waiting += 1
            while self._working or self._capturing is not None:
                self._changed.wait()
            self._waiting -= 1
            self._capturing = threading.get_ident()
        try:
            yield
        finally:
            with self._changed:
                self._capturing = None
                self._changed.notify_all()


captures = CaptureGuard()  # of the process
