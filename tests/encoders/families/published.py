"""Published sizes and names without any weights, for the tests of families."""

from __future__ import annotations

import re
from collections.abc import Iterable

import torch

from mae_export.encoders.encoder import Encoder
from mae_export.encoders.families import Facts, Family, Layout, Shapes
from mae_export.encoders.overrides import Overrides
from mae_export.spec import EncoderSpec


def shapes_of(spec: EncoderSpec, encoder: type[Encoder]) -> Shapes:
    """Shapes of such an encoder's tensors, by our names."""
    with torch.device("meta"):
        return {name: tuple(tensor.shape) for name, tensor in encoder(spec).state_dict().items()}


def parameters_of(spec: EncoderSpec, encoder: type[Encoder]) -> int:
    """Numbers that the encoder holds, without its decoder or head."""
    shapes = shapes_of(spec, encoder)
    return sum(torch.Size(shape).numel() for name, shape in shapes.items() if not name.startswith("decoder."))


def derived(family: Family, shapes: Shapes, overrides: Overrides | None = None) -> EncoderSpec:
    """What the family says of such tensors."""
    return family.spec(Facts(shapes=shapes, metadata={}, overrides=overrides or Overrides()))[0]


def renamed(names: Iterable[str], layout: Layout) -> dict[str, str]:
    """What each name of a file becomes; names that the layout does not take are left out."""
    found = {}
    for name in names:
        fitting = [(match, new) for old, new in layout.renames if (match := re.fullmatch(old, name))]
        if fitting:
            match, new = fitting[0]
            found[name] = match.expand(new)
    return found


def reasons(names: Iterable[str], layout: Layout) -> dict[str, str]:
    """Why the layout leaves names out, of those that it knows and does not take."""
    rest = set(names) - set(renamed(names, layout))
    return {name: why for name in rest for pattern, why in reversed(layout.ignored) if re.fullmatch(pattern, name)}
