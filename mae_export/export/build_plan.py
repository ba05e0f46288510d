"""The build itself, in TensorRT's own words: parse, configure, compile. Runs in the child process of `build_child.py`.

`tensorrt` here is whatever `flavour.load` put under that name. It is imported inside functions, because the package
must import where TensorRT is not installed.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mae_export.errors import GraphError, MachineError, MaeExportError, ResourceError
from mae_export.export import flavour
from mae_export.export.build_log import KEPT
from mae_export.runtime.engine_file import Backend
from mae_export.runtime.tensorrt_api import NAMES, Record, make_logger, shown_errors

if TYPE_CHECKING:
    import tensorrt as trt

SECONDS_BETWEEN_STEPS = 0.1  # some phases have thousands of steps
MEMORY_SIGNS = (
    *("out of memory", "outofmemory", "insufficient memory", "bad_alloc", "workspace limit"),
    *("memory allocation", "cannot allocate memory", "memoryerror", "failed to map segment"),
    *("resource temporarily unavailable", "can't start new thread"),
)
DEVICE_SIGNS = ("cuda initialization failure", "cudaerror", "no cuda-capable", "cuda driver", "cuda failure")
Report = Callable[[str, int, int], None]


@dataclass(frozen=True, kw_only=True)
class BuildJob:
    """One build, as it is told to the child process; paths are absolute, shapes are min, typical and max by input."""

    backend: Backend
    graph: str
    plan: str
    log: str
    operators: dict[str, str]
    precision: str
    targets: tuple[str, ...]
    shapes: tuple[dict[str, tuple[tuple[int, ...], ...]], ...]
    workspace: int | None
    level: int | None
    aux_streams: bool
    timing_cache: str | None


class Cancelled(Exception):  # noqa: N818 (no error: somebody asked for it)
    """The build was asked to stop."""


def compile_plan(job: BuildJob, report: Report, stop: threading.Event) -> None:
    """Build the plan and the log of a job.

    Raises:
        GraphError: when the parser refuses nodes, or no kernel exists for something.
        ResourceError: when memory ran out.
        MachineError: when there is no usable GPU and one is needed.
        Cancelled: when `stop` was set.
    """
    import tensorrt as trt

    records: list[Record] = []
    logger = make_logger(trt, records, KEPT)
    builder = trt.Builder(logger)
    if builder is None:
        raise build_error(records, job)
    report("Reading graph", 0, 1)
    network = builder.create_network(flavour.network_flags())
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(job.graph):
        raise GraphError(refusal(parser, job))
    config = builder.create_builder_config()
    configure(builder, config, job)
    monitor = make_monitor(report, stop)
    config.progress_monitor = monitor
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        if stop.is_set():
            raise Cancelled
        raise build_error(records, job)
    kept = [text for severity, text in records if text.startswith(KEPT)]
    if not any(text.startswith(KEPT[0]) for text in kept):
        kept += flavour.layer_listing(plan, logger)
    Path(job.log).write_text("\n".join(kept), encoding="utf-8")
    with Path(job.plan).open("wb") as file:
        file.write(memoryview(plan))
    if job.timing_cache is not None:
        Path(job.timing_cache).write_bytes(flavour.timing_cache_bytes(config))


def make_monitor(report: Report, stop: threading.Event) -> trt.IProgressMonitor:
    """A monitor that reports phases with their steps, and ends the build at the next step once `stop` is set."""
    import tensorrt as trt

    class Monitor(trt.IProgressMonitor):
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.lock = threading.Lock()  # the builder calls from several threads
            self.totals: dict[str, int] = {}
            self.last = 0.0

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:  # noqa: ARG002
            with self.lock:
                self.totals[phase_name] = num_steps
                report(phase_name, 0, num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            with self.lock:
                total = self.totals.get(phase_name, step + 1)
                if step + 1 >= total or time.monotonic() - self.last >= SECONDS_BETWEEN_STEPS:
                    self.last = time.monotonic()
                    report(phase_name, step + 1, total)
            return not stop.is_set()

        def phase_finish(self, phase_name: str) -> None:
            with self.lock:
                total = self.totals.pop(phase_name, 1)
                report(phase_name, total, total)

    return Monitor()


def configure(builder: trt.Builder, config: trt.IBuilderConfig, job: BuildJob) -> None:
    """Put a job's options and profiles into a builder's configuration.

    Raises:
        GraphError: when TensorRT refuses a profile.
    """
    import tensorrt as trt

    config.clear_flag(trt.BuilderFlag.TF32)  # float32 of the graph stays float32: precision is the graph's alone
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # what was planned is read from the log
    flavour.set_targets(config, job.targets)
    if job.workspace is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, job.workspace)
    if job.level is not None:
        config.builder_optimization_level = job.level
    if not job.aux_streams:
        config.max_aux_streams = 0
    if job.timing_cache is not None:
        flavour.attach_timing_cache(config, Path(job.timing_cache))
    for shapes in job.shapes:
        profile = builder.create_optimization_profile()
        for name, extents in shapes.items():
            profile.set_shape(name, *(trt.Dims(list(shape)) for shape in extents))
        if config.add_optimization_profile(profile) < 0:
            raise GraphError(
                f"TensorRT refuses the profile {shapes}; check it against `mae-export inspect {job.graph}`"
            )


def refusal(parser: trt.OnnxParser, job: BuildJob) -> str:
    """Name every node that the parser refuses: those it stumbled over, and those whose operator it does not know."""
    lines = {}
    for index in range(parser.num_errors):
        error = parser.get_error(index)
        lines[error.node_name() or f"node {error.node()}"] = f"({error.node_operator() or '?'}): {error.desc()}"
    for name, operator in job.operators.items():
        if not parser.supports_operator(operator):
            lines.setdefault(name, f"({operator}): no such operator")
    named = "".join(f"\n  {name} {line}" for name, line in lines.items())
    return f"{NAMES[job.backend]} cannot read {len(lines)} nodes of {Path(job.graph).name}:{named}"


def build_error(records: list[Record], job: BuildJob) -> MaeExportError:
    """The error that the builder's last messages amount to."""
    said = shown_errors(records) or "the builder gave no reason"
    lowered = said.lower()
    name, graph = NAMES[job.backend], Path(job.graph).name
    if any(sign in lowered for sign in MEMORY_SIGNS):
        return ResourceError(
            f"{name} has too little memory to build {graph}: {said}. Raise or leave out --workspace, or build with a "
            "smaller --batch or with --low-memory"
        )
    if any(sign in lowered for sign in DEVICE_SIGNS):
        return MachineError(f"{name} found no GPU that it can use: {said}. See `mae-export doctor`")
    return GraphError(f"{name} cannot build {graph} ({job.precision}) for {', '.join(job.targets)}: {said}")
