"""What engine is wanted: plain values with their defaults, read from a command line, free of TensorRT and onnx."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mae_export.errors import InputError, UsageError
from mae_export.manifest import Manifest, Range, TensorSpec
from mae_export.runtime.engine_file import Profile

THIS = "this"  # the GPU of this machine
LEVELS = range(6)
SIZES = {"": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}
SMALL_WORKSPACE = 1 << 30  # of the low-memory preset: an 8 GB board holds it beside the system and the weights
SMALL_LEVEL = 2  # tries few kernels, each of which needs memory
DEFAULT_PROFILE = Profile(batch=Range(minimum=1, typical=8, maximum=64))

# Fitted to float16 ViT-B and ViT-L with one to four profiles on the TensorRT-RTX builder.
BUILDER_BYTES = 500 << 20
BUILDER_PER_WEIGHT, BUILDER_PER_PROFILE = 2.7, 0.8
ACTIVATIONS_PER_TOKEN = 9  # in units of the width: q, k, v, the MLP's 4 and the residual stream


@dataclass(frozen=True, kw_only=True)
class EnginePlan:
    """What engine is wanted; its precision is the graph's.

    Attributes:
        profiles: ranges of batch and visible patches, one optimization profile each.
        backend: `auto` takes TensorRT-RTX when targets are named, and otherwise TensorRT where it is installed.
        targets: GPUs such as `sm86`, or `this` alone; empty leaves it to the backend.
        workspace: limit of scratch memory in bytes; None for the backend's own.
        timing_cache: file with measured kernels that makes later builds faster; created when missing.
        level: optimization level 0 (fast build) to 5 (fast engine); None for the backend's own.
        low_memory: the preset for 8 GB boards: 1 GiB of workspace, no auxiliary streams, few kernels tried.
        strict: refuse an engine that falls back from what the graph asks.
        force: replace an existing file.

    Raises:
        UsageError: when options make no sense.
    """

    profiles: tuple[Profile, ...] = (DEFAULT_PROFILE,)
    backend: Literal["auto", "tensorrt", "rtx"] = "auto"
    targets: tuple[str, ...] = ()
    workspace: int | None = None
    timing_cache: Path | None = None
    level: int | None = None
    low_memory: bool = False
    strict: bool = False
    force: bool = False

    def __post_init__(self) -> None:
        if not self.profiles:
            raise UsageError("an engine needs a profile, for example --batch 1:8:64")
        if self.level is not None and self.level not in LEVELS:
            raise UsageError(f"optimization level {self.level} does not exist; expected 0 to {LEVELS.stop - 1}")
        if self.workspace is not None and self.workspace < SIZES["MiB"]:
            raise UsageError(f"a workspace of {self.workspace} bytes holds no kernel; expected for example 1GiB")
        wrong = [name for name in self.targets if name != THIS and not re.fullmatch(r"sm\d{2,3}", name)]
        if wrong:
            raise UsageError(f"target {wrong[0]!r} is no GPU; write for example sm86,sm89, or this")
        if len(set(self.targets)) != len(self.targets) or (THIS in self.targets and len(self.targets) > 1):
            raise UsageError(f"targets {','.join(self.targets)} must name each GPU once, and `this` alone")

    @property
    def workspace_limit(self) -> int | None:
        """The limit of scratch memory, with that of the preset."""
        return SMALL_WORKSPACE if self.workspace is None and self.low_memory else self.workspace


@dataclass(frozen=True, kw_only=True)
class MemoryEstimate:
    """Rough bytes of memory that building and running need; the CUDA context (about 0.5 GB) comes on top."""

    build: int
    run: int

    def __str__(self) -> str:
        return f"about {self.build / 1e9:.1f} GB to build and {self.run / 1e9:.1f} GB to run"


def parse_profile(text: str) -> Profile:
    """Read `batch=1:8:64` or `batch=1:8:64,keep=49:98:196`.

    Raises:
        InputError: when the text is not that.
    """
    pairs = [part.partition("=") for part in text.split(",")]
    ranges = {name.strip(): value for name, _, value in pairs}
    if "batch" not in ranges or not set(ranges) <= {"batch", "keep"} or len(ranges) != len(pairs):
        raise InputError(f"profile {text!r} is not batch=min:typical:max[,keep=min:typical:max]")
    keep = ranges.get("keep")
    return Profile(batch=Range.parse(ranges["batch"]), keep=None if keep is None else Range.parse(keep))


def parse_size(text: str) -> int:
    """Read a number of bytes such as 4GiB, 512MiB or 1048576.

    Raises:
        InputError: when the text is not that.
    """
    match = re.fullmatch(r"(\d{1,15})\s*(KiB|MiB|GiB|)", text.strip())
    if match is None:
        raise InputError(f"size {text!r} is not a number of bytes; write for example 4GiB or 512MiB")
    return int(match[1]) * SIZES[match[2]]


def resolve_profiles(plan: EnginePlan, manifest: Manifest) -> tuple[Profile, ...]:
    """The plan's profiles with K filled in from the graph: all counts 1..N, tuned for a quarter, where none is given.

    Raises:
        InputError: when a profile does not fit the graph.
    """
    count = manifest.patches.count
    takes_keep = any(spec.name == "ids_keep" for spec in manifest.inputs)
    resolved = []
    for profile in plan.profiles:
        keep = profile.keep
        if keep is not None and not takes_keep:
            raise InputError(f"keep {keep} means nothing to a graph without ids_keep; leave it out, or export again")
        if keep is not None and keep.maximum > count:
            raise InputError(f"keep {keep} exceeds the {count} patches of an image; expected at most {count}")
        if keep is None and takes_keep:
            keep = Range(minimum=1, typical=max(1, count // 4), maximum=count)
        resolved.append(Profile(batch=profile.batch, keep=keep))
    return tuple(resolved)


def input_shapes(manifest: Manifest, profile: Profile) -> dict[str, tuple[tuple[int, ...], ...]]:
    """Smallest, typical and largest shape of each input, by name.

    Raises:
        InputError: when an input has a free dimension that is neither the batch nor K.
    """
    return {
        spec.name: tuple(zip(*(_extents(spec, axis, profile) for axis in spec.shape), strict=True))
        for spec in manifest.inputs
    }


def _extents(spec: TensorSpec, extent: int | str, profile: Profile) -> tuple[int, int, int]:
    known = {"batch": profile.batch, "kept": profile.keep}
    free = known.get(extent) if isinstance(extent, str) else Range(minimum=extent, typical=extent, maximum=extent)
    if free is None:
        raise InputError(f"input {spec.name!r} has a free dimension {extent!r}; engines know batch and kept only")
    return free.minimum, free.typical, free.maximum


def estimate_memory(manifest: Manifest, weights: int, profiles: tuple[Profile, ...]) -> MemoryEstimate:
    """Rough memory of building and running, before anything is built.

    Args:
        manifest: of the graph.
        weights: bytes of the graph's files.
        profiles: as `resolve_profiles` gives them.
    """
    width = int(manifest.encoder.get("dim", 0)) * (4 if manifest.precision == "fp32" else 2)
    tokens = max(
        profile.batch.maximum * ((profile.keep or Range.parse(str(manifest.patches.count))).maximum + 1)
        for profile in profiles
    )
    build = BUILDER_BYTES + weights * (BUILDER_PER_WEIGHT + BUILDER_PER_PROFILE * (len(profiles) - 1))
    return MemoryEstimate(build=int(build), run=weights + ACTIVATIONS_PER_TOKEN * tokens * width)
