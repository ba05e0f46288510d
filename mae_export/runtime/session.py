"""The one seam around the device: a session runs named arrays through a model, whatever runs it underneath."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol

import numpy.typing as npt

from mae_export.errors import InputError, MachineError, UsageError
from mae_export.manifest import Manifest
from mae_export.runtime.providers import AS_WRITTEN, Backend, Choice, choose

if TYPE_CHECKING:
    from mae_export.runtime.app import FeatureSession

Array = npt.NDArray[Any]
CHECKPOINTS = (".pth", ".pt", ".bin", ".ckpt", ".safetensors")
ENGINE_SUFFIX = ".engine"


class Session(Protocol):
    """A model that is ready to run."""

    @property
    def name(self) -> str:
        """File name of the model, for people and for what is made with it."""
        ...

    @property
    def manifest(self) -> Manifest:
        """What the model promises."""
        ...

    @property
    def digest(self) -> str:
        """SHA-256 of the model's bytes, hexadecimal; features carry it."""
        ...

    @property
    def description(self) -> str:
        """What runs it and where, for people ("ONNX Runtime 1.31, CPUExecutionProvider")."""
        ...

    def run(self, feeds: Mapping[str, Array], outputs: Sequence[str] | None = None) -> dict[str, Array]:
        """Run one batch.

        Args:
            feeds: every input of the manifest by name, with its dtype and shape.
            outputs: names of the outputs wanted; None means all of the manifest's.

        Returns:
            Arrays by output name, batch first. They are the caller's: the next run does not reuse their memory.

        Raises:
            InputError: when a feed is missing, unknown, or of the wrong dtype or shape.
            MaskError: when `ids_keep` names a patch that does not exist, or names one twice.
        """
        ...

    def close(self) -> None:
        """Give device memory back; the session cannot run afterwards. Closing twice is harmless."""
        ...

    def __enter__(self) -> Session: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


def open_session(path: str | Path, *, backend: Backend = "auto", threads: int = 0) -> FeatureSession:
    """Open a model file. Nothing is built or converted; what runs it, and why, is in the session's `choice`.

    Args:
        path: an ONNX graph, or an engine, written by mae-export.
        backend: for graphs, `auto` (see `mae_export.runtime.providers.choose`); `cpu`, `cuda`, `tensorrt` or `rtx` for
            a provider of ONNX Runtime; or `openvino`. Engines have their own.
        threads: CPU threads for a graph; 0 lets the runtime choose.

    Raises:
        InputError: when the file is missing or is no model of ours.
        UsageError: when there is no such backend, or one is named for an engine.
        SecurityError: when an engine's bytes are not those that its sidecar describes.
        MachineError: when no runtime that can run it is installed, the engine is not for this machine, or the backend
            would silently not be used.
        VerificationError: when an engine that was never compared with its graph fails its golden check.
    """
    from mae_export.runtime.app import FeatureSession

    path = Path(path)
    if not path.is_file():
        raise InputError(
            f"there is no model at {path}; expected an .onnx file written by `mae-export export`, or an .engine"
        )
    if path.suffix.lower() == ENGINE_SUFFIX:
        if backend != "auto":
            raise UsageError(f"{path} is an engine, which runs with the library that built it; leave {backend!r} out")
        from mae_export.runtime.trt import EngineSession

        return FeatureSession(EngineSession(path), Choice(backend="engine", reason="the file is one"))
    if path.suffix.lower() in CHECKPOINTS:
        raise InputError(f"{path} is a checkpoint, not a graph; run first: mae-export export {path} -o NAME.onnx")
    choice = choose(path, backend)
    if choice.backend == "openvino":
        from mae_export.runtime.openvino import OpenVinoSession

        with_openvino = OpenVinoSession(path, threads=threads, choice=choice)
        return FeatureSession(with_openvino, with_openvino.choice)
    try:
        from mae_export.runtime.ort import OrtSession
    except ModuleNotFoundError as error:
        raise MachineError(
            f"opening {path} needs ONNX Runtime, which is not installed; run: pip install 'mae-export[cpu]'"
        ) from error
    with_ort = OrtSession(path, threads=threads, choice=choice)
    return FeatureSession(with_ort, with_ort.choice)


def open_to_judge(path: str | Path, *, threads: int = 0) -> FeatureSession:
    """Open a model to compare it: as `open_session` does, but 8-bit graphs run node by node, as they are written.

    The kernels that ONNX Runtime fuses Q/DQ nodes into pass over the axis of the scales, which engines do not: a fault
    there would show only when it is too late.
    """
    from mae_export.runtime.app import FeatureSession

    session = open_session(path, threads=threads)
    if session.choice.backend != "cpu" or session.manifest.precision not in ("int8", "fp8"):
        return session
    session.close()
    from mae_export.runtime.ort import OrtSession

    return FeatureSession(OrtSession(Path(path), threads=threads, choice=AS_WRITTEN), AS_WRITTEN)
