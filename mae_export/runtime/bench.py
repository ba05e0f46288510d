"""How fast models run on this machine, side by side, so that a slow moment of the machine hits all of them.

Contenders take turns, one run each per round, in an order that rotates; a comparison is the median of the rounds'
ratios, never a ratio of two runs at different times. Matrix products of the libraries that are here (see `gemm.py`)
take turns with them: speed in GFLOP/s means little without the speed at which this machine, in these minutes,
multiplies matrices. Of the products the quickest run of all cases counts, of contenders the median: a disturbed product
says nothing of what the machine can do, and no share of that shall exceed 1 because the product was disturbed more than
the model. Before the rounds each contender runs until it has settled, and what that took is told. A pause before each
run lets the threads of the one before stop spinning.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from mae_export.errors import UsageError
from mae_export.manifest import Manifest
from mae_export.runtime.flops import flops_per_image
from mae_export.runtime.patchify import patchify
from mae_export.runtime.visible import hidden_patches

Array = npt.NDArray[Any]
Feeds = Mapping[str, Array]
Run = Callable[[], object]
Maker = Callable[[Feeds], Run]

PAUSE = 0.02  # seconds; runtimes let their threads spin for some milliseconds
WINDOW, SETTLED = 3, 0.05  # a contender has settled when the medians of two windows of runs differ by less
LONGEST_WARM_UP = 30  # runs


@dataclass(frozen=True, kw_only=True)
class Contender:
    """One model on prepared feeds.

    Attributes:
        run: computes one batch.
        flops: operations of one run; None when not known.
        what: type and library, for people, of a matrix product.
    """

    run: Run
    flops: float | None
    what: str = ""


@dataclass(frozen=True, kw_only=True)
class BenchPlan:
    """What to measure.

    Attributes:
        batches: images per run.
        shares: of the patches that are visible, 0 < share <= 1.
        rounds: in which every contender runs once.

    Raises:
        UsageError: when a value is out of range.
    """

    batches: tuple[int, ...] = (1, 8)
    shares: tuple[float, ...] = (1.0, 0.25)
    rounds: int = 20

    def __post_init__(self) -> None:
        if not self.batches or min(self.batches) < 1 or self.rounds < 1:
            raise UsageError(
                f"batches are {self.batches}, rounds {self.rounds}; expected at least one, all of them >= 1"
            )
        if not self.shares or not all(0 < share <= 1 for share in self.shares):
            raise UsageError(f"the visible shares are {self.shares}; expected 0 < share <= 1, such as 1,0.25")


@dataclass(frozen=True, kw_only=True)
class Timing:
    """One contender's result.

    Attributes:
        name: of the contender.
        images_per_second: batch over the median time of a run.
        p50_ms: median time of a run; p95_ms, p99_ms: percentiles.
        over_first: speed over that of the first contender, the median of the rounds' ratios.
        gflops: 1e9 operations per second; None when they are not known.
        share_of_gemm: of the speed of the matrix product; above 1 where that is in float32 and the model in fewer bits.
        runs: measured.
        warm_up_runs: before them.
        settled: whether the last of those differed little.
    """

    name: str
    images_per_second: float
    p50_ms: float
    p95_ms: float
    p99_ms: float
    over_first: float
    gflops: float | None
    share_of_gemm: float | None
    runs: int
    warm_up_runs: int
    settled: bool


@dataclass(frozen=True, kw_only=True)
class Case:
    """One batch size and number of visible patches.

    Attributes:
        batch: images per run.
        kept: visible patches of each.
        patches: of a full image.
        gemm: type and library of the quickest matrix product; "" where there is none.
        gemm_gflops: its speed in its quickest run of all cases; None where there is none.
        timings: of the contenders, in their order.
    """

    batch: int
    kept: int
    patches: int
    gemm: str
    gemm_gflops: float | None
    timings: tuple[Timing, ...]

    @property
    def title(self) -> str:
        """Such as `batch 8, 49 of 196 patches`."""
        return f"batch {self.batch}, {self.kept} of {self.patches} patches"


@dataclass(frozen=True, kw_only=True)
class BenchReport:
    """What was measured, on what.

    Attributes:
        model: file name.
        sha256: of the model.
        contenders: what each is, by name.
        processor: its name and cores.
        gpus: names of the NVIDIA GPUs.
        cpu_mhz: clock before and after; None where the system does not say.
        gpu_mhz: likewise of the first GPU.
        cases: the results.
    """

    model: str
    sha256: str
    contenders: dict[str, str]
    processor: str
    gpus: tuple[str, ...]
    cpu_mhz: tuple[float | None, float | None]
    gpu_mhz: tuple[float | None, float | None]
    cases: tuple[Case, ...]


def bench(
    manifest: Manifest,
    makers: Mapping[str, Maker],
    *,
    plan: BenchPlan,
    gemms: Sequence[Contender],
    progress: Callable[[str, int, int], object] | None = None,
) -> tuple[Case, ...]:
    """Measure contenders on the same feeds, for every batch size and share of visible patches.

    Args:
        manifest: of the graphs, which differ in precision and runtime only.
        makers: by name; each prepares a run on feeds.
        plan: what to measure; shares other than 1 are left out for graphs without mask.
        gemms: matrix products, of which the quickest is what to compare with; empty where there is none to be had.
        progress: told the case, rounds done, and rounds in all.
    """
    raced: list[tuple[int, int, dict[str, Contender], list[Laps]]] = []
    shares = plan.shares if manifest.mask_mode not in ("none", "mask-token") else (1.0,)
    for batch in plan.batches:
        for share in shares:
            kept = max(1, int(manifest.patches.count * share))
            feeds = bench_feeds(manifest, batch, kept)
            per_image = flops_per_image(manifest, kept)
            flops = None if per_image is None else batch * per_image
            contenders = {name: Contender(run=make(feeds), flops=flops) for name, make in makers.items()}
            title = f"batch {batch}, {kept} patches"
            told = None if progress is None else lambda done, total, title=title: progress(title, done, total)
            laps = race([*contenders.values(), *gemms], rounds=plan.rounds, progress=told)
            raced.append((batch, kept, contenders, laps))
    peak, library = _peak(gemms, [laps[len(makers) :] for *_, laps in raced])
    return tuple(
        Case(
            batch=batch,
            kept=kept,
            patches=manifest.patches.count,
            gemm=library,
            gemm_gflops=peak,
            timings=_timings(contenders, laps, peak, batch),
        )
        for batch, kept, contenders, laps in raced
    )


def bench_feeds(manifest: Manifest, batch: int, kept: int) -> dict[str, Array]:
    """Random pixels, and for each image other patches, as the graph takes them."""
    draws, count = np.random.default_rng(0), manifest.patches.count
    frames = (manifest.image.frames,) if manifest.image.frames > 1 else ()
    shape = (batch, *frames, *manifest.image.size, manifest.image.channels)
    images = draws.integers(0, 256, shape, dtype=np.uint8)
    if manifest.mask_mode == "none":
        return {"images": images}
    ids = np.stack([np.sort(draws.permutation(count)[:kept]) for _ in range(batch)]).astype(np.int64)
    if manifest.mask_mode == "mask-token":
        return {"images": images, "mask": hidden_patches(list(ids), count)}
    feeds: dict[str, Array] = {"images": images, "ids_keep": ids}
    if manifest.mask_mode == "patches":
        cells = patchify(images, manifest.patches)
        feeds = {"patches": np.take_along_axis(cells, ids[..., None], axis=1), "ids_keep": ids}
    if manifest.ragged:
        feeds["num_keep"] = np.full(batch, kept, np.int32)
    return feeds


@dataclass(frozen=True, kw_only=True)
class Laps:
    """Seconds of one contender's runs, one per round, its quickest of all, and how it warmed up."""

    seconds: tuple[float, ...]
    quickest: float
    warm_up_runs: int
    settled: bool


