"""Extracting features from many images: decode, run and store at the same time, and lose no image silently.

Threads decode ahead, one thread builds batches, the caller's thread runs the model, one thread stores. An image that
cannot be decoded, or that the model fails on, becomes a line of `failures.jsonl` and costs nobody else anything.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mae_export import __version__
from mae_export.errors import InputError, QuarantineError, ResourceError, UsageError, VerificationError
from mae_export.manifest import TensorSpec
from mae_export.runtime.batching import Batch, Batcher, check_plan
from mae_export.runtime.features import (
    FAILURES,
    SHARD_BYTES,
    FeaturesManifest,
    FeaturesWriter,
    Format,
    check_feature_names,
)
from mae_export.runtime.golden import check_golden
from mae_export.runtime.inputs import list_items
from mae_export.runtime.loading import Loaded, load
from mae_export.runtime.padding import without_padding
from mae_export.runtime.session import Session
from mae_export.runtime.shards import Row, Shard
from mae_export.runtime.stages import Ahead, Behind
from mae_export.runtime.visible import AllVisible, Plan, parse_visible

Array = npt.NDArray[Any]
BATCHES_READY = 2  # one is enough to hide the building of a batch; two hide one slow image
RUN_ERRORS = (InputError, ResourceError, RuntimeError, MemoryError)  # what one image may cause


@dataclass(frozen=True, kw_only=True)
class ExtractOptions:
    """How to extract.

    Attributes:
        features: outputs to compute and store; None means every output of the model.
        visible: `all`, `random:R[:seed]` or `file:X.npy`; see `mae_export.runtime.visible`.
        format: of the shards.
        batch: images per run.
        threads: decoding threads; 0 chooses by the machine.
        force: replace an existing features folder.
        error_budget: share of images that may fail before the job counts as failed.

    Raises:
        UsageError: when a value is out of range.
    """

    features: tuple[str, ...] | None = None
    visible: str = "all"
    format: Format = "npy"
    batch: int = 8
    threads: int = 0
    force: bool = False
    error_budget: float = 0.001

    def __post_init__(self) -> None:
        if self.features is not None and (not self.features or len(set(self.features)) < len(self.features)):
            raise UsageError(f"the features are {list(self.features)}; name at least one, each once")
        if self.format not in ("npy", "parquet"):
            raise UsageError(f"the format is {self.format!r}; expected npy or parquet")
        if self.batch < 1 or self.threads < 0:
            raise UsageError(f"batch is {self.batch}, threads {self.threads}; expected batch >= 1 and threads >= 0")
        if not 0 <= self.error_budget <= 1:
            raise UsageError(f"the error budget is {self.error_budget}; expected a share from 0 to 1, such as 0.001")


@dataclass(frozen=True, kw_only=True)
class ExtractReport:
    """What an extraction did.

    Attributes:
        rows_in: images listed.
        rows_ok: rows stored.
        rows_failed: lines in `failures.jsonl`.
        failures: number of failures by reason.
        shards: number of shards.
        seconds: wall time.
        images_per_second: rows stored per second of wall time.
        decode_wait_seconds: time the model waited for images.
        model_seconds: time the model ran.
        store_wait_seconds: time the model waited for the disk.
    """

    rows_in: int
    rows_ok: int
    rows_failed: int
    failures: dict[str, int]
    shards: int
    seconds: float
    images_per_second: float
    decode_wait_seconds: float
    model_seconds: float
    store_wait_seconds: float


@dataclass(frozen=True, kw_only=True)
class _Failure:
    item_id: str
    reason: str
    message: str


@dataclass(frozen=True, kw_only=True)
class _Ran:
    batch: Batch  # without feeds: pixels must not wait for the disk
    outputs: dict[str, Array]


@dataclass
class _Clock:
    """Seconds by stage."""

    seconds: dict[str, float] = field(default_factory=lambda: {"decode": 0.0, "model": 0.0, "store": 0.0})
    _last: float = field(default_factory=time.perf_counter)

    def lap(self, stage: str) -> None:
        """Charge the time since the last lap to a stage."""
        now = time.perf_counter()
        self.seconds[stage] += now - self._last
        self._last = now


def extract(
    session: Session,
    inputs: Sequence[str | Path],
    out: str | Path,
    *,
    options: ExtractOptions | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> ExtractReport:
    """Extract features of images into a folder.

    Args:
        session: an open model; it stays open.
        inputs: files, folders and lists of images.
        out: folder for the features, which must be new or empty unless `options.force`.
        options: how; defaults to `ExtractOptions()`.
        progress: called in this thread with images done and images in all.

    Returns:
        Counts and times.

    Raises:
        UsageError, InputError, MaskError: before anything is written, when the call does not fit the model.
        VerificationError: when the model fails its golden check.
        QuarantineError: when everything is written, but too many images failed.
        ResourceError: when the disk is full; finished shards stay.
    """
    out, options = Path(out), options or ExtractOptions()
    manifest = session.manifest
    specs = [manifest.output(name) for name in options.features or [spec.name for spec in manifest.outputs]]
    check_feature_names(tuple(spec.name for spec in specs))
    plan = parse_visible(options.visible)
    check_plan(manifest, plan)
    items = list_items(inputs)
    plan.check(len(items), manifest.patches.count)
    loaded = load(items, manifest.image, threads=options.threads)
    check_golden(session)
    job = _Job(session=session, specs=specs, plan=plan, options=options, loaded=loaded, rows_in=len(items))
    with FeaturesWriter(out, format=options.format, force=options.force) as writer:
        report = job.run(writer, progress)
    if report.rows_failed > options.error_budget * report.rows_in:
        reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(report.failures.items()))
        raise QuarantineError(
            f"{report.rows_failed} of {report.rows_in} images failed ({reasons}), more than the error budget of "
            f"{options.error_budget:.3%}; each is named in {out / FAILURES}. The other {report.rows_ok} rows are "
            "complete: mend the images, or raise --error-budget",
            report,
        )
    return report


@dataclass(frozen=True, kw_only=True)
class _Job:
    """One extraction whose every argument has been checked."""

    session: Session
    specs: list[TensorSpec]
    plan: Plan
    options: ExtractOptions
    loaded: Generator[Loaded, None, None]
    rows_in: int

    def run(self, writer: FeaturesWriter, progress: Callable[[int, int], None] | None) -> ExtractReport:
        started, begin = datetime.now(timezone.utc), time.perf_counter()
        clock, done = _Clock(), 0
        with Behind(limit=SHARD_BYTES) as behind, Ahead(self._prepare(), depth=BATCHES_READY) as ahead:
            for prepared in ahead:
                clock.lap("decode")
                for result in self._results(prepared):
                    clock.lap("model")
                    done += self._store(result, writer, behind)
                    clock.lap("store")
                if progress is not None:
                    progress(done, self.rows_in)
            behind.finish()
        shards = writer.finish()
        seconds, failed = time.perf_counter() - begin, sum(writer.failures.values())
        if writer.rows_ok + failed != self.rows_in:
            raise VerificationError(
                f"{self.rows_in} images went in, {writer.rows_ok} rows and {failed} failures came out; "
                "no manifest was written. This is a fault of mae-export: please report it"
            )
        report = ExtractReport(
            rows_in=self.rows_in,
            rows_ok=writer.rows_ok,
            rows_failed=failed,
            failures=dict(writer.failures),
            shards=len(shards),
            seconds=seconds,
            images_per_second=writer.rows_ok / seconds,
            decode_wait_seconds=clock.seconds["decode"],
            model_seconds=clock.seconds["model"],
            store_wait_seconds=clock.seconds["store"],
        )
        writer.write_manifest(self._manifest(report, shards, started))
        return report

    def _manifest(self, report: ExtractReport, shards: tuple[Shard, ...], started: datetime) -> FeaturesManifest:
        model = self.session.manifest
        return FeaturesManifest(
            model=self.session.name,
            model_sha256=self.session.digest,
            family=model.family,
            precision=model.precision,
            runtime=self.session.description,
            features=tuple(replace(spec, shape=spec.shape[1:]) for spec in self.specs),
            visible=self.plan.description,
            format=self.options.format,
            rows_in=report.rows_in,
            rows_ok=report.rows_ok,
            rows_failed=report.rows_failed,
            shards=shards,
            version=__version__,
            started=started.isoformat(timespec="seconds"),
            seconds=round(report.seconds, 3),
        )

    def _prepare(self) -> Generator[Batch | _Failure, None, None]:
        """Batches and images that cannot be decoded, as they come; runs in a thread of its own."""
        count = self.session.manifest.patches.count
        batcher = Batcher(self.session.manifest, self.options.batch)
        with closing(self.loaded):
            for loaded in self.loaded:
                item_id = loaded.item.id
                if loaded.pixels is None:
                    reason = loaded.error.reason if loaded.error else "no-pixels"
                    yield _Failure(item_id=item_id, reason=reason, message=str(loaded.error))
                    continue
                ids_keep = self.plan.ids_keep(loaded.index, item_id, count)
                batch = batcher.add(index=loaded.index, item_id=item_id, pixels=loaded.pixels, ids_keep=ids_keep)
                if batch is not None:
                    yield batch
        yield from batcher.rest()

    def _results(self, prepared: Batch | _Failure) -> Iterator[_Ran | _Failure]:
        """Run a batch; when it fails, run its rows alone, so that only the guilty ones are lost."""
        if isinstance(prepared, _Failure):
            yield prepared
            return
        try:
            outputs = self.session.run(prepared.feeds, [spec.name for spec in self.specs])
        except RUN_ERRORS as error:
            if len(prepared) == 1:
                yield _Failure(item_id=prepared.ids[0], reason="model-error", message=str(error))
                return
        else:
            self._check_rows(prepared, outputs)
            yield _Ran(batch=replace(prepared, feeds={}), outputs=outputs)
            return
        for at in range(len(prepared)):
            yield from self._results(prepared.row(at))

    def _check_rows(self, batch: Batch, outputs: dict[str, Array]) -> None:
        for spec in self.specs:
            if len(outputs[spec.name]) != len(batch):
                raise VerificationError(
                    f"{self.session.description} returned {len(outputs[spec.name])} rows of {spec.name!r} for "
                    f"{len(batch)} images; rows could not be told apart, so nothing more was stored"
                )

    def _store(self, result: _Ran | _Failure, writer: FeaturesWriter, behind: Behind) -> int:
        """Hand one result to the storing thread; returns how many images it settles."""
        if isinstance(result, _Failure):
            call = partial(writer.fail, result.item_id, result.reason, result.message)
            behind.submit(call, size=len(result.message))
            return 1
        size = sum(array.nbytes for array in result.outputs.values())
        behind.submit(partial(self._split, result, writer), size=size)
        return len(result.batch)

    def _split(self, ran: _Ran, writer: FeaturesWriter) -> None:
        """Cut a batch into rows, without their padding, and keep those that are finite; runs in the storing thread."""
        batch = ran.batch
        for at, ids_keep in enumerate(batch.ids_keep):
            missing = batch.width - len(ids_keep)
            arrays = {spec.name: without_padding(ran.outputs[spec.name][at], spec, missing) for spec in self.specs}
            broken = [name for name, array in arrays.items() if not np.isfinite(array).all()]
            if broken:
                message = f"{', '.join(broken)} of this image holds NaN or infinity; try fp32, or look at the image"
                writer.fail(batch.ids[at], "not-finite", message)
                continue
            kept = ids_keep if self._stores_ids_keep else None
            writer.add(Row(index=batch.indices[at], item_id=batch.ids[at], arrays=arrays, ids_keep=kept))

    @property
    def _stores_ids_keep(self) -> bool:
        return not isinstance(self.plan, AllVisible) or any(len(spec.shape) > 2 for spec in self.specs)
