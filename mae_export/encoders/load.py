"""From a checkpoint file to an encoder: which family it is, what each tensor became, and a report that says so."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from mae_export.encoders.checkpoint import Checkpoint, read_checkpoint, require_finite
from mae_export.encoders.encoder import Encoder
from mae_export.encoders.families.family import Facts, Family, Layout
from mae_export.encoders.families.installed import families
from mae_export.encoders.overrides import Overrides
from mae_export.encoders.projections import join_projections
from mae_export.errors import CheckpointError, LayoutError, UsageError
from mae_export.spec import EncoderSpec

COPIED_AT_ONCE = 1 << 22  # bytes of the file that are cast before their originals leave memory
LISTED = 20  # names in one message before it says how many more


@dataclass(frozen=True, kw_only=True)
class LoadReport:
    """What became of a checkpoint.

    Attributes:
        path: the file or folder.
        sha256: of the weight file.
        family: name of the family.
        layout: which of its layouts.
        spec: what was derived.
        used: names in the file whose tensors the encoder holds.
        ignored: (name in the file, reason) of those it does not.
        missing: names of the encoder that the file lacks; always empty in a report that was returned.
        notes: conversions and choices worth knowing.
        licence: of the published weights.
    """

    path: Path
    sha256: str
    family: str
    layout: str
    spec: EncoderSpec
    used: tuple[str, ...]
    ignored: tuple[tuple[str, str], ...]
    missing: tuple[str, ...]
    notes: tuple[str, ...]
    licence: str


@dataclass(frozen=True, kw_only=True)
class _Translation:
    tensors: dict[str, Tensor]  # by the encoder's names
    origin: dict[str, str]  # encoder's name -> name in the file
    ignored: tuple[tuple[str, str], ...]
    unexpected: tuple[str, ...]


def load_encoder(
    path: str | Path, *, family: str | None = None, overrides: Overrides | None = None
) -> tuple[Encoder, LoadReport]:
    """Load a published checkpoint.

    Args:
        path: `.pth`, `.pt` or `.safetensors` file, or a Hugging Face folder.
        family: name of a family; None recognises it.
        overrides: what the tensors do not say; None when nothing.

    Returns:
        The encoder in float32 and evaluation mode, and the report.

    Raises:
        CheckpointError: when the file cannot be read, a tensor is missing or misshapen, or a fact is unknown.
        LayoutError: when no family recognises the file, or several do.
        SecurityError: when the file asks for more than tensors.
    """
    overrides = overrides or Overrides()
    checkpoint = read_checkpoint(path, weights=overrides.weights)
    chosen, layout = recognise(checkpoint, family)
    translation = _translate(checkpoint.tensors, layout, overrides.ignore)
    if translation.unexpected:
        raise LayoutError(
            f"{checkpoint.path} looks like {chosen.name} but holds {len(translation.unexpected)} tensors that "
            f"{chosen.name} does not have: {_some(translation.unexpected)}. If they may stay unused, pass "
            "--set ignore=PREFIX[,PREFIX...]; otherwise this is another model"
        )
    if layout.adapt is not None:
        layout.adapt(translation.tensors)
    shapes = {name: tuple(tensor.shape) for name, tensor in translation.tensors.items()}
    spec, notes = chosen.spec(
        Facts(shapes=shapes, metadata=checkpoint.metadata, overrides=overrides, where=str(checkpoint.path))
    )
    architecture = layout.encoder or chosen.encoder(spec)
    sharing = () if family else _sharing(checkpoint)
    _require_fit(spec, architecture, shapes, checkpoint.path, hints=sharing)
    tensors, casts = _to_float32(translation.tensors, checkpoint)
    require_finite(tensors)
    _require_trained(tensors, checkpoint.path)
    report = LoadReport(
        path=checkpoint.path,
        sha256=checkpoint.sha256,
        family=chosen.name,
        layout=layout.name,
        spec=spec,
        used=tuple(sorted(translation.origin.values())),
        ignored=translation.ignored,
        missing=(),
        notes=(*checkpoint.notes, *sharing, *notes, *casts),
        licence=chosen.licence,
    )
    return architecture.from_state(spec, tensors), report


def recognise(checkpoint: Checkpoint, family: str | None = None) -> tuple[Family, Layout]:
    """The one family and layout that a checkpoint's tensor names belong to.

    Raises:
        UsageError: when `family` is not a known name.
        LayoutError: when no layout fits or more than one family does; the message lists what was seen and how near
            each family is.
    """
    known = families()
    if family is not None and family not in known:
        raise UsageError(f"family {family!r} is not known; known families: {', '.join(known)}")
    names, model_type = _seen(checkpoint)
    scores = [
        (layout.matched(names, model_type), candidate, layout)
        for candidate in known.values()
        for layout in candidate.layouts
        if (family is None and not layout.asked) or candidate.name == family
    ]
    fitting = [(candidate, layout) for score, candidate, layout in scores if score == 1.0]
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        listed = ", ".join(f"{candidate.name} ({layout.name})" for candidate, layout in fitting)
        raise LayoutError(f"{checkpoint.path} fits several layouts: {listed}; choose one with --family NAME")
    nearest = sorted(scores, key=lambda item: -item[0])[:3]
    listed = ", ".join(f"{candidate.name} ({layout.name}, {score:.0%})" for score, candidate, layout in nearest)
    where = f"under {checkpoint.container!r}" if checkpoint.container else "at the top level"
    kind = f" config.json says model_type={model_type!r}." if model_type else ""
    verdict = "no family recognises" if family is None else f"{family} does not recognise"
    raise LayoutError(
        f"{verdict} {checkpoint.path}.{kind} It holds {len(names)} tensors {where}, such as {_some(sorted(names), 8)}. "
        f"Nearest: {listed}. Expected a masked-image-modelling encoder as its authors published it"
    )


def _seen(checkpoint: Checkpoint) -> tuple[frozenset[str], str | None]:
    return frozenset(checkpoint.tensors), checkpoint.metadata.get("model_type")


def _sharing(checkpoint: Checkpoint) -> tuple[str, ...]:
    """A note naming the families whose files cannot be told from this one by their names."""
    others = [
        candidate.name
        for candidate in families().values()
        if any(layout.asked and layout.matched(*_seen(checkpoint)) == 1.0 for layout in candidate.layouts)
    ]
    if not others:
        return ()
    return (
        f"files of {', '.join(others)} name their tensors in the same way; if this is one of them, pass --family NAME "
        "for its preprocessing, licence and feature",
    )


def _some(names: Sequence[str], limit: int = LISTED) -> str:
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more


def _translate(tensors: Mapping[str, Tensor], layout: Layout, ignore: tuple[str, ...]) -> _Translation:
    renamed: dict[str, Tensor] = {}
    origin: dict[str, str] = {}
    ignored: list[tuple[str, str]] = []
    unexpected: list[str] = []
    for name, tensor in tensors.items():
        target = _first_match(name, layout.renames)
        if any(name.startswith(prefix) for prefix in ignore):
            ignored.append((name, "asked to be ignored"))
        elif target is not None:
            if target in origin:
                raise LayoutError(
                    f"{origin[target]} and {name} are both the encoder's {target}; pass --set ignore=PREFIX for the "
                    "one to leave out"
                )
            renamed[target] = tensor
            origin[target] = name
        elif reasons := [reason for pattern, reason in layout.ignored if re.fullmatch(pattern, name)]:
            ignored.append((name, reasons[0]))
        else:
            unexpected.append(name)
    return _Translation(
        tensors=join_projections(renamed), origin=origin, ignored=tuple(ignored), unexpected=tuple(sorted(unexpected))
    )


def _first_match(name: str, renames: tuple[tuple[str, str], ...]) -> str | None:
    for pattern, replacement in renames:
        match = re.fullmatch(pattern, name)
        if match:
            return match.expand(replacement)
    return None


def _require_fit(
    spec: EncoderSpec,
    architecture: type[Encoder],
    shapes: Mapping[str, tuple[int, ...]],
    path: Path,
    *,
    hints: tuple[str, ...],
) -> None:
    """Refuse tensors that are missing, superfluous or misshapen for the derived spec.

    `hints` are added when only the decoder does not fit: another family's may.
    """
    with torch.device("meta"):
        wanted = {name: tuple(tensor.shape) for name, tensor in architecture(spec).state_dict().items()}
    missing = sorted(set(wanted) - set(shapes))
    if missing:
        raise CheckpointError(f"{path} lacks {len(missing)} tensors of the encoder: {_some(missing)}")
    surplus = sorted(set(shapes) - set(wanted))
    if surplus:
        raise LayoutError(f"{path} holds {len(surplus)} tensors that no part of the encoder takes: {_some(surplus)}")
    wrong = [
        f"{name} is {list(shapes[name])}, expected {list(wanted[name])}"
        for name in wanted
        if shapes[name] != wanted[name]
    ]
    if wrong:
        decoder_only = all(text.startswith("decoder.") for text in wrong)
        raise CheckpointError(
            f"{path}: {len(wrong)} tensors do not fit a width of {spec.dim}, {spec.depth} blocks and a patch of "
            f"{spec.patch[1]}x{spec.patch[2]}: {'; '.join([*wrong[:5], *(hints if decoder_only else ())])}"
        )


def _require_trained(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Refuse weight matrices of one single value: a file of zeros loads well and gives features that mean nothing."""
    constant = [
        name
        for name, tensor in tensors.items()
        if tensor.ndim >= 2 and name.endswith(".weight") and bool(tensor.amin() == tensor.amax())
    ]
    if constant:
        raise CheckpointError(
            f"{path}: {len(constant)} weight matrices hold one single value throughout: {_some(sorted(constant))}. "
            "The file holds no trained weights; export it again from training"
        )


def _to_float32(tensors: dict[str, Tensor], checkpoint: Checkpoint) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Cast to float32, releasing each source as it goes; says what was cast."""
    counts: dict[str, int] = {}
    copied = 0
    for name, tensor in tensors.items():
        if tensor.dtype != torch.float32:
            kind = str(tensor.dtype).removeprefix("torch.")
            if not tensor.is_floating_point():
                raise CheckpointError(f"{name} is {kind}; expected floating-point weights")
            counts[kind] = counts.get(kind, 0) + 1
            tensors[name] = tensor.float()
            copied += tensor.nbytes
            if copied > COPIED_AT_ONCE:
                checkpoint.forget_pages()
                copied = 0
    return tensors, tuple(f"{count} {kind} tensors cast to float32" for kind, count in counts.items())
