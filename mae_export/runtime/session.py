"""The one seam around the device: a session runs named arrays through a model, whatever runs it underneath."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol

import numpy.typing as npt

from mae_export.artefacts import ENGINE_SUFFIX, GRAPH_SUFFIX, require_graph
from mae_export.errors import InputError, MachineError, MaeExportError, UsageError
from mae_export.manifest import Manifest
from mae_export.runtime.graph_manifest import read_manifest
from mae_export.runtime.providers import AS_WRITTEN, DEVICE_ID, FOR_CUDA, LOWERED, Backend, Choice, choose

if TYPE_CHECKING:
    from mae_export.runtime.app import FeatureSession
    from mae_export.runtime.device_array import DeviceArray
    from mae_export.runtime.openvino import OpenVinoSession
    from mae_export.runtime.ort import OrtSession

Array = npt.NDArray[Any]


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

    def run_on_device(self, feeds: Mapping[str, Array], outputs: Sequence[str] | None = None) -> dict[str, DeviceArray]:
        """Run one batch and leave the outputs where they were computed, on the GPU or in the host's memory.

        Args:
            feeds, outputs: as for `run`.

        Returns:
            Arrays by output name that other libraries take by DLPack without a copy, such as
            `torch.from_dlpack(array)`. Their memory is theirs: no later run writes into it, and closing the session
            leaves it alone. On a GPU the values may still be on their way; who takes an array waits for them.

        Raises:
            InputError, MaskError: as `run` does.
            UsageError: when the session shares batches among several devices.
        """
        ...

    def close(self) -> None:
        """Give device memory back; the session cannot run afterwards. Closing twice is harmless."""
        ...

    def __enter__(self) -> Session: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


def open_session(
    path: str | Path, *, backend: Backend = "auto", threads: int = 0, devices: Sequence[int] | None = None
) -> FeatureSession:
    """Open a model file. Nothing is built or converted; what runs it, and why, is in the session's `choice`.

    A graph that `mae-export prepare` prepared on this machine is opened in the form that it found best, whose digest,
    name and precision the session has; any other `backend` than `auto` takes the graph itself.

    Args:
        path: an ONNX graph, or an engine, written by mae-export.
        backend: for graphs, `auto` (see `mae_export.runtime.providers.choose`); `cpu`, `cuda`, `tensorrt` or `rtx` for
            a provider of ONNX Runtime; or `openvino`. Engines have their own.
        threads: CPU threads for a graph; 0 lets the runtime choose.
        devices: numbers of the GPUs to share each batch among, of those that CUDA shows; None for the first alone.

    Raises:
        InputError: when the file is missing or is no model of ours.
        UsageError: when there is no such backend, or one is named for an engine; or it uses no GPU of `devices`.
        SecurityError: when an engine's bytes are not those that its sidecar describes.
        MachineError: when no runtime that can run it is installed, the engine is not for this machine, or the backend
            would silently not be used.
        VerificationError: when an engine that was never compared with its graph fails its golden check.
    """
    if backend != "auto" or Path(path).suffix.lower() != GRAPH_SUFFIX:
        return open_as_is(path, backend=backend, threads=threads, devices=devices)
    from mae_export.runtime import prepared

    found, remark = prepared.find(Path(path))
    if found is not None and _wants_cuda(found) and choose(found).backend != "cuda":
        found, remark = None, "what was prepared is for ONNX Runtime's CUDA provider"
    if found is not None:
        try:
            session = open_as_is(found, backend="auto", threads=threads, devices=devices)
            session.choice = replace(session.choice, reason=f"prepared on this machine from {Path(path).name}")
            return session
        except MaeExportError as error:
            remark = f"what was prepared does not open ({error})"
    session = open_as_is(path, backend=backend, threads=threads, devices=devices)
    if remark:
        session.choice = replace(session.choice, reason=f"{session.choice.reason}; {remark}")
    return session


def _wants_cuda(path: Path) -> bool:
    """Whether a model was lowered for ONNX Runtime's CUDA provider."""
    manifest = read_manifest(path) if path.suffix.lower() == GRAPH_SUFFIX else None
    return manifest is not None and manifest.tools.get(LOWERED) == FOR_CUDA


def open_as_is(
    path: str | Path, *, backend: Backend = "auto", threads: int = 0, devices: Sequence[int] | None = None
) -> FeatureSession:
    """Open the very file, as whoever judges it must; otherwise like `open_session`."""
    from mae_export.runtime.app import FeatureSession

    path = Path(path)
    if path.suffix.lower() != ENGINE_SUFFIX:
        require_graph(path)
    if not path.is_file():
        raise InputError(
            f"there is no model at {path}; expected an .onnx file written by `mae-export export`, or an .engine"
        )
    if devices is not None and (not devices or min(devices) < 0 or len(set(devices)) != len(devices)):
        raise UsageError(f"devices {list(devices)} are no choice of GPUs; expected each number once, such as [0, 1]")
    if path.suffix.lower() == ENGINE_SUFFIX:
        if backend != "auto":
            raise UsageError(f"{path} is an engine, which runs with the library that built it; leave {backend!r} out")
        from mae_export.runtime.trt import EngineSession

        choice = Choice(backend="engine", reason="the file is one")
        engines = _on_each([0] if devices is None else devices, lambda device: EngineSession(path, device=device))
        return FeatureSession(engines, choice)
    choice = choose(path, backend)
    if devices is None:
        graph = _open_graph(path, threads, choice)
        return FeatureSession(graph, graph.choice)
    if DEVICE_ID not in choice.options:
        raise UsageError(
            f"{path} runs with {choice}, which uses no GPU of {list(devices)}; leave devices out, or take the backend "
            "'cuda', 'tensorrt' or an engine"
        )

    def on_device(device: int) -> OpenVinoSession | OrtSession:
        named = replace(choice, options={**choice.options, DEVICE_ID: str(device)})
        return _open_graph(path, threads, named)

    return FeatureSession(_on_each(devices, on_device), choice)


def _on_each(devices: Sequence[int], open_on: Callable[[int], Session]) -> Session:
    """One session over all devices."""
    from mae_export.runtime.spread import SpreadSession

    with ExitStack() as opened:
        sessions = [opened.enter_context(open_on(device)) for device in devices]
        session = sessions[0] if len(sessions) == 1 else SpreadSession(sessions)
        opened.pop_all()
    return session


def _open_graph(path: Path, threads: int, choice: Choice) -> OpenVinoSession | OrtSession:
    if choice.backend == "openvino":
        from mae_export.runtime.openvino import OpenVinoSession

        return OpenVinoSession(path, threads=threads, choice=choice)
    try:
        from mae_export.runtime.ort import OrtSession
    except ModuleNotFoundError as error:
        raise MachineError(
            f"opening {path} needs ONNX Runtime, which is not installed; run: pip install 'mae-export[cpu]'"
        ) from error
    return OrtSession(path, threads=threads, choice=choice)


def open_to_judge(path: str | Path, *, threads: int = 0) -> FeatureSession:
    """Open a model to compare it: as `open_session` does, but 8-bit graphs run node by node, as they are written.

    The kernels that ONNX Runtime fuses Q/DQ nodes into pass over the axis of the scales, which engines do not: a fault
    there would show only when it is too late.
    """
    from mae_export.runtime.app import FeatureSession

    session = open_as_is(path, threads=threads)
    if session.choice.backend != "cpu" or session.manifest.precision not in ("int8", "fp8"):
        return session
    session.close()
    from mae_export.runtime.ort import OrtSession

    return FeatureSession(OrtSession(Path(path), threads=threads, choice=AS_WRITTEN), AS_WRITTEN)
