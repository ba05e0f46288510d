"""What a family of published checkpoints is to the loader: layouts to recognise, names, a spec to derive."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from mae_export.encoders.overrides import Overrides
from mae_export.spec import EncoderSpec

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True, kw_only=True)
class Layout:
    """One way in which a family's tensors are named in files.

    Attributes:
        name: for people.
        required: regular expressions; each must match a whole tensor name of the file.
        forbidden: regular expressions; none may match a whole tensor name.
        renames: (regular expression, replacement) pairs from the file's names to the encoder's; the first that
            matches the whole name wins. Query, key and value named `...attn.q.*`, `.k.*`, `.v.*` are joined into one.
        ignored: (regular expression, reason) pairs for tensors that the encoder does not use.
        model_type: what config.json must say; None for layouts without one.
    """

    name: str
    required: tuple[str, ...]
    forbidden: tuple[str, ...] = ()
    renames: tuple[tuple[str, str], ...]
    ignored: tuple[tuple[str, str], ...] = ()
    model_type: str | None = None

    def matched(self, names: frozenset[str], model_type: str | None) -> float:
        """Share of this layout's conditions that a file meets; 1.0 recognises it."""
        text = "\n".join(sorted(names))
        conditions = [_found(pattern, text) for pattern in self.required]
        conditions += [not _found(pattern, text) for pattern in self.forbidden]
        conditions.append(model_type == self.model_type)
        return sum(conditions) / len(conditions)


def _found(pattern: str, text: str) -> bool:
    return re.search(f"^(?:{pattern})$", text, re.MULTILINE) is not None


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What a family derives a spec from: shapes by the encoder's own names, the file's metadata, the user's words."""

    shapes: Shapes
    metadata: Mapping[str, Any]
    overrides: Overrides


@dataclass(frozen=True, kw_only=True)
class Family:
    """A family of published checkpoints.

    Attributes:
        name: key in FAMILIES, as given to `--family`.
        title: paper's name and venue.
        repository: where the authors publish.
        licence: of the published weights.
        layouts: ways in which its files name their tensors.
        spec: derives the spec and notes for the load report.
        outputs: what each output holds for a spec, with its source, by output name.
    """

    name: str
    title: str
    repository: str
    licence: str
    layouts: tuple[Layout, ...]
    spec: Callable[[Facts], tuple[EncoderSpec, tuple[str, ...]]]
    outputs: Callable[[EncoderSpec], Mapping[str, str]]
