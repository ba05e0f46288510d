"""Reads, decodes and resizes pictures in threads, ahead of whoever consumes them, in the order of the listing."""

from __future__ import annotations

import itertools
import os
from collections import deque
from collections.abc import Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mae_export.errors import ImageError, InputError
from mae_export.runtime.images import prepare, require_rgb
from mae_export.runtime.inputs import Item
from mae_export.spec import ImageSpec

MAX_DEFAULT_THREADS = 16  # each thread may hold one picture of the largest size


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """An item and either its pixels or why it has none.

    Attributes:
        index: position in the listing.
        item: what was read.
        pixels: uint8 [H, W, 3], or None when `error` is set.
        error: why the picture cannot be used, or None.
    """

    index: int
    item: Item
    pixels: npt.NDArray[np.uint8] | None
    error: ImageError | None


def load(
    items: Sequence[Item], spec: ImageSpec, *, threads: int = 0, lookahead: int = 64
) -> Generator[Loaded, None, None]:
    """Prepare items in threads; Pillow lets them run at the same time.

    A picture that cannot be used is a `Loaded` with an error and costs nothing else. Closing the generator, or
    an exception in its consumer, drops what has not started and waits for the pictures being decoded.

    Args:
        items: what to read.
        spec: how to prepare it.
        threads: 0 is one per CPU, at most `MAX_DEFAULT_THREADS`.
        lookahead: items in work or ready at any time, which bounds memory.

    Yields:
        One `Loaded` per item, in order.

    Raises:
        InputError: at once, when an argument is out of range or the encoder does not take RGB pictures.
    """
    require_rgb(spec)
    if threads < 0 or lookahead < 1:
        raise InputError(f"threads is {threads} and lookahead {lookahead}; expected at least 0 and 1")
    return _stream(items, spec, threads or min(MAX_DEFAULT_THREADS, os.cpu_count() or 1), lookahead)


def _stream(items: Sequence[Item], spec: ImageSpec, threads: int, lookahead: int) -> Generator[Loaded, None, None]:
    waiting = iter(enumerate(items))
    running: deque[Future[Loaded]] = deque()
    pool = ThreadPoolExecutor(threads, thread_name_prefix="mae-load")
    try:
        while True:
            for index, item in itertools.islice(waiting, lookahead - len(running)):
                running.append(pool.submit(_load_one, index, item, spec))
            if not running:
                return
            yield running.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _load_one(index: int, item: Item, spec: ImageSpec) -> Loaded:
    try:
        return Loaded(index=index, item=item, pixels=prepare(item.read(), spec), error=None)
    except ImageError as error:
        failure = error
    except MemoryError:
        failure = ImageError("out-of-memory", f"memory ran out while preparing {item.id!r}; use fewer threads")
    return Loaded(index=index, item=item, pixels=None, error=failure)
