"""A session on ONNX Runtime."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy.typing as npt
import onnxruntime as ort

from mae_export.errors import GraphError, UsageError
from mae_export.files import model_files, sha256_files
from mae_export.manifest import METADATA_KEY, Manifest
from mae_export.runtime.feeds import check_feeds

_LOAD_ERRORS = tuple(
    getattr(ort.capi.onnxruntime_pybind11_state, name)
    for name in ("Fail", "InvalidArgument", "InvalidGraph", "InvalidProtobuf", "NoSuchFile", "NotImplemented",
                 "RuntimeException")
)  # fmt: skip


class OrtSession:
    """Runs a graph of ours with ONNX Runtime on the CPU.

    Args:
        path: the .onnx file; its data file, if any, lies next to it.
        threads: for one operator; 0 lets ONNX Runtime choose.

    Raises:
        GraphError: when ONNX Runtime refuses the file, or it carries no manifest.
    """

    def __init__(self, path: Path, *, threads: int = 0) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3  # errors reach us as exceptions; warnings would only disturb a progress bar
        try:
            self._session: Any = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except _LOAD_ERRORS as error:
            raise GraphError(
                f"{path} is no graph that ONNX Runtime can load; expected one written by `mae-export export`. If it "
                f"was, the file is damaged: copy or export it again. ONNX Runtime says: {error}"
            ) from error
        text = self._session.get_modelmeta().custom_metadata_map.get(METADATA_KEY)
        if text is None:
            raise GraphError(f"{path} carries no manifest; expected a graph written by `mae-export export`")
        self._path = path
        self._manifest = Manifest.from_json(text)
        self._names = tuple(spec.name for spec in self._manifest.outputs)

    @property
    def name(self) -> str:
        """File name of the graph."""
        return self._path.name

    @property
    def manifest(self) -> Manifest:
        """What the graph promises."""
        return self._manifest

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the graph's bytes followed by its data file's."""
        return sha256_files(*model_files(self._path))

    @property
    def description(self) -> str:
        """Version and execution providers."""
        return f"ONNX Runtime {ort.__version__}, {', '.join(self._open().get_providers())}"

    def run(
        self, feeds: Mapping[str, npt.NDArray[Any]], outputs: Sequence[str] | None = None
    ) -> dict[str, npt.NDArray[Any]]:
        """Run one batch; see `Session.run`."""
        session = self._open()
        names = self._names if outputs is None else tuple(outputs)
        for name in names:
            self._manifest.output(name)
        check_feeds(self._manifest, feeds)
        try:
            values = session.run(list(names), dict(feeds))
        except _LOAD_ERRORS as error:
            raise GraphError(f"{self._path} failed while running: {error}") from error
        return dict(zip(names, values, strict=True))

    def close(self) -> None:
        """Give the memory back."""
        self._session = None

    def _open(self) -> Any:
        if self._session is None:
            raise UsageError(f"the session on {self._path} is closed; open it again")
        return self._session

    def __enter__(self) -> OrtSession:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
