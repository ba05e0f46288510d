"""Engine files: a plan that is native code, and beside it the sidecar that says what it is and what its bytes must be.

A plan gets to TensorRT only through `load_plan`, which compares the very bytes it hands over with the SHA-256 in the
sidecar. The sidecar is written last, so a plan whose sidecar is missing or belongs to another plan is refused. Nothing
here needs TensorRT: engines can be inspected on any machine.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

from mae_export.errors import InputError, SecurityError
from mae_export.files import sha256_files
from mae_export.manifest import SCHEMA, Manifest, Range, read_json

SIDECAR_SUFFIX = ".json"  # NAME.engine has NAME.engine.json beside it
Backend = Literal["tensorrt", "rtx"]
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Profile:
    """One optimization profile: the batches, and the numbers of visible patches per image, that it runs.

    Attributes:
        batch: images per run.
        keep: visible patches K; None for graphs without `ids_keep`.

    Raises:
        InputError: when a range begins at 0.
    """

    batch: Range
    keep: Range | None = None

    def __post_init__(self) -> None:
        for name, extent in (("batch", self.batch), ("keep", self.keep)):
            if extent is not None and extent.minimum < 1:
                raise InputError(f"{name} {extent} begins at {extent.minimum}; an engine needs at least 1")

    def __str__(self) -> str:
        return f"batch={self.batch}" + (f",keep={self.keep}" if self.keep else "")


@dataclass(frozen=True, kw_only=True)
class EngineLayer:
    """One layer that the builder planned: its name and kind, and the data types of its inputs and outputs."""

    name: str
    kind: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Achieved:
    """What the builder made of the graph, over all profiles.

    Attributes:
        attention: attention blocks of the graph times profiles.
        fused: how many of them run as one kernel.
        gemms: matrix products with weights, by data type.
        fallbacks: sentences on what runs otherwise than the graph asks; empty when nothing does.
        activation_bytes: activation memory of each profile at its largest shapes.
        weights_bytes: memory of the weights.
        layers: all planned layers.
    """

    attention: int
    fused: int
    gemms: dict[str, int]
    fallbacks: tuple[str, ...]
    activation_bytes: tuple[int, ...]
    weights_bytes: int
    layers: tuple[EngineLayer, ...]


@dataclass(frozen=True, kw_only=True)
class EngineSidecar:
    """Everything that is known about an engine without loading it.

    Attributes:
        sha256: of the plan's bytes, hexadecimal.
        size: of the plan in bytes.
        backend: library that built it and alone can run it.
        version: version of that library.
        targets: GPUs it runs on, such as `sm86`.
        device: name of the GPU it was built on; "" when none was needed.
        profiles: in the engine's order.
        workspace: limit of scratch memory in bytes; None for no limit.
        level: optimization level; None for the backend's own.
        low_memory: whether it was built with the preset for small boards.
        warnings: what is known against this library's version.
        achieved: what the builder planned.
        manifest: of the graph, with the engine's `target`; its `verification` is None until the engine was compared
            with its graph on a GPU.
        schema: version of this structure.
    """

    sha256: str
    size: int
    backend: Backend
    version: str
    targets: tuple[str, ...]
    device: str
    profiles: tuple[Profile, ...]
    workspace: int | None
    level: int | None
    low_memory: bool
    warnings: tuple[str, ...]
    achieved: Achieved
    manifest: Manifest
    schema: int = SCHEMA

    @property
    def proven(self) -> bool:
        """Whether the engine was compared with its graph; an unproven one runs its golden check when first opened."""
        return self.manifest.verification is not None

    def to_json(self) -> str:
        """Serialise; the result is stable for equal sidecars."""
        return json.dumps(dataclasses.asdict(self), indent=1, sort_keys=True, allow_nan=False)


def sidecar_path(engine: Path) -> Path:
    """Where the sidecar of an engine is."""
    return engine.with_name(engine.name + SIDECAR_SUFFIX)


def read_sidecar(engine: Path) -> EngineSidecar:
    """Read the sidecar of an engine.

    Raises:
        InputError: when it is missing, damaged or from another version.
    """
    path = sidecar_path(engine)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise InputError(
            f"{engine.name} has no {path.name} beside it; an engine is the two files that `mae-export build` wrote"
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read ({error}); build the engine again") from error
    return read_json(text, EngineSidecar, f"sidecar {path.name}")


def bytes_match(engine: Path, sidecar: EngineSidecar) -> bool:
    """Whether the plan's bytes are those that the sidecar describes.

    Raises:
        InputError: when the plan cannot be read.
    """
    return sha256_files(engine) == sidecar.sha256


def load_plan(engine: Path, deserialise: Callable[[bytes], T]) -> tuple[EngineSidecar, T]:
    """Hand a plan to `deserialise`, after its bytes were found to be those that the sidecar describes.

    Raises:
        InputError: when the plan or its sidecar is missing or damaged.
        SecurityError: when the bytes differ; `deserialise` was not called.
    """
    sidecar = read_sidecar(engine)
    try:
        plan = engine.read_bytes()
    except OSError as error:
        raise InputError(f"{engine} cannot be read: {error.strerror}") from error
    found = hashlib.sha256(plan).hexdigest()
    if found != sidecar.sha256:
        raise SecurityError(
            f"the bytes of {engine.name} (SHA-256 {found[:12]}...) are not those that {sidecar_path(engine).name} "
            f"describes ({sidecar.sha256[:12]}...). An engine is native code, so it was not loaded: copy both files "
            "again, or build it again"
        )
    return sidecar, deserialise(plan)
