"""Every family that this installation knows: our own, and those that other packages bring as entry points.

A package joins by naming a `Family` under the entry point group `mae_export.families`; see docs/families.md. Nothing
of it is imported before a checkpoint is to be recognised.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from types import MappingProxyType

from mae_export.encoders.families import FAMILIES, Family
from mae_export.errors import MachineError

GROUP = "mae_export.families"


@cache
def families() -> Mapping[str, Family]:
    """Families by name: our own, then those of other packages by the names of their entry points.

    Raises:
        MachineError: naming the distribution, when an entry point cannot be loaded, is no `Family`, calls itself by
            another name, or takes a name that is taken.
    """
    known = dict(FAMILIES)
    for point in sorted(entry_points(group=GROUP), key=lambda point: point.name):
        if point.name in known:
            raise MachineError(f"{_origin(point)} brings a second family {point.name!r}; {_remedy(point)}")
        known[point.name] = _loaded(point)
    return MappingProxyType(known)


def _loaded(point: EntryPoint) -> Family:
    try:
        family = point.load()
    except Exception as error:  # another package's code may raise anything
        raise MachineError(
            f"{_origin(point)} has a family {point.name!r} that does not load: {type(error).__name__}: {error}; "
            f"{_remedy(point)}"
        ) from error
    if not isinstance(family, Family):
        raise MachineError(
            f"{_origin(point)} has a family {point.name!r} that is a {type(family).__name__}; expected a "
            f"mae_export.encoders.families.Family at {point.value}; {_remedy(point)}"
        )
    if family.name != point.name:
        raise MachineError(
            f"{_origin(point)} has a family {point.name!r} that calls itself {family.name!r}; expected the same name; "
            f"{_remedy(point)}"
        )
    return family


def _origin(point: EntryPoint) -> str:
    return "a package without metadata" if point.dist is None else f"{point.dist.name} {point.dist.version}"


def _remedy(point: EntryPoint) -> str:
    return f"repair it or run: pip uninstall {'it' if point.dist is None else point.dist.name}"
