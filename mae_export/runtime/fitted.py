"""Any number of visible patches on an engine whose profiles hold only some, for comparisons that show several.

Where no profile holds the number, patches are left out at the end, or hidden ones are added in raster order. A
reference that is fitted to the same profiles sees the same patches.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from mae_export.runtime.delegate import Delegate
from mae_export.runtime.device_array import DeviceArray
from mae_export.runtime.engine_file import Profile
from mae_export.runtime.session import Session

Array = npt.NDArray[Any]


class FittedSession(Delegate):
    """A session that takes any number of visible patches.

    Args:
        session: does the work; it stays the caller's.
        profiles: numbers to fit.
    """

    def __init__(self, session: Session, profiles: tuple[Profile, ...]) -> None:
        super().__init__(session)
        self._profiles = profiles

    def run(self, feeds: Mapping[str, Array], outputs: Sequence[str] | None = None) -> dict[str, Array]:
        """Run one batch with the nearest number that fits; see `Session.run`."""
        return self._session.run(self._fitted(feeds), outputs)

    def run_on_device(self, feeds: Mapping[str, Array], outputs: Sequence[str] | None = None) -> dict[str, DeviceArray]:
        """The same with the outputs left where they were computed; see `Session.run_on_device`."""
        return self._session.run_on_device(self._fitted(feeds), outputs)

    def _fitted(self, feeds: Mapping[str, Array]) -> Mapping[str, Array]:
        if "ids_keep" not in feeds:
            return feeds
        keep = _nearest(self._profiles, feeds["ids_keep"].shape[1])
        return _with_kept(feeds, keep, self.manifest.patches.count)

    def close(self) -> None:
        """Nothing to give back; the session stays open."""

    def __enter__(self) -> FittedSession:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _nearest(profiles: tuple[Profile, ...], keep: int) -> int:
    """The number of visible patches nearest to `keep` that some profile holds."""
    ranges = [profile.keep for profile in profiles if profile.keep is not None]
    held = [min(max(keep, extent.minimum), extent.maximum) for extent in ranges]
    return min(held, key=lambda number: abs(number - keep), default=keep)


def _with_kept(feeds: Mapping[str, Array], keep: int, count: int) -> dict[str, Array]:
    """The feeds with `keep` of the image's `count` patches visible."""
    ids = feeds["ids_keep"]
    more = keep - ids.shape[1]
    fitted = dict(feeds)
    if more > 0:
        added = np.stack([np.setdiff1d(np.arange(count, dtype=ids.dtype), row)[:more] for row in ids])
        fitted["ids_keep"] = np.concatenate([ids, added], axis=1)
        if "patches" in feeds:  # the pixels of hidden patches did not travel; any do
            fitted["patches"] = np.concatenate([feeds["patches"], feeds["patches"][:, -1:].repeat(more, 1)], axis=1)
    elif more < 0:
        fitted |= {name: feeds[name][:, :keep] for name in ("ids_keep", "patches") if name in feeds}
        if "num_keep" in feeds:
            fitted["num_keep"] = np.minimum(feeds["num_keep"], keep).astype(np.int32)
    return fitted
