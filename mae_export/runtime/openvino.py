"""A session on OpenVINO, whose CPU kernels compute in bf16 where the processor can, and run Q/DQ graphs in INT8.

Precision lives in the graph: a bf16 graph runs in bf16, every other in float32 but for its 8-bit products. On a
processor without bf16 instructions a bf16 graph runs in float32, and the choice says so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mae_export.errors import GraphError, MachineError
from mae_export.runtime.device_array import DeviceArray, on_host
from mae_export.runtime.graph_manifest import read_manifest
from mae_export.runtime.graph_session import GraphSession
from mae_export.runtime.providers import Choice

Array = npt.NDArray[Any]
DEVICE = "CPU"
ASKED_FOR = Choice(backend="openvino", reason="it was asked for")


class OpenVinoSession(GraphSession):
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
        MachineError: when OpenVINO is not installed.
    """

    def __init__(self, path: Path, *, threads: int = 0, choice: Choice = ASKED_FOR) -> None:
        try:
            import openvino
        except ModuleNotFoundError as error:
            raise MachineError("OpenVINO is not installed; run: pip install 'mae-export[openvino]'") from error
        manifest = read_manifest(path)
        if manifest is None:
            raise GraphError(f"{path} carries no manifest; expected a graph written by `mae-export export`")
        self._version = str(openvino.__version__).partition("-")[0]
        core = openvino.Core()
        self.choice = _with_precision(core, choice, manifest.precision)
        settings = {**self.choice.options, "NUM_STREAMS": "1"}
        if threads:
            settings["INFERENCE_NUM_THREADS"] = str(threads)
        try:
            compiled = core.compile_model(str(path), DEVICE, settings)
        except RuntimeError as error:
            raise GraphError(
                f"OpenVINO {self._version} cannot load {path}: {error}. Run it with backend 'cpu'; if that fails as "
                "well, the file is damaged: export it again"
            ) from error
        super().__init__(path, manifest, compiled)
        self._idle: list[Any] = []  # requests that no thread uses; each holds the buffers of a run

    @property
    def description(self) -> str:
        """Version, device and the type that products outside INT8 are computed in."""
        return f"OpenVINO {self._version}, {DEVICE}, {self.choice.options['INFERENCE_PRECISION_HINT']}"

    def run(self, feeds: Mapping[str, Array], outputs: Sequence[str] | None = None) -> dict[str, Array]:
        """Run one batch; see `Session.run`."""
        compiled = self._open()
        names = self._checked(feeds, outputs)
        try:
            request = self._idle.pop()
        except IndexError:
            request = compiled.create_infer_request()
        try:
            shared = {name: np.ascontiguousarray(array) for name, array in feeds.items()}
            found = request.infer(shared, share_inputs=True, share_outputs=True)
        except RuntimeError as error:
            raise GraphError(f"{self._path} failed while running: {error}") from error
        values = {name: np.array(found[name]) for name in names}
        self._idle.append(request)
        return values

    def run_on_device(self, feeds: Mapping[str, Array], outputs: Sequence[str] | None = None) -> dict[str, DeviceArray]:
        """Run one batch; see `Session.run_on_device`. The device is the CPU."""
        return on_host(self.run(feeds, outputs))

    def close(self) -> None:
        """Give the memory back."""
        self._idle = []
        super().close()


def _with_precision(core: Any, choice: Choice, precision: str) -> Choice:
    """The choice with the type to compute in."""
    if precision != "bf16":
        return replace(choice, options={**choice.options, "INFERENCE_PRECISION_HINT": "f32"})
    if "BF16" in core.get_property(DEVICE, "OPTIMIZATION_CAPABILITIES"):
        return replace(choice, options={**choice.options, "INFERENCE_PRECISION_HINT": "bf16"})
    reason = f"{choice.reason}; in float32, because this processor has no bf16 instructions"
    return replace(choice, reason=reason, options={**choice.options, "INFERENCE_PRECISION_HINT": "f32"})
