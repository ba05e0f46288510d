"""Outputs that stay in a GPU's memory: whose it is, who waits for whom, and when it is used again.

Each output gets memory of its own, into which the session copies it on the GPU. It comes back when nobody has the array
any more, nor anything that another library made of it; then it serves a later run, or is given back to CUDA if the
session is closed. A library may let go of memory that its own kernels still read. So before memory is written again,
the writer waits: by an event where the library worked on the default stream, else for the whole GPU, because a stream
of somebody else's may be gone by then.
"""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from contextlib import ExitStack

from mae_export.errors import MaeExportError, ResourceError
from mae_export.runtime.cuda import (
    DEFAULT_STREAM,
    DeviceMemory,
    Event,
    PinnedMemory,
    Stream,
    on_device,
    wait_for_gpu,
)
from mae_export.runtime.dlpack import CUDA, ExchangeError

IDLE = 8  # pieces of memory that are kept for later runs
ROOMY = 2  # times the bytes needed that a piece may have
NO_WAITING = -1  # the number of a stream that shall not be made to wait


class _Piece:
    """Memory, the event that its values wait for, and the streams of other libraries that saw them."""

    def __init__(self, size: int) -> None:
        self.event = Event()
        try:
            self.memory = DeviceMemory(size)
        except MaeExportError:
            self.event.close()
            raise
        self.seen_by: set[int] = set()

    def reclaim(self) -> None:
        """Let the event stand for all that anybody still does with the memory."""
        if self.seen_by - {DEFAULT_STREAM}:
            wait_for_gpu()
        elif self.seen_by:
            self.event.record_on(DEFAULT_STREAM)
        self.seen_by = set()

    def close(self) -> None:
        wait_for_gpu()
        self.memory.close()
        self.event.close()


class KeptMemory:
    """Memory of one output; it comes back when nothing refers to this object.

    Args:
        outputs: that it comes from.
        piece: the memory.
    """

    def __init__(self, outputs: DeviceOutputs, piece: _Piece) -> None:
        self._outputs = outputs
        self._piece = piece
        self.address = piece.memory.address
        self.device = (CUDA, outputs.device)
        self.readonly = False

    def fill(self, stream: Stream, source: int, size: int, *, offset: int = 0) -> None:
        """Copy from an address of the GPU, in the stream's order and after whoever used the memory before."""
        stream.wait(self._piece.event)
        stream.copy_within(self.address + offset, source, size)
        stream.record(self._piece.event)

    def let_wait(self, stream: int | None) -> None:
        """Let a stream of another library wait for the values.

        Raises:
            ExchangeError: when that is no stream.
        """
        number = DEFAULT_STREAM if stream is None else int(stream)
        if number < NO_WAITING or number == 0:
            raise ExchangeError(
                f"the stream {number} means nothing; expected None or 1 for the default stream, 2 for the thread's, -1 "
                "for no waiting, or the handle of another"
            )
        self._piece.seen_by.add(number)
        if number != NO_WAITING:
            with on_device(self._outputs.device):
                self._piece.event.hold_back(number)

    def to_host(self, size: int) -> bytearray:
        """A copy of the first bytes, once they are there."""
        with on_device(self._outputs.device), ExitStack() as resources:
            stream, pinned = Stream(), PinnedMemory(size)
            resources.callback(stream.close)
            resources.callback(pinned.close)
            stream.wait(self._piece.event)
            stream.copy_out(pinned, self._piece.memory, size)
            stream.synchronize()
            return bytearray(pinned.array((size,), "uint8"))

    def copied(self, size: int, stream: int | None) -> KeptMemory:  # noqa: ARG002 - who asks waits for the copy
        """A copy of the first bytes in memory of its own."""
        copy = self._outputs.take(size)
        with on_device(self._outputs.device), ExitStack() as resources:
            own = Stream()
            resources.callback(own.close)
            own.wait(self._piece.event)
            copy.fill(own, self.address, size)
            own.synchronize()
        return copy

    def __del__(self) -> None:
        self._outputs.take_back(self._piece)


class DeviceOutputs:
    """The memory of outputs on one GPU; it outlives its session for as long as arrays do.

    Args:
        device: of the GPUs that CUDA shows.
    """

    def __init__(self, device: int) -> None:
        self.device = device
        self._taking = threading.Lock()  # whoever looks for memory must not find it looked through by another
        self._idle: deque[_Piece] = deque()  # oldest first; without a lock, for the garbage collector may come any time
        self._closed = False

    def take(self, size: int) -> KeptMemory:
        """Memory of at least so many bytes, to be written with `KeptMemory.fill`.

        Raises:
            ResourceError: when there is not enough.
        """
        with on_device(self.device):
            with self._taking:
                pieces = self._all_idle()
                fitting = [piece for piece in pieces if size <= piece.memory.size <= ROOMY * size]
                piece = min(fitting, key=lambda piece: piece.memory.size, default=None)
                others = [other for other in pieces if other is not piece]
                self._idle.extend(others[-IDLE:])
            for other in others[:-IDLE]:
                other.close()
            if piece is None:
                return KeptMemory(self, self._new(size))
            piece.reclaim()
        return KeptMemory(self, piece)

    def _new(self, size: int) -> _Piece:
        """New memory; what lies idle is given back where there is none."""
        try:
            return _Piece(size)
        except ResourceError:
            self._give_back()
            return _Piece(size)

    def take_back(self, piece: _Piece) -> None:
        """Nobody refers to this any more; called by the garbage collector, from any thread."""
        self._idle.append(piece)
        if self._closed:
            with contextlib.suppress(MaeExportError):  # at the end of a program CUDA may be gone, and memory with it
                self._give_back()

    def close(self) -> None:
        """Give back what lies idle now, and the rest when it comes back."""
        self._closed = True
        self._give_back()

    def _give_back(self) -> None:
        pieces = self._all_idle()
        if pieces:
            with on_device(self.device):
                for piece in pieces:
                    piece.close()

    def _all_idle(self) -> list[_Piece]:
        """All that lies idle, which is then the caller's."""
        pieces = []
        with contextlib.suppress(IndexError):
            while True:
                pieces.append(self._idle.popleft())
        return pieces
