"""The two threads around the device: one prepares batches ahead of it, one stores results behind it.

Both hand errors to the caller, and both are bounded, so memory stays flat when one side is slower.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Generic, TypeVar

T = TypeVar("T")


class Ahead(Generic[T]):
    """Iterates a generator in a thread of its own, at most `depth` items before they are asked for.

    Args:
        source: run by one thread only, and closed on exit; an error in it is raised to whoever asks for the next item.
        depth: items kept ready.
    """

    def __init__(self, source: Generator[T, None, None], *, depth: int) -> None:
        self._source = source
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="mae-export-ahead")
        self._ready = deque(self._pool.submit(self._next) for _ in range(depth))

    def _next(self) -> tuple[T, ...]:
        for item in self._source:
            return (item,)
        return ()

    def __iter__(self) -> Iterator[T]:
        while item := self._ready.popleft().result():
            self._ready.append(self._pool.submit(self._next))
            yield item[0]

    def __enter__(self) -> Ahead[T]:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._source.close()


class Behind:
    """Calls functions in order in a thread of its own, so that the caller goes on at once.

    Args:
        limit: sum of the sizes that may wait; `submit` blocks beyond it.
    """

    def __init__(self, *, limit: int) -> None:
        self._limit = limit
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="mae-export-behind")
        self._waiting: deque[tuple[Future[None], int]] = deque()
        self._size = 0

    def submit(self, call: Callable[[], None], *, size: int) -> None:
        """Queue a call that holds `size` bytes; raises what an earlier call raised."""
        while self._waiting and (self._waiting[0][0].done() or self._size + size > self._limit):
            self._settle()
        self._waiting.append((self._pool.submit(call), size))
        self._size += size

    def finish(self) -> None:
        """Wait for every call; raises what the first failing one raised."""
        while self._waiting:
            self._settle()

    def _settle(self) -> None:
        future, size = self._waiting.popleft()
        self._size -= size
        future.result()

    def __enter__(self) -> Behind:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)
