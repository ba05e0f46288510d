"""Whether two models agree: the one comparison that decides if an artefact may exist.

A candidate runs on photographs and on adversarial images (black, white, one hot pixel), at batch 1, 2 and N, with all
patches and with some. Each output is compared with the reference's: max |a - b| / max(1, max |b|), cosines of every
vector raw and after subtracting the mean over images, noise, and nearest neighbours. The candidate must also agree
with itself: the same rows again, identical rows, permuted rows, a row alone, and rows whose neighbour becomes an
extreme image. `thresholds.py` says how well, for each precision.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from mae_export.errors import InputError, VerificationError
from mae_export.manifest import Manifest, Verification
from mae_export.runtime.metrics import Agreement, agreement, feature_vectors, relative_error
from mae_export.runtime.patchify import patchify
from mae_export.runtime.probes import adversarial_images, probe_photos
from mae_export.runtime.session import Session
from mae_export.runtime.thresholds import Limits, limits_of
from mae_export.runtime.visible import hidden_patches

Array = npt.NDArray[Any]

PHOTOS = 4  # shown with the adversarial images when the caller brings none: few, for every export waits for them
BATCH = 16  # images per run, so that a large set needs no more memory than a small one
ROWS = 8  # of the batch in which a model is compared with itself


@dataclass(frozen=True, kw_only=True)
class Check:
    """One comparison of one output.

    Attributes:
        name: what was compared, for people.
        output: name of the output.
        error: of values, max |a - b| / max(1, max |b|); of cosines and shares, 1 minus them; of noise, its ratio to
            the signal. Infinite when values are not finite.
        limit: what it may be.
    """

    name: str
    output: str
    error: float
    limit: float

    @property
    def passed(self) -> bool:
        """Whether the error is within the limit."""
        return self.error <= self.limit

    @property
    def share(self) -> float:
        """Error over limit; the check fails above 1."""
        return self.error / self.limit


@dataclass(frozen=True, kw_only=True)
class Measured:
    """How one output agrees over all images of a scene; `agreement.worst_image` counts in the images shown."""

    scene: str
    output: str
    agreement: Agreement


@dataclass(frozen=True, kw_only=True)
class Report:
    """All checks of a candidate against a reference, and the figures behind those on whole sets of images."""

    candidate: str
    reference: str
    checks: tuple[Check, ...]
    measured: tuple[Measured, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether every check is within its limit."""
        return all(check.passed for check in self.checks)

    @property
    def worst(self) -> Check:
        """The check whose error is the largest share of its limit."""
        return max(self.checks, key=lambda check: check.share)

    def by_output(self) -> dict[str, Check]:
        """The worst check of each output, in the order of the outputs."""
        worst: dict[str, Check] = {}
        for check in self.checks:
            if check.output not in worst or check.share > worst[check.output].share:
                worst[check.output] = check
        return worst

    def worst_scenes(self) -> dict[str, Measured]:
        """Where each output has its smallest centred cosine."""
        worst: dict[str, Measured] = {}
        for found in sorted(self.measured, key=lambda found: found.agreement.centred_cosine.minimum):
            worst.setdefault(found.output, found)
        return worst


@dataclass(frozen=True, kw_only=True)
class Scene:
    """Images and what is visible of each, from which any model's feeds are made.

    Attributes:
        name: for people.
        images: uint8 [B, H, W, C].
        ids_keep: int64 [B, K], or None for all patches.
        num_keep: int32 [B] when rows keep fewer than K, else None.
    """

    name: str
    images: Array
    ids_keep: Array | None = None
    num_keep: Array | None = None

    def take(self, rows: Array | list[int], name: str) -> Scene:
        """The same scene with other rows."""
        return Scene(
            name=f"{self.name}, {name}",
            images=self.images[rows],
            ids_keep=None if self.ids_keep is None else self.ids_keep[rows],
            num_keep=None if self.num_keep is None else self.num_keep[rows],
        )


def feeds_of(scene: Scene, manifest: Manifest) -> dict[str, Array]:
    """The feeds that show a scene to a model.

    Raises:
        InputError: when the scene hides patches and the model has no mask input.
    """
    if manifest.mask_mode == "none":
        if scene.ids_keep is not None:
            raise InputError("this graph has no mask input; export it with --mask keep, patches or mask-token")
        return {"images": scene.images}
    batch, count = len(scene.images), manifest.patches.count
    ids = scene.ids_keep if scene.ids_keep is not None else np.tile(np.arange(count, dtype=np.int64), (batch, 1))
    if manifest.mask_mode == "mask-token":
        return {"images": scene.images, "mask": hidden_patches(_rows(ids, scene.num_keep), count)}
    feeds: dict[str, Array] = {"images": scene.images, "ids_keep": ids}
    if manifest.mask_mode == "patches":
        cells = patchify(scene.images, manifest.patches)
        feeds = {"patches": np.take_along_axis(cells, ids[:, :, None], axis=1), "ids_keep": ids}
    if manifest.ragged:
        feeds["num_keep"] = np.full(batch, ids.shape[1], dtype=np.int32) if scene.num_keep is None else scene.num_keep
    return feeds


