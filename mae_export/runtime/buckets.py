"""Which optimization profiles run a batch, and which shapes are met so often that they get a CUDA graph.

An engine takes any batch: one that no profile holds is cut, and its rest filled up. The number of visible patches
cannot be changed that way.

A bucket is one exact shape in one profile. Shapes that come once, as in jobs whose rows keep different numbers of
patches, are not worth a graph: capturing takes a context of its own and longer than running.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Generic, TypeVar

from mae_export.errors import InputError
from mae_export.manifest import Range
from mae_export.runtime.engine_file import Profile

GRAPHS = 8  # captured per lane; each holds a context of a few MB
REMEMBERED = 64  # shapes whose first sighting is remembered
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Bucket:
    """One exact shape: the profile's number, images, and visible patches where those are an input."""

    profile: int
    batch: int
    keep: int | None


@dataclass(frozen=True, kw_only=True)
class Cut:
    """Rows `first` to before `last` of a batch run in one bucket; its last rows are repetitions when it is larger."""

    first: int
    last: int
    bucket: Bucket

    @property
    def rows(self) -> int:
        """How many of its rows are not repetitions."""
        return self.last - self.first


def cut_batch(profiles: tuple[Profile, ...], batch: int, keep: int | None) -> list[Cut]:
    """Which parts of a batch run in which profile: as many rows at once as one holds, in the smallest that does.

    Args:
        profiles: of the engine.
        batch: rows.
        keep: visible patches, None where they are no input.

    Raises:
        InputError: when no profile holds `keep`; the message lists them.
    """
    if not holds(profiles, keep):
        listed = "; ".join(map(str, profiles))
        raise InputError(
            f"the engine runs no {keep} visible patches; its profiles (min:typical:max) are {listed}. Keep another "
            f"number, or build the engine with a further --profile batch=1:8:64,keep={keep}"
        )
    fitting = [(index, profile) for index, profile in enumerate(profiles) if _keeps(profile, keep)]
    cuts: list[Cut] = []
    first = 0
    while first < batch:
        left = batch - first
        held = [min(left, profile.batch.maximum) for _, profile in fitting if profile.batch.minimum <= left]
        size = max(held, default=min(profile.batch.minimum for _, profile in fitting))
        containing = [(index, profile) for index, profile in fitting if _within(profile.batch, size)]
        index = min(containing, key=lambda pair: _volume(pair[1]))[0]
        last = min(first + size, batch)
        cuts.append(Cut(first=first, last=last, bucket=Bucket(profile=index, batch=size, keep=keep)))
        first = last
    return cuts


def holds(profiles: tuple[Profile, ...], keep: int | None) -> bool:
    """Whether some profile runs this number of visible patches."""
    return any(_keeps(profile, keep) for profile in profiles)


def _keeps(profile: Profile, keep: int | None) -> bool:
    return keep is None or profile.keep is None or _within(profile.keep, keep)


def _within(extent: Range, value: int) -> bool:
    return extent.minimum <= value <= extent.maximum


def _volume(profile: Profile) -> int:
    return profile.batch.maximum * (profile.keep.maximum if profile.keep else 1)


class Recent(Generic[T]):
    """The values used last, by bucket.

    Args:
        limit: how many are held.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._held: OrderedDict[Bucket, T] = OrderedDict()

    def get(self, bucket: Bucket) -> T | None:
        """The bucket's value, which becomes the latest, or None."""
        if bucket not in self._held:
            return None
        self._held.move_to_end(bucket)
        return self._held[bucket]

    def put(self, bucket: Bucket, value: T) -> list[T]:
        """Hold a value as the latest; returns those that had to go."""
        self._held[bucket] = value
        self._held.move_to_end(bucket)
        return [self._held.popitem(last=False)[1] for _ in range(len(self._held) - self._limit)]

    def clear(self) -> list[T]:
        """Hold nothing; returns what was held."""
        held = list(self._held.values())
        self._held.clear()
        return held