def race(
    contenders: Sequence[Contender], *, rounds: int, progress: Callable[[int, int], object] | None = None
) -> list[Laps]:
    """Let contenders take turns; returns the laps of each, in their order."""
    warm = [_warm_up(contender.run) for contender in contenders]
    seconds: list[list[float]] = [[] for _ in contenders]
    for turn in range(rounds):
        for place in range(len(contenders)):
            at = (turn + place) % len(contenders)
            seconds[at].append(_time(contenders[at].run))
        if progress is not None:
            progress(turn + 1, rounds)
    return [
        Laps(seconds=tuple(laps), quickest=min(*before, *laps), warm_up_runs=len(before), settled=settled)
        for laps, (before, settled) in zip(seconds, warm, strict=True)
    ]


def _time(run: Run) -> float:
    time.sleep(PAUSE)
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def _warm_up(run: Run) -> tuple[list[float], bool]:
    """Runs until two windows agree: their seconds, and whether they did."""
    seconds: list[float] = []
    while len(seconds) < LONGEST_WARM_UP:
        seconds.append(_time(run))
        if len(seconds) >= 2 * WINDOW:
            before, after = (statistics.median(part) for part in (seconds[-2 * WINDOW : -WINDOW], seconds[-WINDOW:]))
            if abs(after - before) <= SETTLED * before:
                return seconds, True
    return seconds, False


def _peak(gemms: Sequence[Contender], laps: Sequence[Sequence[Laps]]) -> tuple[float | None, str]:
    """Speed of the quickest run of any product in any case, in GFLOP/s, and whose it was."""
    speeds = {
        (gemm.flops or 0.0) / min(of_case[place].quickest for of_case in laps) / 1e9: gemm.what
        for place, gemm in enumerate(gemms)
    }
    return (max(speeds), speeds[max(speeds)]) if speeds else (None, "")


def _timings(
    contenders: Mapping[str, Contender], laps: Sequence[Laps], peak: float | None, batch: int
) -> tuple[Timing, ...]:
    timings = []
    for (name, contender), own in zip(contenders.items(), laps, strict=False):
        p50, p95, p99 = (float(value) for value in np.percentile(own.seconds, (50, 95, 99)))
        gflops = None if contender.flops is None else contender.flops / p50 / 1e9
        timings.append(
            Timing(
                name=name,
                images_per_second=batch / p50,
                p50_ms=1e3 * p50,
                p95_ms=1e3 * p95,
                p99_ms=1e3 * p99,
                over_first=_ratio(laps[0], own),
                gflops=gflops,
                share_of_gemm=None if gflops is None or peak is None else gflops / peak,
                runs=len(own.seconds),
                warm_up_runs=own.warm_up_runs,
                settled=own.settled,
            )
        )
    return tuple(timings)


def _ratio(slow: Laps, fast: Laps) -> float:
    """Median over the rounds of slow / fast."""
    return statistics.median(a / b for a, b in zip(slow.seconds, fast.seconds, strict=True))