def _rows(ids: Array, num_keep: Array | None) -> list[Array]:
    """What is visible of each row, without padding."""
    return list(ids) if num_keep is None else [row[:kept] for row, kept in zip(ids, num_keep, strict=True)]


def scenes(manifest: Manifest, images: Array | None = None) -> Iterator[Scene]:
    """What a model is shown: all patches, and where it takes a mask a quarter of them in random order.

    Rows show different numbers of patches where a model takes that.

    Args:
        manifest: of the model.
        images: uint8 [n, H, W, C]; None means 4 photographs and the 3 adversarial images.
    """
    if images is None:
        images = np.concatenate([probe_photos(manifest.image)[:PHOTOS], adversarial_images(manifest.image)])
    yield Scene(name="all patches", images=images)
    if manifest.mask_mode == "none":
        return
    draws = np.random.default_rng(0)
    count = manifest.patches.count
    kept = max(1, count // 4)
    ids = np.stack([draws.permutation(count)[:kept] for _ in images]).astype(np.int64)
    yield Scene(name="a quarter of the patches", images=images, ids_keep=ids)
    if manifest.ragged or manifest.mask_mode == "mask-token":
        num = draws.integers(1, kept + 1, len(images)).astype(np.int32)
        yield Scene(name="rows of different length", images=images, ids_keep=ids, num_keep=num)


def compare(
    candidate: Session, reference: Session, *, images: Array | None = None, limits: Limits | None = None
) -> Report:
    """Compare every output that both models have.

    Args:
        candidate: the model to judge.
        reference: the model to trust.
        images: uint8 [n, H, W, C], at least two that differ. None means the 7 of `scenes`: what the gate of an export
            can afford with the largest encoders. `probes.verification_images` gives more.
        limits: None means those of the candidate's precision.

    Raises:
        InputError: when the models take different images or share no output, or the images do not fit.
    """
    names = _shared_outputs(candidate.manifest, reference.manifest)
    _require_fitting(images, candidate.manifest)
    limits = limits or limits_of(candidate.manifest.precision)
    masked = _common_mask(candidate.manifest, reference.manifest)
    checks: list[Check] = []
    measured: list[Measured] = []
    for scene in scenes(masked, images):
        expected, found = (_run(session, scene, names) for session in (reference, candidate))
        for name in names:
            pair = (feature_vectors(name, values[name]) for values in (found, expected))
            measured.append(Measured(scene=scene.name, output=name, agreement=agreement(*pair)))
            checks += _of_the_set(measured[-1], limits)
        checks += _of_small_batches(candidate, scene, expected, limits.error)
        checks += _against_itself(candidate, scene, found, limits.consistency)
    return Report(
        candidate=candidate.description, reference=reference.description, checks=tuple(checks), measured=tuple(measured)
    )


def require(report: Report, kept_as: str) -> None:
    """Raise unless the report passed.

    Raises:
        VerificationError: naming the worst output, the comparison, and where the rejected file is.
    """
    if report.passed:
        return
    worst = report.worst
    failed = sum(not check.passed for check in report.checks)
    raise VerificationError(
        f"output {worst.output!r} is off by {worst.error:.3g} (limit {worst.limit:g}) with {worst.name}; "
        f"{failed} of {len(report.checks)} checks failed against {report.reference}. {kept_as}"
    )


def summary_of(report: Report, reference: str) -> Verification:
    """What a manifest keeps of a comparison: its worst check, and in words what it was made with."""
    worst = report.worst
    return Verification(
        reference=reference,
        worst_output=worst.output,
        error=float(np.format_float_scientific(worst.error, precision=3)),
        limit=worst.limit,
        checks=len(report.checks),
    )


def _require_fitting(images: Array | None, manifest: Manifest) -> None:
    wanted = (*manifest.image.size, manifest.image.channels)
    if images is not None and (images.dtype != np.uint8 or images.shape[1:] != wanted or len(images) < 2):
        raise InputError(
            f"the images are {images.dtype} {list(images.shape)}; expected uint8 [n, {', '.join(map(str, wanted))}] "
            "with n of 2 or more"
        )


def _common_mask(candidate: Manifest, reference: Manifest) -> Manifest:
    """The one whose masks both models take; without any where one drops patches and the other replaces them."""
    if "none" not in (candidate.mask_mode, reference.mask_mode):
        replaces = [manifest.mask_mode == "mask-token" for manifest in (candidate, reference)]
        if replaces[0] != replaces[1]:
            return replace(candidate, mask_mode="none", ragged=False)
    return min((candidate, reference), key=lambda manifest: (manifest.mask_mode != "none", manifest.ragged))


def _shared_outputs(candidate: Manifest, reference: Manifest) -> list[str]:
    if candidate.image.size != reference.image.size or candidate.patches.grid != reference.patches.grid:
        raise InputError(
            f"the candidate takes images of {candidate.image.size}, the reference of {reference.image.size}; "
            "export both for one size"
        )
    theirs = {spec.name for spec in reference.outputs}
    names = [spec.name for spec in candidate.outputs if spec.name in theirs]
    if not names:
        raise InputError(
            f"no output in common: the candidate has {', '.join(spec.name for spec in candidate.outputs)}, "
            f"the reference {', '.join(sorted(theirs))}"
        )
    return names


def _run(session: Session, scene: Scene, names: list[str]) -> dict[str, Array]:
    """All rows of a scene, `BATCH` at a time."""
    rows = np.arange(len(scene.images))
    parts = [
        session.run(feeds_of(scene.take(rows[first : first + BATCH], "part"), session.manifest), names)
        for first in range(0, len(rows), BATCH)
    ]
    return {name: np.concatenate([part[name] for part in parts]) for name in names}


def _of_the_set(measured: Measured, limits: Limits) -> Iterator[Check]:
    found = measured.agreement
    compared = [("values", found.max_error, limits.error)]
    for kind, cosines in (("cosine", found.cosine), ("centred cosine", found.centred_cosine)):
        compared += [
            (f"{kind}, minimum", 1 - cosines.minimum, _short(1 - limits.minimum)),
            (f"{kind}, first percentile", 1 - cosines.first_percentile, _short(1 - limits.first_percentile)),
            (f"{kind}, median", 1 - cosines.median, _short(1 - limits.median)),
        ]
    compared.append(("noise over signal", 10 ** (-found.sqnr / 20), 10 ** (-limits.sqnr / 20)))
    if found.neighbours is not None:
        compared.append(("10 nearest images", 1 - found.neighbours, _short(1 - limits.neighbours)))
    for name, error, limit in compared:
        yield Check(name=f"{measured.scene}, {name}", output=measured.output, error=max(0.0, error), limit=limit)


def _short(limit: float) -> float:
    """Without the digits that 1 - 0.9999 brings along."""
    return round(limit, 12)


def _of_small_batches(candidate: Session, scene: Scene, expected: Mapping[str, Array], limit: float) -> Iterator[Check]:
    total = len(scene.images)
    for rows in ([total // 2], [0, total - 1]):
        part = scene.take(rows, f"batch {len(rows)}")
        for name, values in candidate.run(feeds_of(part, candidate.manifest), list(expected)).items():
            yield Check(name=part.name, output=name, error=relative_error(values, expected[name][rows]), limit=limit)


def _against_itself(candidate: Session, scene: Scene, found: Mapping[str, Array], limit: float) -> Iterator[Check]:
    """Rows may not depend on when, where in a batch, with how many, or beside which others they are computed."""
    total = len(scene.images)
    spread = np.unique(np.linspace(0, total - 1, min(ROWS, total)).astype(np.int64))
    order = np.random.default_rng(1).permutation(spread)
    trio = spread[[0, len(spread) // 2, -1]]
    crowd = scene.take(trio, "an extreme neighbour")
    extreme = np.where(crowd.images[1:2] < 128, np.uint8(255), np.uint8(0))  # the negative, in black and white
    runs = (
        (scene.take(spread, "repeated"), spread, slice(None)),
        (scene.take(order, "permuted rows"), order, slice(None)),
        (scene.take(trio[1:2], "a row alone"), trio[1:2], slice(None)),
        (scene.take(trio[[1, 1, 1]], "identical rows"), trio[[1, 1, 1]], slice(None)),
        (replace(crowd, images=np.concatenate([crowd.images[:1], extreme, crowd.images[2:]])), trio, slice(0, 3, 2)),
    )
    for part, rows, judged in runs:
        for name, values in candidate.run(feeds_of(part, candidate.manifest), list(found)).items():
            error = relative_error(values[judged], found[name][rows][judged])
            yield Check(name=part.name, output=name, error=error, limit=limit)
