"""What a family of published checkpoints is to the loader: layouts to recognise, names, a spec to derive."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from mae_export.encoders.encoder import Encoder
from mae_export.encoders.overrides import Overrides
from mae_export.encoders.vit import ViT
from mae_export.errors import CheckpointError
from mae_export.manifest import MaskMode
from mae_export.spec import EncoderSpec, ImageSpec, Pooled

Shapes = Mapping[str, tuple[int, ...]]
EVALUATED = ImageSpec(size=(224, 224), crop_fraction=224 / 256)  # as MAE and most others evaluate


@dataclass(frozen=True, kw_only=True)
class Layout:
    """One way in which a family's tensors are named in files.

    Attributes:
        name: for people.
        required: regular expressions; each must match a whole tensor name of the file.
        forbidden: regular expressions; none may match a whole tensor name.
        renames: (regular expression, replacement) pairs from the file's names to the encoder's; the first that
            matches the whole name wins. Query, key and value named `...attn.q.*`, `.k.*`, `.v.*` are joined into one,
            and `...attn.q_bias` and `...attn.v_bias` become the joined bias, with zeros for the key.
        ignored: (regular expression, reason) pairs for tensors that the encoder does not use.
        model_type: what config.json must say; None for layouts without one.
        adapt: changes tensors, by the encoder's names and in place, where renaming is not enough.
        asked: taken only with `--family NAME`: another family's files are named in the same way, and it recognises
            them.
        encoder: which architecture its tensors are of, when they tell more than the spec; None asks the family.
    """

    name: str
    required: tuple[str, ...]
    forbidden: tuple[str, ...] = ()
    renames: tuple[tuple[str, str], ...]
    ignored: tuple[tuple[str, str], ...] = ()
    model_type: str | None = None
    adapt: Callable[[dict[str, Tensor]], None] | None = None
    asked: bool = False
    encoder: type[Encoder] | None = None

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
    """What a family derives a spec from: shapes by the encoder's own names, the file's metadata, the user's words.

    `where` is the file, for messages.
    """

    shapes: Shapes
    metadata: Mapping[str, Any]
    overrides: Overrides
    where: str = "the checkpoint"

    def shape(self, name: str, rank: int) -> tuple[int, ...]:
        """Extents of a tensor, by the encoder's name.

        Raises:
            CheckpointError: when it is missing, or has another number of dimensions or an empty one.
        """
        if name not in self.shapes:
            raise CheckpointError(f"{self.where} lacks {name}; the encoder cannot be sized without it")
        shape = self.shapes[name]
        if len(shape) != rank or 0 in shape:
            raise CheckpointError(f"{self.where}: {name} has shape {list(shape)}; expected {rank} dimensions above 0")
        return shape

    def stated(self, key: str, kind: type[int] | type[float]) -> Any:
        """A number of config.json; None when it does not say.

        Raises:
            CheckpointError: when it says something else than a positive number of that kind.
        """
        value = self.metadata.get(key)
        if value is not None and (type(value) is not kind or value <= 0):
            raise CheckpointError(f"config.json says {key}={value!r}; expected a positive {kind.__name__}; correct it")
        return value


@dataclass(frozen=True, kw_only=True)
class Variant:
    """A published size: width, blocks, heads, hidden width of the MLP (0 for 4 widths), patch and image in pixels.

    `parameters` counts the encoder's numbers at that image size, positions and tokens included, decoder left out.
    """

    name: str
    dim: int
    depth: int
    heads: int
    patch: int
    parameters: int
    image: int = 224
    mlp_hidden: int = 0


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
        encoder: which architecture a spec is of.
        trained: how patches were hidden in training: `keep` when they were dropped, `mask-token` when replaced,
            `none` when all were shown.
        feature: the authors' feature of a pre-trained file.
        image: how images are prepared for the sizes below.
        variants: published sizes.
        checked: what of it was compared with whose numbers.
        undecoded: why a prediction cannot be had when a spec has no decoder, and what to do where something can be.
    """

    name: str
    title: str
    repository: str
    licence: str
    layouts: tuple[Layout, ...]
    spec: Callable[[Facts], tuple[EncoderSpec, tuple[str, ...]]]
    outputs: Callable[[EncoderSpec], Mapping[str, str]]
    encoder: Callable[[EncoderSpec], type[Encoder]] = lambda _: ViT
    trained: MaskMode = "keep"
    feature: Pooled = "class_token"
    image: ImageSpec = EVALUATED
    variants: tuple[Variant, ...] = ()
    checked: str = ""
    undecoded: str = "this checkpoint holds no decoder"
