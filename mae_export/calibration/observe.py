"""Observing: what range each quantizable activation takes on real images, in bounded memory.

The graph runs with reductions added to it, so that of each activation only its extremes leave ONNX Runtime. Methods
that need its distribution also fetch the activation, count it and drop it, batch by batch; where the activations of
one image alone would not fit, they are observed group by group, in as many passes over the images.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import onnxruntime as ort

from mae_export import __version__, graph
from mae_export.calibration.histogram import Histogram, threshold
from mae_export.calibration.options import ObserveOptions
from mae_export.calibration.pictures import Pictures
from mae_export.calibration.reductions import REDUCTIONS, columns_of, output_name, write_observed
from mae_export.calibration.sites import Site, sites_of
from mae_export.calibration.table import Method, Table, TensorRange
from mae_export.calibration.visibility import parse_visibility
from mae_export.errors import GraphError
from mae_export.files import model_files, put_in_place, require_place, sha256_files, staging
from mae_export.manifest import Manifest
from mae_export.runtime.batching import Batch, Batcher, check_plan
from mae_export.runtime.session import Session, open_as_is
from mae_export.runtime.visible import Plan

Array = npt.NDArray[Any]
FETCHED_BYTES = 1 << 29  # of activations that may leave one run; weights and working memory come on top
DIGITS = 6  # of the numbers in a table: the order of sums may change the seventh


@dataclass(frozen=True, kw_only=True)
class Observation:
    """What observing did.

    Attributes:
        table: as written.
        listed: images given.
        failures: images passed over because they could not be decoded, by reason.
        repeated: images passed over because they show what another one shows.
        passes: over the images.
        seconds: wall time of all passes.
        images_per_second: images of the table per second of wall time.
        fetched_bytes: of activations that left one run at most.
        peak_bytes: most memory that this process has held so far; None where the system does not say.
    """

    table: Table
    listed: int
    failures: dict[str, int]
    repeated: int
    passes: int
    seconds: float
    images_per_second: float
    fetched_bytes: int
    peak_bytes: int | None


@dataclass
class _Seen:
    """One activation while it is observed."""

    site: Site
    channels: int  # columns to keep apart; 0: none
    minimum: Array | float = np.inf
    maximum: Array | float = -np.inf
    total: Array | float = 0.0
    size: int = 0
    histogram: Histogram = field(default_factory=Histogram)

    def range(self, name: str, method: Method, percentile: float) -> TensorRange:
        """What to write of it.

        Raises:
            GraphError: when nothing but zeros was seen.
        """
        low, high = float(np.min(self.minimum)), float(np.max(self.maximum))
        if low == high == 0:
            raise GraphError(
                f"{name!r}, an input of {self.site.node}, is zero on every image, so it has no range; the graph or the "
                "images are not what they should be: look at the images, and try `mae-export verify`"
            )
        chosen = threshold(self.histogram, max(-low, high), method=method, percentile=percentile)
        each = np.maximum(np.abs(self.minimum), np.abs(self.maximum)).tolist() if self.channels else []
        means = np.multiply(self.total, self.channels / self.size).tolist() if self.channels else []
        return TensorRange(
            low=-_short(chosen),
            high=_short(chosen),
            minimum=_short(low),
            maximum=_short(high),
            channels=tuple(map(_short, each)),
            means=tuple(map(_short, means)),
        )


def observe(
    source: Path,
    inputs: Sequence[str | Path],
    out: Path,
    *,
    options: ObserveOptions,
    progress: Callable[[int, int], None] | None = None,
) -> Observation:
    """Run a graph on images and write the table of its activations' ranges.

    Args:
        source: a float32 graph written by `mae-export export`.
        inputs: files, folders, lists and tars of images.
        out: ends in .json.
        options: how.
        progress: called with images done and images in all, over all passes.

    Returns:
        The table and what making it took.

    Raises:
        UsageError: when the graph cannot follow the plan, or `out` exists and `force` is not set.
        GraphError: when the graph is not float32, has nothing to quantize, or gives NaN or infinity.
        InputError: when the images are too few or too alike.
        MaskError: when masks do not fit the graph or the images.
    """
    require_place(out, suffix=".json", force=options.force)
    manifest, plan = graph.read_manifest(source), parse_visibility(options.visible)
    check_plan(manifest, plan)
    digest = sha256_files(*model_files(source))
    pictures = Pictures(inputs, manifest.image, samples=options.samples, seed=options.seed, threads=options.threads)
    plan.check(pictures.listed, manifest.patches.count)
    with staging(out) as folder:
        observer = _Observer(source=source, manifest=manifest, folder=folder, plan=plan, options=options)
        start = time.perf_counter()
        seen = observer.run(pictures, progress)
        seconds = time.perf_counter() - start
        table = Table(
            graph=digest,
            graph_name=source.name,
            method=options.method,
            percentile=options.percentile,
            seed=options.seed,
            visible=plan.description,
            samples=len(pictures.used),
            images=pictures.used,
            ranges={name: one.range(name, options.method, options.percentile) for name, one in seen.items()},
            tools={"mae-export": __version__, "onnxruntime": ort.__version__},
        )
        staged = folder / out.name
        staged.write_text(table.to_json() + "\n", encoding="utf-8")
        put_in_place(staged, out)
    return Observation(
        table=table,
        listed=pictures.listed,
        failures=dict(pictures.failures),
        repeated=pictures.repeated,
        passes=observer.passes,
        seconds=seconds,
        images_per_second=len(pictures.used) / seconds,
        fetched_bytes=observer.fetched,
        peak_bytes=_peak_bytes(),
    )


@dataclass
class _Observer:
    """One graph that is observed with one set of options."""

    source: Path
    manifest: Manifest
    folder: Path
    plan: Plan
    options: ObserveOptions
    passes: int = 0
    fetched: int = 0

    def run(self, pictures: Pictures, progress: Callable[[int, int], None] | None) -> dict[str, _Seen]:
        """Observe every activation, in one pass or in groups."""
        wanted = _wanted(ir.load(self.source))
        if self.options.method == "minmax":
            groups, rows = [list(wanted)], self.options.batch
        else:
            groups, rows = _groups(self._sizes(wanted), self.options.batch)
        total = min(self.options.samples, pictures.listed) * len(groups)
        done = 0
        for group in groups:
            seen = {name: wanted[name] for name in group}
            with self._session(seen, fetch=self.options.method != "minmax") as session:
                for batch in self._batches(pictures, rows):
                    self._take(session, batch, seen)
                    done += len(batch)
                    if progress is not None:
                        progress(done, total)
            self.passes += 1
        if progress is not None:
            progress(done, done)
        return wanted

    def _batches(self, pictures: Pictures, rows: int) -> Iterator[Batch]:
        batcher = Batcher(self.manifest, rows)
        for picture in pictures:
            # The identity of a draw is the file's content: moving or renaming images changes nothing.
            kept = self.plan.ids_keep(picture.index, picture.sha256, self.manifest.patches.count)
            batch = batcher.add(index=picture.index, item_id=picture.item.id, pixels=picture.pixels, ids_keep=kept)
            if batch is not None:
                yield batch
        yield from batcher.rest()

    def _take(self, session: Session, batch: Batch, seen: Mapping[str, _Seen]) -> None:
        outputs = session.run(batch.feeds)
        fetched = 0
        for name, one in seen.items():
            low, high, total, size = (outputs[output_name(name, what)] for what in REDUCTIONS)
            if not np.isfinite(total).all():
                raise GraphError(
                    f"{name!r}, an input of {one.site.node}, holds NaN or infinity on one of {', '.join(batch.ids)}; "
                    "expected finite numbers: check the graph with `mae-export verify`, and look at the images"
                )
            one.minimum, one.maximum = np.minimum(one.minimum, low), np.maximum(one.maximum, high)
            one.total = one.total + total.astype(np.float64)
            one.size += int(size)
            if name in outputs:
                one.histogram.add(outputs[name])
                fetched += outputs[name].nbytes
        self.fetched = max(self.fetched, fetched)

    def _sizes(self, wanted: Mapping[str, _Seen]) -> dict[str, int]:
        """Bytes of each activation for one image with every patch visible."""
        count, image = self.manifest.patches.count, self.manifest.image
        blank = np.zeros((*image.size, image.channels), np.uint8)
        batcher = Batcher(self.manifest, 1)
        batch = batcher.add(index=0, item_id="blank", pixels=blank, ids_keep=np.arange(count, dtype=np.int64))
        with self._session(wanted, fetch=False) as session:
            outputs = session.run(batch.feeds if batch else {})
        return {name: 4 * int(outputs[output_name(name, "size")]) for name in wanted}

    def _session(self, seen: Mapping[str, _Seen], *, fetch: bool) -> Session:
        columns = {name: one.channels for name, one in seen.items()}
        return open_as_is(write_observed(self.source, self.manifest, columns, folder=self.folder, fetch=fetch))


def _wanted(model: ir.Model) -> dict[str, _Seen]:
    """The activations to observe, by name, each with the first site it enters."""
    found: dict[str, _Seen] = {}
    for site in sites_of(model):
        for name in site.inputs:
            found.setdefault(name, _Seen(site=site, channels=columns_of(model, site)))
    if not found:
        raise GraphError("the graph multiplies nothing with weights; expected an encoder of `mae-export export`")
    return found


def _groups(sizes: Mapping[str, int], batch: int) -> tuple[list[list[str]], int]:
    """Activations that fit into memory together, and how many images a run may take.

    Args:
        sizes: bytes of each for one image.
        batch: most images per run.
    """
    together = sum(sizes.values())
    if together <= FETCHED_BYTES:
        return [list(sizes)], max(1, min(batch, FETCHED_BYTES // together))
    groups: list[list[str]] = []
    filled = FETCHED_BYTES
    for name, size in sizes.items():
        if filled + size > FETCHED_BYTES:
            groups.append([])
            filled = 0
        groups[-1].append(name)
        filled += size
    return groups, 1


def _peak_bytes() -> int | None:
    try:  # not getrusage: a process inherits the peak of the one that started it
        status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
    except OSError:
        return None
    found = re.search(r"^VmHWM:\s+(\d+) kB", status, re.MULTILINE)
    return None if found is None else 1024 * int(found[1])


def _short(value: float) -> float:
    return float(f"{value:.{DIGITS}g}")
