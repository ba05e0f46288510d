"""A session on ONNX Runtime, on the CPU or through one of its providers for NVIDIA GPUs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy.typing as npt
import onnxruntime as ort

from mae_export.errors import GraphError, MachineError, ResourceError
from mae_export.manifest import METADATA_KEY, Manifest
from mae_export.runtime.bound import BoundRuns
from mae_export.runtime.device_array import DeviceArray, on_host
from mae_export.runtime.doctor import read_cpu
from mae_export.runtime.graph_manifest import read_manifest
from mae_export.runtime.graph_session import GraphSession
from mae_export.runtime.providers import DEVICE_ID, ON_CPU, Choice, open_on_gpu

_LOAD_ERRORS = tuple(
    getattr(ort.capi.onnxruntime_pybind11_state, name)
    for name in ("Fail", "InvalidArgument", "InvalidGraph", "InvalidProtobuf", "NoSuchFile", "NotImplemented",
                 "RuntimeException", "EPFail")
)  # fmt: skip
_DAMAGED = tuple(getattr(ort.capi.onnxruntime_pybind11_state, name) for name in ("InvalidProtobuf", "NoSuchFile"))


class OrtSession(GraphSession):
    """Runs a graph of ours with ONNX Runtime; safe to use from several threads.

    Args:
        path: the .onnx file; its data file, if any, lies next to it.
        threads: of the CPU for one operator; 0 lets ONNX Runtime choose.
        choice: the provider, and its options.

    Attributes:
        choice: as it came out.

    Raises:
        GraphError: when ONNX Runtime refuses the file, or it carries no manifest.
        MachineError: when the graph is bf16, for which the CPU has no kernels; or the provider is missing, or does not
            run the graph.
    """

    def __init__(self, path: Path, *, threads: int = 0, choice: Choice = ON_CPU) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3  # errors reach us as exceptions; warnings would only disturb a progress bar
        try:
            session, self.choice = _load(path, options, choice)
        except _LOAD_ERRORS as error:
            raise _refusal(path, choice, error) from error
        text = session.get_modelmeta().custom_metadata_map.get(METADATA_KEY)
        if text is None:
            raise GraphError(f"{path} carries no manifest; expected a graph written by `mae-export export`")
        super().__init__(path, Manifest.from_json(text), session)
        self._bound: BoundRuns | None = None
        if choice.backend != "cpu":
            graphs, device = self.choice.options.get("enable_cuda_graph") == "1", choice.options.get(DEVICE_ID, "0")
            self._bound = BoundRuns(ort, session, self.manifest, graphs=graphs, device=int(device))

    @property
    def description(self) -> str:
        """Version and execution providers."""
        return f"ONNX Runtime {ort.__version__}, {', '.join(self._open().get_providers())}"

    def run(
        self, feeds: Mapping[str, npt.NDArray[Any]], outputs: Sequence[str] | None = None
    ) -> dict[str, npt.NDArray[Any]]:
        """Run one batch; see `Session.run`."""
        session, bound = self._open(), self._bound
        names = self._checked(feeds, outputs)
        with self._running():
            values = session.run(list(names), dict(feeds)) if bound is None else bound.run(feeds, names)
        return dict(zip(names, values, strict=True))

    def run_on_device(
        self, feeds: Mapping[str, npt.NDArray[Any]], outputs: Sequence[str] | None = None
    ) -> dict[str, DeviceArray]:
        """Run one batch; see `Session.run_on_device`. On a GPU it returns when the values are there.

        Raises:
            MachineError: when it runs on a GPU and cuda-python is not installed.
        """
        bound = self._bound
        if bound is None:
            return on_host(self.run(feeds, outputs))
        names = self._checked(feeds, outputs)
        with self._running():
            return bound.run_on_device(feeds, names)

    @contextmanager
    def _running(self) -> Iterator[None]:
        """ONNX Runtime's errors as ours."""
        try:
            yield
        except _LOAD_ERRORS as error:
            if "allocate memory" in str(error):
                raise ResourceError(f"{self._path} ran out of memory; use a smaller batch ({error})") from error
            raise GraphError(f"{self._path} failed while running: {error}") from error

    def close(self) -> None:
        """Give the memory back, but for outputs on the GPU that somebody still has."""
        if self._bound is not None:
            self._bound.close()
        self._bound = None
        super().close()


def _load(path: Path, options: ort.SessionOptions, choice: Choice) -> tuple[Any, Choice]:
    """ONNX Runtime's session, and the choice as it came out."""
    if choice.backend != "cpu":
        return open_on_gpu(ort, path, options, choice)
    if not read_cpu().has_vnni:
        # Such x64 CPUs add pairs of 8-bit products in 16 bits, which overflows; this makes weights unsigned, which does
        # not, but is slow: with VNNI it would cost INT8 graphs 40 % of their speed for nothing.
        options.add_session_config_entry("session.x64quantprecision", "1")
    for name, value in choice.options.items():
        options.add_session_config_entry(name, value)
    try:
        return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"]), choice
    except _LOAD_ERRORS:
        if not _promises(path, "fp8"):
            raise
        options.add_session_config_entry("session.disable_quant_qdq", "1")  # FP8 would be fused into INT8 kernels
        return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"]), choice


def _refusal(path: Path, choice: Choice, error: Exception) -> GraphError | MachineError:
    """What ONNX Runtime's refusal to load a file means."""
    if choice.backend != "cpu" and not isinstance(error, _DAMAGED):
        return MachineError(
            f"ONNX Runtime cannot run {path} with the backend {choice.backend!r} ({error}). Open it with backend "
            "'cpu', or see `mae-export doctor`"
        )
    if _promises(path, "bf16"):
        return MachineError(
            f"{path} is a bf16 graph, which ONNX Runtime cannot run on a CPU ({error}). Run: pip install "
            "'mae-export[openvino]', which can; or build an engine from it with `mae-export build`, or convert the "
            "float32 graph to fp16, or run that"
        )
    return GraphError(
        f"{path} is no graph that ONNX Runtime can load; expected one written by `mae-export export`. If it was, the "
        f"file is damaged: copy or export it again. ONNX Runtime says: {error}"
    )


def _promises(path: Path, precision: str) -> bool:
    """What the manifest of a graph that does not load says; onnx, which could read it, is not needed here."""
    manifest = read_manifest(path)
    return manifest is not None and manifest.precision == precision
