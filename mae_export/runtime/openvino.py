"""A session on OpenVINO, whose CPU kernels compute in bf16 where the processor can, and run Q/DQ graphs in INT8.

Precision lives in the graph: a bf16 graph runs in bf16, every other in float32 but for its 8-bit products. On a
processor without bf16 instructions a bf16 graph runs in float32, and the choice says so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from mae_export.errors import GraphError, MachineError, UsageError
from mae_export.files import model_files, sha256_files
from mae_export.manifest import Manifest
from mae_export.runtime.feeds import check_feeds
from mae_export.runtime.graph_manifest import read_manifest
from mae_export.runtime.providers import Choice

Array = npt.NDArray[Any]
DEVICE = "CPU"
ASKED_FOR = Choice(backend="openvino", reason="it was asked for")


class OpenVinoSession:
    """Runs a graph of ours with OpenVINO on the CPU; safe to use from several threads, which take turns.

    All outputs are computed in every run, wanted or not.

    Args:
        path: the .onnx file; its data file, if any, lies next to it.
        threads: of the CPU; 0 lets OpenVINO choose.
        choice: why this runtime.

    Attributes:
        choice: with the options that it runs with.

    Raises:
        GraphError: when OpenVINO refuses the file, or it carries no manifest.
        MachineError: when OpenVINO is not installed or finds no CPU.
    """

    def __init__(self, path: Path, *, threads: int = 0, choice: Choice = ASKED_FOR) -> None:
        try:
            import openvino
        except ModuleNotFoundError as error:
            raise MachineError("OpenVINO is not installed; run: pip install 'mae-export[openvino]'") from error
        manifest = read_manifest(path)
        if manifest is None:
            raise GraphError(f"{path} carries no manifest; expected a graph written by `mae-export export`")
        self._path = path
        self._manifest = manifest
        self._version = str(openvino.__version__).partition("-")[0]
        core = openvino.Core()
        self.choice = _with_precision(core, choice, manifest.precision)
        settings = {**self.choice.options, "NUM_STREAMS": "1"}
        if threads:
            settings["INFERENCE_NUM_THREADS"] = str(threads)
        try:
            self._compiled: Any = core.compile_model(str(path), DEVICE, settings)
        except RuntimeError as error:
            raise GraphError(
                f"OpenVINO {self._version} cannot load {path}: {error}. Run it with backend 'cpu'; if that fails as "
                "well, the file is damaged: export it again"
            ) from error
        self._idle: list[Any] = []

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
        """Version, device and the type that products outside INT8 are computed in."""
        return f"OpenVINO {self._version}, {DEVICE}, {self.choice.options['INFERENCE_PRECISION_HINT']}"

    def run(self, feeds: Mapping[str, Array], outputs: Sequence[str] | None = None) -> dict[str, Array]:
        """Run one batch; see `Session.run`."""
        names = tuple(spec.name for spec in self._manifest.outputs) if outputs is None else tuple(outputs)
        for name in names:
            self._manifest.output(name)
        check_feeds(self._manifest, feeds)
        request = self._request()
        try:
            shared = {name: np.ascontiguousarray(array) for name, array in feeds.items()}
            found = request.infer(shared, share_inputs=True, share_outputs=True)
        except RuntimeError as error:
            raise GraphError(f"{self._path} failed while running: {error}") from error
        values = {name: np.array(found[name]) for name in names}
        self._idle.append(request)
        return values

    def _request(self) -> Any:
        """One that no other thread uses; it holds the buffers of a run."""
        if self._compiled is None:
            raise UsageError(f"the session on {self._path} is closed; open it again")
        try:
            return self._idle.pop()
        except IndexError:
            return self._compiled.create_infer_request()

    def close(self) -> None:
        """Give the memory back."""
        self._compiled = None
        self._idle = []

    def __enter__(self) -> OpenVinoSession:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _with_precision(core: Any, choice: Choice, precision: str) -> Choice:
    """The choice with the type to compute in."""
    if precision != "bf16":
        return replace(choice, options={**choice.options, "INFERENCE_PRECISION_HINT": "f32"})
    if "BF16" in core.get_property(DEVICE, "OPTIMIZATION_CAPABILITIES"):
        return replace(choice, options={**choice.options, "INFERENCE_PRECISION_HINT": "bf16"})
    reason = f"{choice.reason}; in float32, because this processor has no bf16 instructions"
    return replace(choice, reason=reason, options={**choice.options, "INFERENCE_PRECISION_HINT": "f32"})
