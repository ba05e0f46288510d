"""What this machine runs best of a graph, prepared once and kept where `open_session` finds it.

With an NVIDIA GPU and TensorRT that is an engine whose products run in 16 bits, or in 8 where the graph has them. With
ONNX Runtime's CUDA provider alone it is the graph in fp16 with attention in one operator. On a CPU with VNNI it is the
lowered form of an int8 graph. Everything else is best as it is, and then nothing is written.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import onnx_ir as ir

from mae_export import graph
from mae_export.artefacts import ENGINE_SUFFIX, GRAPH_SUFFIX
from mae_export.errors import InputError, MachineError, UsageError, VerificationError
from mae_export.export.engine import Progress, build
from mae_export.export.flavour import choose_backend, resolve_targets
from mae_export.export.fused import can_be_fused, write_fused
from mae_export.export.options import ConvertOptions
from mae_export.export.plan import THIS, EnginePlan
from mae_export.export.precision import convert
from mae_export.files import model_files, sha256_files, staging
from mae_export.manifest import Manifest
from mae_export.runtime import prepared, private_folder
from mae_export.runtime.cuda import open_device
from mae_export.runtime.doctor import nvidia_gpus, read_cpu
from mae_export.runtime.prepared import Library
from mae_export.runtime.providers import LOWERED, choose

Kind = Literal["engine", "fused", "lowered", "as it is"]
Lower = Callable[[Path, Path], bool]
PLAN = EnginePlan(targets=(THIS,))
SUFFIXES: dict[Kind, str] = {"engine": ENGINE_SUFFIX, "fused": GRAPH_SUFFIX, "lowered": GRAPH_SUFFIX}


@dataclass(frozen=True, kw_only=True)
class PrepareOptions:
    """How a graph is prepared.

    Attributes:
        force: prepare again what is there already.
    """

    force: bool = False


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """What `open_session` will run.

    Attributes:
        kind: `engine`; `fused`, in fp16 with attention in one operator; `lowered`, with 8-bit products in operators of
            ONNX Runtime's own; or `as it is` when nothing runs faster here than the graph.
        reason: why, as a clause.
        path: the model in the machine's cache; None for `as it is`.
        fresh: whether it was made by this call; otherwise it was there already, or there is none.
    """

    kind: Kind
    reason: str
    path: Path | None = None
    fresh: bool = False


def prepare(
    graph_path: Path, *, options: PrepareOptions, lower: Lower | None = None, progress: Progress | None = None
) -> Prepared:
    """Build what this machine runs best of a graph into its cache, unless it is there; two processes do it once.

    Different graphs are prepared at the same time.

    Args:
        graph_path: written by mae-export.
        options: how.
        lower: writes the lowered form of its first argument to its second and proves it, or returns False where there
            is none, as `mae_export.calibration.lowered.write_lowered` does; None leaves graphs for CPUs as they are.
        progress: told (phase, steps done, steps in all); returns False to cancel the building of an engine.

    Raises:
        GraphError: when the file is no graph of ours, or TensorRT cannot build it.
        SecurityError: when others may write in the cache.
        InputError: when the graph's name does not end in .onnx, or the cache cannot be written.
        MachineError: when the library does not work here.
        VerificationError: when what was made disagrees with the graph; nothing of it is kept.
        ResourceError: when memory or disk ran out.
        KeyboardInterrupt: when `progress` returned False.
    """
    manifest = graph.read_manifest(graph_path)
    if graph_path.suffix.lower() != GRAPH_SUFFIX:
        raise InputError(
            f"{graph_path.name} would not be opened as a graph; expected a name that ends in {GRAPH_SUFFIX}"
        )
    choice, library = _decide(graph_path, manifest)
    if library is None or (choice.kind == "lowered" and lower is None):
        return Prepared(kind="as it is", reason=choice.reason)
    fit = prepared.fit_here(sha256_files(*model_files(graph_path)), library)
    with private_folder.locked(fit.key):
        known = None if options.force else prepared.known(fit)
        if known is not None:
            return Prepared(kind=choice.kind, reason=choice.reason, path=known)
        name = graph_path.with_suffix(SUFFIXES[choice.kind]).name
        try:
            with prepared.adding(graph_path, fit) as folder:
                if choice.kind == "engine":
                    _build(graph_path, folder / name, manifest, progress or (lambda *_: True))
                elif choice.kind == "fused":
                    _fuse(graph_path, folder / name, manifest, progress or (lambda *_: True))
                elif lower is not None and not lower(graph_path, folder / name):
                    reason = "only linear int8 graphs whose rest is float32 have a form that CPUs run faster"
                    return Prepared(kind="as it is", reason=reason)
        except VerificationError as error:
            raise VerificationError(
                f"what was prepared of {graph_path.name} disagrees with it and was not kept, nor is there a .rejected "
                f"file; the graph runs as it is. {error}"
            ) from error
    return Prepared(kind=choice.kind, reason=choice.reason, path=prepared.known(fit), fresh=True)


def _decide(path: Path, manifest: Manifest) -> tuple[Prepared, Library | None]:
    """What is best here, and the library that it is for; None when that is the graph itself."""
    why_no_engine = ""
    if LOWERED not in manifest.tools:  # what is lowered, only ONNX Runtime reads
        try:
            gpu, backend = open_device(), choose_backend(PLAN)
            resolve_targets(backend, PLAN)
            half = "fp16" if manifest.precision == "fp32" else manifest.precision
            return Prepared(kind="engine", reason=f"an engine in {half} is what the {gpu.name} runs fastest"), backend
        except (MachineError, UsageError) as error:
            why_no_engine = f", and no engine for the GPU can be built: {error}" if nvidia_gpus() else ""
    choice = choose(path)
    if choice.backend == "cuda" and _gains_from_fusing(path, manifest):
        reason = f"{choice.reason}, which runs fp16 with attention in one kernel fastest{why_no_engine}"
        return Prepared(kind="fused", reason=reason), "onnxruntime"
    if choice.backend != "cpu":
        return Prepared(
            kind="as it is", reason=f"{choice.backend} runs it, because {choice.reason}{why_no_engine}"
        ), None
    if manifest.precision == "int8" and LOWERED not in manifest.tools:
        if read_cpu().has_vnni:
            reason = "ONNX Runtime multiplies integers fastest in its own operators"
            return Prepared(kind="lowered", reason=reason), "onnxruntime"
        return Prepared(kind="as it is", reason="on a CPU without VNNI no form of an int8 graph is known to help"), None
    reason = f"no form of this {manifest.precision} graph runs faster on this CPU{why_no_engine}"
    return Prepared(kind="as it is", reason=reason), None


def _build(path: Path, out: Path, manifest: Manifest, progress: Progress) -> None:
    """An engine whose products are in 16 or 8 bits."""
    with staging(out) as folder:
        source, half = path, folder / path.name
        if manifest.precision == "fp32" or (manifest.precision in ("int8", "fp8") and not _has_halves(path)):
            convert(path, half, options=ConvertOptions(precision="fp16"), progress=lambda phase: _tell(progress, phase))
            source = half
        build(source, out, plan=PLAN, progress=progress)


def _gains_from_fusing(path: Path, manifest: Manifest) -> bool:
    """Whether the CUDA provider has anything faster: 16 bits, or attention in one kernel."""
    if LOWERED in manifest.tools or manifest.precision not in ("fp32", "fp16"):
        return False
    return manifest.precision == "fp32" or can_be_fused(path)


def _fuse(path: Path, out: Path, manifest: Manifest, progress: Progress) -> None:
    """The graph in fp16, with attention in one operator where it can be."""
    if manifest.precision == "fp16":
        write_fused(path, out)
        return
    with staging(out) as folder:
        half = folder / path.name
        convert(path, half, options=ConvertOptions(precision="fp16"), progress=lambda phase: _tell(progress, phase))
        if not write_fused(half, out):
            convert(path, out, options=ConvertOptions(precision="fp16"))


def _tell(progress: Progress, phase: str) -> None:
    progress(phase, 0, 1)


def _has_halves(path: Path) -> bool:
    """Whether the rest of an 8-bit graph is in 16 bits already."""
    return any(value.dtype == ir.DataType.FLOAT16 for value in ir.load(path).graph.initializers.values())
