"""Whether two models agree: the one comparison that decides if an artefact may exist.

A candidate runs on photographs and on adversarial images (black, white, one hot pixel), at batch 1, 2 and N, with all
patches and with some, and each output is compared with the reference's. It must also agree with itself: identical rows
give identical outputs, and permuted rows permute. Errors are max |a - b| / max(1, max |b|), per output.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from mae_export.errors import InputError
from mae_export.manifest import Manifest
from mae_export.runtime.metrics import relative_error
from mae_export.runtime.patchify import patchify
from mae_export.runtime.probes import adversarial_images, probe_photos
from mae_export.runtime.session import Session

Array = npt.NDArray[Any]

FLOAT32_LIMIT = 1e-4  # candidate against reference
SELF_LIMIT = 1e-5  # rows against rows of the same model; blocking of matrix products may differ, nothing else
PHOTOS = 4


@dataclass(frozen=True, kw_only=True)
class Check:
    """One comparison of one output.

    Attributes:
        name: what was compared, for people.
        output: name of the output.
        error: max |a - b| / max(1, max |b|); infinite when anything is not finite.
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
class Report:
    """All checks of a candidate against a reference."""

    candidate: str
    reference: str
    checks: tuple[Check, ...]

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
            raise InputError("this graph has no mask input; export it with --mask keep or --mask patches")
        return {"images": scene.images}
    batch, count = len(scene.images), manifest.patches.count
    ids = scene.ids_keep if scene.ids_keep is not None else np.tile(np.arange(count, dtype=np.int64), (batch, 1))
    feeds: dict[str, Array] = {"images": scene.images, "ids_keep": ids}
    if manifest.mask_mode == "patches":
        cells = patchify(scene.images, manifest.patches)
        feeds = {"patches": np.take_along_axis(cells, ids[:, :, None], axis=1), "ids_keep": ids}
    if manifest.ragged:
        feeds["num_keep"] = np.full(batch, ids.shape[1], dtype=np.int32) if scene.num_keep is None else scene.num_keep
    return feeds


def scenes(manifest: Manifest) -> Iterator[Scene]:
    """What a model is shown: all patches, and where it takes a mask a quarter of them in random order."""
    images = np.concatenate([probe_photos(manifest.image)[:PHOTOS], adversarial_images(manifest.image)])
    yield Scene(name="all patches", images=images)
    if manifest.mask_mode == "none":
        return
    draws = np.random.default_rng(0)
    count = manifest.patches.count
    kept = max(1, count // 4)
    ids = np.stack([draws.permutation(count)[:kept] for _ in images]).astype(np.int64)
    yield Scene(name="a quarter of the patches", images=images, ids_keep=ids)
    if manifest.ragged:
        num = draws.integers(1, kept + 1, len(images)).astype(np.int32)
        yield Scene(name="rows of different length", images=images, ids_keep=ids, num_keep=num)


def compare(candidate: Session, reference: Session, *, limit: float = FLOAT32_LIMIT) -> Report:
    """Compare every output that both models have.

    Args:
        candidate: the model to judge.
        reference: the model to trust.
        limit: of the error of each output.

    Raises:
        InputError: when the models take different images or share no output.
    """
    names = _shared_outputs(candidate.manifest, reference.manifest)
    masked = min((candidate.manifest, reference.manifest), key=_mask_freedom)
    checks: list[Check] = []
    for scene in scenes(masked):
        expected = reference.run(feeds_of(scene, reference.manifest), names)
        checks += _against_reference(candidate, scene, expected, limit)
        checks += _against_itself(candidate, scene, names)
    return Report(candidate=candidate.description, reference=reference.description, checks=tuple(checks))


def _mask_freedom(manifest: Manifest) -> int:
    return 0 if manifest.mask_mode == "none" else 1 + manifest.ragged


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


def _against_reference(
    candidate: Session, scene: Scene, expected: Mapping[str, Array], limit: float
) -> Iterator[Check]:
    total = len(scene.images)
    for batch in (total, 1, 2):
        rows = list(range(batch)) if batch > 1 else [total // 2]
        part = scene.take(rows, f"batch {batch}")
        found = candidate.run(feeds_of(part, candidate.manifest), list(expected))
        for name, values in found.items():
            yield Check(name=part.name, output=name, error=relative_error(values, expected[name][rows]), limit=limit)


def _against_itself(candidate: Session, scene: Scene, names: list[str]) -> Iterator[Check]:
    same = scene.take([0, 0, 0], "identical rows")
    for name, values in candidate.run(feeds_of(same, candidate.manifest), names).items():
        error = max(relative_error(a, b) for a, b in itertools.combinations(values, 2))
        yield Check(name=same.name, output=name, error=error, limit=SELF_LIMIT)
    order = np.random.default_rng(1).permutation(len(scene.images))
    straight = candidate.run(feeds_of(scene, candidate.manifest), names)
    permuted = candidate.run(feeds_of(scene.take(order, "permuted rows"), candidate.manifest), names)
    for name in names:
        error = relative_error(permuted[name], straight[name][order])
        yield Check(name=f"{scene.name}, permuted rows", output=name, error=error, limit=SELF_LIMIT)
