"""The families of published checkpoints, by name."""

from mae_export.encoders.families import mae
from mae_export.encoders.families.family import Facts, Family, Layout, Shapes

FAMILIES: dict[str, Family] = {
    "mae": mae.FAMILY,
}

__all__ = ["FAMILIES", "Facts", "Family", "Layout", "Shapes"]
