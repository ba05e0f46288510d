"""One model on several devices behind one session: which rows of a batch each of them computes.

The sessions are alike, so they get equal shares, in order. A batch of fewer rows than devices leaves some idle; which
ones changes from batch to batch, so that single images from several threads use them all.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from mae_export.errors import UsageError
from mae_export.manifest import Manifest
from mae_export.runtime.device_array import DeviceArray
from mae_export.runtime.feeds import check_feeds
from mae_export.runtime.session import Session

Array = npt.NDArray[Any]
IN_FLIGHT = 2  # batches on each device: one is copied while the other is computed


class SpreadSession:
    """Runs each batch on all of several sessions at once; safe to use from several threads.

    Args:
        sessions: on the same model, one for each device; they are closed with this one.

    Raises:
        UsageError: when there is none, or they are on different models.
    """

    def __init__(self, sessions: Sequence[Session]) -> None:
        if not sessions or any(session.manifest != sessions[0].manifest for session in sessions):
            raise UsageError(f"{len(sessions)} sessions cannot share batches; expected at least 1, all on one model")
        self._sessions = tuple(sessions)
        self._turns = itertools.count()
        self._pool = ThreadPoolExecutor(IN_FLIGHT * len(sessions), "mae-export-device")
        self._lock = threading.Lock()
        self._closed = False

    @property
    def name(self) -> str:
        """File name of the model."""
        return self._sessions[0].name

    @property
    def manifest(self) -> Manifest:
        """What the model promises."""
        return self._sessions[0].manifest

    @property
    def digest(self) -> str:
        """SHA-256 of the model's bytes."""
        return self._sessions[0].digest

    @property
    def description(self) -> str:
        """What runs it, on how many devices."""
        return f"{len(self._sessions)} devices: {'; '.join(session.description for session in self._sessions)}"

    def run(self, feeds: Mapping[str, Array], outputs: Sequence[str] | None = None) -> dict[str, Array]:
        """Run one batch, cut over the devices; see `Session.run`.

        Raises:
            MachineError: when one of the devices fails.
        """
        check_feeds(self.manifest, feeds)
        rows = len(next(iter(feeds.values())))
        count = min(len(self._sessions), rows)
        bounds = [rows * part // count for part in range(count + 1)]
        turn = next(self._turns)
        with self._lock:
            if self._closed:
                raise UsageError(f"the session on {self.name} is closed; open it again")
            running = [
                self._pool.submit(
                    self._sessions[(turn + part) % len(self._sessions)].run,
                    {name: array[first:last] for name, array in feeds.items()},
                    outputs,
                )
                for part, (first, last) in enumerate(itertools.pairwise(bounds))
            ]
        found = [each.result() for each in running]
        return {name: np.concatenate([part[name] for part in found]) for name in found[0]}

    def run_on_device(
        self,
        feeds: Mapping[str, Array],  # noqa: ARG002 - the protocol
        outputs: Sequence[str] | None = None,  # noqa: ARG002
    ) -> dict[str, DeviceArray]:
        """Refuse: one output would lie in parts on several devices.

        Raises:
            UsageError: always.
        """
        raise UsageError(
            f"{self.name} runs on {len(self._sessions)} devices, and an output cannot stay on all of them; use run, or "
            "open one session for each device, such as open_session(path, devices=[1])"
        )

    def close(self) -> None:
        """Wait for runs in flight and close all sessions; closing twice is harmless."""
        with self._lock:
            self._closed = True
        self._pool.shutdown()
        with ExitStack() as stack:
            for session in self._sessions:
                stack.callback(session.close)

    def __enter__(self) -> SpreadSession:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
