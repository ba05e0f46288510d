"""Graph to engine: check the plan, build in a child process, judge what was planned and what it computes, and put plan
and sidecar in place.

Nothing appears at its final name unless the whole build went well, and the sidecar comes last: a reader that finds a
plan without its sidecar, or with another plan's, refuses it.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from mae_export import errors, graph
from mae_export.errors import InputError, MachineError, MaeExportError, ResourceError, VerificationError
from mae_export.export import flavour
from mae_export.export.achieved import judge, read_asked
from mae_export.export.build_log import parse_build_log
from mae_export.export.build_plan import MEMORY_SIGNS, BuildJob
from mae_export.export.eight_bit import require_tokens
from mae_export.export.engine_proof import prove
from mae_export.export.plan import (
    SMALL_LEVEL,
    EnginePlan,
    MemoryEstimate,
    estimate_memory,
    input_shapes,
    resolve_profiles,
)
from mae_export.files import model_files, put_in_place, require_place, sha256_files, staging
from mae_export.manifest import Ancestor, Manifest
from mae_export.runtime.buckets import holds
from mae_export.runtime.doctor import nvidia_gpus
from mae_export.runtime.engine_file import Achieved, Backend, EngineSidecar, Profile, sidecar_path
from mae_export.runtime.probes import golden_ids
from mae_export.runtime.tensorrt_api import NAMES

GRACE_SECONDS = 3.0  # for a build to stop at its next step before its process is killed
TIMING_CACHE = "timing.cache"
LAST_WORDS = 400  # characters of what a crashed builder printed
NO_GOLDEN = (
    "no profile holds a quarter of the patches, which the golden image shows; the engine opens only if it was compared "
    "with its graph when it was built"
)
Progress = Callable[[str, int, int], bool]


@dataclass(frozen=True, kw_only=True)
class _Wanted:
    """A plan made definite: which backend, for which GPUs, with which profiles."""

    backend: Backend
    targets: tuple[str, ...]
    profiles: tuple[Profile, ...]
    level: int | None


def build(graph_path: Path, out: Path, *, plan: EnginePlan, progress: Progress | None = None) -> EngineSidecar:
    """Build an engine from a graph.

    Args:
        graph_path: an ONNX graph written by mae-export; its precision is the engine's.
        out: ends in .engine; the sidecar is written beside it.
        plan: what engine is wanted.
        progress: told (phase, steps done, steps in all); returns False to cancel.

    Returns:
        The sidecar. It is proven where a GPU of the targets is here: then the engine was compared with its graph.

    Raises:
        UsageError: when `out` exists and `force` is not set, or the backend cannot honour an option.
        InputError: when a profile does not fit the graph, or gives 8-bit attention tokens that no builder fuses.
        GraphError: when the file is no graph of ours, or TensorRT cannot build it; refused nodes are named.
        MachineError: when the backend or a GPU is missing, the version is known to be wrong, or the builder crashed.
        ResourceError: when memory or disk ran out.
        VerificationError: when the engine falls back and the plan is strict, or when it disagrees with its graph; then
            it is kept as `OUT.rejected`.
        KeyboardInterrupt: when `progress` returned False, as on Ctrl-C; nothing is left behind.
    """
    require_place(out, suffix=".engine", force=plan.force)
    if plan.timing_cache is not None and not plan.timing_cache.parent.is_dir():
        raise InputError(f"{plan.timing_cache.parent} is no folder; create it, or keep the timing cache elsewhere")
    manifest = graph.read_manifest(graph_path)
    wanted = _definite(plan, manifest)
    asked = read_asked(graph_path)
    require_tokens(asked.quantized, wanted.profiles, manifest)
    with staging(out) as folder:
        staged = folder / out.name
        job = _job(graph_path, staged, plan=plan, wanted=wanted, manifest=manifest, operators=asked.operators)
        told = _run(job, folder, progress or (lambda *_: True))
        log = parse_build_log(Path(job.log).read_text(encoding="utf-8"))
        achieved = judge(asked, log, profiles=len(wanted.profiles))
        if plan.strict and achieved.fallbacks:
            raise VerificationError(
                f"{out.name} was not written, because --strict allows no fallback: {'; '.join(achieved.fallbacks)}"
            )
        engine = replace(
            manifest,
            made_from=(*manifest.made_from, _ancestor(graph_path)),
            tools={**manifest.tools, NAMES[wanted.backend]: told.version},
            verification=None,
            golden=manifest.golden if _runs_golden(wanted.profiles, manifest) else None,
            target={"backend": wanted.backend, "version": told.version, "gpus": list(wanted.targets)},
        )
        sidecar = _sidecar(staged, plan, wanted, told=told, achieved=achieved, manifest=engine)
        _write_sidecar(staged, sidecar)
        with graph.judging(staged, out):
            verification = prove(staged, graph_path, sidecar)
        sidecar = replace(sidecar, manifest=replace(engine, verification=verification))
        _write_sidecar(staged, sidecar)
        _put_both_in_place(staged, out, plan.timing_cache)
    return sidecar


def estimate(graph_path: Path, plan: EnginePlan) -> MemoryEstimate:
    """Rough memory that building and running need.

    Raises:
        InputError: when the file is no graph of ours, or a profile does not fit it.
    """
    manifest = graph.read_manifest(graph_path)
    weights = sum(path.stat().st_size for path in model_files(graph_path))
    return estimate_memory(manifest, weights, resolve_profiles(plan, manifest))


@dataclass(frozen=True, kw_only=True)
class _Told:
    version: str
    warnings: tuple[str, ...]


def _definite(plan: EnginePlan, manifest: Manifest) -> _Wanted:
    profiles = resolve_profiles(plan, manifest)
    backend = flavour.choose_backend(plan)
    flavour.refuse_unhonoured(backend, plan)
    small = plan.low_memory and plan.level is None and backend == "tensorrt"
    return _Wanted(
        backend=backend,
        targets=flavour.resolve_targets(backend, plan),
        profiles=profiles,
        level=SMALL_LEVEL if small else plan.level,
    )


def _runs_golden(profiles: tuple[Profile, ...], manifest: Manifest) -> bool:
    """Whether the engine can be shown the golden image; other numbers of patches would give other values."""
    return holds(profiles, len(golden_ids(manifest.patches.count)))


def _job(
    graph_path: Path, staged: Path, *, plan: EnginePlan, wanted: _Wanted, manifest: Manifest, operators: dict[str, str]
) -> BuildJob:
    cache = staged.with_name(TIMING_CACHE) if plan.timing_cache else None
    if cache and plan.timing_cache and plan.timing_cache.is_file():
        shutil.copyfile(plan.timing_cache, cache)
    return BuildJob(
        backend=wanted.backend,
        graph=str(graph_path.resolve()),
        plan=str(staged),
        log=str(staged.with_name("log")),
        operators=operators,
        precision=manifest.precision,
        targets=wanted.targets,
        shapes=tuple(input_shapes(manifest, profile) for profile in wanted.profiles),
        workspace=plan.workspace_limit,
        level=wanted.level,
        aux_streams=not plan.low_memory,
        timing_cache=str(cache) if cache else None,
    )


def _ancestor(graph_path: Path) -> Ancestor:
    return Ancestor(kind="graph", name=graph_path.name, sha256=sha256_files(*model_files(graph_path)))


def _sidecar(
    staged: Path, plan: EnginePlan, wanted: _Wanted, *, told: _Told, achieved: Achieved, manifest: Manifest
) -> EngineSidecar:
    needs_gpu = wanted.backend == "tensorrt"
    return EngineSidecar(
        sha256=sha256_files(staged),
        size=staged.stat().st_size,
        backend=wanted.backend,
        version=told.version,
        targets=wanted.targets,
        device=next((gpu.name for gpu in nvidia_gpus()), "") if needs_gpu else "",
        profiles=wanted.profiles,
        workspace=plan.workspace_limit,
        level=wanted.level,
        low_memory=plan.low_memory,
        warnings=told.warnings if manifest.golden else (*told.warnings, NO_GOLDEN),
        achieved=achieved,
        manifest=manifest,
    )


def _write_sidecar(engine: Path, sidecar: EngineSidecar) -> None:
    sidecar_path(engine).write_text(sidecar.to_json(), encoding="utf-8")


def _put_both_in_place(staged: Path, out: Path, timing_cache: Path | None) -> None:
    if timing_cache is not None:
        with staging(timing_cache) as folder:  # it may be on another disk
            shutil.copyfile(staged.with_name(TIMING_CACHE), folder / TIMING_CACHE)
            put_in_place(folder / TIMING_CACHE, timing_cache)
    put_in_place(staged, out)
    put_in_place(sidecar_path(staged), sidecar_path(out))


@contextmanager
def _child(job: BuildJob, folder: Path) -> Iterator[subprocess.Popen[str]]:
    """The building process; it is stopped, and killed if need be, on the way out whatever happens."""
    told = folder / "job.json"
    told.write_text(json.dumps(dataclasses.asdict(job)), encoding="utf-8")
    with (folder / "stderr").open("wb") as stderr:
        child = subprocess.Popen(
            [sys.executable, "-m", "mae_export.export.build_child", str(told)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            encoding="utf-8",
            start_new_session=True,  # Ctrl-C reaches this process only, which then ends the child in order
        )
    with child:
        try:
            yield child
        finally:
            if child.stdin is not None:
                child.stdin.close()
            try:
                child.wait(GRACE_SECONDS)
            except subprocess.TimeoutExpired:
                child.kill()


def _run(job: BuildJob, folder: Path, progress: Progress) -> _Told:
    last: dict[str, object] = {}
    with _child(job, folder) as child:
        for line in child.stdout or ():
            last = json.loads(line)
            if "phase" in last and not progress(str(last["phase"]), int(str(last["done"])), int(str(last["total"]))):
                raise KeyboardInterrupt
    done = last.get("done")
    if isinstance(done, dict):
        return _Told(version=done["version"], warnings=tuple(done["warnings"]))
    if "error" in last:
        raised: type[MaeExportError] = getattr(errors, str(last["error"]))
        raise raised(str(last["message"]))
    raise _crash(child.returncode, (folder / "stderr").read_text(encoding="utf-8", errors="replace"))


def _crash(code: int, printed: str) -> Exception:
    words = printed.strip()[-LAST_WORDS:] or "nothing"
    if code == -signal.SIGKILL or any(sign in printed.lower() for sign in MEMORY_SIGNS):
        return ResourceError(
            "the builder was killed, as the system does when memory runs out, or got none; nothing was written. Close "
            "other programs, or build with --low-memory, a smaller --batch or fewer profiles"
        )
    if code < 0:
        name = signal.Signals(-code).name
        return MachineError(f"the builder crashed ({name}); nothing was written. It last printed: {words}")
    return RuntimeError(f"the builder ended with code {code} and these words: {words}")
